"""Opening a database: arguments, settings, and many who open at the same instant."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import (
    CoordinatorUnavailable,
    Database,
    InvalidArgumentError,
    KeyTooLarge,
    Limits,
    OccamError,
    RunId,
    Settings,
    SettingsError,
    SettingsMismatchError,
)
from occamdb.tools.coordinator import coordinator_of
from tests.support import processes
from tests.support.processes import Peer, Worker, open_database, segments_of, stop_coordinator, wait_until

OPENINGS = 30


def open_each(peer: Peer, base: Path, run: RunId, number: int, barrier: Any) -> list[str]:
    """Open one new directory after the other, each at the same instant as the other process."""
    ids = []
    for turn in range(OPENINGS):
        path = base / str(turn)
        barrier.wait(60)
        with open_database(path, max_store_size="1MiB", idle_timeout=0.0, timeout=60.0) as db:
            db.kv.increment(run, "opened")
            db.put(run, f"process {number}", turn)
            ids.append(segments_of(path, "store")[0].split("-")[1])
            barrier.wait(60)
            assert db.get(run, "opened") == 2
            assert db.get(run, f"process {1 - number}") == turn
    return ids


def test_two_processes_open_a_new_directory_at_the_same_instant(
    tmp_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """Time and again: one database, one coordinator, both commit. Each coordinator ends when both have left."""
    barrier = get_context("forkserver").Manager().Barrier(2)
    team = [start(open_each, tmp_path, run, number, barrier) for number in range(2)]
    ids = [worker.result(300) for worker in team]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == OPENINGS
    for turn in range(OPENINGS):
        wait_until(lambda p=tmp_path / str(turn): not segments_of(p), what="the end of the coordinator")  # type: ignore[misc]


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[OccamError]]] = [
    ({"durability": "sometimes"}, InvalidArgumentError),
    ({"isolation": "chaos"}, InvalidArgumentError),
    ({"start": "maybe"}, InvalidArgumentError),
    ({"timeout": 0}, InvalidArgumentError),
    ({"timeout": -1.0}, InvalidArgumentError),
    ({"timeout": float("nan")}, InvalidArgumentError),
    ({"timeout": True}, InvalidArgumentError),
    ({"timeout": "soon"}, InvalidArgumentError),
    ({"tenant": ""}, OccamError),
    ({"tenant": "a\0b"}, OccamError),
    ({"agent": "x" * 100}, OccamError),
    ({"max_store_size": 1}, SettingsError),
    ({"max_store_size": "64 elephants"}, SettingsError),
    ({"ring_size": 5000}, SettingsError),
    ({"snapshot_max_age": -1}, SettingsError),
    ({"channel_count_max": 1.5}, SettingsError),
    ({"max_store_sise": "64MiB"}, SettingsError),
]


@pytest.mark.parametrize(("arguments", "error"), BAD_ARGUMENTS, ids=lambda value: str(value))
def test_a_bad_argument_starts_nothing(
    arguments: dict[str, Any], error: type[OccamError], tmp_path: Path
) -> None:
    with pytest.raises(error) as refused:
        occamdb.open(tmp_path / "db", **arguments)
    assert refused.value.code and refused.value.message
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400])
@pytest.mark.parametrize("limits", [Limits(key_size_max=100), {"key_size_max": 100}])
def test_a_timeout_without_end_and_limits_as_one(
    timeout: float, limits: Any, database_path: Path, run: RunId
) -> None:
    with occamdb.open(database_path, timeout=timeout, limits=limits, max_store_size="8MiB") as db:
        db.transaction(run, lambda txn: txn.put("k", 1), timeout=timeout)
        with pytest.raises(KeyTooLarge):
            db.put(run, "k" * 101, 1)
        assert db.get(run, "k") == 1
    stop_coordinator(database_path)


@pytest.mark.parametrize("path", ["", "a\0b", 7, None])
def test_a_bad_path(path: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        occamdb.open(path)


def test_a_path_that_is_a_file_or_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path / "file", tmp_path / "file" / "db", Path("/proc/nowhere/db")):
        began = time.monotonic()
        with pytest.raises(OccamError) as refused:
            occamdb.open(path, timeout=60)
        assert str(path) in str(refused.value)
        assert time.monotonic() - began < 50, "a hopeless open must not wait for its timeout"
    assert (tmp_path / "file").read_text() == "hello"


def test_other_settings_than_the_running_ones(shared: Database, shared_path: Path, run: RunId) -> None:
    shared.put(run, "k", 1)
    with pytest.raises(SettingsMismatchError) as refused:
        occamdb.open(shared_path, ring_size="1MiB", channel_count_max=7)
    assert refused.value.details["ring_size"] == {"running": 256 * 1024, "asked": 1024 * 1024}
    assert "channel_count_max" in refused.value.details
    # The same ones, or none, are fine; and spelled differently.
    with occamdb.open(shared_path, max_store_size=64 << 20, ring_size="256KiB") as other:
        assert other.get(run, "k") == 1


def test_durability_of_who_comes_second(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    with open_database(path, durability="none") as db:
        db.put(run, "k", 1)
        with pytest.raises(SettingsMismatchError):
            open_database(path, durability="standard")
    stop_coordinator(path)
    other = tmp_path / "other"
    with open_database(other, sync_interval=60.0) as db, occamdb.open(other, durability="always") as careful:
        # The first one started the coordinator; the second one waits for the disk as well.
        before = db.stats()["log"]["syncs"]
        for number in range(5):
            careful.put(run, "k", number)
        with careful.begin(run) as txn:
            txn.put("k", 6)
        assert txn.receipt is not None and txn.receipt.durability == "always"
        assert db.stats()["log"]["syncs"] == before + 6
        db.put(run, "k", 7)
        assert db.stats()["log"]["syncs"] == before + 6
        assert db.begin(run).commit().durability == "standard"
    stop_coordinator(other)


def test_settings_outlive_the_coordinator_they_were_given_to(tmp_path: Path, run: RunId) -> None:
    """Whoever starts the next one, with whatever wishes of its own, goes on with the settings in force."""
    path = tmp_path / "db"
    first = occamdb.open(path, max_store_size="8MiB", ring_size="16KiB", idle_timeout=20.0)
    with first, occamdb.open(path) as second:
        first.put(run, "k", 1)
        processes.kill_coordinator(path)
        assert second.put(run, "k", 2)
        assert settings_of(second).max_store_size == 8 << 20
        assert first.put(run, "k", 3) and first.get(run, "k") == 3
    stop_coordinator(path)


def settings_of(db: Database) -> Settings:
    """Those in force, as the coordinator told them."""
    handle: Any = db.handle
    settings: Settings = handle.settings
    return settings


def test_settings_file(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    path.mkdir()
    (path / "settings.toml").write_text('max_store_size = "8MiB"\nkey_size_max = 100\n')
    with occamdb.open(path, idle_timeout=20.0) as db:
        assert settings_of(db).max_store_size == 8 << 20
        db.put(run, "k" * 100, 1)
        with pytest.raises(occamdb.KeyTooLarge):
            db.put(run, "k" * 101, 1)
    stop_coordinator(path)
    (path / "settings.toml").write_text("max_store_size = \n")
    with pytest.raises(SettingsError) as refused:
        occamdb.open(path)
    assert "settings.toml" in refused.value.message


def test_a_path_longer_than_a_socket_address(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
    with occamdb.open(path, start="never") as db:
        assert db.get(run, "k") == 1
    stop_coordinator(path)


def test_nobody_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(CoordinatorUnavailable) as refused:
        occamdb.open(tmp_path / "db", start="never", timeout=0.05)
    assert "occamdb serve" in refused.value.hint
    assert coordinator_of(tmp_path / "db") is None
