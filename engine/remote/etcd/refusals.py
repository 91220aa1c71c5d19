"""What etcd refuses to write, as errors that name the flag of the servers that decides it."""

from __future__ import annotations

from typing import Any

from ...commit.messages import OpCode, Request
from ...model.errors import OccamError, StoreFullError, TransactionTooLarge, ValueTooLarge
from .client import Client
from .gateway import Refused
from .judge import Batch
from .space import Space
from .tending import is_full
from .writes import Writes

__all__ = ["commit_refused"]


def commit_refused(refused: Refused, client: Client, batch: Batch, request: Request) -> OccamError:
    """The error of a commit that etcd refused; nothing was committed."""
    settings = client.settings
    ops = Writes(Space(client, b""), batch).build()[1]
    if is_full(refused):
        return store_full(client)
    if "too many operations" in refused.text:
        count = len(ops)
        return TransactionTooLarge(
            f"the commit has {count} operations, more than these members of etcd take in one transaction",
            size=count,
            limit=settings.max_txn_ops,
            setting="--max-txn-ops",
            hint="start every member with a larger --max-txn-ops (128 by default), or write less in one transaction",
        )
    if "too large" in refused.text or "larger than max" in refused.text:
        size = sum(_size_of(op) for op in ops)
        values = [len(op.value) for op in request.ops if op.code is OpCode.PUT]
        largest = max(values, default=0)
        hint = (
            "start every member with a larger --max-request-bytes (1.5 MiB by default), and give max_request_bytes= "
            "to open; or store less"
        )
        kind, what = (
            (ValueTooLarge, f"a value of {largest:,} bytes is")
            if largest > size // 2
            else (TransactionTooLarge, f"a commit that writes {size:,} bytes, log and indices included, is")
        )
        return kind(
            f"{what} larger than these members of etcd take in one request",
            size=largest if kind is ValueTooLarge else size,
            limit=settings.max_request_bytes,
            setting="--max-request-bytes",
            hint=hint,
        )
    return client.gateway.setup_error(refused)


def _size_of(op: dict[str, Any]) -> int:
    """The bytes of an operation, about: keys and values travel in base64."""
    (fields,) = op.values()
    return sum(len(field) for field in fields.values()) * 3 // 4


def store_full(client: Client) -> StoreFullError:
    """The quota of etcd is used up."""
    return StoreFullError(
        f"etcd at {client.address.location} is full: its database has reached --quota-backend-bytes; nothing was "
        "committed",
        setting="--quota-backend-bytes",
        hint="compact and defragment (`etcdctl compact`, `etcdctl defrag`), delete data or raise "
        "--quota-backend-bytes, then clear the alarm with `etcdctl alarm disarm`",
    )
