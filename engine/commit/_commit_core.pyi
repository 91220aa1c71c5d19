"""Types of the commit core; see _commit_core.pyx."""

from typing import TypedDict, final

from typing_extensions import Buffer

from ..log._replay import Loader
from ..log._wal_appender import WalAppender

SUPERSEDED_OFFSET: int
CLOCK_OFFSET_OFFSET: int
SPIN_HINT_OFFSET: int
CHANNEL_STATE_CLOSED: int
CHANNEL_STATE_BROKEN: int

class ConflictCounts(TypedDict):
    """Refused transactions by the kind of their first conflict."""

    read: int
    range: int
    write: int
    cas: int

class StoreFigures(TypedDict):
    """Bytes of the store by use."""

    size: int
    backed: int
    used: int
    nodes: int
    records: int
    superseded: int
    index: int
    quarantine: int
    free: int

class LogFigures(TypedDict):
    """What the log did since it was opened."""

    bytes: int
    flushes: int
    syncs: int
    rotations: int
    poisoned: bool

class CoreFigures(TypedDict):
    """What `CommitCore.stats` returns."""

    version: int
    commits: int
    batches: int
    conflicts: ConflictCounts
    refused: int
    expired: int
    session_keys_removed: int
    snapshots_revoked: int
    log_errors: int
    turns: dict[str, int]
    hot_keys: list[tuple[bytes, int]]
    batch_sizes: list[int]
    batch_ns: list[int]
    keys: int
    records: int
    session_keys: int
    range_tombstones: int
    pending_expiries: int
    store: StoreFigures
    log: LogFigures | None

class ChannelFigures(TypedDict):
    """What `CommitCore.channel_figures` returns."""

    session: int
    commits: int
    conflicts: int
    snapshot_version: int | None
    snapshot_age: float
    held_bytes: int

@final
class CommitCore:
    """The store's one writer: validation, batches, replies."""

    def __init__(
        self,
        store_buffer: Buffer,
        fd: int,
        database_id: bytes,
        incarnation: int,
        *,
        bell_buffer: Buffer | None = None,
        channel_count_max: int = 1,
        key_size_max: int = 65535,
        value_size_max: int = 67108864,
        request_size_max: int = 268435456,
        request_memory_max: int = 268435456,
        snapshot_age_max: float = 300.0,
        wake_fd: int = -1,
        watch_history: int = 0,
    ) -> None: ...
    @property
    def log(self) -> WalAppender | None: ...
    @property
    def committed_version(self) -> int: ...
    @property
    def log_poisoned(self) -> bool: ...
    @property
    def commits_over(self) -> bool: ...
    @property
    def log_bytes(self) -> int: ...
    @property
    def log_errors(self) -> int: ...
    def attach_log(self, log: WalAppender, sync_all: bool) -> None: ...
    def start_at(self, version: int, lost_version: int = 0) -> None: ...
    def set_range_limits(self, inline_max: int = ..., slice: int = ..., walk_slice: int = ...) -> None: ...
    def set_turn_times(
        self, longest: float, rest: float, quantum: float = 0.0, back: float = 0.0
    ) -> None: ...
    def limit_store(self, size: int) -> None: ...
    def bound_sessions(self) -> list[int]: ...
    def bound_entries(self, session: int) -> int: ...
    @property
    def ending(self) -> bool: ...
    def end_session(self, session: int) -> bool: ...
    def open_channel(
        self,
        session: int,
        channel_buffer: Buffer,
        ring_size: int,
        last_sequence: int = 0,
        last_version: int = 0,
        owner: int = 0,
        *,
        event_fd: int = -1,
    ) -> int: ...
    def close_channel(self, index: int) -> None: ...
    def channel_state(self, index: int) -> int: ...
    def channel_outcome(self, index: int) -> tuple[int, int, int]: ...
    def release_channel(self, index: int) -> None: ...
    def run(self) -> int: ...
    def stop(self) -> None: ...
    def wake(self) -> None: ...
    def process(self, request: bytearray, timeout: float = -1.0, patient: bool = True) -> bytes | None: ...
    def expire(self) -> None: ...
    def continue_clock(self, offset: int) -> None: ...
    def tick(self) -> None: ...
    def outcomes(self) -> dict[int, tuple[int, int]]: ...
    def pin(self) -> int: ...
    def pin_revoked(self) -> bool: ...
    def unpin(self) -> None: ...
    def loader(self) -> Loader: ...
    def channel_figures(self, index: int) -> ChannelFigures: ...
    def stats(self) -> CoreFigures: ...
    def check(self) -> str | None: ...
