"""Parts of what a primitive holds: newest first, from a key on, within times, several at once, with a time to live."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from occamdb.engine.model.errors import InvalidArgumentError
from occamdb.engine.model.public_types import RunId


def test_delete_many_says_how_many_were_there(do: Any) -> None:
    do.kv.put_many(dict.fromkeys("abcd", 1))
    assert do.kv.delete_many(key for key in ("a", "c", "x", "a")) == 2
    assert do.kv.list() == ["b", "d"]
    with pytest.raises(InvalidArgumentError, match="several keys"):
        do.kv.delete_many("bd")
    assert do.kv.delete_many([]) == 0 and do.kv.count() == 2


def test_count_of_a_range(do: Any) -> None:
    do.kv.put_many(dict.fromkeys(("a1", "a2", "a3", "b1"), 1))
    assert do.kv.count() == 4 and do.kv.count("a") == 3
    assert do.kv.count(start="a2") == 3 and do.kv.count("a", start="a2") == 2
    assert do.kv.count(start="a2", end="b1") == 2 and do.kv.count("a", end="a1") == 0


def test_cells_from_a_name_on_and_with_their_states(do: Any) -> None:
    for name in ("a", "b1", "b2", "c"):
        do.cells.set(name, name.upper())
    assert do.cells.list(start="b2") == ["b2", "c"]
    assert do.cells.list("b", start="b2") == ["b2"] and do.cells.list(start="b", limit=1) == ["b1"]
    rows = do.cells.list_with_values("b")
    assert [(name, state.value) for name, state in rows] == [("b1", "B1"), ("b2", "B2")]
    assert [state for _, state in rows] == [do.cells.read("b1"), do.cells.read("b2")]
    assert [name for name, _ in do.cells.list_with_values(start="b2", limit=1)] == ["b2"]


def test_a_cell_with_a_time_to_live_expires(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.cells.init("init", 1, ttl=3600)
        txn.cells.set("set", 1, ttl=timedelta(hours=1))
        txn.cells.set("kept", 1)
        assert txn.cells.exists("init") and txn.cells.exists("set")
    space = db.space(run, db.cells.tag)
    expiry = {name: space.get_versioned(name).expires_at_ns for name in ("init", "set", "kept")}
    now = datetime.now(UTC).timestamp() * 1e9
    assert expiry["kept"] == 0
    assert all(0 < expiry[name] - now <= 3600e9 for name in ("init", "set"))
    db.cells.init(run, "gone", 1, ttl=1e-6)
    assert db.cells.init(run, "gone", 2) > 0, "an expired cell is absent, so it can be created again"
    assert db.cells.read(run, "gone").value == 2


def test_the_newest_events(do: Any) -> None:
    events = do.events.append_many([("t", {"n": n}) for n in range(10)])
    assert do.events.read_range(reverse=True) == events[::-1]
    assert do.events.read_range(limit=3) == events[:3]
    assert do.events.read_range(2, 8, limit=2, reverse=True) == [events[7], events[6]]
    assert do.events.last(3) == events[7:] and do.events.last() == events[-1:]
    assert do.events.last(100) == events and do.events.last(0) == []


def test_events_of_a_type_up_to_a_sequence_and_backwards(do: Any) -> None:
    events = do.events.append_many([("even" if n % 2 == 0 else "odd", {}) for n in range(10)])
    assert do.events.read_by_type("even", end=4) == [events[0], events[2]]
    assert do.events.read_by_type("even", reverse=True, limit=2) == [events[8], events[6]]
    assert do.events.read_by_type("odd", start=2, end=8, reverse=True) == [events[7], events[5], events[3]]
    assert do.events.read_by_type("none", reverse=True) == []


def test_a_payload_may_be_left_out(do: Any) -> None:
    event = do.events.append("started")
    assert event.payload == {} and do.events.head() == event


def test_events_by_time(db: Any, run: RunId) -> None:
    events = [db.events.append(run, "t", {"n": n}) for n in range(6)]
    first, last = events[0].timestamp, events[-1].timestamp
    tick = timedelta(microseconds=1)
    assert db.events.read_between(run, first, last + tick) == events
    assert db.events.read_between(run, first, last + tick, limit=2) == events[:2]
    middle = events[3].timestamp
    assert db.events.read_between(run, first, middle) == [e for e in events if e.timestamp < middle]
    assert db.events.read_between(run, middle, middle) == []
    assert db.events.read_between(run, end=middle) == [e for e in events if e.timestamp < middle]
    assert db.events.read_between(run, middle) == [e for e in events if e.timestamp >= middle]
    assert db.events.read_between(run) == events
    with pytest.raises(InvalidArgumentError, match="time zone"):
        db.events.read_between(run, datetime(2020, 1, 1), last)


def test_events_by_time_when_the_clock_was_set_back(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    from occamdb.primitives.event_log import EventLog

    times = [1_000_000, 9_000_000, 2_000_000, 3_000_000]
    for time_us in times:
        monkeypatch.setattr(EventLog, "now_us", time_us)
        db.events.append(run, "t")
    monkeypatch.undo()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    found = db.events.read_between(run, epoch + timedelta(seconds=2), epoch + timedelta(seconds=4))
    assert [event.sequence for event in found] == [2, 3]
