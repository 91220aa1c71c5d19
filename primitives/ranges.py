"""Operations that give keys back: as text, or with `raw=True` as bytes.

At run time each is a `single` operation. The rest of this file is what type checkers see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias, TypeVar, overload

from ..engine.transaction._transaction import DatabaseBase, TransactionBase
from .operations import ReadOperation, RunLike, single

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase
    from .extension import Primitive

__all__ = ["RangeOperation"]

_Key: TypeAlias = str | bytes
T_co = TypeVar("T_co", covariant=True)
B_co = TypeVar("B_co", covariant=True)


class _Inside(Protocol[T_co, B_co]):
    """Called on a transaction or a snapshot."""

    @overload
    def __call__(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[False] = False,
    ) -> T_co: ...
    @overload
    def __call__(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[True],
    ) -> B_co: ...


class _Outside(Protocol[T_co, B_co]):
    """Called on a database: the run comes first."""

    @overload
    def __call__(
        self,
        run_id: RunLike,
        /,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[False] = False,
    ) -> T_co: ...
    @overload
    def __call__(
        self,
        run_id: RunLike,
        /,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[True],
    ) -> B_co: ...


if TYPE_CHECKING:

    class RangeOperation(Protocol[T_co, B_co]):
        """`single`, with the type of its result when keys are text, and when they are bytes."""

        @classmethod
        def of(cls, body: Callable[..., Any], /) -> Self: ...
        @overload
        def __get__(self, instance: None, owner: object = None) -> Callable[..., Any]: ...
        @overload
        def __get__(
            self, instance: Primitive[DatabaseBase | AsyncDatabase[Any]], owner: object = None
        ) -> _Outside[T_co, B_co]: ...
        @overload
        def __get__(
            self, instance: Primitive[TransactionBase], owner: object = None
        ) -> _Inside[T_co, B_co]: ...

else:

    class RangeOperation:
        """`single`, with the type of its result when keys are text, and when they are bytes."""

        def __class_getitem__(cls, results: object) -> type[RangeOperation]:
            return cls

        @staticmethod
        def of(body: Callable[..., Any], /) -> ReadOperation[..., Any]:
            """The operation that `body` says."""
            return single(body)
