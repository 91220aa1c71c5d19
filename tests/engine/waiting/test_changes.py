"""What a watch gives out: the changes themselves, values that cannot be restored, and a stream read in batches."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import occamdb
from occamdb import Change, Database, RunId
from occamdb.engine.transaction import watch as watch_module
from occamdb.engine.transaction.pace import CHANGES_MIN, Pace
from tests.support.engines import Engine

DEADLINE_S = 60.0


pytestmark = pytest.mark.by_default("memory")


@pytest.fixture
def db(engine: Engine) -> Iterator[Database]:
    database = engine.fresh()
    yield database
    engine.discard(database)


def test_a_change_is_a_value(db: Database, run: RunId) -> None:
    with db.watch(run) as watch:
        db.put(run, "k", [1])
        (change,) = watch.ready()
    same = Change(change.key, [1], change.version, change.committed_at_ns, "put")
    assert change == same and change != Change("k", [1], change.version + 1, change.committed_at_ns, "put")
    assert change != ("k", [1], change.version, change.committed_at_ns, "put")
    assert pickle.loads(pickle.dumps(change)) == change
    assert repr(change) == (
        f"Change(key='k', value=[1], version={change.version}, "
        f"committed_at_ns={change.committed_at_ns}, kind='put')"
    )
    assert change.committed_at == datetime.fromtimestamp(change.committed_at_ns // 1000 / 1e6, UTC)
    match change:
        case Change(key, value, kind="put"):
            assert (key, value) == ("k", [1])
        case _:
            pytest.fail("a change takes part in pattern matching")
    with pytest.raises(AttributeError):
        change.key = "other"  # type: ignore[misc]
    with pytest.raises(TypeError, match="unhashable"):
        hash(change)
    assert len({Change("k", 1, 5, 0, "put"), Change("k", 1, 5, 0, "put"), Change("k", 1, 6, 0, "put")}) == 2


class Brittle:
    """Stored, and refused when it is read back as long as `broken`."""

    broken = True


def restore(name: str, value: Any) -> Any:
    if Brittle.broken:
        raise LookupError(name)
    return value


def test_a_value_that_cannot_be_restored_keeps_its_place(run: RunId, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed before it is given out; it is tried again at each call, and nothing behind it is lost."""
    db = occamdb.open_in_memory(default=lambda value: ("brittle", 1), restore=restore)
    with db, db.watch(run, timeout=0) as watch:
        db.put(run, "a", 0)
        before = db.put(run, "b", 0)
        db.put(run, "c", Brittle())
        db.put(run, "d", 2)
        assert [change.key for change in watch.ready()] == ["a", "b"]
        for read in (watch.ready, lambda: next(watch), lambda: next(watch.commits())):
            with pytest.raises(LookupError):
                read()
            assert watch.version == before
        monkeypatch.setattr(Brittle, "broken", False)
        assert [(change.key, change.value) for change in watch] == [("c", 1), ("d", 2)]


@pytest.mark.parametrize("changes", [1, CHANGES_MIN])
def test_in_a_stream_it_naps_between_looks(
    db: Database, run: RunId, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    naps = []

    def nap(pace: Pace, longest: float) -> None:
        naps.append(longest)
        for number in range(changes):
            db.put(run, "k", number)

    monkeypatch.setattr(Pace, "nap", nap)
    with db.watch(run, timeout=DEADLINE_S) as watch:
        pace = watch._reader._pace
        pace.streaming = True
        assert [change.value for _, change in zip(range(changes), watch)] == list(range(changes))  # noqa: B905
        assert len(naps) == 1
        assert pace.streaming == (changes >= CHANGES_MIN)


def test_a_nap_ends_with_the_timeout(db: Database, run: RunId, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(Pace, "nap", lambda pace, longest: naps.append(longest))
    with db.watch(run, timeout=0) as watch:
        watch._reader._pace.streaming = True
        assert list(watch) == []
    assert naps == [0.0]


def test_a_follower_that_is_late_does_not_nap(
    db: Database, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_MANY", 3)
    monkeypatch.setattr(Pace, "nap", lambda pace, longest: pytest.fail("it is late, and naps"))
    with db.watch(run, timeout=DEADLINE_S) as watch:
        commits = watch.commits()
        for round_ in range(3):
            watch._reader._pace.streaming = round_ > 0
            for number in range(3):
                db.put(run, "k", number)
            assert [next(commits)[0].value for _ in range(3)] == [0, 1, 2]
