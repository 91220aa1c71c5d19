"""Calls in the wrong form: the error says which form was meant and what it takes."""

import traceback
from typing import Any

import pytest

from occamdb.engine.model.errors import InvalidArgumentError, InvalidKeyError
from occamdb.engine.model.public_types import RunId


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.kv.put("k", 1),
        lambda db: db.kv.get("k"),
        lambda db: db.kv.put_many({"k": 1}),
        lambda db: db.events.append("started", {"a": 1}),
        lambda db: db.events.iterate(),
        lambda db: db.cells.init("c", 1),
        lambda db: db.cells.transition("c", lambda state: (1, 2)),
        lambda db: db.traces.get("some-id"),
    ],
)
def test_outside_the_run_comes_first(db: Any, call: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="outside a transaction the run comes first") as caught:
        call(db)
    assert "run_id" in caught.value.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda txn, run: txn.kv.put(run, "k", 1),
        lambda txn, run: txn.events.append(run, "started", {"a": 1}),
        lambda txn, run: txn.cells.cas(run, "c", 0, 1),
        lambda txn, run: txn.cells.transition(run, "c", lambda state: (1, 2)),
    ],
)
def test_inside_the_run_is_given_already(db: Any, run: RunId, call: Any) -> None:
    with db.begin(run) as txn:
        with pytest.raises(InvalidArgumentError, match="inside a transaction the run is given already"):
            call(txn, run)


def test_a_run_in_place_of_a_key(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        for get in (txn.get, txn.kv.get):
            with pytest.raises(InvalidKeyError, match="key") as caught:
                get(run, "k")
            assert "the run is given already" in caught.value.hint


@pytest.mark.parametrize("inside", [True, False])
def test_an_unknown_keyword_gets_the_known_ones(db: Any, run: RunId, inside: bool) -> None:
    with db.begin(run) as txn:
        with pytest.raises(TypeError, match="unexpected keyword argument 'tll'") as caught:
            if inside:
                txn.kv.put("k", 1, tll=5)
            else:
                db.kv.put(run, "k", 1, tll=5)
    error = caught.value
    assert isinstance(error, InvalidArgumentError) and "ttl=None" in error.hint
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "primitives/_calls" in frame.filename
    ]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "tests/" not in frame.filename]
    assert len(frames) == len(own) == 1
    assert error.__cause__ is None and error.__context__ is None


def test_a_transaction_of_keys_names_what_it_takes(db: Any, run: RunId) -> None:
    with pytest.raises(InvalidArgumentError, match="unexpected keyword argument 'retries'") as caught:
        db.kv.transaction(run, lambda kv: kv.put("k", 1), retries=3)
    assert "retry=None" in caught.value.hint and "timeout=None" in caught.value.hint
    with pytest.raises(InvalidArgumentError, match="missing a required argument: 'fn'"):
        db.kv.transaction(lambda kv: kv.put("k", 1))

    def broken(kv: Any) -> None:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        db.kv.transaction(run, broken)
    assert db.kv.transaction(run_id=run, fn=lambda kv: kv.get("k"), timeout=5) is None


def test_a_mapping_takes_a_run_outside_and_none_inside(db: Any, run: RunId) -> None:
    with pytest.raises(InvalidArgumentError, match=r"db\.kv\.mapping\(run_id\)"):
        db.kv.mapping()
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError, match=r"txn\.kv\.mapping\(\)"):
        txn.kv.mapping(run)


def test_the_metadata_of_a_run_in_place_of_a_key(db: Any) -> None:
    meta = db.runs.create_run("r")
    with db.begin(meta) as txn, pytest.raises(InvalidKeyError, match="the run is given already"):
        txn.get(meta, "k")


def test_a_type_error_of_the_caller_stays_as_it_is(db: Any, run: RunId) -> None:
    def broken(state: Any) -> Any:
        raise TypeError("mine")

    db.cells.init(run, "c", 1)
    with pytest.raises(TypeError, match=r"^mine$"):
        db.cells.transition(run, "c", broken)

    class Items:
        def __iter__(self) -> Any:
            raise TypeError("mine too")

    with pytest.raises(TypeError, match=r"^mine too$"):
        db.kv.get_many(run, Items())


def test_iterate_checks_its_arguments_at_the_call(db: Any, run: RunId) -> None:
    with pytest.raises(InvalidArgumentError, match="start must be an int"):
        db.events.iterate(run, -1)
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError, match="end must be an int"):
        txn.events.iterate(0, "x")


def test_an_iterator_that_was_never_used_gives_its_snapshot_back(db: Any, run: RunId) -> None:
    db.events.append(run, "t", {})
    for _ in range(5000):
        db.events.iterate(run)
    assert [event.sequence for event in db.events.iterate(run)] == [0]
