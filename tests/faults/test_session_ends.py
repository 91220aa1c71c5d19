"""The commit that removes the keys of a session meets every death of the coordinator and a full disk (A5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import RunId
from occamdb.engine.log import check
from tests.faults.test_full_disk import SETTINGS, disk, fill_until_refused, is_refused
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_gone,
    wait_until,
)

__all__ = ["disk"]

GRACE_S = 0.4
RETRY_S = 0.2  # as in the commit core: between two attempts at a removal
NAMES = [f"lock/{number:02}" for number in range(12)]


def own(peer: Peer, path: Path, run: RunId, names: list[str]) -> None:
    with open_database(path) as db:
        with db.begin(run) as txn:
            for name in names:
                txn.put(name, 1, ephemeral=True)
        peer.say(db.session)
        peer.hear()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "db"
    stop_coordinator(tmp_path / "db")
    assert check.check(tmp_path / "db", rebuild=True).findings == []


@pytest.mark.parametrize(
    ("durability", "point", "action", "logged"),
    [
        ("standard", "commit.after_apply", "kill", False),
        ("standard", "wal.before_write", "kill", False),
        ("standard", "wal.after_write", "kill", True),
        ("standard", "commit.before_publish", "kill", True),
        ("standard", "commit.after_publish", "kill", True),
        ("always", "file.write", "torn:100", False),
        ("always", "wal.before_sync", "kill", True),
        ("always", "wal.after_sync", "kill", True),
    ],
)
def test_a_coordinator_that_dies_in_the_removal_leaves_all_keys_or_none(
    path: Path,
    run: RunId,
    start: Callable[..., Worker],
    durability: str,
    point: str,
    action: str,
    logged: bool,
) -> None:
    """What its log holds decides; what is left goes after the grace, and the keys of the living stay."""
    with open_database(path, session_grace=GRACE_S, durability=durability) as db:
        owner = start(own, path, run, NAMES)
        owner.hear()
        db.put(run, "mine", 1, ephemeral=True)
        coordinator = coordinator_identity(path)
        set_coordinator_failpoint(path, point, action)
        owner.kill()
        wait_gone(coordinator)
        db.put(run, "plain", 1)
        left = [name for name in db.list(run) if name in NAMES]
        # The grace may have passed, if this machine is slow; half of the keys is wrong at any time.
        assert left == [] or (left == NAMES and not logged)
        wait_until(lambda: db.list(run) == ["mine", "plain"], what="the end of the keys")
        assert db.stats()["session_keys"] == 1


def test_coordinators_that_keep_dying_in_the_removal(
    path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    with open_database(path, session_grace=GRACE_S) as db:
        owner = start(own, path, run, NAMES)
        owner.hear()
        db.put(run, "mine", 1, ephemeral=True)
        owner.kill()
        for _ in range(4):
            kill_coordinator(path)
            db.put(run, "plain", 1)
            assert db.exists(run, "mine")
        wait_until(lambda: db.list(run) == ["mine", "plain"], what="the end of the keys")


def test_on_a_full_disk_the_keys_stay_and_go_once_there_is_room(
    disk: Path, start: Callable[..., Worker]
) -> None:
    path, run = disk / "db", RunId.new()
    settings: dict[str, Any] = SETTINGS | {"session_grace": GRACE_S}
    with open_database(path, **settings) as db:
        # More than what the log may have set aside for itself.
        names = [f"lock/{number:06}" + "x" * 200 for number in range(4000)]
        owner = start(own, path, run, names)
        session = owner.hear()
        filler = fill_until_refused(db, disk)
        owner.kill()
        wait_until(lambda: all(each["session"] != session for each in db.stats()["sessions"]), what="its end")
        # Time for several attempts. Nothing of them is half done, and reads go on.
        tried = time.monotonic() + 3 * RETRY_S
        wait_until(lambda: time.monotonic() > tried and db.list(run) == names, what="attempts")
        filler.unlink()
        wait_until(lambda: db.list(run) == [], what="the end of the keys")
        wait_until(lambda: not is_refused(db), what="a commit after there was room")
    stop_coordinator(path)
    assert check.check(path, rebuild=True).findings == []
