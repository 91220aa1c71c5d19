"""Bounds of increments: decided in the order of commits, refused as a whole, never overspent."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import occamdb
from occamdb import BoundReached, Database, RunId, TransactionStatus
from occamdb.engine.commit import messages
from occamdb.engine.model.bounds import decode_bounds, encode_bounds, join_bounds
from occamdb.engine.model.errors import IntegerOverflowError, InvalidArgumentError, ProtocolError
from tests.support.engines import Engine, Place
from tests.support.processes import Peer, workers

MIN, MAX = -(2**63), 2**64 - 1


def test_a_sum_on_the_bound_is_let_through_and_one_beyond_it_is_refused(db: Any, run: RunId) -> None:
    assert db.kv.increment(run, "spent", 60, at_most=100) == 60
    assert db.kv.increment(run, "spent", 40, at_most=100) == 100
    with pytest.raises(BoundReached) as caught:
        db.kv.increment(run, "spent", 1, at_most=100)
    error = caught.value
    assert (error.key, error.value, error.by, error.at_most, error.at_least) == ("spent", 100, 1, 100, None)
    assert "100" in error.message and error.hint and error.details["value"] == 100
    assert db.kv.get(run, "spent") == 100
    assert db.kv.increment(run, "spent", -100, at_least=0) == 0
    with pytest.raises(BoundReached, match="at_least=0"):
        db.increment(run, "spent", -1, at_least=0)
    assert db.kv.get(run, "spent") == 0


def test_an_absent_key_counts_as_zero(db: Any, run: RunId) -> None:
    with pytest.raises(BoundReached) as caught:
        db.kv.increment(run, "new", 5, at_most=4)
    assert caught.value.value == 0
    assert not db.kv.exists(run, "new")
    with pytest.raises(BoundReached):
        db.kv.increment(run, "new", 5, at_least=6)
    assert not db.kv.exists(run, "new")


def test_the_whole_commit_is_refused(db: Any, run: RunId) -> None:
    db.kv.put(run, "spent", 95)
    txn = db.begin(run)
    txn.kv.put("before", 1)
    txn.kv.increment("other", 3)
    txn.kv.increment("spent", 10, at_most=100)
    txn.kv.put("zz", 1)
    with pytest.raises(BoundReached) as caught:
        txn.commit()
    assert (caught.value.value, caught.value.by) == (95, 10)
    assert txn.status is TransactionStatus.ABORTED
    assert db.kv.list(run) == ["spent"] and db.kv.get(run, "spent") == 95


def test_it_is_not_tried_again_by_a_transaction(db: Any, run: RunId) -> None:
    calls = []

    def spend(txn: Any) -> None:
        calls.append(1)
        txn.kv.increment("spent", 10, at_most=5)

    with pytest.raises(BoundReached):
        db.transaction(run, spend)
    assert calls == [1]


def test_bounded_increments_do_not_conflict(db: Any, run: RunId) -> None:
    one, two = db.begin(run), db.begin(run)
    one.kv.increment("spent", 5, at_most=10)
    two.kv.increment("spent", 5, at_most=10)
    three = db.begin(run)
    three.kv.increment("spent", 1, at_most=10)
    one.commit()
    two.commit()
    with pytest.raises(BoundReached) as caught:
        three.commit()
    assert caught.value.value == 10
    assert db.kv.get(run, "spent") == 10


def test_own_writes_are_judged_at_once(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.kv.put("n", 8)
        with pytest.raises(BoundReached) as caught:
            txn.kv.increment("n", 3, at_most=10)
        assert caught.value.value == 8
        txn.kv.increment("n", 2, at_most=10)
        txn.kv.delete("n")
        with pytest.raises(BoundReached):
            txn.kv.increment("n", -1, at_least=0)
        txn.kv.increment("n", 4, at_least=0, at_most=4)
    assert db.kv.get(run, "n") == 4


@pytest.mark.parametrize(
    "bounds",
    [{"at_most": "x"}, {"at_most": 1.5}, {"at_least": True}, {"at_most": 2**64}, {"at_least": -(2**63) - 1}],
)
def test_bounds_that_are_no_integers(db: Any, run: RunId, bounds: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(bounds))) as caught:
        db.kv.increment(run, "n", 1, **bounds)
    assert caught.value.hint


def test_bounds_with_nothing_between_them(db: Any, run: RunId) -> None:
    with pytest.raises(InvalidArgumentError, match="no number"):
        db.kv.increment(run, "n", 1, at_least=2, at_most=1)


bound = st.none() | st.integers(-20, 20) | st.sampled_from([MIN, -1, 0, 2**63 - 1, 2**63, MAX])
steps = st.lists(st.tuples(st.integers(-12, 12), bound, bound), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.none() | st.integers(-20, 20) | st.sampled_from([MIN, MIN + 3, MAX, MAX - 3, 2**63 - 1]), steps)
def test_any_increments_of_one_transaction_keep_every_bound(start: int | None, steps: Any) -> None:
    """The model: each increment is judged on the sum so far, in the order in which they were made."""
    steps = [(by, most, least) for by, most, least in steps if None in (most, least) or least <= most]
    total, kept, stored = start or 0, True, True
    for by, most, least in steps:
        total += by
        stored = stored and MIN <= total <= MAX
        kept = kept and (most is None or total <= most) and (least is None or total >= least)
    with occamdb.open_in_memory() as db:
        run = RunId.new()
        if start is not None:
            db.kv.put(run, "n", start)
        txn = db.begin(run)
        for by, most, least in steps:
            txn.kv.increment("n", by, at_most=most, at_least=least)
        if kept and MIN <= total <= MAX:
            txn.commit()
            assert db.kv.get(run, "n", 0) == total
            return
        # The sum may leave the range of integers on its way out of bounds, and then either is the reason.
        with pytest.raises(BoundReached if stored else (BoundReached, IntegerOverflowError)):
            txn.commit()
        assert db.kv.get(run, "n") == start


@given(st.integers(MIN, MAX) | st.none(), st.integers(MIN, MAX) | st.none())
def test_bounds_travel_unchanged(at_most: int | None, at_least: int | None) -> None:
    if at_most is not None and at_least is not None and at_least > at_most:
        at_most, at_least = at_least, at_most
    encoded = encode_bounds(at_most, at_least)
    if encoded is None:
        assert at_most is None and at_least is None
        return
    assert decode_bounds(encoded) == (at_most, at_least)
    assert join_bounds(encoded, None, 0) == encoded


@pytest.mark.parametrize(
    "damage", [b"", b"\x00" * 24, b"\x10" + bytes(23), b"\x01" + b"\x01" * 23, b"\x01" * 23]
)
def test_damaged_bounds_in_a_request_are_refused(damage: bytes) -> None:
    op = messages.Op(messages.OpCode.ADD, b"key", damage, 1)
    request = messages.encode_request(messages.Request(1, ops=(op,)))
    if damage:
        with pytest.raises(ProtocolError, match="bounds"):
            messages.decode_request(request)
    else:
        assert messages.decode_request(request).ops == (op,)


# ---- processes ---------------------------------------------------------------------------------------------


def spend(peer: Peer, place: Place, run: RunId, budget: int) -> int:
    with place.open() as db:
        peer.say("ready")
        peer.hear()
        spent = 0
        while True:
            try:
                db.kv.increment(run, "spent", 3, at_most=budget)
            except BoundReached as error:
                assert error.value is not None and error.value + 3 > budget
                return spent
            spent += 3


@pytest.mark.by_default("shared")
def test_sixteen_processes_never_overspend(engine: Engine, place: Place, placed: Database) -> None:
    db = placed
    run, budget = RunId.new(), engine.examples(4_000)
    with workers() as start:
        spenders = [start(spend, place, run, budget) for _ in range(16)]
        for worker in spenders:
            worker.hear()
        for worker in spenders:
            worker.say("go")
        spent = [worker.result() for worker in spenders]
    assert sum(spent) == db.kv.get(run, "spent") == budget - budget % 3
    assert db.kv.get(run, "spent") <= budget
