"""The engine's `Database` and `Transaction` as they are once the primitives are registered."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload

from ..engine.database import Database as EngineDatabase
from ..engine.retry import RetryPolicy
from ..engine.running import Attempt as EngineAttempt
from ..engine.transaction import Transaction as EngineTransaction
from .event_log import EventLog
from .extension import RunLike
from .kv import KVStore
from .run_index import RunIndex
from .state_cell import StateCell
from .trace_store import TraceStore

_P = ParamSpec("_P")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

class Transaction(EngineTransaction):
    @property
    def kv(self) -> KVStore[Transaction]: ...
    @property
    def events(self) -> EventLog[Transaction]: ...
    @property
    def cells(self) -> StateCell[Transaction]: ...
    @property
    def traces(self) -> TraceStore[Transaction]: ...
    @property
    def runs(self) -> RunIndex[Transaction]: ...
    def for_run(self, run_id: RunLike) -> Self: ...

class _Function(Protocol[_P, _T_co]):
    def __call__(
        self, run_or_txn: RunLike | EngineTransaction, /, *args: _P.args, **kwargs: _P.kwargs
    ) -> _T_co: ...

class _Attempt(EngineAttempt):
    def __enter__(self) -> Transaction: ...

class Database(EngineDatabase):
    @property
    def kv(self) -> KVStore[Database]: ...
    @property
    def events(self) -> EventLog[Database]: ...
    @property
    def cells(self) -> StateCell[Database]: ...
    @property
    def traces(self) -> TraceStore[Database]: ...
    @property
    def runs(self) -> RunIndex[Database]: ...
    def begin(
        self,
        run_id: RunLike,
        *,
        isolation: str | None = None,
        read_only: bool = False,
        timeout: float | None = None,
        attempts: int = 1,
    ) -> Transaction: ...
    def transaction(
        self,
        run_id: RunLike,
        fn: Callable[[Transaction], _T],
        *,
        retry: RetryPolicy = ...,
        timeout: float | None = None,
        isolation: str | None = None,
    ) -> _T: ...
    @overload
    def transactional(self, fn: Callable[Concatenate[Transaction, _P], _T], /) -> _Function[_P, _T]: ...
    @overload
    def transactional(
        self, *, retry: RetryPolicy = ..., timeout: float | None = None, isolation: str | None = None
    ) -> Callable[[Callable[Concatenate[Transaction, _P], _T]], _Function[_P, _T]]: ...
    def attempts(
        self,
        run_id: RunLike,
        *,
        retry: RetryPolicy = ...,
        timeout: float | None = None,
        isolation: str | None = None,
    ) -> Iterator[_Attempt]: ...
    def namespace(
        self, tenant: str | None = None, app: str | None = None, agent: str | None = None
    ) -> Database: ...

def open_database(
    path: str | os.PathLike[str],
    *,
    durability: str = "standard",
    isolation: str = "serializable",
    start: str = "auto",
    timeout: float = 10.0,
    tenant: str = "default",
    app: str = "default",
    agent: str = "default",
    **settings: Any,
) -> Database: ...
def open_in_memory(
    *,
    isolation: str = "serializable",
    tenant: str = "default",
    app: str = "default",
    agent: str = "default",
    **settings: Any,
) -> Database: ...
