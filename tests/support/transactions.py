"""Short forms for the tests of transactions."""

from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, RunId, Transaction
from occamdb.engine.model.errors import ConflictError


def conflicts_of(commit: Callable[[], Any]) -> tuple[Any, ...]:
    with pytest.raises(ConflictError) as caught:
        commit()
    return caught.value.conflicts


def rows(txn: Transaction, prefix: str = "") -> dict[Any, Any]:
    return {key: row.value for key, row in txn.scan(prefix)}


def lose_by_read(db: Database, run: RunId, key: str) -> int:
    """One commit that is refused since a key that it had read was changed; the version that won."""
    txn = db.begin(run)
    txn.get(key)
    txn.put("other", 1)
    won = db.put(run, key, 2)
    with pytest.raises(ConflictError):
        txn.commit()
    return won
