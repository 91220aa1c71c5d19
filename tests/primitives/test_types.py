"""What users' type checkers see: mypy runs over this file with the rest of the tests."""

from collections.abc import Iterator
from typing import Any, assert_type

from occamdb.aio import AsyncDatabase
from occamdb.engine.model.public_types import RunId, VersionedValue
from occamdb.engine.model.settings import setting_names
from occamdb.primitives import (
    Database,
    Event,
    EventLog,
    KVStore,
    Lease,
    LeaseHolder,
    QueueStats,
    RunMetadata,
    State,
    Step,
    Task,
    TaskState,
    TraceTree,
    Transaction,
    Worker,
)
from occamdb.primitives.handles import SettingsKeywords
from occamdb.primitives.kv_mapping import KVMapping


def database_forms(db: Database, run: RunId) -> None:
    """Never called."""
    assert_type(db.kv.put(run, "k", 1), int)
    assert_type(db.kv.get(run, "k"), Any)
    assert_type(db.kv.get_versioned(run, "k"), VersionedValue | None)
    assert_type(db.kv.increment(run, "k", by=2), int)
    assert_type(db.kv.delete(run, "k"), bool)
    assert_type(db.kv.list(run, "k", limit=3), list[str])
    assert_type(db.kv.list(run, "k", raw=True), list[bytes])
    assert_type(db.kv.keys(run), Iterator[str])
    assert_type(db.kv.keys(run, raw=True), Iterator[bytes])
    assert_type(db.kv.scan(run), Iterator[tuple[str, VersionedValue]])
    assert_type(db.kv.list_with_values(run), list[tuple[str, Any]])
    assert_type(db.kv.get_many(run, ["k", b"k"]), dict[str, Any])
    assert_type(db.list(run), list[str])
    assert_type(db.list(run, raw=True), list[bytes])
    assert_type(iter(db.kv.mapping(run)), Iterator[str])
    assert_type(db.kv.mapping(run), KVMapping)
    assert_type(db.kv.transaction(run, lambda kv: str(kv.get("k"))), str)
    assert_type(db.events.append(run, "t", {"a": 1}), Event)
    assert_type(db.events.iterate(run), Iterator[Event])
    assert_type(db.cells.read(run, "c"), State | None)
    assert_type(db.cells.cas(run, "c", 0, 1), int)
    assert_type(db.cells.transition(run, "c", lambda state: (state.value, 1.5)), float)
    assert_type(db.traces.get_tree(run, "id"), TraceTree)
    assert_type(db.runs.create_run("name"), RunMetadata)
    assert_type(db.runs.delete_run(run, cascade=True), int)
    with db.runs.start("name") as started:
        assert_type(started, RunMetadata)
    assert_type(db.transaction(run, lambda txn: txn.events.append("t", {})), Event)
    assert_type(db.tasks.put(run, "q", 1), Task)
    assert_type(db.tasks.claim(run, "q", timeout=1), Task | None)
    assert_type(db.tasks.stats(run, "q"), QueueStats)
    assert_type(db.tasks.worker(run, "q"), Worker)
    for task in db.tasks.worker(run, "q"):
        assert_type(db.tasks.fail(run, task, "error"), TaskState)
    assert_type(KVStore(db), KVStore[Database])
    for attempt in db.attempts(run):
        with attempt as txn:
            assert_type(txn, Transaction)


def page(url: str) -> str:
    return url


async def awaited_page(url: str) -> str:
    return url


def leases_and_steps(db: Database, txn: Transaction, run: RunId) -> None:
    """Never called."""
    assert_type(db.kv.increment(run, "k", 1, at_most=5, at_least=0), int)
    with db.leases.hold(run, "leader", timeout=1, slots=2, lease=5.0) as lease:
        assert_type(lease, Lease)
        txn.leases.require(lease)
        txn.leases.release(lease)
    assert_type(db.leases.acquire(run, "leader"), Lease)
    assert_type(db.leases.holders(run, "leader"), list[LeaseHolder])
    assert_type(db.leases.is_held(run, lease), bool)
    assert_type(db.steps.run(run, "fetch", page, "url"), str)
    assert_type(txn.steps.run("fetch", page, "url"), str)
    assert_type(db.steps.get(run, "fetch"), Step | None)
    assert_type(db.steps.list(run), list[Step])


async def awaited_leases_and_steps(db: AsyncDatabase, run: RunId) -> None:
    """Never called."""
    async with db.leases.hold(run, "leader") as lease:
        assert_type(lease, Lease)
    assert_type(await db.leases.acquire(run, "leader"), Lease)
    assert_type(await db.leases.release(run, lease), None)
    assert_type(db.leases.is_held(run, lease), bool)
    assert_type(await db.steps.run(run, "fetch", page, "url"), str)
    assert_type(await db.steps.run(run, "fetch", awaited_page, "url"), str)


def transaction_forms(txn: Transaction) -> None:
    """Never called."""
    txn.kv.put("k", 1)
    assert_type(txn.kv.delete("k"), bool)
    assert_type(txn.kv.mapping(), KVMapping)
    assert_type(txn.kv.list(), list[str])
    assert_type(txn.kv.list_with_values(raw=True), list[tuple[bytes, Any]])
    assert_type(next(txn.keys()), str)
    assert_type(next(txn.keys(raw=True)), bytes)
    assert_type([key for key, _ in txn.scan()], list[str])
    assert_type(txn.events.append("t", {"a": 1}), Event)
    assert_type(len(txn.events), int)
    assert_type([event.hash for event in txn.events], list[bytes])
    assert_type(txn.cells.read("c"), State | None)
    assert_type(txn.cells.transition("c", lambda state: (state.value, "x")), str)
    assert_type(txn.runs.create_run("name"), RunMetadata)
    assert_type(txn.tasks.claim("q"), Task | None)
    assert_type(txn.tasks.list("q", state="ready"), list[Task])
    assert_type(txn.for_run(RunId.new()).kv, KVStore[Transaction])
    assert_type(EventLog(txn), EventLog[Transaction])


def wrong_calls(db: Database, txn: Transaction, run: RunId) -> None:
    """Never called: each line must be an error, else the ignore is unused, which is one."""
    db.kv.put("k", 1)  # type: ignore[call-arg, arg-type]
    txn.kv.put(run, "k", 1)  # type: ignore[call-arg, arg-type]
    db.events.append(run, "t", [1])  # type: ignore[arg-type]
    txn.cells.cas("c", "0", 1)  # type: ignore[arg-type]
    db.traces.record(run, "thought")  # type: ignore[arg-type]
    txn.runs.start("x")  # type: ignore[misc]
    txn.tasks.worker(run, "q")  # type: ignore[misc]


def test_the_classes_are_what_type_checkers_see(db: Database, run: RunId) -> None:
    assert type(db) is Database
    with db.begin(run) as txn:
        assert type(txn) is type(txn.for_run(RunId.new())) is Transaction
    with db.begin(run, read_only=True) as txn:
        assert type(txn) is Transaction
    for attempt in db.attempts(run):
        with attempt as txn:
            assert type(txn) is Transaction
    assert db.transaction(run, type) is Transaction
    assert type(db.namespace(app="other")) is Database


def test_settings_have_keywords_of_their_own() -> None:
    assert {*setting_names(), "limits"} == set(SettingsKeywords.__annotations__)
