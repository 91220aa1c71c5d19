"""A PostgreSQL server for the tests of this folder, and a schema of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.one_postgres import OnePostgres, why_not

if TYPE_CHECKING:
    pass

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[OnePostgres]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    running = OnePostgres({"fsync": "off"})
    yield running
    running.remove()


@pytest.fixture
def schema(server: OnePostgres) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    yield name
    with server.connect() as connection:
        connection.execute(f"set client_min_messages = warning; drop schema if exists {name} cascade")


@pytest.fixture
def url(server: OnePostgres, schema: str) -> str:
    return server.url(schema=schema)
