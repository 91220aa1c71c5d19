"""One-operation transactions, namespaces, extensions, closing, and several threads."""

import pickle
import threading
from typing import Any

import pytest

from occamdb import Database, Transaction
from occamdb.engine.model.errors import (
    AlreadyExistsError,
    CASConflict,
    ConflictError,
    DatabaseClosedError,
    IntegerOverflowError,
    InvalidArgumentError,
    NotAnIntegerError,
    TransactionStateError,
)
from occamdb.engine.model.keys import Namespace
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.transaction.engine_handle import EngineHandle
from occamdb.engine.transaction.extensions import extension_names, register_extension
from tests.support.databases import DatabaseFactory, memory_database


def test_handle_is_the_protocol(db: Database) -> None:
    assert isinstance(db.handle, EngineHandle)


# --- One operation each ------------------------------------------------------------------------------


def test_put_get_delete_list(db: Database, run: RunId) -> None:
    assert db.get(run, "k") is None and db.get(run, "k", 5) == 5
    version = db.put(run, "k", {"a": 1})
    assert db.get(run, "k") == {"a": 1}
    found = db.get_versioned(run, "k")
    assert found is not None and found.version == version
    db.put(run, "k2", 2)
    db.put(run, "j", 3)
    assert db.list(run) == ["j", "k", "k2"]
    assert db.list(run, "k") == ["k", "k2"]
    assert db.list(run, "k", limit=1) == ["k"]
    assert db.delete(run, "k") is True
    assert db.delete(run, "k") is False
    assert db.list(run) == ["j", "k2"]


def test_scan_exists_and_increment(db: Database, run: RunId) -> None:
    assert [db.increment(run, "n"), db.increment(run, "n", 10), db.increment(run, "n", by=-20)] == [1, 11, -9]
    assert db.exists(run, "n") and not db.exists(run, "m")
    for key in ("a1", "a2", "a3"):
        db.put(run, key, key.upper())
    assert [(key, row.value) for key, row in db.scan(run, "a")] == [("a1", "A1"), ("a2", "A2"), ("a3", "A3")]
    assert [key for key, _ in db.scan(run, start="a2", end="n", limit=1, reverse=True)] == ["a3"]
    with pytest.raises(NotAnIntegerError):
        db.increment(run, "a1")


def test_cas_returns_the_new_version_or_raises(db: Database, run: RunId) -> None:
    first = db.cas(run, "k", 0, 1)
    second = db.cas(run, "k", first, 2)
    assert second > first and db.get(run, "k") == 2
    with pytest.raises(CASConflict) as caught:
        db.cas(run, "k", first, 3)
    error = caught.value
    assert (error.key, error.expected_version, error.found_version) == ("k", first, second)
    assert error.conflicts == (error,)
    with pytest.raises(CASConflict):
        db.cas(run, "k", 0, 3)
    assert db.get(run, "k") == 2


def test_implicit_space_offers_the_same_on_every_tag(db: Database, run: RunId) -> None:
    space = db.space(run, 0x20)
    assert (space.run_id, space.tag) == (run, 0x20)
    assert db.space(run, TypeTag.STATE).tag is TypeTag.STATE
    for key in ("a", "b", "c"):
        space.put(key, key)
    assert space.exists("a") and not space.exists("x")
    assert space.count() == 3 and space.count(start="b") == 2
    assert [(key, row.value) for key, row in space.scan(reverse=True)] == [("c", "c"), ("b", "b"), ("a", "a")]
    version = space.delete_range(start="b")
    assert version > 0 and list(space.keys()) == ["a"]
    assert db.list(run) == []


def test_add_returns_the_new_value(db: Database, run: RunId) -> None:
    space = db.space(run, 1)
    assert [space.add("n"), space.add("n", 10), space.add("n", -20)] == [1, 11, -9]
    db.put(run, "n", 2**63)
    assert space.add("n") == 2**63 + 1
    db.put(run, "n", 2**64 - 1)
    with pytest.raises(IntegerOverflowError) as overflow:
        space.add("n")
    assert overflow.value.key == "n"
    db.put(run, "n", "text")
    with pytest.raises(NotAnIntegerError):
        space.add("n")
    assert db.get(run, "n") == "text"


def test_increments_from_several_threads_all_count(db: Database, run: RunId) -> None:
    space = db.space(run, 1)
    results: list[int] = []

    def work() -> None:
        for _ in range(200):
            results.append(space.add("n"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(1, 801))


def test_many_runs_and_run_objects(db: Database) -> None:
    """The cache of run prefixes is bounded and never mixes runs up."""
    runs = [RunId.new() for _ in range(30)]
    for number, run in enumerate(runs):
        db.put(run, "k", number)
    for number, run in enumerate(runs):
        assert db.get(str(run), "k") == db.get(RunId.of(str(run)), "k") == number
    for index in range(1, 5001):
        db.prefix_of(f"{index:032x}")
    assert [db.get(run, "k") for run in runs] == list(range(30))


# --- Namespaces -----------------------------------------------------------------------------------------


def test_namespaces_are_apart_and_share_the_engine(db: Database, run: RunId) -> None:
    here = db.current_namespace
    acme = db.namespace("acme", agent="planner")
    assert acme.current_namespace == Namespace("acme", "default", "planner")
    assert acme.namespace(app="chat").current_namespace == Namespace("acme", "chat", "planner")
    assert db.namespace().current_namespace == db.current_namespace == here
    acme.put(run, "k", "theirs")
    db.put(run, "k", "ours")
    assert (acme.get(run, "k"), db.get(run, "k")) == ("theirs", "ours")
    assert acme.session == db.session and acme.handle is db.handle.of(acme.current_namespace.base)
    with pytest.raises(InvalidArgumentError):
        db.namespace("")


# --- Extensions --------------------------------------------------------------------------------------------


class Notes:
    """A later primitive: holds its owner and nothing else."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def write(self, text: str) -> None:
        self.owner.space(0x30).put("note", text)


def test_extension_appears_on_transactions_and_databases(db: Any, run: RunId) -> None:
    register_extension("test_notes", Notes)
    register_extension("test_notes", Notes)  # the same again is harmless
    register_extension("test_notes_lazy", f"{__name__}:Notes")
    assert {"test_notes", "test_notes_lazy"} <= set(extension_names())
    with db.begin(run) as txn:
        assert isinstance(txn.test_notes, Notes) and txn.test_notes.owner is txn
        assert type(txn.test_notes_lazy).__name__ == "Notes"
        txn.test_notes.write("hello")
    assert db.space(run, 0x30).get("note") == "hello"
    assert db.test_notes.owner is db
    for owner in (txn, db):
        with pytest.raises(AttributeError):
            owner.test_notes = 1
        with pytest.raises(AttributeError):
            owner.no_such_extension  # noqa: B018


@pytest.mark.parametrize("name", ["", "1x", "a b", "_private", 7, None])
def test_bad_extension_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        register_extension(name, Notes)


def test_taken_extension_names_are_refused() -> None:
    register_extension("test_taken", Notes)
    for name in ("get", "begin", "commit", "test_taken"):
        with pytest.raises(AlreadyExistsError):
            register_extension(name, dict)
    for factory in (7, "no colon", None):
        with pytest.raises(InvalidArgumentError):
            register_extension("test_other", factory)  # type: ignore[arg-type]


# --- Closing -----------------------------------------------------------------------------------------------


def test_closed_database_refuses_and_closes_twice(run: RunId) -> None:
    with memory_database() as db:
        db.put(run, "k", 1)
        other = db.namespace("t")
        view, txn = db.snapshot(run), db.begin(run)
        txn.put("k", 2)
    db.close()
    for call in (
        lambda: db.begin(run),
        lambda: db.get(run, "k"),
        lambda: db.put(run, "k", 1),
        lambda: other.get(run, "k"),
        lambda: db.stats(),
        lambda: txn.commit(),
        lambda: view.get("k"),
        lambda: list(view.scan_prefix("")),
    ):
        with pytest.raises(DatabaseClosedError) as caught:
            call()
        assert caught.value.hint


def test_memory_database_does_not_pickle(run: RunId) -> None:
    with memory_database() as db, pytest.raises(TypeError):
        pickle.dumps(db)


def test_stats_come_from_the_engine(db: Database, run: RunId) -> None:
    before = db.stats()
    db.put(run, "k", 1)
    after = db.stats()
    assert isinstance(before, dict) and before != after


# --- Threads -----------------------------------------------------------------------------------------------


def test_one_database_serves_many_threads(db: Database) -> None:
    """Transfers between accounts from several threads; the total is the same in every snapshot."""
    run, count = RunId.new(), 10
    with db.begin(run) as txn:
        for index in range(count):
            txn.put(f"account{index}", 100)
    totals: list[int] = []
    errors: list[BaseException] = []

    def transfer(seed: int) -> None:
        try:
            for step in range(100):
                source, target = (seed + step) % count, (seed * 3 + step * 7 + 1) % count

                def move(txn: Transaction, source: int = source, target: int = target) -> None:
                    taken = txn.get(f"account{source}")
                    txn.put(f"account{source}", taken - 1)
                    txn.put(f"account{target}", txn.get(f"account{target}") + 1)

                db.transaction(run, move)
        except BaseException as error:
            errors.append(error)

    def audit() -> None:
        while any(thread.is_alive() for thread in workers):
            with db.snapshot(run) as view:
                totals.append(sum(row.value for _, row in view.scan_prefix("account")))

    workers = [threading.Thread(target=transfer, args=(seed,)) for seed in range(3)]
    auditor = threading.Thread(target=audit)
    for thread in [*workers, auditor]:
        thread.start()
    for thread in [*workers, auditor]:
        thread.join()
    assert not errors
    assert set(totals) <= {count * 100}
    assert sum(row.value for _, row in db.begin(run).scan("account")) == count * 100


@pytest.mark.local_only("figures of the coordinator: retries, conflicts by kind, hot keys, turns, expiries")
def test_retries_and_early_conflicts_are_counted(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory(max_store_size="64MiB")  # its own: the table of hot keys has 32 places for all tests
    before = db.stats()
    calls = []

    def work(txn: Transaction) -> None:
        calls.append(txn.get("k"))
        if len(calls) == 1:
            db.put(run, "k", 1)
        txn.put("other", 1)

    db.transaction(run, work)
    after = db.stats()
    assert after["retries"] - before["retries"] == 1
    assert after["conflicts_found_early"] - before["conflicts_found_early"] == 1
    assert after["conflicts"]["read"] - before["conflicts"]["read"] == 1
    assert any(str(run) in item["key"] and item["conflicts"] == 1 for item in after["hot_keys"])


def test_figures_are_of_one_database(run: RunId) -> None:
    with memory_database() as one, memory_database() as other:
        with one.begin(run) as txn, pytest.raises(ConflictError):
            txn.put("k", 1)
            txn.cas("k", 1, 2)
            txn.cas("k", 7, 2)  # two expectations of one key: refused without asking
            txn.commit()
        assert one.stats()["conflicts_found_early"] == 1
        assert other.stats()["conflicts_found_early"] == 0
        assert other.stats()["hot_keys"] == []


def test_an_in_memory_database_has_no_checkpoint() -> None:
    with memory_database() as db, pytest.raises(TransactionStateError) as caught:
        db.checkpoint()
    assert not caught.value.retryable and "occamdb.open" in caught.value.hint
