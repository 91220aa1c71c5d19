"""`db` over both engines, each test in a namespace of its own, and `do`: every operation in both of its forms."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from occamdb.engine.types import RunId
from occamdb.primitives import Database, open_database
from tests.conftest import stop_coordinator
from tests.support.databases import memory_database

from .forms import Inside, Outside


# Autouse and of the session: it is there before any test, whose leak guard would else count its coordinator.
@pytest.fixture(scope="session", autouse=True)
def shared_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with a coordinator, for all tests of this process."""
    path = tmp_path_factory.mktemp("primitives") / "db"
    database = open_database(path)
    yield database
    database.close()
    stop_coordinator(path)


@pytest.fixture(params=["memory", "shared"])
def db(request: pytest.FixtureRequest, shared_database: Database) -> Iterator[Any]:
    """An in-memory database, or a new namespace of the one with a coordinator: nobody else's runs are in it."""
    if request.param == "shared":
        yield shared_database.namespace(tenant=f"test-{uuid.uuid4()}")
    else:
        with memory_database() as database:
            yield database


@pytest.fixture
def run() -> RunId:
    """A run nobody else uses."""
    return RunId.new()


@pytest.fixture(params=[Outside, Inside], ids=["implicit", "in_transaction"])
def do(request: pytest.FixtureRequest, db: Any, run: RunId) -> Any:
    """`do.kv.put("k", 1)` as `db.kv.put(run, "k", 1)`, or as `txn.kv.put("k", 1)` in a transaction."""
    return request.param(db, run)
