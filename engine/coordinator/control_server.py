"""The coordinator's control plane: who is attached, and what they ask for over the socket.

1. A connection carries at most one channel, and belongs to one handle of its process (`sessions.py`). The
   channel ends with the connection: its complete request is still served, its pins are revoked, and its
   segment is unlinked once the commit thread no longer uses it.
2. A worker may have died although its socket is still open, because a forked child holds a copy. Its death is
   found by pid and start time within a second.
3. No request of a worker, and no fault of its connection, can end more than that connection.
4. A worker with an event loop hands over an eventfd when it attaches. Its links share it: it is kept once, and
   closed with the last of their channels.
5. The outcome of a closed channel's last commit is remembered for OUTCOMES_KEPT sessions, so that a worker
   that was disconnected can come back and ask.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from ...ipc import layout
from ...ipc.control import ControlListener, ServerConnection
from ...ipc.errors import ControlProtocolError, OccamError, SegmentError, ShmFullError
from ...ipc.process import ProcessIdentity, identify, is_alive
from ...ipc.segment import Segment, create_segment
from ..commit._commit_core import CHANNEL_STATE_BROKEN, CHANNEL_STATE_CLOSED
from ..disk import failpoints
from ..model.control_messages import refusal
from ..model.errors import CoordinatorUnavailable, InvalidArgumentError, StoreFullError, TooManyChannelsError
from .complaints import complain, complain_of
from .event_fds import EventFds
from .figures import core_figures
from .recent_conflicts import KeptConflicts, conflict_figures, read_conflicts
from .services import Services
from .sessions import Sessions
from .tally import Tallies

__all__ = ["ControlServer", "dispose_segment", "no_descriptors", "segment_named"]

OUTCOMES_KEPT = 65536
_LIVENESS_PERIOD = 1.0
# A session may come back while its old channel still drains. If that takes longer, the worker is told to try
# again.
_DRAIN_SECONDS = 0.2


def segment_named() -> None:
    """A segment of ours has its name and is still empty."""
    failpoints.hit("shm.create")


def dispose_segment(segment: Segment) -> None:
    """Remove a segment's name and unmap it. Never raises."""
    try:
        segment.unlink()
    except (OccamError, OSError) as error:
        # Another file has this name, and is not ours to remove.
        complain(f"{segment.name} was not removed: {error}")
    with contextlib.suppress(BufferError):
        segment.close()


def no_descriptors() -> dict[str, Any]:
    """The refusal sent to a worker when the coordinator has run out of file descriptors."""
    return refusal(no_descriptors_error())


def no_descriptors_error() -> TooManyChannelsError:
    """The same as an error."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return TooManyChannelsError(
        f"the coordinator (pid {os.getpid()}) has no descriptors left for another worker: it may have {limit} open",
        hint="close databases that are not needed, or raise `ulimit -n` where the coordinator is started",
        limit=limit,
        setting="ulimit -n",
        details={"errno": errno.EMFILE},
    )


def _new_session() -> int:
    """A new session id: 63 random bits, never 0."""
    return int.from_bytes(os.urandom(8)) >> 1 | 1


class _Worker:
    """One connection, and its channel once it has attached."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.identity: ProcessIdentity | None = None
        self.index = -1
        self.session = 0
        self.owner = 0  # the session of its handle
        self.segment: Segment | None = None
        self.event_fd = -1
        self.attached_at = time.time()
        self.closing = False

    @property
    def pid(self) -> int:
        """The process, for people."""
        return self.identity.pid if self.identity else self.connection.pid


class ControlServer:
    """Serves the control socket in the coordinator's main thread."""

    def __init__(self, services: Services, listener: ControlListener) -> None:
        self._services = services
        self._core = services.core
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._draining: list[_Worker] = []
        self._event_fds = EventFds()
        # Oldest first: the table forgets from the front.
        recovered = sorted(services.durable.outcomes.items(), key=lambda entry: entry[1][1])
        self._tallies = Tallies()  # of workers that left
        self._kept_conflicts = KeptConflicts()  # likewise
        self._outcomes: OrderedDict[int, tuple[int, int]] = OrderedDict(recovered)
        self._outcomes_lock = threading.Lock()  # a checkpoint reads the table in its own thread
        self._sessions = Sessions(
            self._core.end_session, services.settings.session_grace, self._core.bound_sessions()
        )
        self._idle_since = time.monotonic()
        self._was_used = False
        self._next_liveness = 0.0
        self._started_at = time.time()
        self._operations = {
            "attach": self._attach,
            "hold": self._hold,
            "detach": self._detach,
            "status": self._status,
            "stats": self._stats,
            "checkpoint": self._checkpoint,
            "checkpoint_state": self._checkpoint_state,
            "logged_commit": self._logged_commit,
            "failpoint": self._failpoint,
            "stop": self._stop,
        }

    # ---- the loop's calls --------------------------------------------------------------------------------

    def register(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        selector.register(self._listener, selectors.EVENT_READ, self._listener)
        self._sessions.register(selector)

    def handle(self, key: selectors.SelectorKey, events: int) -> None:
        """One descriptor is ready."""
        if key.data is self._listener:
            self._accept()
            return
        worker = self._workers.get(key.data)
        if worker is not None:
            with self._confined_to(worker):
                if events & selectors.EVENT_WRITE:
                    worker.connection.flush()
                if events & selectors.EVENT_READ:
                    self._receive(worker)
                self._update(worker)

    @contextlib.contextmanager
    def _confined_to(self, worker: _Worker) -> Iterator[None]:
        """An error inside ends this worker's connection and nothing else."""
        try:
            yield
        except Exception as error:
            complain_of(error)
            self._close(worker)

    def settle(self) -> None:
        """Between turns: disconnect broken channels, free drained ones, look for silent deaths."""
        for worker in list(self._workers.values()):
            if worker.index >= 0 and self._core.channel_state(worker.index) == CHANNEL_STATE_BROKEN:
                self._close(worker)
        self._free_drained()
        now = time.monotonic()
        if now >= self._next_liveness:
            self._next_liveness = now + _LIVENESS_PERIOD
            for worker in list(self._workers.values()):
                with self._confined_to(worker):
                    if worker.identity is not None and not is_alive(worker.identity):
                        self._close(worker)
        self._sessions.settle()
        if self._workers or self._draining or self._sessions.waiting:
            self._idle_since = now

    def idle_seconds(self) -> float:
        """How long ago the last worker left; -1 while there is one, or the session of one has yet to end."""
        busy = self._workers or self._draining or self._sessions.waiting
        return -1.0 if busy else time.monotonic() - self._idle_since

    @property
    def was_used(self) -> bool:
        """Whether any worker ever attached."""
        return self._was_used

    def outcomes(self) -> dict[int, tuple[int, int]]:
        """{session: (sequence, commit version)}: the last commit of every session that may still ask."""
        found = self._core.outcomes()
        # Read second: a session's outcome is in the table before its channel is freed.
        with self._outcomes_lock:
            known = list(self._outcomes.items())
        for session, outcome in known:
            # By sequence: a session that came back has an older entry here than in its channel.
            found[session] = max(outcome, found.get(session, outcome))
        return found

    def close(self) -> None:
        """Stop listening and disconnect everybody. REQUIRES: the commit thread has ended."""
        self._listener.close()
        for worker in [*self._workers.values(), *self._draining]:
            worker.connection.close()
            self._dispose(worker)
        self._workers.clear()
        self._draining.clear()
        self._sessions.close()
        # Nothing may keep the core alive: its segments are unmapped next.
        self._core = None  # type: ignore[assignment]
        self._services = None  # type: ignore[assignment]

    def _accept(self) -> None:
        connection = self._listener.accept()
        if connection is not None:
            worker = self._workers[connection.fileno()] = _Worker(connection)
            with self._confined_to(worker):
                self._selector.register(connection, selectors.EVENT_READ, connection.fileno())
                # Identify it before it says who it is: it may die first, and leave its end of the connection
                # to a child that it forked.
                worker.identity = identify(connection.pid)

    # ---- connections -------------------------------------------------------------------------------------

    def _receive(self, worker: _Worker) -> None:
        try:
            for message in worker.connection.receive():
                worker.connection.queue(self._answer(worker, message))
        except ControlProtocolError:
            worker.connection.eof = True

    def _answer(self, worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        name = message.get("op")
        # A worker can send any value, even one that cannot be printed, such as a list nested a thousand deep.
        operation = self._operations.get(name) if isinstance(name, str) else None
        try:
            if operation is None:
                shown = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
                known = ", ".join(self._operations)
                raise InvalidArgumentError(f"unknown operation {shown}", hint=f"known: {known}")
            return {"ok": True, **operation(worker, message)}
        except OccamError as error:
            return refusal(error)
        except OSError as error:
            complain_of(error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return no_descriptors()
            return refusal(CoordinatorUnavailable(f"the coordinator failed at {name!r}: {error!r}"))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            return refusal(InvalidArgumentError(f"malformed {name!r} message: {error!r}"))
        except Exception as error:
            # One worker's request must not end the coordinator for all, whatever it ran out of: descriptors,
            # memory or threads.
            complain_of(error)
            return refusal(CoordinatorUnavailable(f"the coordinator failed at {name!r}: {error!r}"))

    def _update(self, worker: _Worker) -> None:
        if worker.connection.eof:
            self._close(worker)
        elif worker.connection.fileno() in self._workers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.connection.wants_write else 0)
            self._selector.modify(worker.connection, events, worker.connection.fileno())

    def _close(self, worker: _Worker) -> None:
        """End a connection; its channel drains and is freed by `_free_drained`."""
        fd = worker.connection.fileno()
        if fd in self._workers:
            del self._workers[fd]
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(worker.connection)
            worker.connection.close()
        self._drain(worker)
        if worker.index < 0:
            self._leave(worker)

    def _drain(self, worker: _Worker) -> None:
        if worker.index >= 0 and not worker.closing:
            worker.closing = True
            self._core.close_channel(worker.index)
            self._draining.append(worker)

    def _free_drained(self) -> None:
        for worker in list(self._draining):
            if self._core.channel_state(worker.index) == CHANNEL_STATE_CLOSED:
                self._draining.remove(worker)
                self._remember(worker)
                self._core.release_channel(worker.index)
                self._dispose(worker)
                self._leave(worker)

    def _leave(self, worker: _Worker) -> None:
        """The connection no longer stands for its handle. REQUIRES: its channel, if it had one, was freed."""
        owner, worker.owner = worker.owner, 0
        if owner:
            self._sessions.leave(owner)

    def _remember(self, worker: _Worker) -> None:
        session, sequence, version = self._core.channel_outcome(worker.index)
        if sequence:
            with self._outcomes_lock:
                self._outcomes[session] = (sequence, version)
                self._outcomes.move_to_end(session)
                while len(self._outcomes) > OUTCOMES_KEPT:
                    self._outcomes.popitem(last=False)

    def _dispose(self, worker: _Worker) -> None:
        segment, worker.segment, worker.index = worker.segment, None, -1
        self._event_fds.release(worker.event_fd)
        worker.event_fd = -1
        if segment is not None:
            self._tallies.add(segment.map)
            self._kept_conflicts.keep(read_conflicts(segment.map, worker.pid, worker.session))
            dispose_segment(segment)

    # ---- operations: each returns the fields of its reply ------------------------------------------------

    def _attach(self, worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        if worker.index >= 0:
            raise InvalidArgumentError("this connection is attached already")
        if failpoints.armed():
            failpoints.hit("coordinator.attach")
        self._services.check_terms(dict(message["asked"]), str(message["durability"]))
        session = int(message["session"])
        if not 0 <= session < 1 << 64:
            raise InvalidArgumentError(f"session {session} is not in 0..2**64 - 1")
        ring_size = self._ring_size(message)
        sequence, version = self._continue(session) if session else (0, 0)
        session = session or _new_session()
        # Without a name for its handle, the connection is a handle by itself.
        owner = int(message.get("owner", session))
        if not self._join(worker, owner, message):
            return {"over": True}
        try:
            if message.get("event"):
                self._take_event_fd(worker)
            self._open_channel(worker, session, sequence, version, ring_size)
        except BaseException:
            self._event_fds.release(worker.event_fd)
            worker.event_fd = -1
            self._leave(worker)
            raise
        return self._services.terms() | {
            "ring_size": ring_size,
            "session": session,
            "owner": owner,
            "last_sequence": sequence,
            "last_version": version,
            "channel": worker.segment.name if worker.segment else "",
        }

    def _join(self, worker: _Worker, owner: int, message: dict[str, Any]) -> bool:
        """Let the connection stand for its handle. False: the handle's session is over."""
        identity = ProcessIdentity.from_dict(message["process"])
        if identity is None or identity.pid != worker.connection.pid:
            identity = identify(worker.connection.pid)
        if worker.owner:
            raise InvalidArgumentError("this connection stands for a handle already")
        if not self._sessions.join(owner, identity):
            return False
        worker.owner, worker.identity = owner, identity
        return True

    def _hold(self, worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        """Keep the session of a handle open as long as this connection, which has no channel."""
        held = self._join(worker, int(message["owner"]), message)
        return {"over": not held, "database_id": self._services.database_id}

    def _ring_size(self, message: dict[str, Any]) -> int:
        """What the worker asks for, if that is less than the setting."""
        asked = message.get("ring_size", 0)
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
            raise InvalidArgumentError(f"ring_size {asked!r} is not a size")
        configured = self._services.settings.ring_size
        return layout.check_ring_size(asked) if 0 < asked < configured else configured

    def _take_event_fd(self, worker: _Worker) -> None:
        """Take over the eventfd that came with the message."""
        lost = worker.connection.descriptors_lost
        descriptor = worker.connection.take_descriptor()
        if descriptor < 0 and lost:
            raise no_descriptors_error()
        worker.event_fd = self._event_fds.adopt(descriptor)

    def _continue(self, session: int) -> tuple[int, int]:
        """The last outcome of a session that comes back; waits until its old channel has drained."""
        for other in list(self._workers.values()):
            if other.session == session and other.index >= 0:
                self._close(other)
        limit = time.monotonic() + _DRAIN_SECONDS
        while any(other.session == session for other in self._draining):
            self._free_drained()
            if time.monotonic() > limit:
                raise CoordinatorUnavailable(
                    "the session's previous channel is still being served", hint="try again"
                )
            time.sleep(0.0005)
        # The entry stays in the table: if this attach fails later, the next one must find it.
        return self._outcomes.get(session, (0, 0))

    def _open_channel(
        self, worker: _Worker, session: int, sequence: int, version: int, ring_size: int
    ) -> None:
        services = self._services
        name = layout.channel_name(services.database_id, services.incarnation, session)
        try:
            segment = create_segment(name, layout.channel_size(ring_size), on_named=segment_named)
        except ShmFullError as error:
            raise StoreFullError(
                f"no shared memory for a worker's channel: {error.message}",
                hint=error.hint,
                details=error.details,
            ) from error
        except SegmentError as error:
            if error.details.get("errno") not in (errno.EMFILE, errno.ENFILE):
                raise
            raise no_descriptors_error() from error
        try:
            with memoryview(segment.map) as view:
                layout.write_channel_header(view, session, ring_size)
            index = self._core.open_channel(
                session, segment.map, ring_size, sequence, version, worker.owner, event_fd=worker.event_fd
            )
        except BaseException:
            segment.unlink()
            segment.close()
            raise
        if index < 0:
            segment.unlink()
            segment.close()
            count = services.settings.channel_count_max
            raise TooManyChannelsError(
                f"all {count} channels are taken",
                hint="close databases that are not needed, or raise channel_count_max",
                size=count + 1,
                limit=count,
            )
        # The mapping works without the descriptor, and descriptors limit the number of workers.
        segment.close_fd()
        worker.segment, worker.index, worker.session, worker.closing = segment, index, session, False
        self._was_used = True

    def _detach(self, worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("over") and worker.owner:
            self._sessions.goodbye(worker.owner)
        self._drain(worker)
        return {}

    def _status(self, _worker: _Worker, _message: dict[str, Any]) -> dict[str, Any]:
        services = self._services
        return {
            "pid": os.getpid(),
            "path": services.path,
            "database_id": services.database_id.hex(),
            "incarnation": services.incarnation,
            "durability": services.durable.mode,
            "auto": services.auto,
            "version": self._core.committed_version,
            "uptime": time.time() - self._started_at,
            "workers": len([w for w in self._workers.values() if w.index >= 0]),
        }

    def _stats(self, worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        tallies, conflicts = self._tallies.copy(), [*self._kept_conflicts]
        for other in {*self._workers.values(), *self._draining}:
            if other.segment is not None:
                tallies.add(other.segment.map)
                conflicts += read_conflicts(other.segment.map, other.pid, other.session)
        workers = []
        for other in self._workers.values():
            if other.index >= 0:
                channel = self._core.channel_figures(other.index)
                workers.append(
                    {"pid": other.pid, "attached_at": other.attached_at, "owner": other.owner, **channel}
                )
        figures = core_figures(self._core, tallies)
        # The size that commits may fill. The segment itself is larger, to leave room for recovery.
        figures["store"]["size"] = self._services.settings.max_store_size
        return (
            figures
            | self._status(worker, message)
            | {
                "workers": workers,
                "recent_conflicts": conflict_figures(conflicts),
                "sessions": self._sessions.figures(),
                "durable": self._services.durable.figures(),
            }
        )

    def _checkpoint(self, _worker: _Worker, _message: dict[str, Any]) -> dict[str, Any]:
        # Read first: the checkpoint must hold everything that was acknowledged before this request.
        wanted = self._core.committed_version
        return self._services.durable.checkpoint(self.outcomes) | {"wanted": wanted}

    def _checkpoint_state(self, _worker: _Worker, _message: dict[str, Any]) -> dict[str, Any]:
        return self._services.durable.checkpoint_state()

    def _logged_commit(self, _worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        return self._services.durable.logged_commit(int(message["version"]))

    def _failpoint(self, _worker: _Worker, message: dict[str, Any]) -> dict[str, Any]:
        failpoints.set(str(message["name"]), str(message["action"]))
        return {"active": failpoints.active()}

    def _stop(self, _worker: _Worker, _message: dict[str, Any]) -> dict[str, Any]:
        self._services.request_stop()
        return {"pid": os.getpid()}
