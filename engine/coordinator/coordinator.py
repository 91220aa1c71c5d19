"""The coordinator process: owns one database directory, its shared memory and its commit thread.

The steps of a start, with the reason for their order:

    LOCK              a second coordinator stops here and does not disturb the first
    meta, incarnation durable before anything else of this start is visible
    bell segment      the first segment, with our identity, so that the segments after it are never taken for
                      those of a dead coordinator
    store segment     recovery fills it; nobody can attach yet
    log               appending continues behind what recovery kept
    supersede         older store segments are marked, then every older segment loses its name: a worker that
                      begins after our first acknowledgement sees the mark and attaches anew
    socket            workers can attach, and commits be acknowledged, only from here on

SIGTERM is handled from a point before the first segment exists. Until the end of recovery it undoes the
start, and only the incarnation has changed on disk. After that the start is completed, and a clean stop
follows.

The steps of a clean stop: write a checkpoint while workers are still served; end the batches, and answer the
requests that were not taken with STOPPING; close the connections; sync the rest of the log; mark the own
store as superseded, because the next coordinator will not find this segment, and a later begin must attach
anew; remove the names; release LOCK. So commits wait for the rest of the log, and for the checkpoint only if
there is no log.

A crash at any point leaves names in /dev/shm, a socket and the content of LOCK. The next start clears them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import struct
import threading
import time
from typing import Any

from ...ipc import layout
from ...ipc.control import ControlListener
from ...ipc.errors import AddressSpaceError, OccamError, SegmentForeignError, ShmFullError
from ...ipc.lock import FileLock
from ...ipc.process import own_identity
from ...ipc.segment import Segment, create_segment, peek_segment, poke_segment
from ...ipc.stale import list_incarnations, remove_superseded
from ..commit._commit_core import CLOCK_OFFSET_OFFSET, SUPERSEDED_OFFSET, CommitCore
from ..disk import failpoints
from ..disk.directory import SOCKET_NAME, DatabaseDirectory, socket_path
from ..disk.reserve import give_up_reserve, is_disk_full, keep_reserve
from ..model.errors import CoordinatorUnavailable, LogWriteError, StoreFullError
from ..model.limits import sized
from ..model.settings import load_settings
from ..store._memory import watch
from ..store.cgroups import memory_groups
from .complaints import complain
from .control_server import ControlServer, dispose_segment, no_descriptors, segment_named
from .durable_state import DurableState, require_durability
from .services import Services

__all__ = ["Coordinator", "StoppedWhileStarting"]

_PAGE = 65536
_HEADROOM_SHARE = 4
_HEADROOM_MIN = 4 << 20
_SEGMENT_SIZE_MAX = (1 << 36) - _PAGE
_TICK = 0.25
_LOOK_SECONDS = 1.0
_FIRST_ATTACH_SECONDS = 10.0


class StoppedWhileStarting(SystemExit):
    """A signal came before there was anything to serve. The start was undone; the exit code is 0."""


class Coordinator:
    """One coordinator of one directory.

    Args:
      path: the database directory, absolute; made when missing.
      durability: "none", "standard" or "always".
      asked: settings by keyword, over the directory's settings file.
      inherited: the settings of the coordinator before, under the directory's settings file.
      auto: ends by itself when the last worker has been gone for `idle_timeout`.
    """

    def __init__(
        self,
        path: str,
        durability: str,
        asked: dict[str, Any],
        *,
        auto: bool,
        inherited: dict[str, Any] | None = None,
    ) -> None:
        require_durability(durability)
        self.path = path
        self.durability = durability
        self.auto = auto
        self._asked = asked
        self._inherited = inherited or {}
        self._cleanup = contextlib.ExitStack()
        self._signal_handling = contextlib.ExitStack()
        self._stop_requested = False
        self._exit_code = 0
        self._next_look = 0.0

    # ---- start ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Do everything up to the open socket. Call it from the main thread: it handles SIGTERM and SIGINT.

        Raises:
          StoppedWhileStarting: one of these signals came before recovery was done.
          LockHeldError: another coordinator owns the directory.
          OccamError: what is wrong with the directory, the log, a checkpoint or the machine's memory.
        """
        self._signal_handling.enter_context(self._signals())
        try:
            try:
                self._start()
            except (OSError, LogWriteError) as error:
                # On a full disk, give up the reserve and try again. LOCK is still held here.
                if not (is_disk_full(error) and give_up_reserve(self.path)):
                    raise
                self._cleanup.close()
                self._start()
        except BaseException as error:
            self._cleanup.close()
            self._signal_handling.close()
            if isinstance(error, OSError) and not isinstance(error, OccamError):
                raise CoordinatorUnavailable(
                    f"cannot open {self.path}: {error.strerror or error}",
                    hint="check that the directory exists, is writable and that descriptors are left (ulimit -n)",
                    details={"path": self.path, "errno": error.errno},
                ) from error
            raise

    def _start(self) -> None:
        DatabaseDirectory.prepare(self.path)
        self._lock = FileLock(os.path.join(self.path, "LOCK"))
        self._lock.acquire()
        self._cleanup.callback(self._lock.release)
        self.settings = load_settings(self.path, self._inherited, **self._asked)
        self.directory = DatabaseDirectory(self.path)
        self._cleanup.callback(self.directory.close)
        self.incarnation = self.directory.begin_incarnation()
        self.database_id = self.directory.database_id
        self._refuse_copy()
        self._end_if_told()
        self._create_segments()
        self._create_core()
        self.durable = DurableState(self.directory, self.core, self.settings, self.durability, self.store.map)
        self._cleanup.callback(self.durable.close)
        self.durable.recover(lambda stage, done, total: self._end_if_told())
        self._supersede_older()
        if failpoints.armed():
            failpoints.hit("coordinator.before_ready")
        listener = ControlListener(socket_path(self.path), no_descriptors)
        self._cleanup.callback(listener.close)
        services = Services(
            path=self.path,
            database_id=self.database_id,
            incarnation=self.incarnation,
            store=self.store.name,
            bell=self.bell.name,
            auto=self.auto,
            settings=self.settings,
            core=self.core,
            durable=self.durable,
            request_stop=self.request_stop,
        )
        self.server = ControlServer(services, listener)
        self._write_coordinator_file()
        # Before the first commit can take what is left of a full disk.
        keep_reserve(self.directory)

    def _end_if_told(self) -> None:
        """End the start if a signal asked for it.

        The signal handler does not raise: its exception could come between the creation of a segment and its
        entry in `_cleanup`.
        """
        if self._stop_requested:
            raise StoppedWhileStarting(0)

    def _refuse_copy(self) -> None:
        """Refuse to serve a copy of a directory that is being served.

        We hold LOCK, so a living coordinator with our database id serves another directory. Both would use
        the same segment names, and we would take the other's segments for those of a dead coordinator.
        """
        for incarnation in list_incarnations(self.database_id):
            owner = incarnation.owner
            if owner is not None and not incarnation.dead and owner.pid != os.getpid():
                raise CoordinatorUnavailable(
                    f"process {owner.pid} serves another directory with the same database id: one is a copy",
                    hint="use one of them at a time; `occamdb backup` and `occamdb restore` make independent copies",
                    details={"path": self.path, "pid": owner.pid},
                )

    def _create_segments(self) -> None:
        size = _segment_size(self.settings.max_store_size) + self.settings.watch_history
        try:
            self.bell = self._own(
                layout.bell_name(self.database_id, self.incarnation), layout.BELL_SEGMENT_SIZE
            )
            identity = own_identity()
            layout.write_bell_owner(memoryview(self.bell.map), identity.pid, identity.start_time)
            self.store = self._own(layout.store_name(self.database_id, self.incarnation), size, preallocate=0)
        except (ShmFullError, AddressSpaceError) as error:
            raise StoreFullError(
                f"no shared memory for a store of up to {sized(size)}: {error.message}",
                hint=f"{error.hint}; or lower max_store_size",
                details=error.details,
            ) from error

    def _own(self, name: str, size: int, preallocate: int | None = None) -> Segment:
        """Create a segment that is removed when this coordinator ends."""
        segment = create_segment(name, size, preallocate=preallocate, on_named=segment_named)
        self._cleanup.callback(dispose_segment, segment)
        return segment

    def _create_core(self) -> None:
        limits = self.settings.limits
        watch(memory_groups())
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._cleanup.callback(os.close, self.wake_fd)
        try:
            self.core = CommitCore(
                self.store.map,
                self.store.fd,
                self.database_id,
                self.incarnation,
                bell_buffer=self.bell.map,
                channel_count_max=self.settings.channel_count_max,
                key_size_max=limits.stored_key_size_max,
                value_size_max=limits.value_size_max,
                request_size_max=limits.transaction_size_max,
                request_memory_max=self.settings.request_memory_max,
                snapshot_age_max=self.settings.snapshot_max_age,
                wake_fd=self.wake_fd,
                watch_history=self.settings.watch_history,
            )
        except OSError as error:
            raise StoreFullError(
                f"no shared memory for the first pages of the store: {error.strerror}",
                hint="free space in /dev/shm, or enlarge it",
            ) from error

    def _supersede_older(self) -> None:
        for incarnation in list_incarnations(self.database_id):
            if incarnation.number != self.incarnation and not incarnation.foreign:
                # A file that is not a plain segment of ours was put there by somebody else. No worker can
                # have mapped it as a store.
                with contextlib.suppress(SegmentForeignError):
                    name = layout.store_name(self.database_id, incarnation.number)
                    mark_superseded(name)
                    # Its readers judged expiry by its clock, so our clock must not be behind that one.
                    offset = peek_segment(name, CLOCK_OFFSET_OFFSET, 8)
                    self.core.continue_clock(int.from_bytes(offset, "little", signed=True))
        remove_superseded(self.database_id, keep_incarnation=self.incarnation)

    def _write_coordinator_file(self) -> None:
        note = {
            "pid": os.getpid(),
            "socket": SOCKET_NAME,
            "incarnation": self.incarnation,
            "database_id": self.database_id.hex(),
            "durability": self.durable.mode,
            "auto": self.auto,
        }
        self._note = json.dumps(note).encode()
        self.directory.folder.replace("coordinator.json", self._note)

    def _remove_coordinator_file(self) -> None:
        folder = self.directory.folder
        with contextlib.suppress(OSError):
            # The file is another coordinator's if the directory was emptied and opened anew.
            if folder.read("coordinator.json") == self._note:
                folder.remove("coordinator.json")

    # ---- life ---------------------------------------------------------------------------------------------

    def serve(self) -> int:
        """Run until stopped; returns the exit code. Call from the main thread, after `start`."""
        commit_thread = threading.Thread(target=self._commit_loop, name="commit", daemon=True)
        with self._signal_handling:
            try:
                commit_thread.start()
                self._loop()
            finally:
                self.core.stop()
                if commit_thread.ident is not None:
                    commit_thread.join()
                self._finish()
        return self._exit_code

    def _commit_loop(self) -> None:
        error = self.core.run()
        if error:
            # The content of the log is unknown, and no worker was answered. The next coordinator finds out by
            # recovery.
            complain(f"log in an unknown state after {os.strerror(error)}; ending to recover")
            os._exit(70)

    @contextlib.contextmanager
    def _signals(self) -> Any:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        handled = [signal.SIGTERM] if self.auto else [signal.SIGTERM, signal.SIGINT]
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        wakeup_before = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.signal_fd = wake_read
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake_read)
            os.close(wake_write)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stop_requested = True

    def request_stop(self) -> None:
        """End the control loop after this turn."""
        self._stop_requested = True

    def _loop(self) -> None:
        selector = selectors.DefaultSelector()
        with selector:
            for fd in (self.wake_fd, self.signal_fd):
                selector.register(fd, selectors.EVENT_READ, None)
            self.server.register(selector)
            while not self._may_end():
                for key, events in selector.select(min(_TICK, self.durable.next_due())):
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            os.read(key.fd, 4096)
                    else:
                        self.server.handle(key, events)
                self.server.settle()
                self.durable.tick(self.server.outcomes)

    def _may_end(self) -> bool:
        """Whether to end now: a stop was asked for, or the idle time is over, and everything is prepared."""
        if not self._in_place():
            return True
        idle = self.auto and self.server.idle_seconds() >= self._patience()
        if self._stop_requested or idle:
            return self.durable.ready_to_stop(self.server.outcomes)
        self.durable.stay()
        return False

    def _in_place(self) -> bool:
        """Whether the path still leads to this database; looks once a second.

        If it does not, the next opener finds another database or none: stop before anything more is
        acknowledged.
        """
        now = time.monotonic()
        if now < self._next_look:
            return True
        self._next_look = now + _LOOK_SECONDS
        lost = self._lost()
        if lost:
            complain(f"{lost} was moved, replaced or deleted while it was open: ending")
        return not lost

    def _lost(self) -> str:
        """What is no longer where it was created; empty if everything is in place."""
        if not self.directory.is_in_place():
            return self.path
        if not self._is_whole():
            return f"what lies in {self.path}"
        # Without these names nobody can attach, and a successor could not tell our workers that it took over.
        # (systemd's RemoveIPC removes them, and so do cleaners of temporary files.)
        return next((segment.name for segment in (self.bell, self.store) if not segment.is_named()), "")

    def _is_whole(self) -> bool:
        return self.directory.is_whole(self._lock.fileno())

    def _patience(self) -> float:
        """Seconds without a worker after which an auto-started coordinator ends."""
        # The process that started us needs a moment to attach, even if the timeout is small.
        idle_timeout = self.settings.idle_timeout
        return idle_timeout if self.server.was_used else max(idle_timeout, _FIRST_ATTACH_SECONDS)

    def _finish(self) -> None:
        """Finish a clean stop. REQUIRES: the commit thread has ended."""
        if failpoints.armed():
            failpoints.hit("coordinator.stopping")
        outcomes = self.server.outcomes()
        # First of all, so that workers that still wait for an answer look for the next coordinator now.
        self.server.close()
        self._finish_files(outcomes)
        store = memoryview(self.store.map)
        struct.pack_into("<I", store, SUPERSEDED_OFFSET, 1)
        store.release()
        self._remove_coordinator_file()
        self.core = None  # type: ignore[assignment]
        self.durable.release_core()
        self._cleanup.close()

    def _finish_files(self, outcomes: dict[int, tuple[int, int]]) -> None:
        if not self._is_whole():
            self.durable.abandon()
            self._exit_code = 1
            return
        try:
            self.durable.finish(lambda: outcomes)
        except Exception as error:
            # Unless the log failed, everything acknowledged is in it, and recovery does not need the
            # checkpoint.
            complain(f"no checkpoint at the stop: {error}")
            self._exit_code = 1


def _segment_size(store_size_max: int) -> int:
    """The size of the segment, larger than the store may become, so that a full store can always be
    recovered.

    Recovery writes the same content in another order, which may take a little more room. Pages that were
    never touched cost nothing.
    """
    headroom = store_size_max // _HEADROOM_SHARE + _HEADROOM_MIN
    return min(store_size_max + headroom, _SEGMENT_SIZE_MAX) // _PAGE * _PAGE


def mark_superseded(name: str) -> None:
    """Tell workers that still map a dead incarnation's store to attach anew before they begin again.

    Raises:
      SegmentError: it exists and could not be marked. A worker that begins on it would miss later commits.
    """
    poke_segment(name, SUPERSEDED_OFFSET, struct.pack("<I", 1))
