"""`db` over the engines, each test in a namespace of its own, and `do`: every operation in both of its forms."""

from collections.abc import Iterator
from typing import Any

import pytest

from occamdb.engine.model.public_types import RunId
from tests.support.databases import engine, place, placed
from tests.support.engines import Engine
from tests.support.operation_forms import Inside, Outside

__all__ = ["db", "do", "engine", "place", "placed"]


@pytest.fixture
def db(engine: Engine) -> Iterator[Any]:
    """A database in which there is nothing yet: nobody else's runs are in it."""
    database = engine.fresh()
    yield database
    engine.discard(database)


@pytest.fixture(params=[Outside, Inside], ids=["implicit", "in_transaction"])
def do(request: pytest.FixtureRequest, db: Any, run: RunId) -> Any:
    """`do.kv.put("k", 1)` as `db.kv.put(run, "k", 1)`, or as `txn.kv.put("k", 1)` in a transaction."""
    return request.param(db, run)
