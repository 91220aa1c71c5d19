"""What survives a crash: the write-ahead log, checkpoints, recovery, checking and salvage."""
