"""What each word of `occamdb stats` and `top` means: printed by `stats --explain`, and the table of docs/figures.md.

A name with a dot is a field of an object: `store.used` is `used` in `store`, of `stats --json` and `db.stats()`.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["WORDS", "markdown"]

WORDS = {
    "ok": "always true: the coordinator answered",
    "path": "the directory of the database",
    "pid": "the process id of the coordinator",
    "uptime": "seconds since the coordinator started; all counters begin there",
    "auto": "true if the first program that opened the database started the coordinator, false for `occamdb serve`",
    "durability": "when a commit counts as saved: none, standard or always",
    "incarnation": "how many times a coordinator has been started on this directory",
    "version": "the version of the latest commit; each commit that writes gets the next one",
    "read_at": "when the figures were read, in seconds since 1970",
    "commits": "transactions committed",
    "batches": "rounds of the commit thread; a round decides on all commit requests that lie there when it begins, "
    "and may refuse all of them",
    "group_commit": "commits in one batch, as p50, p90, p99 and max, each an upper bound: "
    "counts are kept in buckets 1, 2-3, 4-7, 8-15 and so on, and the largest value of the bucket is shown. "
    "Refused requests do not count, nor do batches that committed nothing",
    "latency_us": "microseconds that one batch took, from taking its requests to answering them, as p50, p90, p99 and "
    "max. Each is the upper end of a bucket; buckets double in width, so the true value is above half of it",
    "conflicts.read": "commits refused because a key that they had read changed after their snapshot",
    "conflicts.range": "commits refused because something changed in a range of keys that they had scanned",
    "conflicts.write": "commits refused because another transaction had written the same key first",
    "conflicts.cas": "commits refused because a key did not have the version that was expected",
    "conflicts_found_early": "conflicts that workers saw before they sent the commit; they are in the counts above",
    "retries": "transactions begun again after a conflict, counted by the workers",
    "turns.granted": "turns: a transaction that had lost several times is next, and what would invalidate it waits",
    "turns.waited": "commit requests that waited: for somebody's turn to end, or for their own to begin",
    "turns.expired": "turns whose transaction did not come back within 20 ms, so that the others went on",
    "refused": "commits refused for another reason: a limit, a full store, a failed log",
    "snapshots_revoked": "snapshots taken away from their workers because the store needed the room that they held",
    "hot_keys": "the keys with the most conflicts, as run/kind of data/key",
    "recent_conflicts": "the last commits that were refused, the newest first, each with its first conflict; every "
    "worker keeps ten of its own",
    "recent_conflicts.at": "when it was refused, in seconds since 1970",
    "recent_conflicts.pid": "the process that lost",
    "recent_conflicts.session": "the connection that lost",
    "recent_conflicts.attempt": "which attempt of the transaction it was, from 1",
    "recent_conflicts.kind": "read, range, write or cas, as in `conflicts`",
    "recent_conflicts.run": "the run of the key; empty if the key is too long to tell",
    "recent_conflicts.tag": "the kind of data: the type tag of the key",
    "recent_conflicts.key": "the key; of a range the key at which it starts; of a long one the beginning",
    "recent_conflicts.expected": "the version that the loser relied on; of a write or a range that of its snapshot",
    "recent_conflicts.found": "the version of the commit that was first; 0: the key is gone, or it is not known",
    "recent_conflicts.number": "counts the conflicts of that connection",
    "keys": "keys that exist, of all primitives and all runs. Index entries count too, so one event, trace or run is "
    "several keys",
    "records": "versions of keys in the store, the superseded ones and tombstones included",
    "range_tombstones": "deletions of whole ranges whose keys are still being removed",
    "expired": "keys removed because their time to live was over",
    "pending_expiries": "keys with a time to live that is not over; `to expire` in the text",
    "session_keys": "ephemeral keys: each goes when the open database that wrote it is closed or its process dies; "
    "`bound to sessions` in the text",
    "session_keys_removed": "ephemeral keys removed because their session was over",
    "store.size": "the most bytes that data may take: max_store_size",
    "store.backed": "bytes of shared memory that the store has taken from the machine",
    "store.used": "bytes of the store that are not free; nodes, records, index and quarantine are parts of it",
    "store.nodes": "bytes of the tree that keeps keys in order",
    "store.records": "bytes of keys and values, all versions",
    "store.superseded": "the part of records that is older versions, kept because a snapshot may still read them",
    "store.index": "bytes of the hash table that finds a single key",
    "store.quarantine": "bytes freed a moment ago, not given out again while a reader may still be looking at them",
    "store.free": "bytes freed for good and not yet used again",
    "log.bytes": "bytes that this coordinator wrote to the log since it started; `written` in the text",
    "log.used": "bytes of entries in the log's files, the same as in `occamdb status`",
    "log.set_aside": "bytes of the log's files allocated in advance and not yet written, as in `occamdb status`",
    "log.flushes": "writes to the log's file; one holds the commits of a batch",
    "log.syncs": "times that the log was forced to the disk (fdatasync)",
    "log.rotations": "times that a log file was full and another begun",
    "log.poisoned": "true after the disk failed: no commit is taken until a restart",
    "log_errors": "batches that the log could not take; none of their commits happened",
    "database_id": "the database's own id, which never changes",
    "durable.recovery": "what the coordinator read when it started: version, keys, transactions, seconds, warnings",
    "durable.checkpoint": "the latest checkpoint: its version, failed attempts since, their error, and whether "
    "everything acknowledged is saved. `behind` in the text is the number of commits since",
    "workers": "open connections, one row each, at present",
    "workers.pid": "the process of the connection",
    "workers.attached_at": "when it connected, in seconds since 1970",
    "workers.session": "the number of the connection, never used again",
    "workers.owner": "the session of the open database that the connection belongs to",
    "workers.commits": "transactions that it committed",
    "workers.conflicts": "commits of it that the coordinator refused for a conflict",
    "workers.snapshot_version": "the version its oldest open snapshot reads; null: it has none",
    "workers.snapshot_age": "seconds since it began that snapshot; `oldest snapshot` in the text",
    "workers.held_bytes": "bytes of older versions kept for that snapshot alone or with others; `holds back` in the "
    "text",
    "sessions": "open databases, one row each, and those that may still come back",
    "sessions.session": "the id that ephemeral keys carry, as in `occamdb get --json`",
    "sessions.pid": "the process of the open database; null: not known since the coordinator started",
    "sessions.connections": "its connections; 0: its session ends after session_grace if none returns",
}


def markdown() -> Iterator[str]:
    """The lines of the table in docs/figures.md."""
    yield "| figure | meaning |"
    yield "|---|---|"
    for word, meaning in WORDS.items():
        yield f"| `{word}` | {meaning} |"
