"""Operations of primitives: each is written once, and has the forms that its decorator names.

An operation is an ordinary method on `self.space`, the part of one run that belongs to the primitive's tag. On a facade
over a transaction it is called as written. On a facade over a database the run comes first, and the decorator says
how the call is carried out:

    decorator    inside: txn.kv.get("k")    outside: db.kv.get(run_id, "k")
    blind        as written, returns None   one write without a snapshot: one round trip, never conflicts on its own
    answered     as written                 the same, where what the write is answered is the result inside too
    single       as written                 one read of the engine: what it reads comes from one snapshot
    operation    as written                 a transaction, retried on conflict
    contended    as written                 the same with more attempts and shorter pauses
    reader       as written                 reads on one snapshot; needs no coordinator
    stream       as written (an iterator)   reads on one snapshot, held while it is iterated; needs no coordinator
    waiting      as written: `txn.wait`     a transaction that waits for up to `timeout`

On a facade over an asynchronous database the forms that commit (the first two, `operation`, `contended`) are awaited,
and the others are plain calls.

1. An operation may run several times before it commits, so it has no effect but on its space.
2. What an operation looks like from outside (signature, docstring) is derived from the method as written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    overload,
)
from uuid import UUID

from ..engine.model.public_types import HasRunId, RunId
from ..engine.model.retry_policy import RetryPolicy
from ..engine.transaction._pending import DeferredCommit
from ..engine.transaction._transaction import DatabaseBase, TransactionBase
from ._calls import in_transaction
from .wrong_calls import explaining

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = [
    "CONTENDED",
    "WITH_POLICY",
    "Form",
    "Operation",
    "ReadOperation",
    "RunLike",
    "answered",
    "blind",
    "contended",
    "operation",
    "reader",
    "reading",
    "retried",
    "single",
    "stream",
    "waiting",
    "waiting_in",
]

P = ParamSpec("P")
R = TypeVar("R")
R_in = TypeVar("R_in", covariant=True)
R_out = TypeVar("R_out", covariant=True)
H_co = TypeVar("H_co", covariant=True)

RunLike: TypeAlias = RunId | UUID | str | HasRunId
Outside: TypeAlias = Callable[..., Any]

# Of N contenders one wins each round, so with 64 of them the chance that 10,000 attempts all lose is below
# 1e-68. A loser's next attempt takes microseconds: a much longer pause would only leave the key idle.
CONTENDED = RetryPolicy(max_attempts=10_000, max_backoff=0.002)

_new = object.__new__


class _FacadeOver(Protocol[H_co]):
    """A `Primitive` over a database or a transaction, as far as the types of an operation depend on it."""

    @property
    def _handle(self) -> H_co: ...


class Form(NamedTuple):
    """How a facade over a database carries an operation out.

    Attributes:
      carry_out: makes of the method as written the function `(facade, run_id, *args, **kwargs)`.
      returns: the annotation of what that returns; None: as the method says.
      run: the run of every call, for a primitive that keeps all its data in one; None: the caller names it.
      keywords: parameters that it has outside a transaction only, for a `carry_out` that takes them.
    """

    carry_out: Callable[[Callable[..., Any]], Outside]
    returns: str | None = None
    run: RunId | None = None
    keywords: tuple[inspect.Parameter, ...] = ()


class Operation(Generic[P, R_in, R_out]):
    """A method of a primitive, in its forms inside and outside a transaction.

    Attributes:
      body: the function as written.
      inside: the function that a facade over a transaction calls: the body, with errors for a wrong form of the call.
      outside: the function that a facade over a database calls instead.
    """

    def __init__(self, body: Callable[Concatenate[Any, P], R_in], form: Form) -> None:
        self.body: Callable[..., Any] = body
        self.__doc__ = body.__doc__
        self.inside = explaining(body, described=inspect.signature(body))
        self.outside = _described(form.carry_out(body), body, form)

    @overload
    def __get__(self, instance: None, owner: object = None) -> Callable[Concatenate[Any, P], R_in]: ...
    @overload
    def __get__(
        self, instance: _FacadeOver[DatabaseBase], owner: object = None
    ) -> Callable[Concatenate[RunLike, P], R_out]: ...
    @overload
    def __get__(
        self, instance: _FacadeOver[AsyncDatabase[Any]], owner: object = None
    ) -> Callable[Concatenate[RunLike, P], Coroutine[Any, Any, R_out]]: ...
    @overload
    def __get__(self, instance: _FacadeOver[TransactionBase], owner: object = None) -> Callable[P, R_in]: ...
    def __get__(self, instance: Any, owner: object = None) -> Any:
        if instance is None:
            return self.body
        # Both are plain functions, which MethodType binds without a Python call: this is on the path of every
        # read.
        return MethodType(self.inside if instance.inside else self.outside, instance)


class ReadOperation(Operation[P, R_in, R_in]):
    """An operation that commits nothing: it is awaited nowhere."""

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def __get__(self, instance: None, owner: object = None) -> Callable[Concatenate[Any, P], R_in]: ...
        @overload
        def __get__(
            self, instance: _FacadeOver[DatabaseBase | AsyncDatabase[Any]], owner: object = None
        ) -> Callable[Concatenate[RunLike, P], R_in]: ...
        @overload
        def __get__(
            self, instance: _FacadeOver[TransactionBase], owner: object = None
        ) -> Callable[P, R_in]: ...
        def __get__(self, instance: Any, owner: object = None) -> Any: ...


def _described(outside: Outside, body: Callable[..., Any], form: Form) -> Outside:
    """`outside` with the name, the docstring and the signature that `help` and editors are to show."""
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(outside, name, getattr(body, name))
    signature = inspect.signature(body)
    facade, *given = signature.parameters.values()
    if form.run is None:
        positional = inspect.Parameter.POSITIONAL_ONLY
        facade = facade.replace(kind=positional)
        given.insert(0, inspect.Parameter("run_id", positional, annotation="RunLike"))
    returns = signature.return_annotation if form.returns is None else form.returns
    return explaining(
        outside,
        described=signature.replace(parameters=[facade, *given, *form.keywords], return_annotation=returns),
    )


# --- Forms ---------------------------------------------------------------------------------------


def _one_call(body: Callable[..., Any]) -> Outside:
    """One call of the engine, which outside a transaction needs none.

    Where commits are awaited, a write leaves the body with its commit. The body is called again when that is answered,
    and goes on from the write with the answer.
    """

    def outside(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Any:
        cls = type(instance)
        view = _new(cls)
        view._handle = handle = instance._handle
        view.inside = False
        view.space = handle.space(run_id, cls.tag, raw=cls.raw)
        try:
            return body(view, *args, **kwargs)
        except DeferredCommit as deferred:
            return _awaited(deferred, body, view, args, kwargs)

    return outside


async def _awaited(
    deferred: DeferredCommit,
    body: Callable[..., Any],
    view: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    try:
        await view._handle.carried_out(deferred)
    except Exception:
        if not deferred.pending.done:
            raise
        # The body may have its own word for it.
    view.space.answer(deferred.pending)
    return body(view, *args, **kwargs)


def _transaction(policy: RetryPolicy) -> Callable[[Callable[..., Any]], Outside]:
    """A transaction, with retries by `policy`."""
    return lambda body: in_transaction(body, policy)


def _snapshot(body: Callable[..., Any]) -> Outside:
    """One snapshot, given back at the end of the call."""

    def outside(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Any:
        with instance._handle.begin(run_id, read_only=True, late=True) as txn:
            return body(type(instance)(txn), *args, **kwargs)

    return outside


def _iterated_snapshot(body: Callable[..., Any]) -> Outside:
    """One snapshot, taken at the call, which also checks the arguments, and held while the result is iterated.

    A result that is never iterated holds its snapshot until it is dropped.
    """

    def outside(instance: Any, run_id: RunLike, /, *args: Any, **kwargs: Any) -> Iterator[Any]:
        # Entered, because the one of an asynchronous database begins then; for the others it changes nothing.
        txn = instance._handle.begin(run_id, read_only=True).__enter__()
        try:
            rows = body(type(instance)(txn), *args, **kwargs)
        except BaseException:
            txn.abort()
            raise
        return _held(txn, rows)

    return outside


def _held(txn: TransactionBase, rows: Iterator[Any]) -> Iterator[Any]:
    with txn:
        yield from rows


def _in_run(form: Form) -> Form:
    """The form of an operation whose run is `form.run`."""

    def carry_out(body: Callable[..., Any]) -> Outside:
        in_any_run, run = form.carry_out(body), form.run

        def outside(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
            return in_any_run(instance, run, *args, **kwargs)

        return outside

    return form._replace(carry_out=carry_out)


def _waiting(body: Callable[..., Any]) -> Outside:
    """A transaction that waits until the body returns. A `timeout` goes to the transaction."""

    def outside(
        instance: Any, run_id: RunLike, /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        cls = type(instance)
        return instance._handle.waiting_transaction(
            run_id, lambda txn: body(cls(txn), *args, **kwargs), CONTENDED, timeout
        )

    return outside


_BLIND = Form(_one_call, returns="int")
_SINGLE = Form(_one_call)
_OPERATION = Form(_transaction(RetryPolicy()))
_CONTENDED = Form(_transaction(CONTENDED))
_READER = Form(_snapshot)
_STREAM = Form(_iterated_snapshot)
_WAITING = Form(_waiting)


def _with_policy(body: Callable[..., Any]) -> Outside:
    """A transaction whose retries the caller may choose."""

    def outside(
        instance: Any, /, run_id: RunLike, *args: Any, retry: RetryPolicy | None = None, **kwargs: Any
    ) -> Any:
        cls = type(instance)
        return instance._handle.transaction(
            run_id, lambda txn: body(cls(txn), *args, **kwargs), retry=retry or CONTENDED
        )

    return outside


_RETRY = inspect.Parameter(
    "retry", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="RetryPolicy | None"
)
WITH_POLICY = Form(_with_policy, keywords=(_RETRY,))


def retried(run: RunId) -> Form:
    """The form of `operation` for a primitive that keeps all its data in one run."""
    return _in_run(_OPERATION._replace(run=run))


def reading(run: RunId) -> Form:
    """The form of `reader` for a primitive that keeps all its data in one run."""
    return _in_run(_READER._replace(run=run))


def blind(body: Callable[Concatenate[Any, P], None]) -> Operation[P, None, int]:
    """One write. Outside it returns what the coordinator answered: the new version, or the new integer."""
    return Operation(body, _BLIND)


def answered(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R, R]:
    """One write, with a result inside a transaction too."""
    return Operation(body, _SINGLE)


def single(body: Callable[Concatenate[Any, P], R]) -> ReadOperation[P, R]:
    """One read of the engine."""
    return ReadOperation(body, _SINGLE)


def operation(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R, R]:
    """Reads and writes; outside it is a transaction with retries."""
    return Operation(body, _OPERATION)


def contended(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R, R]:
    """An operation on a key that all its writers read and write: it gets more attempts and shorter pauses."""
    return Operation(body, _CONTENDED)


def reader(body: Callable[Concatenate[Any, P], R]) -> ReadOperation[P, R]:
    """Reads and returns something finished."""
    return ReadOperation(body, _READER)


def stream(body: Callable[Concatenate[Any, P], R]) -> ReadOperation[P, R]:
    """Reads while it is iterated; the snapshot is held until then."""
    return ReadOperation(body, _STREAM)


def waiting(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R, R]:
    """Reads, and waits for a change if that is not enough; `timeout` is for the form outside."""
    return Operation(body, _WAITING)


def waiting_in(run: RunId) -> Form:
    """The form of `waiting` for a primitive that keeps all its data in one run."""
    return _in_run(_WAITING._replace(run=run))
