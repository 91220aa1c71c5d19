"""Work of several transactions, written once for programs with and without an event loop.

The work is a generator. What it yields is done for it: plainly on a `Database`, awaited on an `AsyncDatabase`. It is
sent the result, and what was raised is raised at its yield.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from ..engine.model.errors import DatabaseClosedError, ForkedHandleError, OccamError
from ..engine.model.public_types import RunId
from .extension import CONTENDED, DatabaseBase

if TYPE_CHECKING:
    import asyncio

__all__ = ["Call", "CleanUp", "Pause", "Transact", "Work", "await_clean_up", "carry_out", "clean_up"]

R = TypeVar("R")
T = TypeVar("T")

_CLEANING_PAUSE = 0.2  # seconds between two attempts; each of them waits for a coordinator itself
_cleaning: set[asyncio.Task[Any]] = set()  # the loop itself keeps no task alive


class Transact(NamedTuple):
    """A transaction with retries, which may wait for up to `timeout` seconds; None: for ever.

    It is serializable whatever the database is: what it waits for is what it has read.
    """

    fn: Callable[[Any], Any]
    timeout: float | None = None


class CleanUp(NamedTuple):
    """A transaction that removes what would keep others waiting. It raises nothing.

    If no coordinator can be reached it is done in the background, until it has succeeded or the database is closed.
    """

    fn: Callable[[Any], Any]


class Call(NamedTuple):
    """A function of the user's. On an asynchronous database it may give something to await."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Pause(NamedTuple):
    """A pause of so many seconds."""

    seconds: float


Work: TypeAlias = Generator[Transact | CleanUp | Call | Pause, Any, R]


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
                elif isinstance(item, CleanUp):
                    clean_up(db, run_id, item.fn)
                    result = None
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
    import asyncio  # it is slow to import, and a program without an event loop has no use for it

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
                elif isinstance(item, CleanUp):
                    await await_clean_up(db, run_id, item.fn)
                    result = None
                else:
                    await asyncio.sleep(item.seconds)
                    result = None
            except BaseException as error:
                item = work.throw(error)
            else:
                item = work.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


# --- Cleaning up ---------------------------------------------------------------------------------


def clean_up(db: Any, run_id: RunId, fn: Callable[[Any], Any]) -> None:
    """Carry a `CleanUp` out, in the background if no coordinator can be reached."""
    if not _cleaned(db, run_id, fn):
        threading.Thread(target=_keep_cleaning, args=(db, run_id, fn), daemon=True).start()


async def await_clean_up(db: Any, run_id: RunId, fn: Callable[[Any], Any], after: Any = None) -> None:
    """`clean_up` on an asynchronous database. A caller that is cancelled here leaves it to go on in the background.

    Args:
      after: a transaction whose outcome is waited for first, since `fn` depends on it.
    """
    import asyncio

    def go_on(first: asyncio.Task[bool]) -> None:
        _cleaning.discard(first)
        if not first.cancelled() and not first.result():
            _begin(_await_cleaning(db, run_id, fn)).add_done_callback(_cleaning.discard)

    async def begin() -> bool:
        if after is not None:
            with suppress(OccamError):
                await after.outcome()
        return await _awaited_cleaned(db, run_id, fn)

    first = _begin(begin())
    first.add_done_callback(go_on)
    await asyncio.shield(first)


def _begin(cleaning: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    import asyncio

    task = asyncio.get_running_loop().create_task(cleaning)
    _cleaning.add(task)
    return task


def _cleaned(db: Any, run_id: RunId, fn: Callable[[Any], Any]) -> bool:
    """Whether nothing is left to clean up: what a closed database has bound goes with it."""
    try:
        db.waiting_transaction(run_id, fn, CONTENDED, 0, "serializable")
    except (DatabaseClosedError, ForkedHandleError):
        return True
    except Exception:
        return False
    return True


def _keep_cleaning(db: Any, run_id: RunId, fn: Callable[[Any], Any]) -> None:
    while not _cleaned(db, run_id, fn):
        time.sleep(_CLEANING_PAUSE)


async def _awaited_cleaned(db: Any, run_id: RunId, fn: Callable[[Any], Any]) -> bool:
    try:
        await db.waiting_transaction(run_id, fn, CONTENDED, 0, "serializable")
    except (DatabaseClosedError, ForkedHandleError):
        return True
    except Exception:
        return False
    return True


async def _await_cleaning(db: Any, run_id: RunId, fn: Callable[[Any], Any]) -> None:
    import asyncio

    while not await _awaited_cleaned(db, run_id, fn):
        await asyncio.sleep(_CLEANING_PAUSE)
