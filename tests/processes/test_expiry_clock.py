"""The clock by which keys expire: it never goes back, whatever the wall clock does, also across a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from occamdb import ConflictError, RunId
from tests.support import clocks, processes
from tests.support.processes import open_database, wait_until

HOUR = 3600
NS = 1_000_000_000


def test_a_step_forward_expires_keys_and_a_restart_keeps_them_expired(tmp_path: Path, run: RunId) -> None:
    """The wall clock of the restarted coordinator is an hour behind the clock that the readers were told."""
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "lease", 1, ttl=HOUR)
        db.put(run, "longer", 1, ttl=3 * HOUR)
        clocks.step(db, (HOUR + 60) * NS)
        wait_until(lambda: db.get(run, "lease") is None, what="the lease to expire")
        before = clocks.expiry_clock(db)
        processes.kill_coordinator(path)
        receipt = db.put(run, "after", 1)
        assert receipt and clocks.expiry_clock(db) >= before
        assert db.get(run, "lease") is None and db.get(run, "longer") == 1
        found = db.get_versioned(run, "after")
        assert found is not None and found.timestamp_ns >= before
    processes.stop_coordinator(path)


def test_a_step_back_brings_nothing_back(tmp_path: Path, run: RunId, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its 20th reading on, the coordinator's wall clock is an hour behind."""
    monkeypatch.setenv("OCCAMDB_FAILPOINTS", f"clock.read=shift:-{HOUR * 1000}@20*1000000000")
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "lease", 1, ttl=0.05)
        wait_until(lambda: db.get(run, "lease") is None, what="the lease to expire")
        times = []
        for number in range(50):
            db.put(run, "n", number, ttl=HOUR)
            found = db.get_versioned(run, "n")
            assert found is not None and found.value == number
            assert db.get(run, "lease") is None
            times.append(found.timestamp_ns)
        assert times == sorted(times)
    processes.stop_coordinator(path)


def test_a_cas_learnt_from_the_new_coordinator_is_not_judged_by_the_old_store(
    tmp_path: Path, run: RunId
) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        db.put(run, "k", 1)
        old = db.begin(run)
        db.put(run, "other", 1)  # the old store has moved on since the snapshot
        processes.kill_coordinator(path)
        version = db.put(run, "k", 2)
        old.cas("k", version, 3)
        assert old.validate() == ()
        old.commit()
        assert db.get(run, "k") == 3
        with pytest.raises(ConflictError):
            db.cas(run, "k", version, 4)
    processes.stop_coordinator(path)
