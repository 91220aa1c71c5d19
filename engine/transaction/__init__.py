"""The worker's side of a transaction: snapshots, read and write sets, scans, commits, retries."""
