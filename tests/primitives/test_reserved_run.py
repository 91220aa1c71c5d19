"""A namespace's index of runs lives under the all-zero run id: only the index reads or writes there."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

import occamdb
from occamdb.engine.model.errors import InvalidArgumentError
from occamdb.engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from occamdb.primitives import Thought
from tests.support.audit import audit

ZERO = [uuid.UUID(int=0), RunId(int=0), "0" * 32, str(uuid.UUID(int=0))]

# Everything of a database that takes a run, and each primitive's way in.
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "begin": lambda db, zero: db.begin(zero),
    "begin read-only": lambda db, zero: db.begin(zero, read_only=True),
    "transaction": lambda db, zero: db.transaction(zero, lambda txn: None),
    "attempts": lambda db, zero: next(iter(db.attempts(zero))).__enter__(),
    "transactional": lambda db, zero: db.transactional(lambda txn: None)(zero),
    "snapshot": lambda db, zero: db.snapshot(zero),
    "space": lambda db, zero: db.space(zero, TypeTag.RUN, raw=True).delete_range(),
    "prefix_of": lambda db, zero: db.prefix_of(zero),
    "put": lambda db, zero: db.put(zero, "k", 1),
    "get": lambda db, zero: db.get(zero, "k"),
    "get_versioned": lambda db, zero: db.get_versioned(zero, "k"),
    "delete": lambda db, zero: db.delete(zero, "k"),
    "cas": lambda db, zero: db.cas(zero, "k", 0, 1),
    "list": lambda db, zero: db.list(zero),
    "kv.put": lambda db, zero: db.kv.put(zero, "k", 1),
    "kv.put_many": lambda db, zero: db.kv.put_many(zero, {"k": 1}),
    "kv.increment": lambda db, zero: db.kv.increment(zero, "k"),
    "kv.mapping": lambda db, zero: db.kv.mapping(zero).update(k=1),
    "kv.transaction": lambda db, zero: db.kv.transaction(zero, lambda kv: kv.put("k", 1)),
    "kv.scan": lambda db, zero: list(db.kv.scan(zero)),
    "events.append": lambda db, zero: db.events.append(zero, "t", {}),
    "events.iterate": lambda db, zero: list(db.events.iterate(zero)),
    "cells.init": lambda db, zero: db.cells.init(zero, "c", 1),
    "cells.transition": lambda db, zero: db.cells.transition(zero, "c", lambda state: (1, 1)),
    "traces.record": lambda db, zero: db.traces.record(zero, Thought("x")),
    "runs.delete_run": lambda db, zero: db.runs.delete_run(zero),
    "runs.create_run": lambda db, zero: db.runs.create_run_with_options(run_id=zero),
}
IN_TRANSACTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "for_run": lambda txn, zero: txn.for_run(zero),
    "delete_run_range": lambda txn, zero: txn.delete_run_range(zero),
    "delete_run": lambda txn, zero: txn.runs.delete_run(zero),
}


@pytest.mark.parametrize("zero", ZERO, ids=["uuid", "run id", "32 digits", "text"])
@pytest.mark.parametrize("name", CALLS)
def test_no_call_of_a_database_takes_it(db: Any, name: str, zero: Any) -> None:
    db.runs.create_run("a")
    with pytest.raises(InvalidArgumentError, match="reserved") as caught:
        CALLS[name](db, zero)
    assert "RunId.new()" in caught.value.hint
    assert db.runs.count() == 1
    audit(db)


@pytest.mark.parametrize("zero", ZERO, ids=["uuid", "run id", "32 digits", "text"])
@pytest.mark.parametrize("name", IN_TRANSACTIONS)
def test_no_call_of_a_transaction_takes_it(db: Any, run: RunId, name: str, zero: Any) -> None:
    db.runs.create_run("a")
    with db.begin(run) as txn:
        with pytest.raises(InvalidArgumentError, match="reserved"):
            IN_TRANSACTIONS[name](txn, zero)
        txn.kv.put("k", 1)
    assert db.kv.get(run, "k") == 1
    assert db.runs.count() == 1


def test_the_index_itself_cannot_be_erased_by_its_own_transaction(db: Any) -> None:
    db.runs.create_run("a")
    with db.begin(RESERVED_RUN) as txn, pytest.raises(InvalidArgumentError, match="reserved"):
        txn.delete_run_range()
    assert db.runs.count() == 1


def test_a_pickled_or_rebuilt_id_is_no_way_in(db: Any) -> None:
    with db.begin(RESERVED_RUN, read_only=True) as txn, pytest.raises(InvalidArgumentError):
        txn.for_run(txn.run_id)


def test_its_neighbours_are_ordinary_runs(db: Any) -> None:
    db.runs.create_run("a")
    for number in (1, (1 << 128) - 1):
        db.kv.put(RunId(int=number), b"\xff", 1)
        db.space(RunId(int=number), TypeTag.KV).delete_range()
        with db.begin(RunId(int=number)) as txn:
            txn.kv.put("k", 1)
            txn.delete_run_range()
        assert db.kv.count(RunId(int=number)) == 0
    assert db.runs.count() == 1


def test_every_namespace_reserves_its_own() -> None:
    with occamdb.open_in_memory() as db:
        other = db.namespace("someone")
        with pytest.raises(InvalidArgumentError, match="reserved"):
            other.kv.put(uuid.UUID(int=0), "k", 1)
