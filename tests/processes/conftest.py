"""One shared database for the tests of this folder that take fresh runs, and a starter of workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb import Database
from tests.support import processes


@pytest.fixture(scope="session")
def shared_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database directory whose coordinator runs until the session ends."""
    path = tmp_path_factory.mktemp("processes") / "db"
    keeper = processes.open_database(path)
    yield path
    keeper.close()
    processes.stop_coordinator(path)


@pytest.fixture
def shared(shared_path: Path) -> Iterator[Database]:
    """This process's own handle on the shared database."""
    with processes.open_database(shared_path) as db:
        yield db
