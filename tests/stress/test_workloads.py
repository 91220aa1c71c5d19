"""Workloads hold on a sound engine, and each notices when what it guards is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb.stress.checker import check_history
from occamdb.stress.history import HistoryWriter
from occamdb.stress.runner import VERIFIER, run_workload
from occamdb.stress.tally import Tally, totals
from occamdb.stress.worker import Context, Place, Settings
from occamdb.stress.workloads import WORKLOADS, Workload, get_workload
from occamdb.stress.workloads.base import RUN
from occamdb.stress.workloads.event_log import log_run

STEPS = 120


class Bench:
    """A workload on an in-memory database with two workers that take turns."""

    def __init__(self, name: str, directory: Path, isolation: str = "serializable"):
        self.workload: Workload = get_workload(name)
        self.db = occamdb.open_in_memory(isolation=occamdb.Isolation(isolation))
        self.settings = Settings(keys=self.workload.keys, isolation=isolation)
        self.directory = directory
        self.workload.prepare(self.db, self.settings)
        self.contexts = [self.context(worker) for worker in range(2)]

    def context(self, worker: int) -> Context:
        place = Place(self.directory, worker)
        history = None
        if self.workload.history_kind:
            history = HistoryWriter(place.history, kind=self.workload.history_kind, worker=worker)
        return Context(self.db, self.settings, place, Tally(place.tally, self.workload.counters), history)

    def run(self, steps: int = STEPS) -> None:
        for _ in range(steps):
            for context in self.contexts:
                self.workload.step(context)

    def verify(self) -> list[str]:
        tallies = [context.tally.read() for context in self.contexts]
        problems = self.workload.verify(self.context(VERIFIER), totals(tallies), tallies)
        return [str(problem) for problem in problems]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make(name: str) -> Bench:
        made.append(Bench(name, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.db.close()


@pytest.mark.parametrize("name", WORKLOADS)
def test_holds_on_a_sound_engine(bench: Callable[[str], Bench], name: str) -> None:
    one = bench(name)
    one.run()
    assert one.verify() == []
    done = totals([context.tally.read() for context in one.contexts])
    assert done["ok"] >= STEPS and done["unresolved"] == 0 and done["problems"] == 0
    if one.workload.history_kind:
        report = check_history(one.directory)
        assert report.valid, report.text()
        assert report.committed > STEPS


def _lose_an_increment(one: Bench) -> None:
    key = next(key for key in one.db.list(RUN, "counter/"))
    one.db.put(RUN, key, one.db.get(RUN, key) - 1)


def _mint(one: Bench) -> None:
    one.db.put(RUN, "account/000000", one.db.get(RUN, "account/000000") + 1)


def _nobody_on_duty(one: Bench) -> None:
    one.db.put(RUN, "duty/0/a", 0)
    one.db.put(RUN, "duty/0/b", 0)


def _overfill(one: Bench) -> None:
    for guest in range(6):
        one.db.put(RUN, f"room/0/ghost-{guest}", 0)


def _do_twice(one: Bench) -> None:
    one.db.put(RUN, next(key for key in one.db.list(RUN, "done/")), 2)


def _drop_an_entry(one: Bench) -> None:
    one.db.delete(RUN, next(key for key in one.db.list(RUN, "entry/")))


def _move_a_version(one: Bench) -> None:
    key = next(key for key in one.db.list(RUN, "entry/"))
    one.db.put(RUN, key, one.db.get(RUN, key))


def _spoil_a_record(one: Bench) -> None:
    key = next(key for key in one.db.list(RUN, "user/"))
    one.db.put(RUN, key, {**one.db.get(RUN, key), "field0": "spoilt"})


def _foreign_event(one: Bench) -> None:
    db: Any = one.db
    db.events.append(log_run(0), "work", {"name": "nobody's"})


def _extra_finding(one: Bench) -> None:
    db: Any = one.db
    db.kv.increment(RUN, "findings")


def _commit_as_a_former_holder(one: Bench) -> None:
    db: Any = one.db
    db.kv.increment(RUN, "backwards")


def _step_twice(one: Bench) -> None:
    db: Any = one.db
    db.kv.increment(RUN, "effects/0")


def _add_from_nowhere(one: Bench) -> None:
    db: Any = one.db
    db.kv.increment(RUN, "starvation/0")


BREAKAGES: list[tuple[str, Callable[[Bench], None], str]] = [
    ("counter", _lose_an_increment, "sum of all counters"),
    ("increment", _lose_an_increment, "sum"),
    ("bank", _mint, "total"),
    ("write-skew", _nobody_on_duty, "on duty"),
    ("phantoms", _overfill, "guests"),
    ("queue", _do_twice, "more than once"),
    ("ledger", _drop_an_entry, "lost"),
    ("ledger", _move_a_version, "two versions"),
    ("ycsb-b", _spoil_a_record, "check sum"),
    ("event-log", _foreign_event, "number of events"),
    ("leases", _commit_as_a_former_holder, "former holders"),
    ("steps", _step_twice, "effects"),
    ("agents", _extra_finding, "topics"),
    ("starvation", _add_from_nowhere, "sum of all keys"),
]


@pytest.mark.parametrize(
    ("name", "damage", "said"), BREAKAGES, ids=lambda one: getattr(one, "__name__", str(one))
)
def test_notices_damage(
    bench: Callable[[str], Bench], name: str, damage: Callable[[Bench], None], said: str
) -> None:
    one = bench(name)
    one.run(60)
    damage(one)
    assert any(said in problem for problem in one.verify()), one.verify()


def test_write_skew_shows_at_snapshot_isolation(tmp_path: Path) -> None:
    """The workload can see the anomaly it is after: interleaved by hand, snapshot isolation lets it pass."""
    one = Bench("write-skew", tmp_path, isolation="snapshot")
    first, second = one.db.begin(RUN), one.db.begin(RUN)
    for txn, mine in ((first, "a"), (second, "b")):
        assert txn.get("duty/0/a") + txn.get("duty/0/b") == 2
        txn.put(f"duty/0/{mine}", 0)
    first.commit()
    second.commit()
    assert one.verify() == ["nobody of pair 0 is on duty"]
    one.db.close()


@pytest.mark.parametrize("name", ["list-append", "ledger"])
def test_over_real_processes(tmp_path: Path, name: str) -> None:
    settings = Settings(str(tmp_path / "db"), workers=2, seconds=0.0, count=150, keys=get_workload(name).keys)
    result = run_workload(name, settings, tmp_path / "files")
    assert result.valid, result.text()
    assert result.counts["begun"] >= 300
    assert "PASSED" in result.text()


@pytest.mark.parametrize(("beside", "slow"), [(499, True), (500, False)])
def test_notices_writers_that_starve(bench: Callable[[str], Bench], beside: int, slow: bool) -> None:
    """Rates are medians, so one phase in which somebody was stopped says nothing."""
    one = bench("starvation")
    counts = dict.fromkeys((f"phase{number}" for number in range(16)), 1000) | {"long": 1, "attempts": 4}
    counts |= {f"phase{number}": beside for number in range(1, 16, 2)} | {"phase0": 1, "phase1": 1}
    problems = one.workload.verify(one.context(VERIFIER), counts, [])
    assert any("beside a long transaction" in problem for problem in problems) is slow
