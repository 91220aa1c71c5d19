"""What the threads beside a server's calls use of it: `Server` (server.py) as the keeper and the listener see it."""

from __future__ import annotations

from typing import Any, Protocol

from .location import Location
from .pool import Pool
from .statements import Statements

__all__ = ["Served"]


class Served(Protocol):
    """See `Server` for the attributes."""

    location: Location
    pool: Pool
    statements: Statements
    session: int
    session_ns: int
    age_ns: int
    kept: bool
    housekeeping: bool
    numbers: set[int]

    def rows(self, statement: bytes, parameters: Any, deadline: float | None = None) -> list[tuple[Any, ...]]:
        """The rows of a statement that may be made again."""

    def session_ended(self, session: int) -> None:
        """Begin another session, unless that was done."""
