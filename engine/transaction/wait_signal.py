"""The signal by which `txn.wait` leaves the function of a transaction."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["WaitSignal"]


class WaitSignal(BaseException):
    """An attempt is given up until something that it has read is changed.

    Derived from BaseException, so that the `except Exception` of a user's function lets it pass.

    Attributes:
      owner: the transaction's core, by which it knows its own signal.
      version: of the snapshot it read.
      keys, ranges: what it has read, as stored keys.
      prefixes: the (run, tag)s of those.
    """

    def __init__(
        self,
        owner: object,
        version: int,
        keys: Iterable[bytes],
        ranges: Iterable[tuple[bytes, bytes]],
        prefixes: Iterable[bytes],
    ) -> None:
        super().__init__("the transaction waits for a change of what it has read")
        self.owner = owner
        self.version = version
        self.keys = tuple(keys)
        self.ranges = tuple(ranges)
        self.prefixes = tuple(prefixes)
