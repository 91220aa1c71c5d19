"""Conflict records made from stored keys: they name the user key, the run and the tag.

The commit core reports a conflict by its stored key; the worker makes the record that `ConflictError`
carries.
"""

from __future__ import annotations

from .conflicts import CASConflict, ReadConflict, WriteConflict
from .errors import CorruptionError
from .key_types import TypeTag
from .keys import decode_key, decode_user_key
from .public_types import RunId

__all__ = ["cas_conflict", "range_conflict", "read_conflict", "write_conflict"]


def _user_view(key: bytes) -> tuple[str, RunId | None, TypeTag | int | None]:
    """The user key, run and tag of a stored key; the bytes alone when it is not one (a bare prefix)."""
    try:
        decoded = decode_key(key)
    except CorruptionError:
        return decode_user_key(key), None, None
    return decoded.user_key, decoded.namespace.run_id, decoded.tag


def read_conflict(key: bytes, expected: int, found: int) -> ReadConflict:
    """The record of a stale read of a stored key."""
    user_key, run_id, tag = _user_view(key)
    return ReadConflict(user_key, expected, found, None, run_id, tag)


def write_conflict(key: bytes, start_version: int, found: int) -> WriteConflict:
    """The record of a stored key written after the snapshot."""
    user_key, run_id, tag = _user_view(key)
    return WriteConflict(user_key, start_version, found, run_id, tag)


def cas_conflict(key: bytes, expected: int, found: int) -> CASConflict:
    """The record of a stored key that has another version than expected."""
    user_key, run_id, tag = _user_view(key)
    return CASConflict(user_key, expected, found, run_id, tag)


def range_conflict(start: bytes, end: bytes, start_version: int, found: int) -> ReadConflict:
    """The record of a scanned range in which something was written after the snapshot.

    The start may be the bare prefix of a tag (a scan of everything): its user key is then "".
    """
    # A byte more makes a stored key of any prefix that reaches to the tag; it is taken off again.
    try:
        decoded = decode_key(start + b"\x00")
    except CorruptionError:
        return ReadConflict(
            decode_user_key(start), start_version, found, (decode_user_key(start), decode_user_key(end))
        )
    run_id, tag = decoded.namespace.run_id, decoded.tag
    prefix_size = len(decoded.namespace.prefix) + 1
    first = decode_user_key(start[prefix_size:])
    inside = end[:prefix_size] == start[:prefix_size]
    last = decode_user_key(end[prefix_size:]) if inside else None
    return ReadConflict(first, start_version, found, (first, last), run_id, tag)
