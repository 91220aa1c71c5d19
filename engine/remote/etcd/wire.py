"""The parts of etcd's requests and answers that we use, in the form of its JSON gateway.

Answers come from outside: whatever is missing or of the wrong type raises ProtocolError.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...model.errors import ProtocolError

__all__ = [
    "KeyValue",
    "Page",
    "TxnAnswer",
    "delete",
    "mod_is",
    "present",
    "put",
    "range_of",
    "read_page",
    "read_txn",
    "text",
    "txn",
]


class KeyValue(NamedTuple):
    """A key of etcd as it was at some revision."""

    key: bytes
    value: bytes
    mod_revision: int


class Page(NamedTuple):
    """The answer to a range, and whether there are more keys behind it."""

    rows: Sequence[KeyValue]
    more: bool


class TxnAnswer(NamedTuple):
    """The answer to a transaction: which branch ran, the revision behind it, and the ranges that it read."""

    succeeded: bool
    revision: int
    cluster: int
    pages: Sequence[Page]


def text(data: bytes) -> str:
    """Bytes as they travel."""
    return b64encode(data).decode("ascii")


def range_of(
    key: bytes,
    end: bytes | None = None,
    *,
    revision: int = 0,
    limit: int = 0,
    changed_after: int = 0,
    reverse: bool = False,
    keys_only: bool = False,
    any_member: bool = False,
) -> dict[str, Any]:
    """A key, or the keys in [key, end), in key order.

    Args:
      revision: as of then; 0: now.
      limit: at most so many; 0: no limit.
      changed_after: only keys with a later `mod_revision`.
      any_member: answered without asking the leader; for a given revision the rows are the same.
    """
    made: dict[str, Any] = {"key": text(key)}
    if end is not None:
        made["range_end"] = text(end)
    if revision:
        made["revision"] = str(revision)
    if limit:
        made["limit"] = str(limit)
    if changed_after:
        made["min_mod_revision"] = str(changed_after + 1)
    if reverse:
        made["sort_order"], made["sort_target"] = "DESCEND", "KEY"
    if keys_only:
        made["keys_only"] = True
    if any_member:
        made["serializable"] = True
    return made


def put(key: bytes, value: bytes, lease: int = 0) -> dict[str, Any]:
    """Write a key."""
    made = {"key": text(key), "value": text(value)}
    if lease:
        made["lease"] = str(lease)
    return {"request_put": made}


def delete(key: bytes, end: bytes | None = None) -> dict[str, Any]:
    """Remove a key, or the keys in [key, end)."""
    made = {"key": text(key)}
    if end is not None:
        made["range_end"] = text(end)
    return {"request_delete_range": made}


def mod_is(key: bytes, revision: int) -> dict[str, Any]:
    """The condition that a key was written last at a revision; 0: that there is no such key."""
    return {"key": text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def present(key: bytes, wanted: bool) -> dict[str, Any]:
    """The condition that there is a key, or none."""
    result = "GREATER" if wanted else "EQUAL"
    return {"key": text(key), "target": "CREATE", "result": result, "create_revision": "0"}


def txn(
    compare: Sequence[Mapping[str, Any]],
    success: Sequence[Mapping[str, Any]],
    failure: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A transaction. Ranges may be given as `range_of` makes them."""
    return {
        "compare": list(compare),
        "success": [_op(op) for op in success],
        "failure": [_op(op) for op in failure],
    }


def _op(op: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"request_range": op} if "key" in op else op


def read_page(found: Mapping[str, Any]) -> Page:
    """The rows of a range response."""
    try:
        rows = [
            KeyValue(b64decode(row["key"]), b64decode(row.get("value", "")), int(row["mod_revision"]))
            for row in found.get("kvs", ())
        ]
        return Page(rows, found.get("more") is True)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged() from None


def read_txn(answer: Mapping[str, Any]) -> TxnAnswer:
    """The answer to a transaction."""
    try:
        header = answer["header"]
        pages = [
            read_page(response["response_range"])
            for response in answer.get("responses", ())
            if "response_range" in response
        ]
        return TxnAnswer(
            answer.get("succeeded") is True, int(header["revision"]), int(header["cluster_id"]), pages
        )
    except (KeyError, TypeError, ValueError):
        raise _damaged() from None


def _damaged() -> ProtocolError:
    return ProtocolError(
        "an answer of etcd is damaged", hint="does a proxy between us and etcd change answers?"
    )
