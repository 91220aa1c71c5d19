"""One attached channel of this process: control connection, channel segment, ring ends.

1. A link commits for one thread at a time; `SharedHandle` keeps a pool of them.
2. A link is used by the process that attached it. A forked child closes its copies of the descriptors, so
   that the parent's death still shows as end of file at the coordinator.
3. A link whose last request is unanswered is never used for another one (`reusable`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...ipc._channel import ClientChannel
from ...ipc._event_channel import EventChannel
from ...ipc.control import ControlClient
from ...ipc.errors import ChannelBroken, ChannelTimeout, ControlError
from ...ipc.process import identify, is_alive, own_identity
from ...ipc.segment import Segment, attach_segment
from ..disk import failpoints
from ..model.control_messages import raise_refusal
from ..transaction._view import StoreAttachment
from .program_log import LagWatch

__all__ = ["CoordinatorGone", "Link", "LinkTerms", "SessionOver"]


_DYING_SECONDS = 0.2
# An event loop has many links, and a larger request is streamed.
EVENT_RING_SIZE = 16 * 1024


class CoordinatorGone(Exception):
    """The coordinator closed the connection: it died, was stopped, or disconnected this worker."""


class SessionOver(Exception):
    """The session of this handle has ended: it did not come back in time. It goes on with another one."""


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What the coordinator said when it let this process attach."""

    database_id: bytes
    incarnation: int
    session: int
    owner: int
    last_sequence: int
    last_version: int
    settings: dict[str, Any]
    durability: str
    store: str
    bell: str
    channel: str
    ring_size: int
    spin_offset: int


class Link:
    """Attached to one incarnation of the coordinator.

    Args:
      client: a connected control client; owned from here on.
      path: the database directory.
      session: the session to continue, or 0 for a new one.
      owner: the session of the handle, which ephemeral keys are bound to.
      asked: the settings given by keyword at `open`, to be checked against the running ones.
      durability: what this opener wants.
      timeout: seconds for the attach call.
      event_fd: the eventfd through which the coordinator tells of answers; -1: by the channel's doorbell.

    Attributes:
      events: the channel of a link with an eventfd; None without one.

    Raises:
      OccamError: the coordinator refused; the error is its own.
      SessionOver: `owner` has ended.
      ControlError: the connection failed in between.
      SegmentError: a segment is gone or cannot be mapped.
    """

    def __init__(
        self,
        client: ControlClient,
        path: str,
        *,
        session: int,
        owner: int,
        asked: dict[str, Any],
        durability: str,
        timeout: float,
        event_fd: int = -1,
    ) -> None:
        self.client = client
        self.events: EventChannel | None = None
        self._segments: list[Segment] = []
        self._detached = True
        try:
            message = {
                "op": "attach",
                "session": session,
                "owner": owner,
                "asked": asked,
                "durability": durability,
                "process": own_identity().to_dict(),
            }
            if event_fd >= 0:
                message |= {"event": True, "ring_size": EVENT_RING_SIZE}
            reply = client.call(message, timeout, descriptor=event_fd)
            raise_refusal(reply)
            reply.pop("ok")
            if reply.get("over"):
                raise SessionOver
            self.terms = LinkTerms(**reply)
            store = self._store = self._map(self.terms.store, writable=False)
            bell = self._map(self.terms.bell, writable=True)
            channel = self._map(self.terms.channel, writable=True)
            self.attachment = StoreAttachment(store.map, channel.map, bell.map)
            parts = channel.map, bell.map, self.attachment.address + self.terms.spin_offset
            if event_fd < 0:
                self.channel = ClientChannel(*parts, ring_size=self.terms.ring_size)
            else:
                self.channel = self.events = EventChannel(*parts, ring_size=self.terms.ring_size)
                self.events.listen()
        except BaseException:
            client.close()
            self._close_segments()
            raise
        self.session = self.terms.session
        self.log_mode = self.terms.durability
        self.pid = os.getpid()
        self._coordinator = identify(client.peer_pid)
        # Bound once, for the commit path: exchange(request, timeout, on_idle). Neither refers back to the
        # link.
        self.exchange = self.channel.exchange
        self.on_idle = functools.partial(_check_coordinator, client, LagWatch(path))
        self.sequence = self.terms.last_sequence
        self._detached = False
        # Whether its session continues through another link. The answer to a request through this one could
        # be taken for that link's.
        self.left = False

    def _map(self, name: str, *, writable: bool) -> Segment:
        segment = attach_segment(name, writable=writable)
        segment.close_fd()
        self._segments.append(segment)
        return segment

    def exchange_slowly(self, request: bytearray, timeout: float, on_idle: Callable[[], None]) -> bytes:
        """`exchange` with the failpoints worker.mid_submit, worker.after_submit and worker.before_result."""
        deadline = time.monotonic() + timeout
        self.channel.send(request, timeout, on_idle, functools.partial(failpoints.hit, "worker.mid_submit"))
        failpoints.hit("worker.after_submit")
        reply = self.channel.receive(deadline - time.monotonic(), on_idle)
        failpoints.hit("worker.before_result")
        return reply

    @property
    def reusable(self) -> bool:
        """Whether the next request may go through this link."""
        return self.channel.idle and not self._detached and not self.left

    def last_words(self) -> tuple[bytes | None, bool]:
        """After `CoordinatorGone`: the reply if one still came; else whether the commit may have happened."""
        if not self.channel.dirty:
            return None, False
        if not self.channel.drained:
            return None, not self.died_with_request_untaken()
        # A clean stop: it answered every request that it served before it marked the channel as drained.
        try:
            return self.channel.receive(0), False
        except ChannelTimeout:
            return None, False
        except ChannelBroken:
            return None, True  # a damaged reply: only the log knows

    def died_with_request_untaken(self) -> bool:
        """Whether the coordinator died before it began to take our last request: then that never happened."""
        if self._coordinator is None:
            return False  # invisible from here (another pid namespace): it may be alive
        # A process's sockets close a moment before it counts as dead.
        limit = time.monotonic() + _DYING_SECONDS
        while is_alive(self._coordinator):
            if time.monotonic() > limit:
                return False
            time.sleep(0.001)
        # Only now: a living coordinator may take the request at any moment.
        return bool(self.channel.untaken)

    def gone(self) -> bool:
        """Whether the coordinator has closed the connection."""
        return self._detached or self.client.fileno() < 0 or self.client.peer_gone()

    def retire_if_orphaned(self) -> None:
        """Tell the attachment if the coordinator is gone. If the store's name is gone too, begin nothing more
        on it.

        The next coordinator finds its predecessor's store by this name, to mark it. If the name was removed
        (by systemd's RemoveIPC, or a cleaner of temporary files), nothing would tell us of later commits.
        """
        if self.gone():
            self.attachment.note_unserved()
            if not self._store.is_named():
                self.attachment.retire()

    def __del__(self) -> None:
        # An exception in a signal handler can make the owner lose a link between any two lines. Closing the
        # connection then gives its channel back.
        with contextlib.suppress(Exception):
            if not self._detached:
                self.drop()

    def detach(self, *, over: bool = False) -> None:
        """Tell the coordinator, then close. Open snapshots of this link's attachment keep their mapping.

        Args:
          over: the handle was closed, so its session ends.
        """
        if self._detached:
            return
        self._detached = True
        with contextlib.suppress(ControlError, OSError):
            if not self.client.peer_gone():
                self.client.call({"op": "detach", "over": over}, 1.0)
        self.drop()

    def drop(self) -> None:
        """Close without telling the coordinator: it is gone, or this is a forked child's copy."""
        self._detached = True
        with contextlib.suppress(OSError):
            self.client.close()
        self.attachment.retire()
        with contextlib.suppress(Exception):
            self.channel.close()
        self._close_segments()

    def _close_segments(self) -> None:
        # A mapping that is still in use (by an attachment with open snapshots) is unmapped by its last user.
        for segment in self._segments:
            with contextlib.suppress(BufferError):
                segment.close()
        self._segments = []


def _check_coordinator(client: ControlClient, lag: LagWatch) -> None:
    """Called now and then while waiting for an answer.

    Raises:
      CoordinatorGone: there will be no answer.
    """
    if client.peer_gone():
        raise CoordinatorGone
    lag()
