"""Checkpoints of a nearly full store under steady overwrites: they are finished, and if not, it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from occamdb import Database, RunId, StoreFullError
from occamdb.tools import console, doctor, stats
from tests.support.processes import (
    ask_coordinator,
    open_database,
    set_coordinator_failpoint,
    wait_until,
)

STORE_SIZE = 32 << 20
VALUE = b"v" * 4000
POINT, SLOW = "checkpoint.block", "sleep:200"


@pytest.fixture
def db(database_path: Path) -> Database:
    """Open until the test's coordinator is stopped."""
    return open_database(
        database_path, max_store_size=STORE_SIZE, checkpoint_bytes="1GiB", checkpoint_interval=0.0
    )


def fill(db: Database, run: RunId, share: float) -> int:
    """Live data that takes this share of the store; how many keys."""
    count = int(share * STORE_SIZE / 4160)
    for first in range(0, count, 100):
        with db.begin(run) as txn:
            for n in range(first, min(first + 100, count)):
                txn.put(f"key {n}", VALUE)
    return count


def begin_checkpoint(path: Path) -> None:
    """One that takes some 20 s, unless `let_go` is called."""
    set_coordinator_failpoint(path, POINT, SLOW)
    ask_coordinator(path, "checkpoint")
    # Its file is made behind its pin.
    wait_until(lambda: any((path / "checkpoints").iterdir()), what="the checkpoint's draft")


def let_go(path: Path) -> None:
    set_coordinator_failpoint(path, POINT, "off")


def overwrite(db: Database, run: RunId, first: int, count: int) -> None:
    for n in range(first, first + count):
        db.put(run, f"key {n}", VALUE)


def checkpoint_of(db: Database) -> dict[str, object]:
    found = db.stats()["durable"]["checkpoint"]
    assert isinstance(found, dict)
    return found


def test_overwrites_do_not_revoke_it(db: Database, database_path: Path, run: RunId) -> None:
    """They overwrite more than the store has left."""
    count = fill(db, run, 0.85)
    begin_checkpoint(database_path)
    version = db.stats()["version"]
    overwrite(db, run, 0, int(0.25 * STORE_SIZE / 4160))
    assert db.stats()["version"] > version
    let_go(database_path)
    wait_until(lambda: not checkpoint_of(db)["running"], what="the checkpoint")
    assert checkpoint_of(db)["error"] == ""
    assert checkpoint_of(db)["version"] == version
    assert db.stats()["snapshots_revoked"] == 0
    # Borrowed room was given back: what is new has no more room than before.
    with pytest.raises(StoreFullError):
        fill(db, run, 1.1)
    assert db.get(run, f"key {count - 1}") == VALUE
    db.close()


def test_snapshots_go_first(db: Database, database_path: Path, run: RunId) -> None:
    """Younger ones too, which hold what was replaced twice since the checkpoint began."""
    count = fill(db, run, 0.8)
    begin_checkpoint(database_path)
    version = db.stats()["version"]
    overwrite(db, run, 0, 400)
    view = db.snapshot(run)
    done = 0
    while not view.expired:
        overwrite(db, run, done, 1)
        done += 1
        assert done < count
    let_go(database_path)
    wait_until(lambda: not checkpoint_of(db)["running"], what="the checkpoint")
    assert checkpoint_of(db)["error"] == ""
    assert checkpoint_of(db)["version"] == version
    view.close()
    db.close()


def test_a_checkpoint_gives_way_at_last(
    db: Database, database_path: Path, run: RunId, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commits are not refused for it; that it keeps failing is to be seen."""
    count = fill(db, run, 0.85)
    begin_checkpoint(database_path)
    overwrite(db, run, 0, count)
    let_go(database_path)
    wait_until(lambda: not checkpoint_of(db)["running"], what="the checkpoint")
    assert "revoked" in str(checkpoint_of(db)["error"])
    assert checkpoint_of(db)["failures"] == 1
    assert any("checkpoints in a row failed" in found.text for found in doctor.directory(database_path))
    console.out().print(stats.render(stats.figures_of(database_path), None))
    assert "1 failed in a row" in capsys.readouterr().out
    db.close()
