"""`Database.backup`: a copy of one moment, by Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import AlreadyExistsError, Database, RunId, SnapshotExpired
from tests.support.databases import DatabaseFactory, revoke_snapshots
from tests.support.processes import stop_coordinator

pytestmark = pytest.mark.local_only("a server's own tools make backups; occamdb copy copies runs")


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "copy"
    if (tmp_path / "copy").exists():
        stop_coordinator(tmp_path / "copy")


def contents(db: Database, run: RunId) -> list[Any]:
    events = [(event.sequence, event.payload, event.hash) for event in db.events.iterate(run)]
    rows = [(key, row.value, row.version, row.expires_at_ns) for key, row in db.kv.scan(run)]
    return [rows, events, [meta.name for meta in db.runs.list_runs()]]


def test_a_backup_holds_every_namespace_and_opens_as_a_database(
    db_factory: DatabaseFactory, run: RunId, destination: Path
) -> None:
    db = db_factory(max_store_size="32MiB")
    other = db.namespace(agent="other")
    db.put(run, "k", [1, 2], ttl=3600)
    db.events.append(run, "e", {"n": 1})
    db.runs.create_run("named", run_id=run)
    other.put(run, "k", "theirs")
    seen: list[int] = []
    done = db.backup(destination, progress=seen.append)
    assert done.rows == seen[-1] > 5 and done.size > 0 and done.seconds >= 0
    assert done.version == db.stats()["version"]
    expected = contents(db, run)
    db.put(run, "later", 1)
    with occamdb.open(destination, idle_timeout=0.2) as copy:
        assert contents(copy, run) == expected
        assert copy.namespace(agent="other").get(run, "k") == "theirs"
        assert copy.put(run, "new", 1) > done.version
    assert db.get(run, "new") is None


def test_a_destination_with_anything_in_it_is_refused(
    db_factory: DatabaseFactory, run: RunId, tmp_path: Path
) -> None:
    db = db_factory()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(AlreadyExistsError, match="not empty"):
        db.backup(tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]


def test_an_exception_of_progress_ends_the_copy_and_removes_it(
    db_factory: DatabaseFactory, run: RunId, tmp_path: Path
) -> None:
    db = db_factory()
    db.put(run, "k", 1)

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.backup(tmp_path / "copy", progress=stop)
    assert not (tmp_path / "copy").exists()


def test_a_backup_whose_snapshot_is_revoked_says_so_and_leaves_nothing(run: RunId, tmp_path: Path) -> None:
    with occamdb.open_in_memory(max_store_size="16MiB") as db:
        db.put(run, "k", 1)

        def revoke(rows: int) -> None:
            assert revoke_snapshots(db) == 1

        with pytest.raises(SnapshotExpired, match="revoked"):
            db.backup(tmp_path / "copy", progress=revoke)
    assert not (tmp_path / "copy").exists()
