"""Every test here runs in asyncio's own event loop and in uvloop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from occamdb.aio import AsyncDatabase
from tests.support.aio import LOOPS, LoopFactory
from tests.support.databases import engine
from tests.support.engines import Engine

__all__ = ["engine", "factory", "opened"]


@pytest.fixture(params=LOOPS)
def factory(request: pytest.FixtureRequest) -> LoopFactory:
    """Makes the loop that the test runs in."""
    return LOOPS[request.param]


@pytest.fixture
def opened(engine: Engine, database_path: Path) -> Any:
    """Opens an asynchronous database, with settings: `async with opened() as db`."""

    @asynccontextmanager
    async def opener(**settings: Any) -> AsyncIterator[AsyncDatabase]:
        async with engine.opening(database_path, **settings) as db:
            yield db

    return opener
