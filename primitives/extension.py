"""What every primitive stands on: a facade over a database or a transaction.

A primitive is a class with a `name` and a `tag`. It holds a handle and nothing else; all state is in the store. Its
operations (`operations.py`) are methods on `self.space`, the part of one run that belongs to its tag.

1. Primitives never call one another, and keep nothing between calls.
2. Everything that one operation writes, indices included, is in one transaction.
3. Registering needs no change in the engine: `@register` on the class is all.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, cast

from ..engine.model.errors import InvalidArgumentError
from ..engine.transaction._transaction import DatabaseBase, Space, TransactionBase
from ..engine.transaction.extensions import register_extension
from .auditing import Auditor
from .operations import (
    CONTENDED,
    Operation,
    RunLike,
    answered,
    blind,
    contended,
    operation,
    reader,
    single,
    stream,
    waiting,
)

__all__ = [
    "CONTENDED",
    "DatabaseBase",
    "InsideOnlyError",
    "Operation",
    "Primitive",
    "RunLike",
    "Space",
    "TransactionBase",
    "answered",
    "blind",
    "checked_version",
    "contended",
    "enlist",
    "from_microseconds",
    "operation",
    "reader",
    "register",
    "registered_primitives",
    "single",
    "stream",
    "to_microseconds",
    "waiting",
]

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

H_co = TypeVar("H_co", covariant=True, bound="DatabaseBase | AsyncDatabase[Any] | TransactionBase")
C = TypeVar("C", bound="type[Primitive[Any]]")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class InsideOnlyError(InvalidArgumentError, AttributeError):
    """An operation was used on a database in a form that works only inside a transaction."""


class Primitive(Generic[H_co]):
    """A facade over `handle`: a database (each call names its run) or a transaction (calls act on its run).

    Over an asynchronous database, what commits is awaited.

    Attributes:
      name: how it hangs on databases and transactions, as in `db.<name>`.
      tag: its part of every run; 0x20 and up are free.
      raw: keys are binary: scans give them back as bytes and never as text.
      auditor: finds what is wrong in its part of one run, and what can be rebuilt (`auditing.py`); None: none
        of its keys follows from others.
      reserved: its part is under the reserved run of each namespace, and under no other.
      inside: it acts in a transaction that somebody else ends.
      space: inside, the primitive's own part of the transaction's run.
    """

    __slots__ = ("_handle", "inside", "space")
    name: ClassVar[str]
    tag: ClassVar[int]
    raw: ClassVar[bool] = True
    auditor: Auditor | None = None
    reserved: ClassVar[bool] = False

    inside: bool
    space: Space

    def __init__(self, handle: H_co) -> None:
        self._handle = handle
        if isinstance(handle, TransactionBase):
            self.inside = True
            self.space = self._space_in(handle)
        else:
            self.inside = False

    def _space_in(self, transaction: TransactionBase) -> Space:
        return transaction.space(self.tag, raw=self.raw)

    # By this `_calls` sees that a subclass has not replaced it, and makes the space itself.
    _usual_space_in = _space_in

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Called only for a missing attribute; `space` is missing on a facade over a database.
            if name != "space":
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
                )
            raise InsideOnlyError(
                f"{self.name}: this form works inside a transaction only",
                hint=f"use db.transaction(run_id, lambda txn: txn.{self.name}...)",
            )

    def __dir__(self) -> list[str]:
        plumbing = {"auditor", "inside", "name", "now_us", "raw", "reserved", "space", "tag"}
        return [name for name in object.__dir__(self) if name not in plumbing]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._handle!r}>"

    def _wait(self, timeout: float | None) -> NoReturn:
        """Give the transaction up until something that it has read is changed; from an operation that waits."""
        if timeout is not None:
            raise InvalidArgumentError(
                "inside a transaction a wait has no timeout of its own",
                hint="give it to the transaction: db.transaction(run_id, fn, timeout=...)",
            )
        cast(TransactionBase, self._handle).wait()

    @property
    def now_us(self) -> int:
        """The transaction's one clock reading, in microseconds since 1970."""
        return cast(TransactionBase, self._handle).read_time // 1000


def checked_version(version: object) -> int:
    """A version that somebody waits to see passed.

    Raises:
      InvalidArgumentError: it is none.
    """
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise InvalidArgumentError(
            f"after_version must be a version from 0, got {version!r}",
            hint="0 waits until something is there",
        )
    return version


def register(primitive: C) -> C:
    """Class decorator: make the primitive appear as `db.<name>` and `txn.<name>` everywhere in this process.

    Raises:
      AlreadyExistsError: the name means something else already.
      InvalidArgumentError: the name is not an identifier.
    """
    register_extension(primitive.name, primitive)
    return enlist(primitive)


_registered: list[type[Primitive[Any]]] = []


def enlist(primitive: C) -> C:
    """Make the primitive one of `registered_primitives`, which `occamdb check` audits."""
    if primitive not in _registered:
        _registered.append(primitive)
    return primitive


def registered_primitives() -> tuple[type[Primitive[Any]], ...]:
    """Every primitive of this process, in order of registration."""
    return tuple(_registered)


def pairs(items: object, call: str) -> list[tuple[Any, Any]]:
    """The pairs that an operation on several things takes.

    Raises:
      InvalidArgumentError: not iterable, or of something else than pairs.
    """
    if not isinstance(items, Iterable):
        raise _no_pairs(items, call)
    several = list(items)
    for pair in several:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise _no_pairs(pair, call)
    return several


def _no_pairs(given: object, call: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{call} takes pairs, got {given!r:.80}", hint=f"{call}([(a, b), (c, d)])")


# --- Times ---------------------------------------------------------------------------------------


def from_microseconds(time_us: int) -> datetime:
    """An aware UTC datetime, exact to the microsecond."""
    return EPOCH + timedelta(0, 0, time_us)


def to_microseconds(when: datetime, what: str) -> int:
    """Microseconds since 1970.

    Raises:
      InvalidArgumentError: not a datetime, or one without a time zone.
    """
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise InvalidArgumentError(
            f"{what} must be a datetime with a time zone, got {when!r}",
            hint="datetime.now(timezone.utc), or value.replace(tzinfo=timezone.utc) for a naive UTC time",
        )
    return (when - EPOCH) // _MICROSECOND
