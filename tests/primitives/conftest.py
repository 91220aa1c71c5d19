"""The databases of `tests.support.databases`, and `do`: every operation in both of its forms."""

from typing import Any

import pytest

from occamdb.engine.types import RunId
from tests.support.databases import db, db_factory, run, shared_database

from .forms import Inside, Outside

__all__ = ["db", "db_factory", "do", "run", "shared_database"]


@pytest.fixture(params=[Outside, Inside], ids=["implicit", "in_transaction"])
def do(request: pytest.FixtureRequest, db: Any, run: RunId) -> Any:
    """`do.kv.put("k", 1)` as `db.kv.put(run, "k", 1)`, or as `txn.kv.put("k", 1)` in a transaction."""
    return request.param(db, run)
