"""The workload of expiring leases: clean on the engine, and it notices an engine that lets an expiry pass unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import occamdb
from occamdb.stress.checker import check_history
from occamdb.stress.history import REGISTER, HistoryWriter
from occamdb.stress.runner import run_workload
from occamdb.stress.tally import Tally
from occamdb.stress.worker import Context, Place, Settings
from occamdb.stress.workloads import get_workload
from occamdb.stress.workloads.expiry import EXPIRED, lease_key
from tests.support import clocks
from tests.support.broken_engines import SkipsReadValidation, broken_database
from tests.support.databases import memory_database


def cycle(db: Any, directory: Path) -> set[str]:
    """T scans the leases, they expire, U scans them, reads what T writes, and commits; then T commits."""
    workload, settings = get_workload("expiry"), Settings(seconds=100)
    workload.prepare(db, settings)
    contexts = []
    for worker in range(2):
        place = Place(directory, worker)
        history = HistoryWriter(place.history, kind=REGISTER, worker=worker)
        contexts.append(Context(db, settings, place, Tally(place.tally, ()), history))
    key = lease_key(0)

    def look(txn: occamdb.Transaction) -> str | None:
        return None if any(found == key for found, _ in txn.scan("lease/0/")) else EXPIRED

    def u(txn: occamdb.Transaction) -> list[object]:
        txn.put("z", 2)
        return [look(txn), txn.get("y")]

    def t(txn: occamdb.Transaction) -> list[object]:
        seen = look(txn)
        clocks.step(db, 1000 * 1_000_000_000)
        assert contexts[1].recorded([["r", key], ["r", "y"], ["w", "z", 2]], u).ok
        txn.put("y", 1)
        return [seen]

    contexts[0].recorded([["r", key], ["w", "y", 1]], t)
    workload.verify(contexts[0], {}, [])
    db.close()
    return set(check_history(directory).anomalies)


def test_the_engine_is_clean(tmp_path: Path) -> None:
    assert not cycle(memory_database(max_store_size="4MiB"), tmp_path)


def test_an_expiry_that_nobody_notices_is_found(tmp_path: Path) -> None:
    assert cycle(broken_database(SkipsReadValidation), tmp_path)


def test_a_short_run_with_a_coordinator_is_clean(tmp_path: Path) -> None:
    settings = Settings(path=str(tmp_path / "db"), workers=3, seconds=1.5)
    result = run_workload("expiry", settings, tmp_path / "files")
    assert result.valid, (result.problems, result.report)
    assert result.counts["ok"] > 0
