"""Paths that lead to something else: another database, a file, somebody's project, another user's coordinator."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import occamdb
from occamdb import (
    CoordinatorUnavailable,
    DatabaseClosedError,
    IncompatibleFormatError,
    InvalidArgumentError,
    RunId,
)
from occamdb.engine.client.shared_handle import open_handle
from tests.support import processes
from tests.support.processes import Peer, Worker, open_database

TIMEOUT = 30.0


# ---- a pickle and another database ----------------------------------------------------------------------------


@pytest.mark.parametrize("served", [True, False])
def test_a_pickle_loaded_where_another_database_stands(
    served: bool, tmp_path: Path, database_path: Path, run: RunId
) -> None:
    with open_database(database_path) as db:
        db.put(run, "k", "the first")
        pickled = pickle.dumps(db.namespace(tenant="acme"))
    processes.stop_coordinator(database_path)
    moved = database_path.rename(tmp_path / "moved")
    # Nothing stands there: none is made.
    with pytest.raises(DatabaseClosedError, match="not in"):
        pickle.loads(pickled)
    assert not database_path.exists()
    with open_database(database_path) as other:
        other.put(run, "k", "another")
        if not served:
            other.close()
            processes.stop_coordinator(database_path)
        with pytest.raises(DatabaseClosedError, match="not in"):
            pickle.loads(pickled)
    if served:
        processes.stop_coordinator(database_path)
    database_path.rename(tmp_path / "another")
    moved.rename(database_path)
    with pickle.loads(pickled) as again:
        assert again.current_namespace.tenant == "acme"
        assert again.namespace(tenant="default").get(run, "k") == "the first"


def test_a_pickle_of_an_older_version_has_no_id(database_path: Path, run: RunId) -> None:
    with open_database(database_path) as db:
        db.put(run, "k", 1)
        reduced: Any = db.handle.__reduce__()
        function, arguments = reduced
        assert function is open_handle and len(arguments[-1]) == 16
        handle = open_handle(*arguments[:-1])
        assert handle.__reduce__()[1] == arguments
        handle.close()


def test_a_child_pickles_the_id_before_it_attaches(database_path: Path, run: RunId) -> None:
    """A forked child has the database's id from its parent, though it has no link yet."""
    with open_database(database_path) as db:
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.write(write_end, pickle.dumps(db))
            finally:
                os._exit(0)
        os.close(write_end)
        os.waitpid(pid, 0)
        with os.fdopen(read_end, "rb") as pipe, pickle.loads(pipe.read()) as copy:
            assert copy.handle.__reduce__()[1][-1] == db.handle.__reduce__()[1][-1] != b""


# ---- what is not a database
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["auto", "never"])
def test_a_file_is_named_as_one(start: Literal["auto", "never"], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("hello")
    for path in (file, file / "db"):
        began = time.monotonic()
        with pytest.raises(CoordinatorUnavailable, match="Not a directory") as refused:
            occamdb.open(path, start=start, timeout=TIMEOUT)
        assert f"{file} is a file" in refused.value.hint
        assert time.monotonic() - began < TIMEOUT / 2
    assert file.read_text() == "hello"


def test_memory_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError) as refused:
        occamdb.open(":memory:")
    assert "open_in_memory" in refused.value.hint and not list(tmp_path.iterdir())


def test_a_directory_of_somebody_elses_files(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("setup.py", ".git"):
        (project / name).write_text(name)
    began = time.monotonic()
    with pytest.raises(IncompatibleFormatError, match="not empty") as refused:
        occamdb.open(project, timeout=TIMEOUT)
    assert "empty directory" in refused.value.hint and refused.value.details["found"] == [".git", "setup.py"]
    assert time.monotonic() - began < TIMEOUT / 2
    assert sorted(path.name for path in project.iterdir()) == [".git", "setup.py"]


def test_a_directory_prepared_for_a_database(database_path: Path, run: RunId) -> None:
    """Settings put there before, a fresh file system's folder, and what a killed first start left."""
    database_path.mkdir()
    for name in ("lost+found", "wal"):
        (database_path / name).mkdir()
    (database_path / "settings.toml").write_text('max_store_size = "8MiB"\n')
    for name in (".gitignore", "LOCK", "STARTER", "meta.new"):
        (database_path / name).write_text("")
    with occamdb.open(database_path, idle_timeout=20.0) as db:
        db.put(run, "k", 1)
        assert db.handle.settings.max_store_size == 8 << 20


# ---- another user -----------------------------------------------------------------------------------------------


def open_as_nobody(peer: Peer, path: Path) -> tuple[str, str, float]:
    """Open another user's database."""
    os.setresuid(65534, 65534, 65534)
    began = time.monotonic()
    try:
        occamdb.open(path, timeout=TIMEOUT)
    except occamdb.OccamError as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return "", "", 0.0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_another_users_coordinator(tmp_path: Path, database_path: Path, start: Callable[..., Worker]) -> None:
    closed = [
        place
        for place in (database_path, *database_path.parents)
        if place.is_relative_to(Path(tempfile.gettempdir()) / tmp_path.parts[2])
    ]
    with open_database(database_path):
        modes = {place: place.stat().st_mode for place in closed}
        for place, mode in modes.items():
            place.chmod(mode | 0o55)
        try:
            # Refused by the socket's mode; and by the look at who listens, where the mode lets everybody in.
            for mode in (0o600, 0o666):
                (database_path / "coordinator.sock").chmod(mode)
                name, text, seconds = start(open_as_nobody, database_path).result()
                assert name == "CoordinatorUnavailable" and "user 0, not 65534" in text, text
                assert seconds < TIMEOUT / 2
        finally:
            for place, mode in modes.items():
                place.chmod(mode)
