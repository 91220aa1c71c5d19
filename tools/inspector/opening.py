"""Which kind of source a path or an address names."""

from __future__ import annotations

from pathlib import Path

from occamdb.tools.console import require_database
from occamdb.tools.inspector.directory_source import DirectorySource
from occamdb.tools.inspector.server_source import ServerSource
from occamdb.tools.inspector.source import Source

__all__ = ["source_of"]


def source_of(target: str, namespace: str | None) -> Source:
    """The database that a path, or the address of a server, names.

    Raises:
      NotFoundError: there is no database.
    """
    if "://" in target:
        return ServerSource(target, namespace)
    return DirectorySource(require_database(Path(target)), namespace)
