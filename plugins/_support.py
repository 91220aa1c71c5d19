"""What plug-ins share: the database they are given, the extra they need, and the runs they write to."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn, Self
from weakref import WeakKeyDictionary

import occamdb
from occamdb import Database, RunId
from occamdb.aio import AsyncDatabase, unwrap, wrap

__all__ = ["AnyDatabase", "Engine", "WithEngine", "missing_extra", "run_named", "warn_if_newer"]

AnyDatabase = Database | AsyncDatabase | str | os.PathLike[str]


def missing_extra(extra: str, error: ImportError) -> NoReturn:
    """Say how to install what a plug-in needs.

    Raises:
      ImportError: always.
    """
    raise ImportError(
        f"occamdb.plugins needs a package that is not installed ({error.name or error}): "
        f"pip install 'occamdb[{extra}]'"
    ) from error


def warn_if_newer(package: str, newest: str) -> None:
    """Warn if a framework has a newer major version than the plug-in was tested with.

    Args:
      package: its name on PyPI.
      newest: the newest version that the tests have run with, "4.3".
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        return
    if int(found.split(".")[0]) > int(newest.split(".")[0]):
        warnings.warn(
            f"occamdb's plug-in was tested with {package} {newest}, and {found} is installed",
            RuntimeWarning,
            stacklevel=3,
        )


# An asynchronous form has connections of its own in each event loop, so all plug-ins of a database share one.
_async_forms: WeakKeyDictionary[Database, AsyncDatabase] = WeakKeyDictionary()


def _shared_form(db: Database) -> AsyncDatabase:
    form = _async_forms.get(db)
    return form if form is not None else _async_forms.setdefault(db, wrap(db))


class Engine:
    """The database of a plug-in, in both its forms.

    Args:
      db: an open database of either form, which stays its owner's to close; or a path, which is opened here and closed
        by `close` or `aclose`.

    Attributes:
      db: for calls that may block.
      aio: for event loops.

    Raises:
      TypeError: `db` is nothing of the kind.
    """

    def __init__(self, db: AnyDatabase) -> None:
        self._owned = False
        if isinstance(db, AsyncDatabase):
            self.aio, self.db = db, unwrap(db)
        elif isinstance(db, Database):
            self.db, self.aio = db, _shared_form(db)
        elif isinstance(db, str | os.PathLike):
            self._owned = True
            self.db = occamdb.open(db)
            self.aio = wrap(self.db)
        else:
            raise TypeError(
                f"expected a Database, an AsyncDatabase or the path of a database, got {type(db).__name__}"
            )

    def close(self) -> None:
        """Close the database if it was opened here."""
        if self._owned:
            self.db.close()

    async def aclose(self) -> None:
        """`close`, after the commits that are under way."""
        if self._owned:
            await self.aio.close()


class WithEngine:
    """A plug-in that is closed, or used with `with` or `async with`, as its database is.

    Attributes:
      engine: the database that it was given or opened.
    """

    engine: Engine

    def close(self) -> None:
        """Close the database if it was opened here."""
        self.engine.close()

    async def aclose(self) -> None:
        """Close the database if it was opened here, after the commits that are under way."""
        await self.engine.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self.aclose()


def run_named(kind: str, name: object) -> RunId:
    """The run that holds everything of one thread, session or collection.

    Args:
      kind: what it is, as a word that the names of its runs begin with: "langgraph".
      name: its name in the framework.

    Raises:
      TypeError: the name is not text.
      ValueError: it is empty.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} run must be a str, got {type(name).__name__}: {name!r}")
    if not name:
        raise ValueError(f"the name of a {kind} run must not be empty")
    return RunId.named(f"{kind}/{name}")
