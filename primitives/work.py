"""Work of several transactions, written once for programs with and without an event loop.

The work is a generator. What it yields is done for it: plainly on a `Database`, awaited on an `AsyncDatabase`. It is
sent the result, and what was raised is raised at its yield.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..engine.model.public_types import RunId
from .extension import CONTENDED, DatabaseBase

__all__ = ["Call", "Pause", "Transact", "Work", "carry_out"]

R = TypeVar("R")


class Transact(NamedTuple):
    """A transaction with retries, which may wait for up to `timeout` seconds; None: for ever.

    It is serializable whatever the database is: what it waits for is what it has read.
    """

    fn: Callable[[Any], Any]
    timeout: float | None = None


class Call(NamedTuple):
    """A function of the user's. On an asynchronous database it may give something to await."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Pause(NamedTuple):
    """A pause of so many seconds."""

    seconds: float


Work: TypeAlias = Generator[Transact | Call | Pause, Any, R]


def carry_out(db: Any, run_id: RunId, work: Work[R]) -> Any:
    """What the work returns; on an asynchronous database a coroutine of it."""
    return _carry_out(db, run_id, work) if isinstance(db, DatabaseBase) else _await(db, run_id, work)


def _carry_out(db: Any, run_id: RunId, work: Work[R]) -> R:
    try:
        item = next(work)
        while True:
            try:
                if isinstance(item, Transact):
                    result = db.waiting_transaction(run_id, item.fn, CONTENDED, item.timeout, "serializable")
                elif isinstance(item, Call):
                    result = item.fn(*item.args, **item.kwargs)
                else:
                    time.sleep(item.seconds)
                    result = None
            except BaseException as error:
                item = work.throw(error)
            else:
                item = work.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def _await(db: Any, run_id: RunId, work: Work[R]) -> R:
    try:
        item = next(work)
        while True:
            try:
                if isinstance(item, Transact):
                    result = await db.waiting_transaction(
                        run_id, item.fn, CONTENDED, item.timeout, "serializable"
                    )
                elif isinstance(item, Call):
                    result = item.fn(*item.args, **item.kwargs)
                    if inspect.isawaitable(result):
                        result = await result
                else:
                    await asyncio.sleep(item.seconds)
                    result = None
            except BaseException as error:
                item = work.throw(error)
            else:
                item = work.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
