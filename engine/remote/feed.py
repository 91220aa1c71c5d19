"""Following the changes of a server, and sleeping until there are some: what feeds.py asks of a source.

1. A feed asks the server for the commits behind its version; it moves by whole commits, and only when it has them.
2. All waiting threads of a handle share one bell. The thread that sleeps on it fetches the keys that were
   changed, for all of them, while the hub's lock is not held; `BellFeed` gives out what lies there. When more was
   changed than is kept, or the feed begins before what is kept, it lags: every waiter then looks for itself.
3. No wake-up is lost: `arm` gives the version up to which keys were fetched, and `Backend.wait` returns at once if
   there is a later one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ..model.errors import CoordinatorUnavailable, WatchLagged
from ..model.keys import decode_user_key
from ..transaction._change import Change

if TYPE_CHECKING:
    from ..model.values import Codec
    from .backend import Backend

__all__ = ["BellFeed", "RemoteBell", "RemoteFeed"]

_CHANGES = 4096  # asked for at a time
_KEPT_CHANGES = 16384  # by a bell
_PAUSE_SECONDS = 0.05  # before an unreachable server is asked again


class Followed(Protocol):
    """One namespace of a server, as `RemoteSource` holds it."""

    backend: Backend
    base: bytes  # what its stored keys begin with
    end: bytes  # the first key behind those

    @property
    def committed_version(self) -> int:
        """The newest version."""


class RemoteFeed:
    """Changes of the stored keys in [start, end) after version `since`; see `feeds.Feed`.

    Args:
      source: the server.
      codec: decodes the values; None: of `poll_keys` alone.
      skip: how many bytes of a stored key come before the user key.
    """

    def __init__(
        self, source: Followed, since: int, start: bytes, end: bytes, codec: Codec | None, skip: int
    ) -> None:
        self.attachment = source
        self.version = since
        self._start = start
        self._end = end
        self._codec = codec
        self._skip = skip

    @property
    def current(self) -> bool:
        """Whether nothing newer was published when this was called."""
        return self.attachment.committed_version <= self.version

    def skip_to(self, version: int) -> None:
        """Leave out what was committed up to `version`: it came from elsewhere."""
        self.version = version

    def poll(self) -> list[tuple[int, int, list[Change]]]:
        """(version, committed_at in ns, changes) of each commit since the last call, without waiting."""
        found = self.attachment.backend.changes(self._start, self._end, self.version, _CHANGES, values=True)
        commits: list[tuple[int, int, list[Change]]] = []
        for version, committed_at, changed in found.commits:
            try:
                changes = [self._decoded(version, committed_at, *change) for change in changed]
            except Exception:
                if not commits:
                    raise
                self.version = version - 1  # the next call says it
                return commits
            commits.append((version, committed_at, changes))
        self.version = max(found.reached, self.version)
        return commits

    def poll_keys(self) -> list[tuple[bytes, bytes | None]]:
        """The keys that were changed since the last call, as (key, None)."""
        found = self.attachment.backend.changes(self._start, self._end, self.version, _CHANGES, values=False)
        self.version = max(found.reached, self.version)
        return [(change.key, None) for commit in found.commits for change in commit.changes]

    def _decoded(self, version: int, committed_at: int, kind: Any, key: bytes, value: bytes | None) -> Change:
        assert self._codec is not None, "a feed without a codec gives out keys"
        decoded = None if value is None else self._codec.decode(value)
        return Change(decode_user_key(key[self._skip :]), decoded, version, committed_at, kind)


class RemoteBell:
    """Where the waiting threads of one handle hear of changes; see `feeds.Bell`."""

    def __init__(self, source: Followed) -> None:
        self.attachment = source
        self._lock = threading.Lock()  # a thread that took the lead may meet the one before it here
        self._fetched = source.backend.newest()
        self._kept: deque[tuple[int, bytes]] = deque()  # (version, key), oldest first
        self._kept_from = self._fetched  # every change after this is kept

    def add(self, prefix: bytes) -> int:
        """Nothing to register: it hears of everything in its namespace."""
        return 0

    def remove(self, slot: int) -> None:
        """Nothing was registered."""

    def arm(self) -> int:
        """The version up to which changes were fetched."""
        return self._fetched

    def raised_since(self, seen: int) -> int:
        """How many versions there were since; fetches what they changed."""
        with contextlib.suppress(CoordinatorUnavailable):
            self._fetch()
        return self._fetched - seen

    def sleep(self, seen: int, timeout: float) -> bool:
        """Sleep until something was committed behind `seen`, and fetch what was changed."""
        try:
            if self._fetched == seen and self.attachment.backend.wait(seen, timeout):
                self._fetch()
        except CoordinatorUnavailable:
            time.sleep(min(timeout, _PAUSE_SECONDS))
        return self._fetched != seen

    def feed(self) -> BellFeed:
        """What its hub reads the changed keys from, those from now on."""
        return BellFeed(self)

    def _fetch(self) -> None:
        source, before = self.attachment, self._fetched
        try:
            found = source.backend.changes(source.base, source.end, before, _CHANGES, values=False)
        except WatchLagged:
            newest = source.backend.newest()
            with self._lock:
                self._kept.clear()
                self._kept_from = self._fetched = max(newest, self._fetched)
            return
        with self._lock:
            if self._fetched != before:
                return  # another thread has it already
            for commit in found.commits:
                self._kept.extend((commit.version, change.key) for change in commit.changes)
            while len(self._kept) > _KEPT_CHANGES:
                self._kept_from = self._kept.popleft()[0]
            self._fetched = max(found.reached, before)

    def take_after(self, version: int) -> tuple[int, list[bytes]]:
        """The version up to which changes were fetched, and the keys that were changed after `version`. Forgets them.

        Raises:
          WatchLagged: some of them are no longer kept.
        """
        with self._lock:
            if version < self._kept_from:
                raise WatchLagged(since=version, oldest=self._kept_from)
            keys = [key for at, key in self._kept if at > version]
            self._kept.clear()
            self._kept_from = self._fetched
            return self._fetched, keys


class BellFeed:
    """The changed keys that a bell has fetched, for its hub: reading it does not ask the server."""

    def __init__(self, bell: RemoteBell) -> None:
        self._bell = bell
        self.version = bell.arm()

    @property
    def attachment(self) -> BellFeed:
        """What it follows is what its bell has fetched."""
        return self

    @property
    def committed_version(self) -> int:
        """The version up to which there is something to read."""
        return self._bell.arm()

    def skip_to(self, version: int) -> None:
        """Leave out what was committed up to `version`."""
        self.version = version

    def poll_keys(self) -> list[tuple[bytes, bytes | None]]:
        """The keys that were changed since the last call, as (key, None)."""
        self.version, keys = self._bell.take_after(self.version)
        return [(key, None) for key in keys]
