"""`db` over both engines, each test in a namespace of its own, and `do`: every operation in both of its forms."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Database
from tests.support.databases import memory_database
from tests.support.operation_forms import Inside, Outside
from tests.support.processes import open_database, stop_coordinator


# Autouse and of the session: it is there before any test, whose leak guard would else count its coordinator.
@pytest.fixture(scope="session", autouse=True)
def shared_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database directory whose coordinator serves all tests of this process."""
    path = tmp_path_factory.mktemp("primitives") / "db"
    with open_database(path):
        yield path
    stop_coordinator(path)


@pytest.fixture(scope="session")
def shared_database(shared_path: Path) -> Iterator[Database]:
    """This process's handle on it."""
    with open_database(shared_path) as database:
        yield database


@pytest.fixture(params=["memory", "shared"])
def db(request: pytest.FixtureRequest, shared_database: Database) -> Iterator[Any]:
    """An in-memory database, or a new namespace of the one with a coordinator: nobody else's runs are in it."""
    if request.param == "shared":
        yield shared_database.namespace(tenant=f"test-{uuid.uuid4()}")
    else:
        with memory_database() as database:
            yield database


@pytest.fixture(params=[Outside, Inside], ids=["implicit", "in_transaction"])
def do(request: pytest.FixtureRequest, db: Any, run: RunId) -> Any:
    """`do.kv.put("k", 1)` as `db.kv.put(run, "k", 1)`, or as `txn.kv.put("k", 1)` in a transaction."""
    return request.param(db, run)
