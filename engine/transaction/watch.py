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
from typing import TYPE_CHECKING, Any, Literal, Self

from ..model.errors import InvalidArgumentError, TransactionStateError, WatchLagged
from ..model.keys import decode_user_key, encode_user_key, successor
from ..model.limits import TIMEOUT_MAX
from ._feed import ChangeFeed
from .logged_changes import Commit, logged_changes
from .waiting import Interest

if TYPE_CHECKING:
    from ..model.values import Codec
    from .engine_handle import EngineHandle

__all__ = ["Change", "Watch", "wait_deadline"]

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


class Watch(Iterator[Change]):
    """Changes of one tag of a run, as an iterator that waits for the next one. Made by `db.watch`.

    A loop over it ends when no change has come for `timeout` seconds; another loop goes on from there.

    Args:
      handle: the engine.
      codec: of the values.
      tag_prefix: what the stored keys of the (run, tag) begin with.
      prefix: what the user keys begin with; "" for all.
      since: give out what was committed after this version; None: from now on.
      timeout: seconds to wait for the next change; None: for ever.
    """

    def __init__(
        self,
        handle: EngineHandle,
        codec: Codec,
        tag_prefix: bytes,
        prefix: str | bytes,
        since: int | None,
        timeout: float | None,
    ) -> None:
        wait_deadline(timeout)
        self._handle = handle
        self._codec = codec
        self._timeout = timeout
        self._skip = len(tag_prefix)
        self._start = tag_prefix + (encode_user_key(prefix) if prefix not in ("", b"") else b"")
        end = successor(self._start)
        assert end is not None, "a stored key begins with the NULs of its namespace"
        self._end = end
        self._interest = Interest((), [(self._start, end)], [tag_prefix])
        self._pending: deque[Commit] = deque()
        self._rest: deque[Change] = deque()
        self._rest_version = 0
        self._busy = threading.Lock()
        self._closed = False
        attachment = handle.attachment()
        newest = attachment.committed_version
        self._feed = ChangeFeed(attachment, _checked_since(since, newest), self._start, end)
        # Registered for as long as it lives: a busy watch need not tell the coordinator at each wait.
        handle.waits.hold(self._interest.prefixes)

    # ---- iterating ----------------------------------------------------------------------------------------

    def __next__(self) -> Change:
        """The next change; waits for it.

        Raises:
          StopIteration: none came within the watch's timeout, or it was closed.
          WatchLagged: changes were lost before they were read.
        """
        with self._alone():
            if not self._rest and not self._fill(wait_deadline(self._timeout)):
                raise StopIteration
            change = self._rest.popleft()
            return change

    def commits(self) -> Iterator[list[Change]]:
        """The changes of one commit together, as a list. Ends and raises as the watch itself does."""
        while True:
            with self._alone():
                if not self._rest and not self._fill(wait_deadline(self._timeout)):
                    return
                changes = list(self._rest)
                self._rest.clear()
            yield changes

    def ready(self) -> list[Change]:
        """What has been committed up to now, without waiting; [] if there is nothing new."""
        found: list[Change] = []
        with self._alone():
            newest = (self._handle.waits.attachment() or self._feed.attachment).committed_version
            while self._rest or self.version < newest:
                try:
                    if not self._rest and not self._fill(0.0):
                        break
                except WatchLagged:
                    if found:
                        break  # the next call says so
                    raise
                found += self._rest
                self._rest.clear()
        return found

    @property
    def version(self) -> int:
        """Every change up to this version was given out, and none after it except of the commit under way.

        Pass it as `since` to go on later, in another process, or after a restart.
        """
        if self._rest:
            return self._rest_version - 1
        if self._pending:
            return self._pending[0][0] - 1
        return self._feed.version

    def close(self) -> None:
        """Stop watching. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._handle.waits.release(self._interest.prefixes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) is False:
            self.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise TransactionStateError(
                "another thread is reading this watch",
                hint="a watch belongs to one thread: make one for each",
            )
        try:
            yield
        finally:
            self._busy.release()

    # ---- reading --------------------------------------------------------------------------------------------

    def _fill(self, deadline: float | None) -> bool:
        """Decode the next commit into `_rest`, waiting for it; False: the deadline passed, or the watch is closed."""
        if self._closed:
            return False
        waits = self._handle.waits
        ready = bool(self._pending) or self._poll()
        if not ready and (deadline == 0.0 or not waits.wait(self._interest, self._poll, deadline)):
            return False
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
        self._rest_version = version
        self._rest.extend(decoded)
        return True

    def _poll(self) -> bool:
        """Whether a commit lies ready now. Does not wait, except for a coordinator that starts."""
        while True:
            before = self._feed.version
            try:
                self._pending.extend(self._feed.poll())
            except WatchLagged as lag:
                self._read_log(lag)
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

    def _read_log(self, lag: WatchLagged) -> None:
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
