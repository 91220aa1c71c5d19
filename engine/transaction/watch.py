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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from ..model.errors import InvalidArgumentError, TransactionStateError, WatchLagged
from ..model.keys import decode_user_key, encode_user_key, successor
from ..model.limits import TIMEOUT_MAX
from ._feed import ChangeFeed
from .logged_changes import Commit, logged_changes
from .waiting import Interest

if TYPE_CHECKING:
    from ..model.values import Codec
    from .engine_handle import EngineHandle

__all__ = ["Change", "ChangeReader", "Watch", "ready_changes", "wait_deadline"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit did to one key.

    Attributes:
      key: the user key.
      value: what it was set to; None when it is gone.
      version: of the commit.
      committed_at_ns: the commit's time, in ns since the epoch.
      kind: "put", "delete", or "expire": its ttl ran out.
    """

    key: str
    value: Any
    version: int
    committed_at_ns: int
    kind: Literal["put", "delete", "expire"]

    @property
    def committed_at(self) -> datetime:
        """The commit's time, in UTC."""
        return _EPOCH + timedelta(microseconds=self.committed_at_ns // 1000)


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
      changes: of the commit that is being given out.
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
        self._pending: deque[Commit] = deque()
        self.changes: deque[Change] = deque()
        self._changes_version = 0
        self.closed = True
        attachment = handle.attachment()
        newest = attachment.committed_version
        self._feed = ChangeFeed(attachment, _checked_since(since, newest), self._start, end)
        # Registered for as long as it lives: a busy watch need not tell the coordinator at each wait.
        self._held = handle.waits.hold(self.interest.prefixes)
        self.closed = False

    @property
    def version(self) -> int:
        """Every change up to this version was given out, and none after it except of the commit under way."""
        if self.changes:
            return self._changes_version - 1
        if self._pending:
            return self._pending[0][0] - 1
        return self._feed.version

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
        """All of `changes`."""
        changes = list(self.changes)
        self.changes.clear()
        return changes

    def wait(self, deadline: float | None) -> bool:
        """Decode the next commit into `changes`, waiting for it; False: the deadline passed, or it is closed."""
        if self.closed:
            return False
        if not self.poll() and not self._handle.waits.wait(self.interest, self.poll, deadline):
            return False
        self.decode()
        return True

    def decode(self) -> None:
        """Decode the commit that `poll` has found into `changes`."""
        version, committed_at, changes = self._pending[0]
        decode = self._codec.decode
        decoded = [
            Change(
                decode_user_key(key[self._skip :]),
                None if value is None else decode(value),
                version,
                committed_at,
                kind,  # type: ignore[arg-type]
            )
            for kind, key, value in changes
        ]
        self._pending.popleft()
        self._changes_version = version
        self.changes.extend(decoded)

    def poll(self, *, log: bool = True) -> bool:
        """Whether a commit lies ready now. Does not wait, except for a coordinator that starts.

        Args:
          log: read the log if the ring does not go back far enough.

        Raises:
          WatchLagged: without `log`: the log has to be read, see `read_log`.
        """
        if self._pending:
            return True
        while True:
            before = self._feed.version
            try:
                try:
                    self._pending.extend(self._feed.poll())
                except WatchLagged as lag:
                    if not log:
                        raise
                    self.read_log(lag)
            except BaseException:
                # A signal handler raised: what was polled and is not pending comes again.
                self._feed.skip_to(self._pending[-1][0] if self._pending else before)
                raise
            if self._pending:
                return True
            feed = self._feed
            attachment = self._handle.waits.attachment()
            if attachment is None or attachment is feed.attachment:
                return False
            if attachment.incarnation != feed.attachment.incarnation and not feed.current:
                continue  # the coordinator of the old store is dead: read it to its end
            self._feed = ChangeFeed(attachment, feed.version, self._start, self._end)

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
        self._pending.extend(found)
        feed.skip_to(reached)

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
        # As `_alone`, which costs as much as all the rest of a change that lies ready.
        if not self._busy.acquire(blocking=False):
            raise _in_use()
        try:
            reader = self._reader
            if not reader.changes and not reader.wait(wait_deadline(self._timeout)):
                raise StopIteration
            return reader.changes.popleft()
        finally:
            self._busy.release()

    def commits(self) -> Iterator[list[Change]]:
        """The changes of one commit together, as a list. Ends and raises as the watch itself does."""
        while True:
            with self._alone() as reader:
                if not reader.changes and not reader.wait(wait_deadline(self._timeout)):
                    return
                changes = reader.take_commit()
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
    found: list[Change] = []
    newest = reader.newest
    while reader.changes or reader.version < newest:
        try:
            if not reader.changes:
                if reader.closed or not reader.poll():
                    break
                reader.decode()
        except WatchLagged:
            if found:
                break  # the next call says so
            raise
        found += reader.take_commit()
    return found


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
