"""The transaction that users hold.

The work is compiled: `_transaction.pyx` (calls and arguments), `_core.pyx` (read set, effects, checks),
`_scan.pyx` (ordered walks) and `_commit.pyx` (the commit). The class here adds the extensions
(`extensions.py`); it adds no state and no cost to a call.

The semantics, in one place:

1. Reads see the snapshot at `start_version` with the transaction's own writes on top. A scan sees the writes
   that were made before `scan` was called. The commit checks the part of a scan that was walked.
2. `get_versioned` of an own write reports the version of the committed value that it replaces. This is the
   version that a cas in the same transaction has to expect, so read and cas may be repeated. After an own
   delete it is 0.
3. A put or delete after a cas of the same key replaces its effect and keeps its check.
4. A transaction that wrote nothing commits at its `start_version` without asking the coordinator.
5. A transaction is for one thread. Touched after a fork, in the child, it raises ForkedHandleError.
"""

from __future__ import annotations

from ..model.public_types import CommitReceipt, TransactionStatus
from ._transaction import ImplicitSpace, Space, TransactionBase
from .extensions import Extensible

__all__ = ["CommitReceipt", "ImplicitSpace", "Space", "Transaction", "TransactionStatus"]


class Transaction(Extensible, TransactionBase):
    """One unit of work on one snapshot, in one run: reads and writes, then `commit` or `abort`.

    `db.begin(run_id)` makes one, and `db.transaction(run_id, fn)` calls `fn` with one. As a context manager
    it commits at the end of the block, and aborts when an exception leaves it.

        with db.begin(run_id) as txn:
            txn.put("plan", [*txn.get("plan", []), "think"])

    A transaction belongs to one thread of one process. Read or written by another thread, it raises
    TransactionStateError; touched in the child of a fork, ForkedHandleError. Any thread may commit or abort it, and a
    read-only transaction may be shared.
    """

    __slots__ = ()
    inner_names = Extensible.inner_names | {
        "delete_range", "delete_run_range", "pending_size", "raw", "space", "store_incarnation", "tag",
    }  # fmt: skip
