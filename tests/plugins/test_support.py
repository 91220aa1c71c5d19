"""What plug-ins share: the databases they take, and what they say of packages that are missing or too new."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

import occamdb
import occamdb.aio
from occamdb import RunId
from occamdb.plugins import _support
from occamdb.plugins._support import Engine, missing_extra, run_named, warn_if_newer


def test_every_form_of_a_database(database_path: Path, run: RunId) -> None:
    with occamdb.open(database_path) as db:
        given: list[Any] = [db, occamdb.aio.wrap(db), database_path, str(database_path)]
        for number, form in enumerate(given):
            engine = Engine(form)
            engine.db.put(run, "k", number)
            assert engine.aio.get(run, "k") == number
            engine.close()
            assert db.get(run, "k") == number, (
                "closing a plug-in does not close a database that was given to it"
            )


def test_plug_ins_of_one_database_share_its_connections(database_path: Path, run: RunId) -> None:
    """A program may have thousands of sessions on one database; its event loop has one set of connections."""

    async def write() -> list[int]:
        descriptors = []
        for number in range(20):
            await Engine(db).aio.put(run, "k", number)
            descriptors.append(len(os.listdir("/proc/self/fd")))
        return descriptors

    with occamdb.open(database_path) as db:
        assert Engine(db).aio is Engine(db).aio
        descriptors = asyncio.run(write())
        assert descriptors[-1] == descriptors[0]


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="the path of a database, got int"):
        Engine(7)  # type: ignore[arg-type]


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(ImportError, match=r"pip install 'occamdb\[langgraph\]'"):
        missing_extra("langgraph", ImportError("No module named 'langgraph'", name="langgraph"))


def test_a_newer_framework_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_support, "version", lambda package: "5.0.1")
    with pytest.warns(
        RuntimeWarning, match=r"tested with langgraph-checkpoint 4\.3, and 5\.0\.1 is installed"
    ):
        warn_if_newer("langgraph-checkpoint", "4.3")
    warn_if_newer("langgraph-checkpoint", "5.2")


@pytest.mark.parametrize("name", [7, None, b"thread"])
def test_names_of_runs_are_text(name: Any) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        run_named("thread", name)
    with pytest.raises(ValueError, match="empty"):
        run_named("thread", "")
