"""The rows on waiting measure what they say; none of their figures is asserted here."""

from __future__ import annotations

import pytest

from occamdb.stress.bench.catalogue import select_rows
from occamdb.stress.bench.model import OCCAM, Row, RowResult, Scale, SideResult, Target, judge
from occamdb.stress.bench.report import table_text
from occamdb.stress.bench.session import run_rows
from occamdb.stress.bench.wake_up import BLPOP, PUBSUB, QUEUE, WATCH

TINY = Scale(seconds=0.2, repeat=1, size=0.02, warm_up=0.05)


def measured(name: str) -> RowResult:
    (result,) = run_rows(select_rows([name]), peers=[], scale=TINY)
    assert result.occam.samples and result.occam.median > 0, table_text([result])
    return result


def test_a_follower_follows_beside_the_commits() -> None:
    result = measured("followed-1")
    assert result.occam.notes["followed"] > 0
    assert {"behind", "lagged"} <= set(result.occam.notes)
    assert result.ratio("unwatched") is not None and not result.sides["unwatched"].notes


def test_a_hundred_waiters_sleep_beside_the_commits() -> None:
    result = measured("beside-sleepers-1")
    assert result.occam.notes["asleep"] == 100
    assert result.ratio("unwatched") is not None


def test_wake_ups_are_measured_beside_peers() -> None:
    result = measured("wake-up")
    assert list(result.sides) == [OCCAM, WATCH, QUEUE, BLPOP, PUBSUB]
    assert result.ratio(WATCH) is not None and result.ratio(QUEUE) is not None
    for name in (BLPOP, PUBSUB):
        side = result.sides[name]
        assert side.samples or "not installed" in side.skipped, side.skipped


def test_a_blocked_wait_is_measured() -> None:
    measured("blocked-wait")


@pytest.mark.parametrize(("ours", "queue", "met"), [(50, 40, False), (50, 80, True), (70, 80, False)])
def test_the_best_peer_is_the_measure(ours: float, queue: float, met: bool) -> None:
    target = Target(ratio=1.0, absolute=60.0, of_best=True)
    row = Row("row", "a row", "us", {}, "group", baseline=QUEUE, more_is_better=False, target=target)
    sides = {
        OCCAM: SideResult([ours]),
        WATCH: SideResult([1.0]),
        QUEUE: SideResult([queue]),
        BLPOP: SideResult([90]),
    }
    verdict = judge(RowResult(row, sides), {})
    assert verdict is not None and verdict.met is met and QUEUE in verdict.text
    alone = judge(RowResult(row, {OCCAM: SideResult([ours])}), {})
    assert alone is not None and alone.met is None
