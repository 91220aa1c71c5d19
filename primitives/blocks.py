"""Blocks that write at both ends, in both forms: `with` on a database, `async with` where commits are awaited.

A block says what it begins and how it ends. Which of the two forms its database has is seen from what the first write
gives: a coroutine has to be awaited.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..engine.model.errors import InvalidArgumentError, OccamError, TransactionStateError

__all__ = ["Block", "needs_coroutine", "needs_plain_result"]

T = TypeVar("T")


class Block(Generic[T]):
    """A value for the length of a block. It can be entered again, but only after its end.

    Args:
      begin: the write at its begin; gives the value, or a coroutine of it.
      end: called with the value and the exception that leaves the block; its write, or a coroutine of it.
      what: what could not be written, if `end` fails beside an exception of the block.
    """

    def __init__(
        self,
        begin: Callable[[], Any],
        end: Callable[[T, BaseException | None], Any],
        what: Callable[[T], str],
    ) -> None:
        self._begin = begin
        self._end = end
        self._what = what
        self._value: Any = None
        self._entered = threading.Lock()

    def __enter__(self) -> T:
        self._enter()
        try:
            self._value = value = needs_plain_result(self._begin())
        except BaseException:
            self._entered.release()
            raise
        return value  # type: ignore[no-any-return]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._end(self._value, error)
        except OccamError as problem:
            self._also(error, problem)
        finally:
            self._entered.release()

    async def __aenter__(self) -> T:
        self._enter()
        try:
            self._value = value = await needs_coroutine(self._begin())
        except BaseException:
            self._entered.release()
            raise
        return value  # type: ignore[no-any-return]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._end(self._value, error)
        except OccamError as problem:
            self._also(error, problem)
        finally:
            self._entered.release()

    def _enter(self) -> None:
        """It has one value, so it is one block at a time.

        Raises:
          TransactionStateError: it was entered and has not ended.
        """
        if not self._entered.acquire(blocking=False):
            raise TransactionStateError(
                "this block was entered before and has not ended",
                hint="call the function that made it again, for each `with` statement",
            )

    def _also(self, error: BaseException | None, problem: OccamError) -> None:
        """The end failed: that is the news, unless the block failed itself."""
        if error is None:
            raise problem
        error.add_note(f"and {self._what(self._value)}: {problem}")


def needs_plain_result(result: Any) -> Any:
    """What a plain block begins with.

    Raises:
      InvalidArgumentError: it would have to be awaited.
    """
    if inspect.iscoroutine(result):
        result.close()
        raise InvalidArgumentError(
            "`with` cannot wait for a commit of an asynchronous database", hint="write `async with ...`"
        )
    return result


def needs_coroutine(result: Any) -> Any:
    """What an `async` block begins with.

    Raises:
      InvalidArgumentError: there is nothing to await.
    """
    if not inspect.isawaitable(result):
        raise InvalidArgumentError("nothing here is awaited", hint="write `with ...`, without async")
    return result
