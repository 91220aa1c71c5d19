"""How transactions of plug-ins run: their isolation, and how many are open in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["ISOLATION", "Gate"]

P = ParamSpec("P")
T = TypeVar("T")

# A plug-in that decides by what it has read needs reads that the commit checks, however the database was opened.
ISOLATION: Literal["serializable"] = "serializable"

# A process can hold 1,024 snapshots, and 32 commits can be under way in a loop at once.
_AT_ONCE = 256


class Gate:
    """Lets so many transactions of an event loop begin, and the others wait for one of them to end.

    Thousands of tasks that store something in one tick would otherwise need more snapshots than a process may hold.
    """

    def __init__(self) -> None:
        self._semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    async def through(self, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call and await something when its turn has come."""
        loop = asyncio.get_running_loop()
        semaphore = self._semaphores.get(loop)
        if semaphore is None:
            semaphore = self._semaphores.setdefault(loop, asyncio.Semaphore(_AT_ONCE))
        async with semaphore:
            return await call(*args, **kwargs)
