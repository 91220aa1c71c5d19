"""Decorators for operations on the run index, which name no run: all of it is in the reserved run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from ..engine.model.public_types import RESERVED_RUN
from .operations import Operation, reading, retried, waiting_in

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase
    from .extension import DatabaseBase, Primitive, TransactionBase

__all__ = ["IndexLookup", "IndexOperation", "awaited", "indexed", "lookup"]

P = ParamSpec("P")
R = TypeVar("R")


class IndexOperation(Operation[P, R, R]):
    """An operation on the index, which needs no run in front."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: object = None) -> Callable[Concatenate[Any, P], R]: ...
        @overload
        def __get__(
            self, instance: Primitive[AsyncDatabase[Any]], owner: object = None
        ) -> Callable[P, Coroutine[Any, Any, R]]: ...
        @overload
        def __get__(
            self, instance: Primitive[DatabaseBase | TransactionBase], owner: object = None
        ) -> Callable[P, R]: ...
        def __get__(self, instance: Any, owner: object = None) -> Any: ...


class IndexLookup(Operation[P, R, R]):
    """A read of the index."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: object = None) -> Callable[Concatenate[Any, P], R]: ...
        @overload
        def __get__(self, instance: Primitive[Any], owner: object = None) -> Callable[P, R]: ...
        def __get__(self, instance: Any, owner: object = None) -> Any: ...


def indexed(body: Callable[Concatenate[Any, P], R]) -> IndexOperation[P, R]:
    """Reads and writes the index: outside it is a transaction on the reserved run."""
    return IndexOperation(body, retried(RESERVED_RUN))


def lookup(body: Callable[Concatenate[Any, P], R]) -> IndexLookup[P, R]:
    """Reads the index: outside on a snapshot of its own."""
    return IndexLookup(body, reading(RESERVED_RUN))


def awaited(body: Callable[Concatenate[Any, P], R]) -> IndexOperation[P, R]:
    """Reads the index, and waits for a change of it."""
    return IndexOperation(body, waiting_in(RESERVED_RUN))
