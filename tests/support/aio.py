"""Asynchronous databases for tests: opened like the others, run in asyncio's own loop and in uvloop's."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

import occamdb.aio
from occamdb.aio import AsyncDatabase, Opening
from occamdb.engine.client.awaited_handle import AwaitedHandle
from occamdb.engine.client.event_links import EventLinks
from tests.support.processes import DEADLINE_S, SETTINGS

__all__ = ["LOOPS", "LoopFactory", "links_of", "open_async", "run_in", "until"]

T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def open_async(path: str | Path, **keywords: Any) -> Opening[AsyncDatabase]:
    """`occamdb.aio.open` with the settings that tests open a database with."""
    return occamdb.aio.open(path, **(SETTINGS | keywords))


def run_in(factory: LoopFactory, main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in a loop of this kind, with a deadline."""

    async def limited() -> T:
        async with asyncio.timeout(DEADLINE_S):
            return await main

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(limited())


async def until(condition: Callable[[], object], what: str = "it") -> None:
    """Let other tasks run until `condition` is true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < end, f"{what} did not happen within {DEADLINE_S:g} s"
        await asyncio.sleep(0.001)


def links_of(db: AsyncDatabase) -> EventLinks:
    """The links of the running loop."""
    handle = db.handle
    assert isinstance(handle, AwaitedHandle)
    return handle._of_loops[asyncio.get_running_loop()]
