"""A worker's links to the coordinator of one database: which are idle, how a further one is attached.

1. `idle` holds the links that no thread is using, the last used one on top. If it is empty, the thread
   attaches one.
2. Pins live in the channel of the link that was attached first (`primary`), which stays open with the pool.
3. A forked child starts with no links: it closes the inherited descriptors, and attaches anew at its first
   call.
4. All links name one session, `owner`, which the handle's ephemeral keys are bound to. It is chosen anew in a
   forked child, and when the coordinator says that it is over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from typing import Any

from ...ipc.errors import (
    AddressSpaceError,
    ControlError,
    ControlUnavailableError,
    IpcError,
    SegmentError,
)
from ..disk.directory import read_meta
from ..model.errors import (
    CoordinatorUnavailable,
    DatabaseClosedError,
    LogWriteError,
    TransactionTimeout,
)
from ..model.settings import Settings
from .descriptors import no_descriptors_error
from .launcher import CoordinatorDied, Launcher
from .link import Link, SessionOver
from .program_log import tell
from .session_keeper import SessionKeeper

__all__ = ["LinkPool"]

_PAUSE_MIN, _PAUSE_MAX = 0.001, 0.02  # between two looks for a coordinator
_PAUSE_AFTER_DEATH = 0.1
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_pools: weakref.WeakSet[LinkPool] = weakref.WeakSet()


class LinkPool:
    """The links of one `SharedHandle`.

    Args:
      path: the database directory.
      durability: what its coordinator has to give at least.
      asked: settings given by keyword.
      start: "auto" starts a coordinator when none runs; "never" waits for one.
      database_id: which database it must be; empty: the one that is there.
    """

    # As agreed with the coordinator that was attached last.
    settings: Settings
    log_mode: str

    def __init__(
        self, path: str, *, durability: str, asked: dict[str, Any], start: str, database_id: bytes
    ) -> None:
        self.path = path
        self.database_id = database_id
        self.closed = False
        self._durability = durability
        self._asked = asked
        self._start = start
        self._launcher = Launcher(path, durability, asked)
        self.reset()
        _pools.add(self)

    def reset(self) -> None:
        """Begin with no links, in the process that runs now."""
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.owner = _new_owner()
        self._keeper: SessionKeeper | None = None  # once a commit binds keys
        self.primary: Link | None = None
        self.idle: list[Link] = []
        # Weak: an interrupt may take a link from its thread. Its finalizer closes it then.
        self._all: weakref.WeakSet[Link] = weakref.WeakSet()

    def close(self) -> None:
        """Detach every link. Open transactions and snapshots end: their calls raise DatabaseClosedError."""
        with self.lock:
            self.closed = True
            links = set(self._all)
            self._all.clear()
            self.idle, self.primary = [], None
            keeper, self._keeper = self._keeper, None
        for link in links:
            # Before the coordinator revokes its pins, so that the caller learns the true reason.
            link.attachment.shut_down()
            link.detach(over=True)
        if keeper is not None:
            keeper.close()

    def abandon(self) -> None:
        """In a forked child: close the inherited sockets, so that the parent's death is noticed."""
        links, keeper = self._all, self._keeper
        self.reset()
        if keeper is not None:
            keeper.abandon()
        for link in links:
            with contextlib.suppress(Exception):
                link.client.close()

    def check_open(self) -> None:
        if self.pid != os.getpid():
            self.reset()
        if self.closed:
            raise DatabaseClosedError()

    @property
    def session_kept(self) -> bool:
        """Whether `keep_session` was called in this process."""
        return self._keeper is not None

    @property
    def starts(self) -> bool:
        """Whether it starts a coordinator when there is none."""
        return self._start == "auto"

    def keep_session(self, limit: float) -> None:
        """From now on see to it that the session outlives a coordinator, also while this process makes no call.

        Raises:
          CoordinatorUnavailable: there was none to be told by `limit`.
        """
        self.check_open()
        if self._keeper is not None:
            return
        with self.lock:
            if self._keeper is None:
                self.give_back(self.take(limit))  # starts a coordinator if need be
                self._keeper = SessionKeeper(self, self._launcher)
                try:
                    self._keeper.start(limit)
                except BaseException:
                    self._keeper = None
                    raise

    def renew_owner(self, ended: int) -> None:
        """The session `ended` is over: go on with a new one."""
        with self.lock:
            if self.owner == ended:
                self.owner = _new_owner()

    def take(self, limit: float) -> Link:
        """A link for this thread alone, attached to a living coordinator. Give it back with `give_back`."""
        self.check_open()
        while True:
            try:
                link = self.idle.pop()
            except IndexError:
                return self.attach(limit, session=0)
            if not link.gone():
                return link
            self.forget(link)

    def take_by(self, limit: float, deadline: float | None) -> Link:
        """`take` for a commit; `deadline`: the transaction's own."""
        try:
            return self.take(limit)
        except CoordinatorUnavailable as error:
            if deadline is None or time.monotonic() < deadline:
                raise
            raise TransactionTimeout(
                f"the deadline passed while no coordinator could be reached; nothing was committed: {error.message}"
            ) from error

    def give_back(self, link: Link) -> None:
        with self.lock:
            if link not in self._all:
                return
            if not self.closed and link.reusable:
                self.idle.append(link)
                return
        self.forget(link)

    def forget(self, link: Link) -> None:
        """Stop committing through this link. If it is the primary, open snapshots keep its mapping."""
        link.left = True
        with self.lock:
            primary = link is self.primary
            if not primary or link.gone():
                self._all.discard(link)
        if not primary:
            # Without a goodbye: that would wait for the answer of a coordinator that may be stopped.
            link.drop()
        elif link.gone():
            # Reads go on without a coordinator: keep the mapping until a new one supersedes the store. A
            # living coordinator that disconnected us says so in the channel, which ends the attachment too.
            link.client.close()

    def attach_primary(self, limit: float) -> Link:
        self.check_open()
        with self.lock:
            primary = self.primary
            if primary is not None and primary.attachment.usable:
                return primary
            self.idle.append(self.attach(limit, session=0))
            # A committing thread or a signal handler may have attached the primary first.
            primary = self.primary
            assert primary is not None
            return primary

    def attach(self, limit: float, *, session: int, event_fd: int = -1) -> Link:
        """Attach one more link. Starts a coordinator if none runs and `start` allows it.

        Args:
          session, event_fd: see `Link`.
        """
        last: Exception | None = None
        pause = _PAUSE_MIN
        began = time.monotonic()
        while True:
            if self.closed:
                raise DatabaseClosedError()  # meanwhile, by another thread
            try:
                link = self._try_attach_or_say(limit, session, event_fd)
            except AddressSpaceError:
                raise
            except CoordinatorDied as error:
                # It was killed while it recovered: the next one may succeed. Pause, in case we are the cause.
                last, pause = error, max(pause, _PAUSE_AFTER_DEATH)
            except (CoordinatorUnavailable, LogWriteError) as error:
                # A full disk has no room for a start. `open` reports this at once. After a successful open we
                # try again until the limit, because space may be freed in time.
                if self.primary is None or error.details.get("errno") not in _NO_ROOM:
                    raise
                last, pause = error, max(pause, _PAUSE_AFTER_DEATH)
            except SessionOver:
                pause = _PAUSE_MIN
            except (ControlError, SegmentError) as error:
                # The coordinator went away between connect and attach, or asks us to try again.
                last = error
            else:
                if link is not None:
                    self._adopt(link)
                    return link
            if time.monotonic() >= limit:
                break
            time.sleep(pause)
            pause = min(max(_PAUSE_MAX, pause), pause * 1.5)
        reason = f"; last error: {last}" if last else ""
        raise CoordinatorUnavailable(
            f"no coordinator for {self.path} within {time.monotonic() - began:.3g} s{reason}",
            hint="start one with `occamdb serve`, or open with start='auto'"
            if self._start == "never"
            else f"look into {self._launcher.log_path}, or give a larger timeout",
        ) from last

    def _try_attach_or_say(self, limit: float, session: int, event_fd: int) -> Link | None:
        """`_try_attach`, except that a lack of descriptors is reported as such, wherever it was noticed."""
        try:
            return self._try_attach(limit, session, event_fd)
        except (IpcError, CoordinatorUnavailable, OSError) as error:
            shortage = no_descriptors_error(error, f"reach the coordinator of {self.path}")
            if shortage is None:
                raise
            raise shortage from error

    def _try_attach(self, limit: float, session: int, event_fd: int) -> Link | None:
        """A link to the listening coordinator. None if none listens; one is started then, if `start` allows
        it.
        """
        client = self._launcher.connect(limit)
        if client is not None:
            owner = self.owner
            try:
                return Link(
                    client,
                    self.path,
                    session=session,
                    owner=owner,
                    asked=self._asked,
                    durability=self._durability,
                    timeout=max(0.1, limit - time.monotonic()),
                    event_fd=event_fd,
                )
            except SessionOver:
                self.renew_owner(owner)
                raise
            except CoordinatorUnavailable as error:
                # It is alive, but cannot serve us at this moment.
                raise ControlUnavailableError(error.message) from error
        if self._start == "auto":
            # Looked at after the coordinator was found gone: who closed the database may have stopped it since.
            if self.closed:
                raise DatabaseClosedError()
            if self.database_id:
                meta = read_meta(self.path)
                if meta is None or meta.database_id != self.database_id:
                    raise self._lost()  # a start would make an empty database
            self._launcher.start(limit)
        return None

    def _lost(self) -> DatabaseClosedError:
        """The directory was moved, deleted or made anew: it does not hold the database that was opened."""
        return DatabaseClosedError(
            f"the database that was opened is not in {self.path}: another one is there, or none",
            hint="move its directory back, or open the path again for what is there now",
        )

    def _adopt(self, link: Link) -> None:
        with self.lock:
            if self.closed:
                link.detach()
                raise DatabaseClosedError()
            if self.database_id not in (b"", link.terms.database_id):
                link.detach()
                raise self._lost()
            self.database_id = link.terms.database_id
            self.settings = Settings.of(link.terms.settings)
            self.log_mode = link.log_mode
            self._launcher.inherited = link.terms.settings
            self._all.add(link)
            primary = self.primary
            if (
                primary is None
                or not primary.attachment.usable
                or primary.terms.incarnation != link.terms.incarnation
            ):
                if primary is not None:
                    primary.attachment.retire()
                self.primary = link
                self._tell_of(link, primary)

    def _tell_of(self, link: Link, before: Link | None) -> None:
        facts: dict[str, Any] = {"path": self.path, "incarnation": link.terms.incarnation}
        if before is None:
            tell("DEBUG", "attached to the coordinator of %s", self.path, **facts)
        elif before.terms.incarnation != link.terms.incarnation:
            tell(
                "WARNING",
                "the coordinator of %s is another one: incarnation %d after %d",
                self.path,
                link.terms.incarnation,
                before.terms.incarnation,
                **facts,
                incarnation_before=before.terms.incarnation,
            )


def _new_owner() -> int:
    return int.from_bytes(os.urandom(8)) >> 1 | 1


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
