"""A shell on a fresh path for a database, and that database opened."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import occamdb
from tests.support.shell import Shell


@pytest.fixture
def shell(database_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(database_path, capsys)


@pytest.fixture
def db(database_path: Path) -> Iterator[occamdb.Database]:
    with occamdb.open(database_path) as database:
        yield database
