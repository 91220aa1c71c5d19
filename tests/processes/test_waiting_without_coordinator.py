"""Waiting while nobody commits: a coordinator that was killed has a successor, and what died with it is noticed."""

import threading
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, RunId
from tests.support.processes import (
    DEADLINE_S,
    Peer,
    kill_coordinator,
    open_database,
    stop_coordinator,
    wait_until,
    workers,
)

GRACE = 0.5


def keep(peer: Peer, path: Path, run: RunId) -> None:
    """Hold a lease and claim a task, until killed."""
    with open_database(path) as db:
        db.leases.acquire(run, "leader")
        assert db.tasks.claim(run, "q", lease=600) is not None
        peer.say("held")
        peer.hear()


def take_lease(db: Database, run: RunId) -> Any:
    return db.leases.acquire(run, "leader", timeout=DEADLINE_S)


def take_task(db: Database, run: RunId) -> Any:
    return db.tasks.claim(run, "q", timeout=DEADLINE_S)


@pytest.mark.parametrize("take", [take_lease, take_task])
def test_what_died_together_with_the_coordinator_is_given_to_those_who_wait(
    tmp_path: Path, run: RunId, take: Any
) -> None:
    with open_database(tmp_path, session_grace=GRACE) as db:
        db.tasks.put(run, "q")
        with workers() as start:
            holder = start(keep, tmp_path, run)
            assert holder.hear() == "held"
            taken: list[Any] = []
            waiter = threading.Thread(target=lambda: taken.append(take(db, run)))
            waiter.start()
            wait_until(lambda: db.handle.waits.led, what="the wait")
            kill_coordinator(tmp_path)
            holder.kill()
            # Nobody commits: only the one that waits can start another coordinator.
            waiter.join(DEADLINE_S)
            assert taken and taken[0] is not None
        stop_coordinator(tmp_path)


def test_a_clean_stop_is_not_undone_by_those_who_wait(tmp_path: Path, run: RunId) -> None:
    with open_database(tmp_path) as db:
        db.put(run, "k", 1)
        assert not db.handle.orphaned  # type: ignore[attr-defined]
        stop_coordinator(tmp_path)
        assert not db.handle.orphaned  # type: ignore[attr-defined]
        db.put(run, "k", 2)
        kill_coordinator(tmp_path)
        wait_until(lambda: db.handle.orphaned, what="the end of the connection")  # type: ignore[attr-defined]
        db.put(run, "k", 3)
        assert not db.handle.orphaned  # type: ignore[attr-defined]
        with open_database(tmp_path, start="never") as guest:
            kill_coordinator(tmp_path)
            assert not guest.handle.orphaned  # type: ignore[attr-defined]
        db.put(run, "k", 4)
        stop_coordinator(tmp_path)
