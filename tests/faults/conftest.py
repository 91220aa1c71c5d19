"""A database of its own for each test of this folder that brings no `path` itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb import Database
from tests.support.processes import open_database


@pytest.fixture
def path(database_path: Path) -> Path:
    """Whatever coordinators come and go there, the last one ends with the test."""
    return database_path


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    """This process's handle on the database at `path`."""
    with open_database(path) as database:
        yield database
