"""Types of the compiled transaction; see _transaction.pyx. Primitives build on `Space` and `ImplicitSpace`."""

from datetime import timedelta
from typing import Any, ClassVar, Literal, NoReturn, Self, overload
from uuid import UUID

from ..model._values import Codec
from ..model.errors import Conflict
from ..model.keys import Namespace, RunId, TypeTag
from ..model.public_types import CommitReceipt, HasRunId, IsolationName, TransactionStatus, VersionedValue
from ._pending import PendingCommit
from ._scan import ScanIterator
from ._space import Space as Space
from ._view import SnapshotSource
from .engine_handle import EngineHandle
from .guard import RunRule
from .wait_signal import WaitSignal
from .waiting import WaitHub

_Key = str | bytes
_Run = RunId | UUID | str | HasRunId
_Ttl = float | timedelta | None

class TransactionBase(Space):
    @property
    def status(self) -> TransactionStatus: ...
    @property
    def txn_id(self) -> tuple[int, int] | None: ...
    @property
    def start_version(self) -> int: ...
    @property
    def isolation(self) -> Literal["serializable", "snapshot"]: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def expired(self) -> bool: ...
    @property
    def receipt(self) -> CommitReceipt: ...
    @property
    def store_incarnation(self) -> int: ...
    @property
    def read_time(self) -> int: ...
    @property
    def expiry_time(self) -> int: ...
    @property
    def pending_size(self) -> int: ...
    @overload  # type: ignore[override]  # a Space's keys are what its `raw` says, a transaction's are text
    def scan(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[False] = False,
        track: bool = True,
    ) -> ScanIterator[tuple[str, VersionedValue]]: ...
    @overload
    def scan(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[True],
        track: bool = True,
    ) -> ScanIterator[tuple[bytes, VersionedValue]]: ...
    @overload
    def scan(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool,
        track: bool = True,
    ) -> ScanIterator[tuple[str, VersionedValue]] | ScanIterator[tuple[bytes, VersionedValue]]: ...
    @overload  # type: ignore[override]  # a Space's keys are what its `raw` says, a transaction's are text
    def keys(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[False] = False,
        track: bool = True,
    ) -> ScanIterator[str]: ...
    @overload
    def keys(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[True],
        track: bool = True,
    ) -> ScanIterator[bytes]: ...
    @overload
    def keys(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool,
        track: bool = True,
    ) -> ScanIterator[str] | ScanIterator[bytes]: ...
    def space(self, tag: int, *, raw: bool = False) -> Space: ...
    def for_run(self, run_id: _Run) -> Self: ...
    def delete_run_range(self, run_id: _Run | None = None) -> None: ...
    def validate(self) -> tuple[Conflict, ...]: ...
    def wait(self) -> NoReturn: ...
    @property
    def waits(self) -> WaitHub: ...
    def waits_by(self, signal: WaitSignal) -> bool: ...
    def commit(self, *, durable: bool = False) -> CommitReceipt: ...
    def abort(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None: ...

class ImplicitSpace:
    """One tag of one run outside any transaction: each call is a transaction of its own.

    Writes are blind: they begin and commit inside the coordinator's order, in one round trip, and cannot conflict.
    """

    @property
    def run_id(self) -> RunId: ...
    @property
    def tag(self) -> int: ...
    def answer(self, pending: PendingCommit) -> None: ...
    def get(self, key: _Key, default: Any = None) -> Any: ...
    def get_versioned(self, key: _Key) -> VersionedValue | None: ...
    def exists(self, key: _Key) -> bool: ...
    def put(self, key: _Key, value: Any, *, ttl: _Ttl = None, ephemeral: bool = False) -> int: ...
    def delete(self, key: _Key) -> bool: ...
    def cas(
        self, key: _Key, expected_version: int, value: Any, *, ttl: _Ttl = None, ephemeral: bool = False
    ) -> int: ...
    def add(
        self, key: _Key, delta: int = 1, *, at_most: int | None = None, at_least: int | None = None
    ) -> int: ...
    def scan(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> ScanIterator[tuple[Any, VersionedValue]]: ...
    def keys(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> ScanIterator[Any]: ...
    def count(self, prefix: _Key = "", *, start: _Key | None = None, end: _Key | None = None) -> int: ...
    def delete_range(
        self, prefix: _Key = "", *, start: _Key | None = None, end: _Key | None = None
    ) -> int: ...

class DatabaseBase:
    """Begins transactions over one handle; `Database` adds retries, administration and the public names."""

    transaction_class: ClassVar[type[TransactionBase]]
    awaits_commits: ClassVar[bool]
    @property
    def attached(self) -> bool: ...
    @property
    def handle(self) -> EngineHandle: ...
    @property
    def namespace_(self) -> Namespace: ...
    @property
    def codec(self) -> Codec: ...
    def __init__(
        self,
        handle: EngineHandle,
        isolation: IsolationName = "serializable",
        namespace: Namespace | None = None,
        codec: Codec | None = None,
        run_rule: RunRule | None = None,
    ) -> None: ...
    @property
    def run_rule(self) -> RunRule | None: ...
    def attachment(self) -> SnapshotSource: ...
    def begin(
        self,
        run_id: _Run,
        *,
        isolation: IsolationName | None = None,
        read_only: bool = False,
        timeout: float | None = None,
        attempts: int = 1,
        may_wait: bool = False,
        turn: int = 0,
        patient: bool = False,
        late: bool = False,
    ) -> Any: ...
    def space(self, run_id: _Run, tag: int, *, raw: bool = False) -> ImplicitSpace: ...
    def first_key(self, start: bytes) -> bytes | None: ...
    def prefix_of(self, run_id: _Run, tag: int = TypeTag.KV) -> bytes: ...

def turn_of(txn: TransactionBase) -> int: ...
def end_turn(txn: TransactionBase) -> None: ...
def drop_turn(txn: TransactionBase) -> None: ...
