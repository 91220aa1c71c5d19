"""A worker's connection to a shared database: links to the coordinator, and one true outcome for every commit.

1. `_idle` holds links nobody is using, the last used on top; a thread that finds none attaches a further one.
2. Pins live in the channel of the link that was attached first (`_primary`); it stays open while the handle does.
3. A commit whose coordinator vanished is looked up by (session, sequence) at the next coordinator before it is sent
   again, and sent again only if that one says it never happened. The next one has the old log, and the old one
   holds no lock any more, so nothing can happen in between.
4. A forked child starts with no links: it closes the descriptors it inherited and attaches anew at its first call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ...ipc.errors import (
    AddressSpaceError,
    ChannelBroken,
    ChannelTimeout,
    ControlError,
    ControlUnavailableError,
    IpcError,
    OccamError,
    SegmentError,
)
from ..commit.messages import (
    OpCode,
    OpFlags,
    Reply,
    RequestFlags,
    ResultEntry,
    ResultKind,
    Status,
    decode_request,
    encode_reply,
)
from ..disk import failpoints
from ..disk.directory import read_meta
from ..model.control_messages import raise_refusal
from ..model.errors import (
    CommitOutcomeUnknown,
    CoordinatorUnavailable,
    DatabaseClosedError,
    ForkedHandleError,
    LogWriteError,
    TransactionTimeout,
)
from ..model.limits import Limits
from ..model.settings import Settings
from ..transaction._view import StoreAttachment
from .descriptors import no_descriptors_error
from .launcher import CoordinatorDied, Launcher
from .link import CoordinatorGone, Link

__all__ = ["SharedHandle", "open_handle"]

_CHECKPOINT_POLL = 0.01
_PAUSE_MIN, _PAUSE_MAX = 0.001, 0.02  # between two looks for a coordinator
_PAUSE_AFTER_DEATH = 0.1
_STATUS = slice(4, 5)  # of a reply: the low byte of its status
_STOPPING = bytes([Status.STOPPING])
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_handles: weakref.WeakSet[SharedHandle] = weakref.WeakSet()


class SharedHandle:
    """`EngineHandle` over a coordinator process; see engine_handle.py for the methods.

    Args:
      path: the database directory.
      durability: "none", "standard" or "always"; "always" asks for it with every commit.
      asked: settings given by keyword.
      start: "auto" starts a coordinator when none runs, now and whenever it is gone; "never" waits for one.
      timeout: seconds to wait for a coordinator or for an answer before giving up.
      database_id: which database it must be; empty: whichever is there.

    Raises:
      DatabaseClosedError: another database than `database_id` is there, or none.
      CoordinatorUnavailable: none runs (`start="never"`) or none came up in time.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: str,
        asked: dict[str, Any],
        start: str,
        timeout: float,
        database_id: bytes = b"",
    ) -> None:
        self.path = path
        self.durability = durability
        self._asked = asked
        self._start = start
        self._timeout = timeout
        self._launcher = Launcher(path, durability, asked)
        # The coordinator may be another opener's, who asked for less.
        self._sync = durability == "always"
        self._closed = False
        self._database_id = database_id
        self._reset()
        _handles.add(self)
        self._attach_primary(time.monotonic() + timeout)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._primary: Link | None = None
        self._idle: list[Link] = []
        # Weak: a link that an interrupt took from its thread is in nobody's hands, and ends with its last reference.
        self._all: weakref.WeakSet[Link] = weakref.WeakSet()
        self._local = threading.local()

    def __reduce__(self) -> Any:
        return open_handle, (
            self.path,
            self.durability,
            self._asked,
            self._start,
            self._timeout,
            self._database_id,
        )

    # ---- what a database needs ------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def limits(self) -> Limits:
        return self._settings.limits

    def session_id(self) -> int:
        return getattr(self._local, "session", 0)

    @property
    def log_mode(self) -> str:
        return self._log_mode

    def submitted_durability(self, durable: bool) -> str:
        mode: str = getattr(self._local, "log_mode", "none")
        # Without a log there is nothing to sync, whoever asked for it.
        return "always" if (durable or self._sync) and mode != "none" else mode

    def attachment(self) -> StoreAttachment:
        primary = self._primary
        if primary is not None:
            primary.retire_if_orphaned()
            if primary.attachment.usable:
                return primary.attachment
        return self._attach_primary(time.monotonic() + self._timeout).attachment

    def submit(self, request: bytearray, deadline: float | None) -> bytes:
        limit = time.monotonic() + self._timeout if deadline is None else deadline
        # This very list: `close`, and a fork in a signal handler, put another in its place.
        idle = self._idle
        try:
            # Popping and appending are atomic under the GIL: no lock on this path.
            link = idle.pop()
        except IndexError:
            link = self._take_by(limit, deadline)
        # Used up by being written here: whatever interrupts us, no second request carries this number.
        link.sequence = sequence = link.sequence + 1
        request[8:16] = sequence.to_bytes(8, "little")
        if self._sync:
            request[6] |= RequestFlags.SYNC
        self._local.session = link.session
        self._local.log_mode = link.log_mode
        try:
            exchange: Callable[[bytearray, float, Callable[[], None]], bytes] = link.exchange
            if failpoints.armed():
                failpoints.hit("worker.before_submit")
                exchange = link.exchange_slowly
            remaining = limit - time.monotonic()
            if remaining <= 0:
                raise TransactionTimeout("the deadline passed before the commit was sent")
            reply = exchange(request, remaining, link.on_idle)
            if reply[_STATUS] != _STOPPING:
                return reply
            return self._resolve(link, request, sequence, limit, sent=False)
        except CoordinatorGone:
            words, sent = link.last_words()
            if words is not None and words[_STATUS] != _STOPPING:
                return words
            return self._resolve(link, request, sequence, limit, sent=sent)
        except ChannelBroken:
            # The reply may have been the damaged part: the coordinator knows what became of the request. But a channel
            # that another thread's `close` has closed took nothing.
            return self._resolve(link, request, sequence, limit, sent=not link.channel.closed)
        except ChannelTimeout as error:
            if not error.sent:
                raise TransactionTimeout(
                    "the coordinator took no request in time; nothing was committed"
                ) from None
            raise CommitOutcomeUnknown(
                f"no answer from the coordinator within {self._timeout:g} s; the commit may still happen",
                txn_id=(link.session, sequence),
            ) from None
        finally:
            if link.channel.idle and not link.left and not self._closed:
                idle.append(link)
            else:
                self._forget(link)

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        reply = self._ask(dict(message))
        if message["kind"] != "checkpoint":
            return reply
        # The coordinator answers at once and works on; whoever asked for a checkpoint wants it done. The one under way
        # may be of an older version, and may have died with its coordinator: then once more.
        wanted = reply["wanted"]
        while True:
            while reply["running"]:
                time.sleep(_CHECKPOINT_POLL)
                reply = self._ask({"kind": "checkpoint_state"})
            if reply["error"]:
                raise LogWriteError(
                    reply["error"], hint="free space on the database's file system, then try again"
                )
            if reply["version"] >= wanted:
                return reply
            reply = self._ask(dict(message))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        limit = time.monotonic() + float(message.pop("timeout", self._timeout))
        while True:
            link = self._take(limit)
            try:
                reply = link.client.call(
                    {"op": message["kind"], **message}, max(0.001, limit - time.monotonic())
                )
                raise_refusal(reply)
                return reply
            except (ControlError, OSError) as error:
                if not link.gone() or time.monotonic() >= limit:
                    raise CoordinatorUnavailable(
                        f"the coordinator did not answer {message['kind']!r}: {error}",
                        hint="try again, or give a larger timeout",
                    ) from error
                self._forget(link)
            finally:
                self._give_back(link)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Detach every link. Open transactions and snapshots end: their calls raise DatabaseClosedError."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            links = set(self._all)
            self._all.clear()
            self._idle, self._primary = [], None
        for link in links:
            # Before the coordinator revokes its pins: the caller is to hear why.
            link.attachment.shut_down()
            link.detach()

    # ---- links ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._pid != os.getpid():
            self._reset()
        if self._closed:
            raise DatabaseClosedError()

    def _take(self, limit: float) -> Link:
        """A link for this thread alone, attached to a living coordinator; gives it back with `_give_back`."""
        self._check_open()
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return self._attach(limit, session=0)
            if not link.gone():
                return link
            self._forget(link)

    def _take_by(self, limit: float, deadline: float | None) -> Link:
        """`_take` for a commit; `deadline`: the transaction's own."""
        try:
            return self._take(limit)
        except CoordinatorUnavailable as error:
            if deadline is None or time.monotonic() < deadline:
                raise
            raise TransactionTimeout(
                f"the deadline passed while no coordinator could be reached; nothing was committed: {error.message}"
            ) from error

    def _give_back(self, link: Link) -> None:
        with self._lock:
            if link not in self._all:
                return
            if not self._closed and link.reusable:
                self._idle.append(link)
                return
        self._forget(link)

    def _forget(self, link: Link) -> None:
        """Commit through a link no more. The primary's snapshots go on."""
        link.left = True
        with self._lock:
            primary = link is self._primary
            if not primary or link.gone():
                self._all.discard(link)
        if not primary:
            # The end of the connection says it all; a goodbye would wait for a coordinator that may be stopped.
            link.drop()
        elif link.gone():
            # Reading goes on without a coordinator: keep the mapping until a new one supersedes the store. One that
            # lives and threw us out says so in the channel, which ends the attachment too.
            link.client.close()

    def _attach_primary(self, limit: float) -> Link:
        self._check_open()
        with self._lock:
            primary = self._primary
            if primary is not None and primary.attachment.usable:
                return primary
            self._idle.append(self._attach(limit, session=0))
            # Not always the link just attached: a committing thread, or a signal handler, may have been first.
            primary = self._primary
            assert primary is not None
            return primary

    def _attach(self, limit: float, *, session: int) -> Link:
        """Attach one more link, starting a coordinator if there is none and we may."""
        last: Exception | None = None
        pause = _PAUSE_MIN
        began = time.monotonic()
        while True:
            try:
                link = self._try_attach_or_say(limit, session)
            except AddressSpaceError:
                raise
            except CoordinatorDied as error:
                # Killed while it recovered: the next one can do it. Not too fast, should it be our fault.
                last, pause = error, max(pause, _PAUSE_AFTER_DEATH)
            except (CoordinatorUnavailable, LogWriteError) as error:
                # A full disk has no room for a start. Whoever finds it so at `open` is told; once it has run, room
                # that comes back in time makes a pause of it, for a commit that was sent as for everything else.
                if self._primary is None or error.details.get("errno") not in _NO_ROOM:
                    raise
                last, pause = error, max(pause, _PAUSE_AFTER_DEATH)
            except (ControlError, SegmentError) as error:
                # It went away between connect and attach, or asks for patience.
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

    def _try_attach_or_say(self, limit: float, session: int) -> Link | None:
        """`_try_attach`; that no descriptors are left is said at once, wherever on the way it was found."""
        try:
            return self._try_attach(limit, session)
        except (IpcError, CoordinatorUnavailable, OSError) as error:
            shortage = no_descriptors_error(error, f"reach the coordinator of {self.path}")
            if shortage is None:
                raise
            raise shortage from error

    def _try_attach(self, limit: float, session: int) -> Link | None:
        """A link to the coordinator that listens; None when none does, having started one if we may."""
        client = self._launcher.connect(limit)
        if client is not None:
            try:
                return Link(
                    client,
                    session=session,
                    asked=self._asked,
                    durability=self.durability,
                    timeout=max(0.1, limit - time.monotonic()),
                )
            except CoordinatorUnavailable as error:
                # It lives, but cannot serve us in this moment.
                raise ControlUnavailableError(error.message) from error
        if self._start == "auto":
            if self._database_id:
                meta = read_meta(self.path)
                if meta is None or meta.database_id != self._database_id:
                    raise self._lost()  # a start would make an empty one
            self._launcher.start(limit)
        return None

    def _lost(self) -> DatabaseClosedError:
        """The directory was moved away, or deleted, or made anew: what this handle's user knows is not in there."""
        return DatabaseClosedError(
            f"the database that was opened is not in {self.path} any more",
            hint="move its directory back, or open the path again for what is there now",
        )

    def _adopt(self, link: Link) -> None:
        with self._lock:
            if self._closed:
                link.detach()
                raise DatabaseClosedError()
            if self._database_id not in (b"", link.terms.database_id):
                link.detach()
                raise self._lost()
            self._database_id = link.terms.database_id
            self._settings = Settings.of(link.terms.settings)
            self._log_mode = link.log_mode
            self._launcher.inherited = link.terms.settings
            self._all.add(link)
            primary = self._primary
            if (
                primary is None
                or not primary.attachment.usable
                or primary.terms.incarnation != link.terms.incarnation
            ):
                if primary is not None:
                    primary.attachment.retire()
                self._primary = link

    # ---- outcomes ---------------------------------------------------------------------------------------

    def _resolve(self, link: Link, request: bytearray, sequence: int, limit: float, *, sent: bool) -> bytes:
        """What became of a request whose coordinator vanished; sends it again if it never happened.

        Args:
          sent: whether it was wholly published: from then on no error but CommitOutcomeUnknown is true.
        """
        if link.pid != os.getpid():
            # Forked in a signal handler: the commit, and the session, are our parent's.
            raise ForkedHandleError()
        session = link.session
        self._forget(link)
        while True:
            try:
                again = self._attach(limit, session=session)
            except Exception as error:
                if not sent:
                    raise
                raise CommitOutcomeUnknown(
                    f"the coordinator vanished during the commit, and no other could be asked: {error}",
                    txn_id=(session, sequence),
                ) from error
            if again.session == session and again.terms.last_sequence == sequence:
                self._give_back(again)
                return self._recovered_reply(request, sequence, again.terms.last_version, limit)
            try:
                if again.session != session or again.sequence >= sequence:
                    sequence = again.sequence + 1
                    session = again.session
                    request[8:16] = sequence.to_bytes(8, "little")
                again.sequence = sequence
                self._local.session = session
                self._local.log_mode = again.log_mode
                # That it never happened is final: whoever says so has the log, and has served all of our old channel.
                sent = False
                reply = again.exchange(request, max(0.001, limit - time.monotonic()), again.on_idle)
                if reply[_STATUS] != _STOPPING:
                    return reply
                self._forget(again)
            except CoordinatorGone:
                words, sent = again.last_words()
                if words is not None and words[_STATUS] != _STOPPING:
                    return words
                self._forget(again)
            except ChannelBroken:
                sent = not again.channel.closed
                self._forget(again)
            except ChannelTimeout as error:
                if not error.sent:
                    raise TransactionTimeout(
                        "the restarted coordinator took no request in time; nothing was committed"
                    ) from None
                raise CommitOutcomeUnknown(
                    "no answer from the restarted coordinator in time", txn_id=(session, sequence)
                ) from error
            finally:
                self._give_back(again)

    def _recovered_reply(self, request: bytearray, sequence: int, version: int, limit: float) -> bytes:
        """The reply that was lost, rebuilt: the commit is in the log, so its results are too."""
        decoded = decode_request(bytes(request))
        wanted = [i for i, op in enumerate(decoded.ops) if op.flags & OpFlags.WANT_RESULT]
        results: list[ResultEntry] = []
        committed_at = time.time_ns()
        if wanted:
            try:
                left = max(0.001, limit - time.monotonic())
                logged = self.admin({"kind": "logged_commit", "version": version, "timeout": left})
            except OccamError as error:
                raise CommitOutcomeUnknown(
                    f"committed as version {version}, but what it resulted in cannot be told: {error}",
                    hint="read the key again",
                ) from error
            committed_at = int(logged["committed_at"])
            written = {bytes(key): value for key, value in logged["writes"]}
            for index in wanted:
                results.append(_result(index, decoded.ops[index].code, written.get(decoded.ops[index].key)))
        return encode_reply(
            Reply(
                status=Status.COMMITTED,
                sequence=sequence,
                commit_version=version,
                committed_at=committed_at,
                results=tuple(results),
            )
        )


def _result(index: int, code: OpCode, written: Any) -> ResultEntry:
    """A delete existed exactly if it was logged; an add's result is the integer that was logged."""
    if code is OpCode.DELETE:
        return ResultEntry(index, ResultKind.EXISTED, 0 if written is None else 1)
    value = int(written)
    return ResultEntry(index, ResultKind.SIGNED if value < 0 else ResultKind.UNSIGNED, value)


def open_handle(
    path: str, durability: str, asked: dict[str, Any], start: str, timeout: float, database_id: bytes = b""
) -> SharedHandle:
    """Attach to a database; also how a pickled handle comes back in another process.

    Pickles of older versions come without `database_id`.
    """
    return SharedHandle(
        path, durability=durability, asked=asked, start=start, timeout=timeout, database_id=database_id
    )


def _after_fork_in_child() -> None:
    """Close inherited sockets, so that the parent's death is seen by the coordinator although we live on."""
    for handle in list(_handles):
        links = handle._all
        handle._reset()
        for link in links:
            with contextlib.suppress(Exception):
                link.client.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
