"""What every primitive stands on: a facade over a database or a transaction, and operations written once.

A primitive is a class with a `name` and a `tag`. It holds a handle and nothing else; all state is in the store.
Its operations are ordinary methods on `self.space`, the part of one run that belongs to its tag. The decorator says
what they become on a facade that holds a database, where the run comes first:

    decorator    inside: txn.kv.get("k")    outside: db.kv.get(run_id, "k")
    blind        as written, returns None   one write without a snapshot: one round trip, never conflicts on its own
    single       as written                 one call of the engine: what it reads comes from one snapshot
    operation    as written                 a transaction, retried on conflict
    reader       as written                 reads on one snapshot; needs no coordinator
    stream       as written (a generator)   reads on one snapshot while it is iterated; needs no coordinator

1. Primitives never call one another, and keep nothing between calls.
2. Everything one operation writes, indices included, is in one transaction.
3. An operation may run several times before it commits: it has no effect but on its space.
4. Registering needs no change in the engine: `@register` on the class is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)
from uuid import UUID

from ..engine._transaction import DatabaseBase, Space, TransactionBase
from ..engine.errors import InvalidArgumentError
from ..engine.extensions import register_extension
from ..engine.public_types import RunId
from ..engine.retry import RetryPolicy
from .auditing import Auditor

__all__ = [
    "CONTENDED",
    "DatabaseBase",
    "Operation",
    "Primitive",
    "RunLike",
    "Space",
    "TransactionBase",
    "blind",
    "contended",
    "from_microseconds",
    "operation",
    "reader",
    "register",
    "registered_primitives",
    "single",
    "stream",
    "to_microseconds",
]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
H_co = TypeVar("H_co", covariant=True, bound="DatabaseBase | TransactionBase")
C = TypeVar("C", bound="type[Primitive[Any]]")

RunLike: TypeAlias = RunId | UUID | str

# In each round of the commit order one of N contenders wins, so with 64 of them 10,000 attempts end unlucky with a
# chance below 1e-68. A loser's next attempt takes microseconds: pausing much longer would only idle the key.
CONTENDED = RetryPolicy(max_attempts=10_000, max_backoff=0.002)

_new = object.__new__

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Primitive(Generic[H_co]):
    """A facade over `handle`: a database (each call names its run) or a transaction (calls act on its run).

    Attributes:
      name: how it hangs on databases and transactions, as in `db.<name>`.
      tag: its part of every run; 0x10 and up are free.
      raw: keys are binary: scans give them back as bytes and never as text.
      auditor: finds what is wrong in its part of one run, and what of it can be rebuilt (`auditing.py`); None: it
        keeps nothing that follows from something else.
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
        if isinstance(handle, DatabaseBase):
            self.inside = False
        else:
            self.inside = True
            self.space = self._space_in(cast(TransactionBase, handle))

    def _space_in(self, transaction: TransactionBase) -> Space:
        return transaction.space(self.tag, raw=self.raw)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Only an attribute that is not there gets here: `space` on a facade over a database.
            if name != "space":
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            raise InvalidArgumentError(
                f"{self.name}: this form works inside a transaction only",
                hint=f"use db.transaction(run_id, lambda txn: txn.{self.name}...)",
            )

    @property
    def now_us(self) -> int:
        """The transaction's one clock reading, in microseconds since 1970."""
        return cast(TransactionBase, self._handle).read_time // 1000


def register(primitive: C) -> C:
    """Class decorator: make the primitive appear as `db.<name>` and `txn.<name>` everywhere in this process.

    Raises:
      InvalidArgumentError: the name is taken.
    """
    register_extension(primitive.name, primitive)
    if primitive not in _registered:
        _registered.append(primitive)
    return primitive


_registered: list[type[Primitive[Any]]] = []


def registered_primitives() -> tuple[type[Primitive[Any]], ...]:
    """Every primitive of this process, in order of registration."""
    return tuple(_registered)


# --- Operations ----------------------------------------------------------------------------------


class Operation:
    """A decorated method: `body` is the function as written."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body: Callable[..., Any] = body
        self.__doc__ = body.__doc__
        self.__wrapped__ = body
        self.__name__ = body.__name__

        self.implicit: Callable[..., Any] = self.make_implicit(body)

    def bind(self, instance: Any) -> Callable[..., Any]:
        """The method as `instance` offers it."""
        # Both are plain functions, bound without a Python call: reads cost little more than binding does.
        return MethodType(self.body if instance.inside else self.implicit, instance)

    def make_implicit(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """The function that a facade over a database calls instead of `body`."""
        raise NotImplementedError


class single(Operation, Generic[P, R_co]):
    """One call of the engine, which outside a transaction needs none."""

    if TYPE_CHECKING:

        def __init__(self, body: Callable[Concatenate[Any, P], R_co]) -> None: ...

    @overload
    def __get__(self, instance: None, owner: object = None) -> Self: ...
    @overload
    def __get__(
        self, instance: Primitive[DatabaseBase], owner: object = None
    ) -> Callable[Concatenate[RunLike, P], R_co]: ...
    @overload
    def __get__(self, instance: Primitive[TransactionBase], owner: object = None) -> Callable[P, R_co]: ...
    def __get__(self, instance: Any, owner: object = None) -> Any:
        return self if instance is None else self.bind(instance)

    def make_implicit(self, body: Callable[..., Any]) -> Callable[..., Any]:
        def implicit(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Any:
            cls = type(instance)
            view = _new(cls)
            view._handle = handle = instance._handle
            view.inside = False
            view.space = handle.space(run_id, cls.tag, raw=cls.raw)
            return body(view, *args, **kwargs)

        return implicit


class blind(single[P, None]):
    """One write. Outside it returns what the coordinator answered: the new version, or the new integer."""

    if TYPE_CHECKING:

        def __init__(self, body: Callable[Concatenate[Any, P], None]) -> None: ...

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: object = None) -> Self: ...
        @overload
        def __get__(
            self, instance: Primitive[DatabaseBase], owner: object = None
        ) -> Callable[Concatenate[RunLike, P], int]: ...
        @overload
        def __get__(
            self, instance: Primitive[TransactionBase], owner: object = None
        ) -> Callable[P, None]: ...
        def __get__(self, instance: Any, owner: object = None) -> Any: ...


class operation(single[P, R_co]):
    """Reads and writes; outside it is a transaction with retries."""

    retry = RetryPolicy()

    def make_implicit(self, body: Callable[..., Any]) -> Callable[..., Any]:
        retry = self.retry

        def implicit(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Any:
            cls, (args, kwargs) = type(instance), repeatable(args, kwargs)
            return instance._handle.transaction(
                run_id, lambda txn: body(cls(txn), *args, **kwargs), retry=retry
            )

        return implicit


class contended(operation[P, R_co]):
    """An operation on a key that every writer of it reads and writes: more attempts, shorter pauses."""

    retry = CONTENDED


class reader(single[P, R_co]):
    """Reads and returns something finished."""

    def make_implicit(self, body: Callable[..., Any]) -> Callable[..., Any]:
        def implicit(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Any:
            with instance._handle.begin(run_id, read_only=True) as txn:
                return body(type(instance)(txn), *args, **kwargs)

        return implicit


class stream(single[P, R_co]):
    """Reads while it is iterated; the snapshot is held until then."""

    def make_implicit(self, body: Callable[..., Any]) -> Callable[..., Any]:
        def implicit(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with instance._handle.begin(run_id, read_only=True) as txn:
                yield from body(type(instance)(txn), *args, **kwargs)

        return implicit


def repeatable(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with every iterator read into a list: a retry must find the same in it as the first attempt."""
    if any(hasattr(value, "__next__") for value in args):
        args = tuple(list(value) if hasattr(value, "__next__") else value for value in args)
    for name, value in kwargs.items():
        if hasattr(value, "__next__"):
            kwargs[name] = list(value)
    return args, kwargs


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
