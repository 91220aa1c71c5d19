"""`db.watch`: the changes of a run, in the order of their commits, exactly once.

1. Where a watch stands is a version. It moves when a commit was given out as a whole, so a watch that is begun again
   with `since=watch.version` misses nothing.
2. A watch follows the ring of the store that its handle is attached to. When that store is superseded by a new
   coordinator's, the watch reads the old ring to its end and goes on in the new one from there. What neither ring has
   it reads from the log.
3. It is used by one thread at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from ..model.errors import InvalidArgumentError, TransactionStateError, WatchLagged
from ..model.keys import decode_user_key, encode_user_key, successor
from ..model.limits import TIMEOUT_MAX
from ._change import Change
from .feeds import feed_of
from .logged_changes import logged_changes
from .pace import Pace
from .waiting import Interest

if TYPE_CHECKING:
    from ..model.values import Codec
    from ._view import SnapshotSource
    from .engine_handle import EngineHandle
    from .feeds import Feed
    from .logged_changes import Kind

__all__ = ["Change", "ChangeReader", "Watch", "ready_changes", "wait_deadline"]

_FEW = 16  # commits of one look: with fewer, each of them costs as much as a look
_NAP_SECONDS_MAX = 0.024
_MANY = 512  # with so many the follower is late: it looks again at once


def wait_deadline(timeout: float | None) -> float | None:
    """A timeout in seconds as a moment of `time.monotonic`; None: for ever.

    Raises:
      InvalidArgumentError: not a number from 0.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidArgumentError(
            f"timeout must be a number of seconds from 0, got {timeout!r}", hint="None waits for ever"
        )
    return time.monotonic() + min(timeout, TIMEOUT_MAX)


class ChangeReader:
    """Where a watch stands, and what it has read and not given out yet. Used by one thread or task at a time.

    Args:
      handle: the engine.
      codec: of the values.
      tag_prefix: what the stored keys of the (run, tag) begin with.
      prefix: what the user keys begin with; "" for all.
      since: give out what was committed after this version; None: from now on.

    Attributes:
      interest: what it waits for.
      changes: what is left of the commit that is being given out.
      pending: commits that were read and lie ready.
      closed: nothing more is given out.
    """

    def __init__(
        self, handle: EngineHandle, codec: Codec, tag_prefix: bytes, prefix: str | bytes, since: int | None
    ) -> None:
        self._handle = handle
        self._codec = codec
        self._skip = len(tag_prefix)
        self._start = tag_prefix + (encode_user_key(prefix) if prefix not in ("", b"") else b"")
        end = successor(self._start)
        assert end is not None, "a stored key begins with the NULs of its namespace"
        self._end = end
        self.interest = Interest((), [(self._start, end)], [tag_prefix])
        self.pending: deque[list[Change]] = deque()
        self.changes: deque[Change] = deque()
        self._pace = Pace(_NAP_SECONDS_MAX)
        self._found = 0  # commits by the last look
        self.closed = True
        attachment = handle.attachment()
        newest = attachment.committed_version
        self._feed = self._follow(attachment, _checked_since(since, newest))
        # Registered for as long as it lives: a busy watch need not tell the coordinator at each wait.
        self._held = handle.waits.hold(self.interest.prefixes)
        self.closed = False

    @property
    def version(self) -> int:
        """Every change up to this version was given out, and none after it except of the commit under way."""
        if self.changes:
            return self.changes[0].version - 1
        if self.pending:
            return self.pending[0][0].version - 1
        return self._feed.version

    @property
    def read_up_to(self) -> int:
        """Every change up to this version was given out or lies ready."""
        return self._feed.version

    @property
    def has_more(self) -> bool:
        """Whether something lies ready."""
        return bool(self.changes or self.pending)

    @property
    def newest(self) -> int:
        """The newest version that can be read now. Blocks while a coordinator starts."""
        return (self._handle.waits.attachment() or self._feed.attachment).committed_version

    def close(self) -> None:
        """Give out nothing more. Closing twice is harmless."""
        if not self.closed:
            self.closed = True
            self._handle.waits.release(self.interest.prefixes, self._held)

    def take_commit(self) -> list[Change]:
        """What is left of the commit that is being given out, or else the next one, which lies ready."""
        if self.changes:
            changes = list(self.changes)
            self.changes.clear()
            return changes
        return self.pending.popleft()

    def take_all(self) -> list[Change]:
        """Everything that lies ready."""
        found = list(self.changes)
        self.changes.clear()
        while self.pending:
            found += self.pending.popleft()
        return found

    def begin_commit(self) -> None:
        """Move the next commit, which lies ready, into `changes`."""
        self.changes.extend(self.pending.popleft())

    def wait(self, timeout: float | None) -> bool:
        """Wait until a commit lies ready; False: none came in `timeout` seconds, or it is closed.

        In a stream of commits it looks only now and then, and finds many at once: a look costs as much as several
        changes, and on a busy machine takes the processor from those who commit.
        """
        if self.closed:
            return False
        if self.pending:
            return True
        deadline = wait_deadline(timeout)
        pace = self._pace
        if pace.streaming and self._found < _MANY:
            pace.nap(_NAP_SECONDS_MAX if deadline is None else max(0.0, deadline - time.monotonic()))
            found = self.poll()
            pace.napped(self._found)
        else:
            found = self.poll()
        if not found and not self._handle.waits.wait(self.interest, self.poll, deadline):
            return False
        if self._found < _FEW:
            pace.woken(time.monotonic())
        return True

    def poll(self, *, log: bool = True) -> bool:
        """Whether a commit lies ready now. Does not wait, except for a coordinator that starts.

        Args:
          log: read the log if the ring does not go back far enough.

        Raises:
          WatchLagged: without `log`: the log has to be read, see `read_log`.
        """
        return bool(self.pending) or self.look(log=log)

    def look(self, *, log: bool = True) -> bool:
        """`poll`, also if a commit lies ready already. Whether it found a further one."""
        ready = len(self.pending)
        self._found = 0
        while True:
            before = self._feed.version
            try:
                try:
                    self.pending.extend([changes for _, _, changes in self._feed.poll()])
                except WatchLagged as lag:
                    if not log:
                        raise
                    self.read_log(lag)
            except WatchLagged:
                raise  # the feed stands where it says
            except BaseException:
                # A signal handler raised: what was polled and is not pending comes again.
                self._feed.skip_to(self.pending[-1][0].version if len(self.pending) > ready else before)
                raise
            self._found = len(self.pending) - ready
            if self._found:
                return True
            feed = self._feed
            attachment = self._handle.waits.attachment()
            if attachment is None or attachment is feed.attachment:
                return False
            if attachment.incarnation != feed.attachment.incarnation and not feed.current:
                continue  # the coordinator of the old store is dead: read it to its end
            self._feed = self._follow(attachment, feed.version)

    def _follow(self, attachment: SnapshotSource, version: int) -> Feed:
        return feed_of(attachment, version, self._start, self._end, codec=self._codec, skip=self._skip)

    def read_log(self, lag: WatchLagged) -> None:
        """Take from the log what the ring has no longer.

        Raises:
          WatchLagged: the log has not got it either.
        """
        path = getattr(self._handle, "path", None)
        feed = self._feed
        if path is None or self._handle.log_mode == "none":
            raise lag
        until = feed.attachment.committed_version
        found, reached = logged_changes(path, feed.version, until, self._start, self._end, lag.oldest)
        commits: list[list[Change]] = []
        for version, committed_at, changes in found:
            try:
                commits.append([self._decoded(version, committed_at, *change) for change in changes])
            except Exception:
                if not commits:
                    raise
                reached = version - 1  # the next call says it
                break
        self.pending.extend(commits)
        feed.skip_to(reached)

    def _decoded(
        self, version: int, committed_at: int, kind: Kind, key: bytes, value: bytes | None
    ) -> Change:
        decoded = None if value is None else self._codec.decode(value)
        return Change(decode_user_key(key[self._skip :]), decoded, version, committed_at, kind)

    def __del__(self) -> None:
        if getattr(self, "closed", True) is False:
            self.close()


class Watch(Iterator[Change]):
    """Changes of one tag of a run, as an iterator that waits for the next one. Made by `db.watch`.

    A loop over it ends when no change has come for `timeout` seconds; another loop goes on from there.

    Args:
      reader: reads the changes.
      timeout: seconds to wait for the next change; None: for ever.
    """

    def __init__(self, reader: ChangeReader, timeout: float | None) -> None:
        self._reader = reader
        self._timeout = timeout
        self._busy = threading.Lock()

    def __next__(self) -> Change:
        """The next change; waits for it.

        Raises:
          StopIteration: none came within the watch's timeout, or it was closed.
          WatchLagged: changes were lost before they were read.
        """
        if not self._busy.acquire(blocking=False):
            raise _in_use()
        try:
            # As `_alone` and `take_commit`, whose calls cost as much as all the rest of a change that lies ready.
            reader = self._reader
            if not reader.changes:
                if (not reader.pending or reader.closed) and not reader.wait(self._timeout):
                    raise StopIteration
                commit = reader.pending.popleft()
                if len(commit) == 1:
                    return commit[0]
                reader.changes.extend(commit)
            return reader.changes.popleft()
        finally:
            self._busy.release()

    def commits(self) -> Iterator[list[Change]]:
        """The changes of one commit together, as a list. Ends and raises as the watch itself does."""
        while True:
            if not self._busy.acquire(blocking=False):
                raise _in_use()
            try:
                reader = self._reader
                if reader.changes:
                    changes = reader.take_commit()
                elif (not reader.pending or reader.closed) and not reader.wait(self._timeout):
                    return
                else:
                    changes = reader.pending.popleft()
            finally:
                self._busy.release()
            yield changes

    def ready(self) -> list[Change]:
        """What has been committed up to now, without waiting; [] if there is nothing new."""
        with self._alone() as reader:
            return ready_changes(reader)

    @property
    def version(self) -> int:
        """Every change up to this version was given out, and none after it except of the commit under way.

        Pass it as `since` to go on later, in another process, or after a restart.
        """
        return self._reader.version

    def close(self) -> None:
        """Stop watching. Closing twice is harmless."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A shallow copy would read from one feed twice, and take back the one registration twice.
        raise TypeError("a watch cannot be copied or pickled; pass its version as `since` to another one")

    @contextmanager
    def _alone(self) -> Iterator[ChangeReader]:
        if not self._busy.acquire(blocking=False):
            raise _in_use()
        try:
            yield self._reader
        finally:
            self._busy.release()


def _in_use() -> TransactionStateError:
    return TransactionStateError(
        "another thread is reading this watch", hint="a watch belongs to one thread: make one for each"
    )


def ready_changes(reader: ChangeReader) -> list[Change]:
    """What has been committed up to now and was not given out yet, without waiting."""
    if reader.closed:
        return []
    newest = reader.newest
    try:
        while reader.read_up_to < newest and reader.look():
            pass
    except Exception:
        if not reader.has_more:
            raise
        # The next call says it.
    return reader.take_all()


def _checked_since(since: int | None, newest: int) -> int:
    """
    Raises:
      InvalidArgumentError: no version, or one that was not committed yet.
    """
    if since is None:
        return newest
    if isinstance(since, bool) or not isinstance(since, int) or since < 0:
        raise InvalidArgumentError(
            f"since must be a version from 0, got {since!r}",
            hint="None watches from now on; 0 from the beginning",
        )
    if since > newest:
        raise InvalidArgumentError(
            f"since = {since} lies in the future: the newest version is {newest}",
            hint="pass the version of a commit of this database, or watch.version",
            details={"since": since, "newest": newest},
        )
    return since
