"""A link of an event loop, with the commit that it carries."""

from __future__ import annotations

import time

from ...ipc._event_channel import EventChannel
from ..transaction._pending import PendingCommit
from .link import Link
from .pool import LinkPool

__all__ = ["Carrier", "say_goodbye"]

_GOODBYE_SECONDS = 1.0  # for all links of a loop together


class Carrier:
    """A link and the commit that it carries.

    Attributes:
      synced: whether the commit's request asks for a sync.
    """

    __slots__ = ("channel", "fd", "link", "pending", "synced")

    def __init__(self, link: Link) -> None:
        channel = link.events
        assert channel is not None
        self.link = link
        self.channel: EventChannel = channel
        self.fd = link.client.fileno()
        self.pending: PendingCommit | None = None
        self.synced = False


def say_goodbye(pool: LinkPool, carriers: list[Carrier]) -> None:
    """Detach idle links, all but the primary; called in a thread."""
    limit = time.monotonic() + _GOODBYE_SECONDS
    for carrier in carriers:
        if carrier.link is pool.primary:
            continue
        if time.monotonic() < limit:
            carrier.link.detach()
        else:
            carrier.link.drop()  # a coordinator that is stopped sees the end of the connection later
