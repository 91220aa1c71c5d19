"""A database on a server. It is opened when the server can be reached, and stays open."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import occamdb
from occamdb.tools.console import reading
from occamdb.tools.inspector.source import Condition, Replaceable

__all__ = ["ServerSource"]


class ServerSource:
    """A database on a server, such as PostgreSQL.

    Args:
      address: as `occamdb.open` takes it.
      namespace: "tenant/app/agent", trailing parts optional; None: the default one.
    """

    look_s = 0.5  # each look is a round trip

    def __init__(self, address: str, namespace: str | None) -> None:
        self.name = without_password(address)
        self.condition = Condition("unreadable", ("The server is being asked.",))
        self.log: str | None = None
        self._address = address
        self._namespace = namespace
        self._current = Replaceable()
        self._is_open = False

    def reading(self) -> Any:
        """A lease of the database."""
        return self._current.lease()

    def close(self) -> None:
        """Close what is open."""
        self._current.fail(occamdb.DatabaseClosedError())

    def look(self) -> None:
        """Open it, if that did not succeed yet."""
        if self._is_open:
            return
        with ExitStack() as closing:
            try:
                db = closing.enter_context(reading(self._address, self._namespace))
            except (occamdb.OccamError, OSError) as error:
                self._current.fail(error)
                self.condition = Condition("unreadable", (str(getattr(error, "message", error)),))
                return
            self._current.replace(db, closing.pop_all())
        self.name = db.path or self.name
        self._is_open = True
        self.condition = Condition("server")

    def figures(self) -> dict[str, Any] | None:
        """What the server answers; None if it does not."""
        try:
            with self._current.lease() as db:
                found: dict[str, Any] = db.stats()
        except (occamdb.OccamError, OSError) as error:
            if self._is_open:
                self.condition = Condition("server", (str(getattr(error, "message", error)),), is_gone=True)
            return None
        if self._is_open:
            self.condition = Condition("server")
        return found | {"read_at": time.time()}


def without_password(address: str) -> str:
    """An address of a server without what is secret in it."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.partition("://")[0] + "://…"
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, place, parts.path, "", ""))
