"""A database directory driven without a coordinator: open, append transactions, stop or be killed, open again.

`Model` says in plain Python what a store must hold after a list of transactions.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from occamdb.engine.disk.directory import DatabaseDirectory
from occamdb.engine.log._scratch import ScratchStore
from occamdb.engine.log._wal_appender import WalAppender
from occamdb.engine.log.checkpoint import write_checkpoint
from occamdb.engine.log.recovery import Progress, RecoveryResult, recover
from occamdb.engine.log.wal_writer import start_log

Row = tuple[bytes, bytes, int, int, int]
WriteOperation = tuple[Literal["write"], bytes, bytes, int]
DeleteOperation = tuple[Literal["delete"], bytes, int]
RangeOperation = tuple[Literal["delete_range"], bytes, bytes]
BoundOperation = tuple[Literal["bound_write"], bytes, bytes, int, int]
Operation = WriteOperation | BoundOperation | DeleteOperation | RangeOperation
STORE_SIZE = 64 << 20
OTHER_BOOT = b"another boot id."
RUN_ID = b"run id, 16 bytes"


@dataclass
class Model:
    """Rows by key: (value, version, timestamp, expires_at); and the sessions that keys are bound to."""

    rows: dict[bytes, tuple[bytes, int, int, int]] = field(default_factory=dict)
    bindings: dict[bytes, int] = field(default_factory=dict)

    def apply(self, version: int, timestamp: int, operations: Iterable[Operation]) -> None:
        """What replay must do."""
        for operation in operations:
            if operation[0] == "write" or operation[0] == "bound_write":
                self.rows[operation[1]] = (operation[2], version, timestamp, operation[3])
                self.bindings.pop(operation[1], None)
                if operation[0] == "bound_write":
                    self.bindings[operation[1]] = operation[4]
            elif operation[0] == "delete":
                self.rows.pop(operation[1], None)
                self.bindings.pop(operation[1], None)
            else:
                for key in [key for key in self.rows if operation[1] <= key < operation[2]]:
                    del self.rows[key]
                    self.bindings.pop(key, None)

    def listing(self) -> list[Row]:
        """As `ScratchStore.rows` gives them."""
        return [(key, *self.rows[key]) for key in sorted(self.rows)]


class Database:
    """One opened directory with its recovered store and, unless `durability` is None, its log."""

    def __init__(
        self,
        path: Path,
        *,
        durability: str | None = "standard",
        segment_size: int = 1 << 20,
        boot_id: bytes | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.directory = DatabaseDirectory(path)
        self.directory.begin_incarnation()
        self.store = ScratchStore(self.directory.database_id, STORE_SIZE)
        self.log: WalAppender | None = None
        try:
            self.result: RecoveryResult = recover(
                self.directory, self.store.loader(), boot_id=boot_id, progress=progress
            )
            self.version = self.result.version
            if durability is not None:
                self.log = start_log(self.directory, self.result, durability, segment_size)
        except BaseException:
            self.directory.close()
            raise

    @property
    def appender(self) -> WalAppender:
        """The log."""
        assert self.log is not None
        return self.log

    def encode(
        self, operations: Sequence[Operation], *, session: int = 1, timestamp: int | None = None
    ) -> int:
        """Put one transaction into the batch; returns its version."""
        self.version += 1
        when = self.version * 10 if timestamp is None else timestamp
        self.appender.append_transaction(session, self.version, RUN_ID, when, self.version, operations)
        return self.version

    def flush(self, *, sync: bool = False) -> None:
        """Write the batch. On an error the versions of the batch are free again, as in the commit core."""
        before = int(self.appender.statistics()["log_written_version"])
        try:
            self.appender.flush_batch(sync)
        except OSError:
            self.version = before
            raise

    def commit(self, operations: Sequence[Operation], *, sync: bool = False, session: int = 1) -> int:
        """One transaction in a batch of its own."""
        version = self.encode(operations, session=session)
        self.flush(sync=sync)
        return version

    def checkpoint(self, still_wanted: Callable[[], None] | None = None) -> None:
        """A checkpoint of what was recovered; the store does not follow what is appended since."""
        outcomes = [(session, *outcome) for session, outcome in self.result.outcomes.items()]
        write_checkpoint(
            self.directory,
            self.store.mapping,
            self.result.version,
            outcomes,
            duty=1,
            still_wanted=still_wanted,
        )

    def close(self) -> None:
        """Close in good order, but without a checkpoint."""
        if self.log is not None:
            self.log.close()
        self.directory.close()

    def kill(self) -> None:
        """Leave everything as a killed process would."""
        if self.log is not None:
            self.log.abandon()
        self.directory.close()


def write(key: bytes, value: bytes = b"value", expires_at: int = 0) -> WriteOperation:
    """A Write operation."""
    return ("write", key, value, expires_at)


def content(path: Path, *, boot_id: bytes | None = None) -> tuple[RecoveryResult, list[Row]]:
    """Recover the directory as it is, without changing it, and audit the store."""
    directory = DatabaseDirectory(path, create=False)
    try:
        store = ScratchStore(directory.database_id, STORE_SIZE)
        result = recover(directory, store.loader(), boot_id=boot_id, repair_disk=False)
    finally:
        directory.close()
    assert store.check() is None
    return result, store.rows()


def fingerprint(path: Path) -> dict[str, str]:
    """Every file below `path` with a hash of its bytes."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def segments(path: Path) -> list[Path]:
    """The log's segments, oldest first."""
    return sorted((path / "wal").glob("*.log"))


def checkpoints(path: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    return sorted((path / "checkpoints").glob("*.ckpt"))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


@contextlib.contextmanager
def memory_directory(fallback: Path) -> Iterator[Path]:
    """A directory on a file system in memory, for tests that sync thousands of times; removed at the end."""
    parent = Path("/dev/shm")
    if not os.access(parent, os.W_OK):
        yield fallback
        return
    path = Path(tempfile.mkdtemp(prefix="durability-test-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked child; returns how it ended (0, or minus the signal that killed it)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
