"""Changes from the log files, for a watch that is older than the ring of changes.

1. Only versions that were published when the call began are read: what the log has beyond them may yet be cut off.
2. Every version is there or the watch has lagged: the first segment begins at or before the version to go on from,
   and each further one where the one before it ends. A checkpoint may remove segments meanwhile.
3. The log names deleted ranges, not their keys. A watch in which one lies has lagged: what was in it, only a snapshot
   from before could tell.
"""

from __future__ import annotations

from typing import Any

from ..disk.directory import DatabaseDirectory
from ..log.wal_format import BeginTxn, BoundWrite, Delete, DeleteRange, Write, decode_body
from ..log.wal_reader import chain_from, list_segments, open_image
from ..model.errors import CorruptionError, IncompatibleFormatError, WatchLagged

__all__ = ["Commit", "logged_changes"]

# version, committed_at in ns, [(kind, stored key, value bytes)]; as `ChangeFeed.poll` gives it
Commit = tuple[int, int, list[tuple[str, bytes, bytes | None]]]

_COMMITS_MAX = 10_000


def logged_changes(
    path: str, since: int, until: int, start: bytes, end: bytes, oldest: int
) -> tuple[list[Commit], int]:
    """The changes of stored keys in [start, end) after version `since`, up to `until` at most.

    Args:
      path: the database directory.
      until: a published version.
      oldest: for the error: from which version on the ring has everything.

    Returns:
      The commits, and up to which version they are complete.

    Raises:
      WatchLagged: the log no longer has all of it.
    """
    try:
        directory = DatabaseDirectory(path, create=False)
    except (OSError, CorruptionError, IncompatibleFormatError) as error:
        raise WatchLagged(since=since, oldest=oldest) from error
    try:
        return _read(directory, since, until, start, end)
    except (OSError, CorruptionError) as error:
        raise WatchLagged(since=since, oldest=oldest) from error
    finally:
        directory.close()


def _read(
    directory: DatabaseDirectory, since: int, until: int, start: bytes, end: bytes
) -> tuple[list[Commit], int]:
    segments = chain_from(list_segments(directory), since, directory.wal.path)
    commits: list[Commit] = []
    reached = since
    for segment in segments:
        if segment.previous_version > reached:
            break  # the one before it was removed since it was listed, or is damaged
        image = open_image(directory, segment)
        version = image.skip_to(segment.first_version - 1, since + 1)
        while reached < until and (found := image.advance(version))[0] == "whole":
            _, version, first, last, _ = found
            if version > until:
                break
            if version > since:
                commit = _commit(image, version, first, last, start, end)
                if commit is None and commits:
                    return commits, reached  # the next call says that it lags
                if commit is None:
                    raise WatchLagged(since=since, oldest=version)
                if commit[2]:
                    commits.append(commit)
            reached = max(reached, version)
            if len(commits) >= _COMMITS_MAX:
                return commits, reached
    if reached < until:
        raise CorruptionError(
            f"the log ends at version {reached}",
            expected=f"everything up to version {until}",
            file=directory.wal.path,
        )
    return commits, reached


def _commit(image: Any, version: int, first: int, last: int, start: bytes, end: bytes) -> Commit | None:
    """The changes of one transaction; None if it deleted a range, whose keys the log does not have."""
    committed_at = 0
    changes: dict[bytes, tuple[str, bytes, bytes | None]] = {}
    while first < last:
        found = image.entry(first)
        assert found is not None, "a whole transaction has valid entries"
        kind, body, first = found
        match decode_body(kind, body):
            case BeginTxn(timestamp=timestamp):
                committed_at = timestamp
            case Write(key=key, value=value) | BoundWrite(key=key, value=value) if start <= key < end:
                changes.pop(key, None)
                changes[key] = ("put", key, value)
            case Delete(key=key, removed=removed) if start <= key < end:
                changes.pop(key, None)
                changes[key] = ("expire" if removed else "delete", key, None)
            case DeleteRange(start=low, end=high) if low < end and start < high:
                return None
    return version, committed_at, list(changes.values())
