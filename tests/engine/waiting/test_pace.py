"""Followers of a stream nap instead of sleeping on the bell; everybody else is woken at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, RunId
from occamdb.engine.transaction.pace import (
    CHANGES_MIN,
    MANY,
    NAP_SECONDS,
    REST_SECONDS_MAX,
    REST_SECONDS_MIN,
    ROW,
    ROW_SECONDS,
    Pace,
)
from tests.support.processes import DEADLINE_S, wait_until


def _rings(pace: Pace, count: int, apart: float, start: float) -> None:
    for number in range(count):
        pace.woken(start + number * apart)


def test_a_row_of_quick_wake_ups_is_a_stream() -> None:
    pace = Pace()
    _rings(pace, ROW - 1, ROW_SECONDS / ROW / 2, 100.0)
    assert not pace.streaming
    pace.woken(100.0 + ROW_SECONDS / 2)
    assert pace.streaming


def test_slow_wake_ups_are_never_a_stream() -> None:
    pace = Pace()
    _rings(pace, 10 * ROW, ROW_SECONDS / (ROW - 2), 100.0)
    assert not pace.streaming


def test_a_nap_that_brought_little_is_the_last_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two processes that answer each other: a change in 0.1 ms while both are awake, one in a nap.
    now = 100.0
    monkeypatch.setattr("occamdb.engine.transaction.pace.time.monotonic", lambda: now)
    pace = Pace()
    rests = []
    for _ in range(8):
        ended = now
        while not pace.streaming:
            now += 0.0001
            pace.woken(now)
        rests.append(now - ended)
        pace.napped(1)
        assert not pace.streaming
    # The first row begins at once; after that each rest is twice the one before, up to a limit.
    row = ROW * 0.0001
    assert rests[0] <= 2 * row
    assert all(second >= 1.5 * first for first, second in itertools.pairwise(rests[1:6]))
    assert REST_SECONDS_MIN <= rests[1] <= REST_SECONDS_MIN + 2 * row
    assert rests[-1] <= REST_SECONDS_MAX + 2 * row
    # One that brought much ends that.
    pace.napped(CHANGES_MIN)
    now += REST_SECONDS_MAX
    _rings(pace, ROW, 0.0001, now)
    pace.napped(1)
    now += REST_SECONDS_MIN
    _rings(pace, ROW, 0.0001, now)
    assert pace.streaming


def test_a_nap_that_brought_much_is_followed_by_another() -> None:
    pace = Pace()
    _rings(pace, ROW, 0.0001, time.monotonic())
    pace.napped(CHANGES_MIN)
    assert pace.streaming


def _count_sleeps(monkeypatch: pytest.MonkeyPatch, db: Database) -> list[bool]:
    """One element for each sleep on the bell that is begun."""
    sleeps: list[bool] = []
    begun = db.handle.waits._lead

    def lead(*args: Any) -> Any:
        bell = db.handle.waits._bell
        if bell is not None and getattr(bell, "_sleeps", None) is not sleeps:
            db.handle.waits._bell = _Counting(bell, sleeps)
        return begun(*args)

    monkeypatch.setattr(db.handle.waits, "_lead", lead)
    return sleeps


class _Counting:
    """A bell whose sleeps are counted."""

    def __init__(self, bell: Any, sleeps: list[bool]) -> None:
        self._bell = bell
        self._sleeps = sleeps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bell, name)

    def sleep(self, seen: int, timeout: float) -> Any:
        self._sleeps.append(True)
        return self._bell.sleep(seen, timeout)


def test_naps_grow_while_they_bring_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    pace = Pace(5 * NAP_SECONDS)
    for batches in (MANY, MANY, MANY, MANY // 2, MANY // 4 - 1, CHANGES_MIN):
        pace.nap(1.0)
        pace.napped(batches)
    pace.nap(NAP_SECONDS / 2)
    assert slept == [NAP_SECONDS * times for times in (1, 2, 4, 5, 5, 1, 0.5)]


@pytest.mark.parametrize("changes", [1, CHANGES_MIN])
def test_what_comes_in_a_nap_is_found_without_the_bell(
    db: Database, run: RunId, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    hub = db.handle.waits
    sleeps = _count_sleeps(monkeypatch, db)

    def nap(pace: Pace, longest: float) -> None:
        bell = hub._bell
        assert bell is not None
        seen = bell.arm()
        for number in range(changes):
            db.put(run, "k", number)
        # The word is raised after the writer has its answer.
        wait_until(lambda: bell.raised_since(seen) >= changes, what="the announcement of the changes")

    monkeypatch.setattr(Pace, "nap", nap)
    with db.watch(run, timeout=DEADLINE_S) as watch:
        hub._pace.streaming = True
        assert next(watch).value == 0
        assert hub._pace.streaming == (changes >= CHANGES_MIN)
        assert [change.value for change in watch.ready()] == list(range(1, changes))
    assert sleeps == []


def test_after_a_nap_in_vain_it_sleeps_on_the_bell(
    db: Database, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = _count_sleeps(monkeypatch, db)
    naps: list[float] = []
    monkeypatch.setattr(Pace, "nap", lambda pace, longest: naps.append(longest))
    with db.watch(run, timeout=DEADLINE_S) as watch:
        db.handle.waits._pace.streaming = True
        writer = threading.Thread(
            target=lambda: (wait_until(lambda: bool(sleeps), what="a sleep on the bell"), db.put(run, "k", 7))
        )
        writer.start()
        assert next(watch).value == 7
        writer.join()
    assert len(naps) == 1


def test_a_second_thread_joins_one_that_waits_alone(db: Database, run: RunId) -> None:
    hub = db.handle.waits
    found: dict[str, Any] = {}

    def start(key: str, wait: Callable[..., Any]) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: found.update({key: wait(run, key, timeout=DEADLINE_S).value})
        )
        thread.start()
        return thread

    first = start("a", db.kv.wait)
    wait_until(lambda: len(hub._waiters) == 1 and hub._leader is not None, what="one waiting thread")
    db.put(run, "other", 1)  # the first one looks, alone, and drops the feed of the hub
    second = start("b", db.kv.wait)
    wait_until(lambda: len(hub._waiters) == 2, what="two waiting threads")
    assert hub._feed is not None
    db.put(run, "b", 2)
    second.join(DEADLINE_S)
    db.put(run, "a", 3)
    first.join(DEADLINE_S)
    assert found == {"a": 3, "b": 2}
