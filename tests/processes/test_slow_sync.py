"""A disk that takes five seconds to sync the log holds up nobody but those that wait for the disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from occamdb import RunId
from tests.support.processes import (
    Peer,
    Worker,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)

SYNC_MS = 5000
# Well below the time of a sync: what waits for one fails.
BOUND_S = 2.5


def stay(peer: Peer, path: Path, run: RunId) -> None:
    db = open_database(path)
    db.put(run, "worker", 1)
    peer.say("ready")
    peer.hear()


def test_the_control_plane_answers_beside_a_slow_sync(
    tmp_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    path = tmp_path / "db"
    with open_database(path, sync_interval=0.01) as db:
        worker = start(stay, path, run)
        worker.hear()
        wait_until(lambda: len(db.stats()["workers"]) == 2, what="the worker")
        set_coordinator_failpoint(path, "wal.before_sync", f"sleep:{SYNC_MS}")
        begun = time.monotonic()
        for n in range(20):
            db.put(run, f"k{n}", n)
            assert db.stats()["log"]["poisoned"] is False
        worker.kill()
        wait_until(lambda: len(db.stats()["workers"]) == 1, what="the notice of its death")
        with open_database(path) as other:
            assert other.get(run, "k0") == 0
        assert time.monotonic() - begun < BOUND_S
        set_coordinator_failpoint(path, "wal.before_sync", "off")
    stop_coordinator(path)
