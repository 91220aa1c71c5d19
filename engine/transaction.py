"""The transaction that users hold.

The work is compiled: `_transaction.pyx` (calls and arguments), `_txn_core.pyx` (read set, effects, checks),
`_scan.pyx` (ordered walks) and `_txn_commit.pyx` (the commit). The class here exists so that extensions can be
attached to it (`extensions.py`); it adds no state and no cost to a call.

Semantics that follow from there, in one place:

1. Reads see the snapshot at `start_version` under the transaction's own writes. A scan sees the own writes made
   before `scan` was called; the commit checks the part of a scan that was really walked.
2. `get_versioned` of an own write reports the version of the committed value it replaces: what a cas in the same
   transaction has to expect, so read and cas may be repeated. After an own delete that is 0: absent.
3. A put or delete after a cas of the same key replaces its effect and keeps its check.
4. A transaction that wrote nothing commits without asking anybody, at its `start_version`.
5. A transaction is for one thread. Touched after a fork, in the child, it raises ForkedHandleError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._transaction import ImplicitSpace, Space, TransactionBase, use_transaction_class
from .public_types import CommitReceipt, TransactionStatus

__all__ = ["CommitReceipt", "ImplicitSpace", "Space", "Transaction", "TransactionStatus"]


class Transaction(TransactionBase):
    """One unit of work on one snapshot; see the module docstring and SPEC section 2."""

    __slots__ = ()

    if TYPE_CHECKING:
        # Extensions (`txn.kv`, `txn.events`, ...) are attached at run time.
        def __getattr__(self, name: str) -> Any: ...


use_transaction_class(Transaction)
