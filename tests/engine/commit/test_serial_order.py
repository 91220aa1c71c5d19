"""Small concurrent histories of transactions and clock steps, explained by one serial order or not.

The check knows no validation rule. A transaction is what it did and what it was told; a step of the clock is an
event after which keys are gone. Every order that agrees with real time is tried: in one of them each transaction,
run alone at its place, must be told the same.

A `create` is a CAS that expects absence. The commit itself tells it of success: at the place of its transaction the
key must be absent. A `clear` deletes the range of all keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from occamdb import Database, RunId, Transaction
from occamdb.engine.model.errors import ConflictError
from tests.support import clocks
from tests.support.broken_engines import SkipsReadValidation, broken_database
from tests.support.databases import memory_database

STEP_S = 1000
KEYS = ("a", "b", "c")


@dataclass
class Event:
    """A transaction, or a step of the clock, with its place in real time."""

    began: int
    ended: int = 0
    step: int = 0
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    began_step: int = 0


State = dict[str, tuple[int, int]]  # key -> (value, the step at which it expires; 0 never)


def call_engine(txn: Transaction, name: str, key: str, number: int, step: int) -> Any:
    if name == "get":
        return txn.get(key)
    if name == "exists":
        return txn.exists(key)
    if name == "scan":
        return [(found, row.value) for found, row in txn.scan()]
    if name == "count":
        return txn.count()
    if name == "delete":
        return txn.delete(key)
    if name == "add":
        txn.add(key, number)
    elif name == "create":
        txn.cas(key, 0, number)
        return True
    elif name == "clear":
        txn.delete_range()
    else:
        txn.put(key, number, ttl=STEP_S - 0.5 if name == "lease" else None)
    return None


def call_model(before: State, state: State, name: str, key: str, number: int, expires: int) -> Any:
    """What a call is told in `state`, which it changes. `before` is the state that its transaction met."""
    if name == "get":
        return state[key][0] if key in state else None
    if name == "exists":
        return key in state
    if name == "scan":
        return [(found, state[found][0]) for found in sorted(state)]
    if name == "count":
        return len(state)
    if name == "delete":
        return state.pop(key, None) is not None
    if name == "add":
        value, kept = state.get(key, (0, 0))
        state[key] = (value + number, kept)
    elif name == "create":
        if key in before and key in state:  # a key that the transaction itself deleted is absent for it
            return False
        state[key] = (number, 0)
        return True
    elif name == "clear":
        state.clear()
    else:
        state[key] = (number, expires if name == "lease" else 0)
    return None


def alive(state: State, step: int) -> State:
    return {key: entry for key, entry in state.items() if not 0 < entry[1] <= step}


def run_alone(event: Event, state: State, step: int) -> State | None:
    """The state after it, at a time after `step`; None when it would have been told something else."""
    if event.step:
        return alive(state, event.step)
    after = dict(state)
    for (name, key, number), told in zip(event.calls, event.told, strict=True):
        # A lease ends with the first step after the transaction read its clock, which is when it began.
        if call_model(state, after, name, key, number, event.began_step + 1) != told:
            return None
    return alive(after, step)  # a lease from an older snapshot may have ended before the commit


def explain(events: list[Event], state: State, step: int = 0) -> bool:
    """Whether some order of the events, in agreement with real time, tells each of them the same."""
    if not events:
        return True
    first_end = min(event.ended for event in events)
    for event in events:
        if event.began > first_end:
            continue
        after = run_alone(event, state, step)
        rest = [other for other in events if other is not event]
        if after is not None and explain(rest, after, event.step or step):
            return True
    return False


calls = st.tuples(
    st.sampled_from(
        ["get", "exists", "scan", "count", "delete", "add", "put", "lease", "lease", "create", "clear"]
    ),
    st.sampled_from(KEYS),
    st.integers(1, 9),
)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.just(0), st.none()),
        st.tuples(st.just("begin"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("call"), st.integers(0, 2), calls),
        st.tuples(st.just("call"), st.integers(0, 2), calls),
        st.tuples(st.just("commit"), st.integers(0, 2), st.none()),
    ),
    max_size=24,
)

READS = ("get", "exists", "scan", "count")


def play(db: Database, drawn: list[tuple[str, int, Any]]) -> list[Event]:
    """Make the moves; returns what committed, and the steps."""
    run = RunId.new()
    clock, step = 0, 0
    open_ones: dict[int, tuple[Transaction, Event, bool]] = {}
    done: list[Event] = []

    def finish(slot: int) -> None:
        txn, event, _ = open_ones.pop(slot)
        try:
            txn.commit()
        except ConflictError:
            return
        event.ended = clock
        done.append(event)

    for move, slot, argument in drawn:
        clock += 1
        if move == "step":
            step += 1
            clocks.step(db, STEP_S * 1_000_000_000)
            done.append(Event(clock, clock, step=step))
        elif move == "begin" and slot not in open_ones:
            txn = db.begin(run, read_only=argument)
            assert txn.read_time  # what a ttl counts from
            open_ones[slot] = (txn, Event(clock, began_step=step), argument)
        elif move == "call" and slot in open_ones:
            txn, event, read_only = open_ones[slot]
            name, key, number = argument
            if read_only and name not in READS:
                continue
            event.calls.append(argument)
            event.told.append(call_engine(txn, name, key, number, step))
        elif move == "commit" and slot in open_ones:
            finish(slot)
    for slot in list(open_ones):
        clock += 1
        finish(slot)
    return done


@settings(max_examples=300)
@given(moves)
def test_every_history_has_a_serial_order(drawn: list[tuple[str, int, Any]]) -> None:
    db = memory_database(max_store_size="4MiB")
    try:
        events = play(db, drawn)
        assert explain(events, {}), events
    finally:
        db.close()


# T sees the lease alive; it expires; U sees it gone, and the old b, and commits; T writes b.
CYCLE: list[tuple[str, int, Any]] = [
    ("begin", 0, False),
    ("call", 0, ("lease", "a", 1)),
    ("commit", 0, None),
    ("begin", 0, False),
    ("call", 0, ("scan", "a", 1)),
    ("step", 0, None),
    ("begin", 1, False),
    ("call", 1, ("scan", "a", 1)),
    ("call", 1, ("put", "c", 2)),
    ("commit", 1, None),
    ("call", 0, ("put", "b", 3)),
    ("commit", 0, None),
]


# T begins while the lease is alive; it ends; T creates the key anew. With "clear", U deletes the range in between.
LEASED: list[tuple[str, int, Any]] = [
    ("begin", 0, False),
    ("call", 0, ("lease", "a", 1)),
    ("commit", 0, None),
    ("begin", 0, False),
]
CLEARED: list[tuple[str, int, Any]] = [
    ("begin", 1, False),
    ("call", 1, ("clear", "a", 1)),
    ("commit", 1, None),
]
EXPIRED: list[tuple[str, int, Any]] = [("step", 0, None)]
CREATED: list[tuple[str, int, Any]] = [
    ("call", 0, ("create", "a", 2)),
    ("commit", 0, None),
    ("begin", 2, True),
    ("call", 2, ("get", "a", 1)),
    ("commit", 2, None),
]


def test_a_key_that_expired_since_the_snapshot_can_be_created() -> None:
    """The CAS compares with what is there at the commit, and reads nothing of its snapshot."""
    db = memory_database(max_store_size="4MiB")
    events = play(db, [*LEASED, *EXPIRED, *CREATED])
    assert len(events) == 4 and events[-1].told == [2]
    assert explain(events, {})
    db.close()


@pytest.mark.parametrize("between", [[*EXPIRED, *CLEARED], [*CLEARED, *EXPIRED]], ids=["before", "after"])
def test_nothing_is_created_in_a_range_that_was_deleted_since_the_snapshot(
    between: list[tuple[str, int, Any]],
) -> None:
    """Whether the key expired before the deletion or after it makes no difference: T can see neither.

    There is a serial order with T last, so this refusal is not for the sake of serializability. It keeps the promise
    that a deleted range stays empty of what comes from an older snapshot: the same `put` is refused.
    """
    db = memory_database(max_store_size="4MiB")
    events = play(db, [*LEASED, *between, *CREATED])
    assert [name for event in events for name, _, _ in event.calls] == ["lease", "clear", "get"]
    assert events[-1].told == [None] and explain(events, {})
    db.close()


def test_the_cycle_is_refused() -> None:
    db = memory_database(max_store_size="4MiB")
    events = play(db, CYCLE)
    assert len(events) == 3 and explain(events, {})
    db.close()


def test_the_search_finds_the_cycle_that_an_engine_without_read_validation_lets_pass() -> None:
    db = broken_database(SkipsReadValidation)
    events = play(db, CYCLE)
    assert len(events) == 4 and not explain(events, {})
    db.close()
