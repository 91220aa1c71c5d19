"""How changes are followed, whatever the source of snapshots: what a feed and a bell can do, and who makes them.

The store of this machine has a ring of changes in shared memory (`_feed.pyx`) and a word to sleep on
(`_watch_bell.pyx`). Any other source makes its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ._feed import ChangeFeed
from ._view import StoreAttachment
from ._watch_bell import WatchBell

if TYPE_CHECKING:
    from ..model.values import Codec
    from ._view import SnapshotSource

__all__ = ["Bell", "Feed", "bell_of", "feed_of", "hub_feed"]


class Feed(Protocol):
    """Changes of a key range in the order of the commits; see `ChangeFeed`."""

    @property
    def attachment(self) -> SnapshotSource:
        """The source that it follows."""

    @property
    def version(self) -> int:
        """Every change up to this version has been given out."""

    @property
    def current(self) -> bool:
        """Whether nothing newer was published when this was called."""

    def skip_to(self, version: int) -> None:
        """Leave out what was committed up to `version`: it came from elsewhere."""

    def poll(self) -> list[tuple[int, int, list[Any]]]:
        """(version, committed_at in ns, changes) of each commit since the last call, without waiting.

        Raises:
          WatchLagged: changes after `version` are no longer kept.
        """

    def poll_keys(self) -> list[tuple[bytes, bytes | None]]:
        """Of a bare feed: the changed keys as (key, None), and deleted ranges as (start, end)."""


class Bell(Protocol):
    """Where a process hears of changes; see `WatchBell`, which has the order of the calls."""

    @property
    def attachment(self) -> SnapshotSource:
        """The source whose changes it tells."""

    def add(self, prefix: bytes) -> int:
        """Hear of every change to keys that begin with this. Returns what `remove` takes."""

    def remove(self, slot: int) -> None:
        """Take a registration back."""

    def arm(self) -> int:
        """The word as it is before a look at the changes, for `sleep`. Does not block."""

    def raised_since(self, seen: int) -> int:
        """How much the word has been raised since it was `seen`."""

    def sleep(self, seen: int, timeout: float) -> bool:
        """Sleep until the word differs from `seen` or `timeout` seconds have passed. Whether it differs."""


def feed_of(
    source: SnapshotSource,
    since: int,
    start: bytes,
    end: bytes | None = None,
    *,
    codec: Codec | None = None,
    skip: int = 0,
    bare: bool = False,
) -> Feed:
    """A feed of the stored keys in [start, end) after version `since`; the arguments are those of `ChangeFeed`."""
    if isinstance(source, StoreAttachment):
        return ChangeFeed(source, since, start, end, codec=codec, skip=skip, bare=bare)
    made: Feed = source.feed(since, start, end, codec=codec, skip=skip, bare=bare)
    return made


def bell_of(source: SnapshotSource) -> Bell:
    """The bell of a source; one for each hub."""
    if isinstance(source, StoreAttachment):
        return WatchBell(source)
    made: Bell = source.bell()
    return made


def hub_feed(bell: Bell) -> Any:
    """The feed of all changed keys from now on, for the hub that sleeps on this bell: reading it does not block."""
    source = bell.attachment
    if isinstance(source, StoreAttachment):
        return ChangeFeed(source, source.committed_version, b"", bare=True)
    made: Any = bell.feed()  # type: ignore[attr-defined]
    return made
