"""The bench harness: interleaving, skipping, ratios, targets, reports; with sides that need no database."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from occamdb.stress.bench.catalogue import all_rows, select_rows
from occamdb.stress.bench.model import OCCAM, QUICK, Row, Scale, Target, Unavailable, judge
from occamdb.stress.bench.pool import Pool, WorkerFailed
from occamdb.stress.bench.redis_store import stop_servers
from occamdb.stress.bench.report import machine, table_text, to_json, write_json
from occamdb.stress.bench.session import run_rows
from occamdb.stress.bench.stores import PEERS, STORES, key_name, key_prefix, value_of
from occamdb.stress.bench.targets import SPECIFIED, targets_text
from occamdb.stress.coordinators import stop_coordinator

TINY = Scale(seconds=0.01, repeat=3, size=0.01, warm_up=0.0)


@dataclass
class FakeSide:
    """Answers from a list and notes in which order sides were asked."""

    name: str
    answers: list[float]
    calls: list[str]
    fails: Exception | None = None
    closed: list[str] = field(default_factory=list)

    def setup(self, scratch: Path, scale: Scale) -> None:
        assert scratch.is_dir() and not any(scratch.iterdir())
        if self.fails:
            raise self.fails

    def measure(self, scale: Scale) -> float:
        self.calls.append(self.name)
        return self.answers[self.calls.count(self.name) - 1]

    def notes(self) -> dict[str, Any]:
        return {"note": 7}

    def close(self) -> None:
        self.closed.append(self.name)


def _row(sides: dict[str, Callable[[], Any]], **settings: Any) -> Row:
    return Row(settings.pop("name", "row"), "a row", "ops/s", sides, "group", **settings)


def test_sides_take_turns_and_medians_are_compared() -> None:
    calls: list[str] = []
    closed: list[str] = []
    sides: dict[str, Callable[[], Any]] = {
        OCCAM: lambda: FakeSide(OCCAM, [10, 30, 20], calls, closed=closed),
        "lmdb": lambda: FakeSide("lmdb", [10, 10, 40], calls, closed=closed),
    }
    (result,) = run_rows([_row(sides, target=Target(ratio=1.5))], peers=["lmdb"], scale=TINY)
    assert calls == [OCCAM, "lmdb", "lmdb", OCCAM, OCCAM, "lmdb"]
    assert sorted(closed) == ["lmdb", OCCAM]
    assert result.occam.median == 20
    assert result.ratio("lmdb") == 2.0
    assert result.ratios("lmdb") == [1.0, 3.0, 0.5]
    verdict = judge(result, {"row": result})
    assert verdict is not None and verdict.met
    assert "occamdb 2.00 x" in table_text([result]) and "note 7" in table_text([result])


def test_less_is_better_turns_the_ratio_round() -> None:
    sides: dict[str, Callable[[], Any]] = {
        OCCAM: lambda: FakeSide(OCCAM, [2, 2, 2], []),
        "lmdb": lambda: FakeSide("lmdb", [1, 1, 1], []),
    }
    row = _row(sides, more_is_better=False, target=Target(absolute=1.5))
    (result,) = run_rows([row], peers=["lmdb"], scale=TINY)
    assert result.ratio("lmdb") == 0.5
    verdict = judge(result, {})
    assert verdict is not None and verdict.met is False


def test_what_cannot_run_is_skipped_by_name_and_the_rest_goes_on() -> None:
    sides: dict[str, Callable[[], Any]] = {
        OCCAM: lambda: FakeSide(OCCAM, [1, 1, 1], []),
        "lmdb": lambda: FakeSide("lmdb", [], [], fails=Unavailable("lmdb is not installed")),
        "sqlite": lambda: FakeSide("sqlite", [], [], fails=RuntimeError("broke down")),
        "redis": lambda: FakeSide("redis", [1, 1, 1], []),
    }
    (result,) = run_rows([_row(sides)], peers=["lmdb", "sqlite"], scale=TINY)
    assert set(result.sides) == {OCCAM, "lmdb", "sqlite"}
    assert result.sides["lmdb"].skipped == "skipped: lmdb is not installed"
    assert result.sides["sqlite"].skipped == "failed: broke down"
    assert result.ratio("lmdb") is None and math.isnan(result.sides["lmdb"].median)
    assert "lmdb is not installed" in table_text([result])


def test_a_target_may_refer_to_another_row() -> None:
    def side(value: float) -> Callable[[], Any]:
        return lambda: FakeSide(OCCAM, [value] * 3, [])

    rows = [
        _row({OCCAM: side(100)}, name="four"),
        _row({OCCAM: side(80)}, name="sixteen", target=Target(ratio=0.7, of_row="four")),
    ]
    results = {result.row.name: result for result in run_rows(rows, peers=[], scale=TINY)}
    verdict = judge(results["sixteen"], results)
    assert verdict is not None and verdict.met and "(0.80)" in verdict.text
    alone = judge(results["sixteen"], {})
    assert alone is not None and alone.met is None


def test_json_holds_every_sample(tmp_path: Path) -> None:
    sides: dict[str, Callable[[], Any]] = {OCCAM: lambda: FakeSide(OCCAM, [1, 2, 3], [])}
    results = run_rows([_row(sides)], peers=[], scale=TINY)
    write_json(tmp_path / "out.json", to_json(results, TINY, machine()))
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["rows"]["row"]["sides"][OCCAM]["samples"] == [1, 2, 3]
    assert data["machine"]["cores"] >= 1 and data["scale"]["repeat"] == 3


def test_the_catalogue_names_rows_once_and_finds_them() -> None:
    rows = all_rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) > 40
    assert [row.name for row in select_rows(["reads"])] == ["reads"]
    assert {"commits-none-1", "commits-always-8"} <= {row.name for row in select_rows(["commits"])}
    with pytest.raises(KeyError):
        select_rows(["no-such-row"])
    referred = {row.target.of_row for row in rows if row.target and row.target.of_row}
    assert referred | {name for one in SPECIFIED for name in one.rows} <= set(names)


def test_specified_targets_are_judged() -> None:
    sides: dict[str, Callable[[], Any]] = {OCCAM: lambda: FakeSide(OCCAM, [7, 7, 7], [])}
    rows = [_row(sides, name="snapshot"), _row(sides, name="cross")]
    text = targets_text({result.row.name: result for result in run_rows(rows, peers=[], scale=TINY)})
    assert "snapshot creation" in text and "at most 10" in text
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["met", "MISSED"]
    assert targets_text({}) == ""


@pytest.mark.parametrize("name", [OCCAM, "lmdb", "sqlite"])
def test_stores_do_the_same_work(tmp_path: Path, name: str) -> None:
    store = STORES[name]()
    store.open(tmp_path, "none")
    try:
        store.fill((key_name(index), value_of(index)) for index in range(1200))
        key = store.encode(key_name(5))
        store.read_many([key, store.encode(key_name(1199))])
        store.update(key)
        store.put(store.encode(key_name(1300)), value_of(1))
        store.begin()
        assert store.scan(store.encode(key_prefix(0))) == 1000
        assert store.scan(store.encode(key_prefix(1))) == 201
    finally:
        store.close()
        assert stop_coordinator(str(tmp_path / "occam"))


def test_missing_peers_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(PEERS) == {"lmdb", "sqlite", "diskcache", "redis"}
    with pytest.raises(Unavailable, match="diskcache"):
        STORES["diskcache"]().open(tmp_path, "always")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(Unavailable, match="redis"):
        STORES["redis"]().open(tmp_path, "none")


def test_redis_keeps_what_was_filled_until_the_row_is_over() -> None:
    redis = pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with tempfile.TemporaryDirectory() as scratch:  # a socket's path must be short
        place = Path(scratch)
        filled = STORES["redis"]()
        filled.open(place, "standard")
        try:
            filled.fill((key_name(index), value_of(index)) for index in range(1200))
            filled.close()
            worker = STORES["redis"]()
            worker.open(place, "standard")
            key = worker.encode(key_name(1199))
            worker.update(key)
            worker.read_many([key, worker.encode(key_name(0))])
            worker.close()
        finally:
            stop_servers(place)
        with pytest.raises(redis.exceptions.ConnectionError):
            redis.Redis(unix_socket_path=str(place / "redis.sock")).ping()


@dataclass
class Counting:
    """A pool task."""

    fail_in: str = ""

    def open(self) -> None:
        if self.fail_in == "open":
            raise ValueError("cannot open")

    def step(self) -> int:
        if self.fail_in == "step":
            raise ValueError("cannot step")
        return 2

    def notes(self) -> dict[str, Any]:
        return {"steps": 1}

    def close(self) -> None:
        pass


def test_pool_adds_up_and_reports_failures() -> None:
    pool = Pool([Counting(), Counting()])
    count, notes = pool.run(1.0)  # a busy machine may start a worker after a shorter window
    assert count > 100 and notes == {"steps": 2}
    pids = pool.pids
    pool.close()
    assert len(set(pids)) == 2
    with pytest.raises(WorkerFailed, match="cannot open"):
        Pool([Counting("open")])
    broken = Pool([Counting("step")])
    with pytest.raises(WorkerFailed, match="cannot step"):
        broken.run(10.0)
    broken.close()


def test_quick_is_smaller() -> None:
    assert QUICK.count(1_000_000) < 1_000_000 and QUICK.count(5, 3) >= 3
