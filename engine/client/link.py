"""One attached channel of this process: control connection, channel segment, ring ends.

1. A link commits for one thread at a time; `SharedHandle` keeps a pool of them.
2. A link is used by the process that attached it. A forked child closes its copies of the descriptors, so that the
   parent's death still shows as end of file at the coordinator.
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

__all__ = ["CoordinatorGone", "Link", "LinkTerms"]


_DYING_SECONDS = 0.2
# An event loop has many links, and a larger request is streamed.
EVENT_RING_SIZE = 16 * 1024


class CoordinatorGone(Exception):
    """The coordinator closed the connection: it died, was stopped, or threw this worker out."""


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What the coordinator said when it let this process attach."""

    database_id: bytes
    incarnation: int
    session: int
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
      session: the session to continue, or 0 for a new one.
      asked: the settings given by keyword at `open`, to be checked against the running ones.
      durability: what this opener wants.
      timeout: seconds for the attach call.
      event_fd: the eventfd through which the coordinator tells of answers; -1: by the channel's doorbell.

    Attributes:
      events: the channel of a link with an eventfd; None without one.

    Raises:
      OccamError: the coordinator refused; the error is its own.
      ControlError: the connection failed in between.
      SegmentError: a segment is gone or cannot be mapped.
    """

    def __init__(
        self,
        client: ControlClient,
        *,
        session: int,
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
                "asked": asked,
                "durability": durability,
                "process": own_identity().to_dict(),
            }
            if event_fd >= 0:
                message |= {"event": True, "ring_size": EVENT_RING_SIZE}
            reply = client.call(message, timeout, descriptor=event_fd)
            raise_refusal(reply)
            reply.pop("ok")
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
        # Bound once, for the commit path: exchange(request, timeout, on_idle). Neither refers back to the link.
        self.exchange = self.channel.exchange
        self.on_idle = functools.partial(_check_coordinator, client)
        self.sequence = self.terms.last_sequence
        self._detached = False
        # Whether its session continues through another link, for which a request through this one could be mistaken.
        self.left = False

    def _map(self, name: str, *, writable: bool) -> Segment:
        segment = attach_segment(name, writable=writable)
        segment.close_fd()
        self._segments.append(segment)
        return segment

    def exchange_slowly(self, request: bytearray, timeout: float, on_idle: Callable[[], None]) -> bytes:
        """`exchange` by way of the failpoints worker.mid_submit, worker.after_submit and worker.before_result."""
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
        """Whether the coordinator is dead and had not begun to take our last request: then it never happened."""
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
        """Tell the attachment if the coordinator is gone. Begin nothing more on the store if its name is gone too.

        The next coordinator marks its predecessor's store by its name. Without one (removed by systemd's RemoveIPC, by
        a cleaner of temporary files) nothing would ever tell us of what is committed from there on.
        """
        if self.gone():
            self.attachment.note_unserved()
            if not self._store.is_named():
                self.attachment.retire()

    def __del__(self) -> None:
        # An exception of a signal handler can take a link out of its owner's hands between any two lines.
        # Closing the connection is what gives its channel back then.
        with contextlib.suppress(Exception):
            if not self._detached:
                self.drop()

    def detach(self) -> None:
        """Tell the coordinator, then let go. Open snapshots of this link's attachment keep their mapping."""
        if self._detached:
            return
        self._detached = True
        with contextlib.suppress(ControlError, OSError):
            if not self.client.peer_gone():
                self.client.call({"op": "detach"}, 1.0)
        self.drop()

    def drop(self) -> None:
        """Let go without telling the coordinator: it is gone, or this is a forked child's copy."""
        self._detached = True
        with contextlib.suppress(OSError):
            self.client.close()
        self.attachment.retire()
        with contextlib.suppress(Exception):
            self.channel.close()
        self._close_segments()

    def _close_segments(self) -> None:
        # A mapping that is still exported (by an attachment with open snapshots) goes when its last user does.
        for segment in self._segments:
            with contextlib.suppress(BufferError):
                segment.close()
        self._segments = []


def _check_coordinator(client: ControlClient) -> None:
    """Called now and then while waiting for an answer.

    Raises:
      CoordinatorGone: there will be none.
    """
    if client.peer_gone():
        raise CoordinatorGone
