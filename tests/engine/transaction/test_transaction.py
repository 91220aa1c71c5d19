"""Life cycle, read-your-writes, CAS, limits and arguments of a transaction."""

import datetime as dt
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, Transaction, TransactionStatus
from occamdb.engine.model.errors import (
    ConflictError,
    InvalidArgumentError,
    KeyTooLarge,
    ReadOnlyError,
    TransactionStateError,
    TransactionTimeout,
    TransactionTooLarge,
    ValueTooLarge,
)
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.model.server_errors import ServerSetupError
from tests.support.databases import DatabaseFactory
from tests.support.engines import Engine

RICH: dict[str, Any] = {
    "none": None,
    "flag": True,
    "small": -3,
    "large": 2**64 - 1,
    "float": 1.5,
    "text": "né",
    "bytes": b"\x00\xff",
    "list": [1, [2, {"x": []}]],
    "when": dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
}


# --- Life cycle ------------------------------------------------------------------------------------


def test_status_goes_from_active_to_committed(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    begun: TransactionStatus = txn.status
    assert begun is TransactionStatus.ACTIVE
    txn.put("k", 1)
    receipt = txn.commit()
    ended: TransactionStatus = txn.status
    assert ended is TransactionStatus.COMMITTED
    assert txn.receipt is receipt and receipt.attempts == 1
    assert receipt.durability == db.durability
    assert receipt.version > txn.start_version


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_every_call_after_the_end_is_refused(db: Database, run: RunId, ending: str) -> None:
    txn = db.begin(run)
    txn.put("k", 1)
    rows = txn.scan()
    getattr(txn, ending)()
    calls: list[Callable[[], Any]] = [
        lambda: txn.get("k"),
        lambda: txn.get_versioned("k"),
        lambda: txn.exists("k"),
        lambda: txn.put("k", 2),
        lambda: txn.delete("k"),
        lambda: txn.cas("k", 0, 2),
        lambda: txn.add("k"),
        lambda: txn.scan(),
        lambda: txn.keys(),
        lambda: txn.count(),
        lambda: txn.delete_range(),
        lambda: txn.delete_run_range(),
        lambda: txn.for_run(run),
        lambda: txn.validate(),
        lambda: next(rows),
        lambda: txn.commit(),
        lambda: txn.abort(),
        lambda: txn.__enter__(),
    ]
    for call in calls:
        with pytest.raises(TransactionStateError):
            call()


def test_context_manager_commits_on_a_clean_exit(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.put("k", 1)
    assert txn.status is TransactionStatus.COMMITTED
    assert db.get(run, "k") == 1


def test_context_manager_aborts_on_an_exception(db: Database, run: RunId) -> None:
    with pytest.raises(ZeroDivisionError), db.begin(run) as txn:
        txn.put("k", 1)
        raise ZeroDivisionError
    assert txn.status is TransactionStatus.ABORTED
    assert db.get(run, "k") is None


def test_context_manager_never_retries(db: Database, run: RunId) -> None:
    with pytest.raises(ConflictError), db.begin(run) as txn:
        txn.put("k", 1)
        db.put(run, "k", 2)
    assert txn.status is TransactionStatus.ABORTED
    assert db.get(run, "k") == 2


@pytest.mark.parametrize("ending", ["commit", "abort"])
def test_block_may_end_its_transaction_itself(db: Database, run: RunId, ending: str) -> None:
    with db.begin(run) as txn:
        txn.put("k", 1)
        getattr(txn, ending)()
    assert db.get(run, "k") == (1 if ending == "commit" else None)


def test_abandoned_transaction_gives_its_pin_back(db: Database, run: RunId) -> None:
    before = db.attachment().pin_count
    txn = db.begin(run)
    txn.put("k", 1)
    rows = txn.scan()
    assert db.attachment().pin_count == before + 1
    del txn
    assert db.attachment().pin_count == before + 1  # the iterator still reads through it
    del rows
    assert db.attachment().pin_count == before
    assert db.get(run, "k") is None


def test_transaction_id_names_session_and_sequence(db: Database, run: RunId) -> None:
    first, second = db.begin(run), db.begin(run)
    assert first.txn_id is None
    first.put("a", 1)
    first.commit()
    second.put("b", 1)
    second.commit()
    assert first.txn_id is not None and second.txn_id is not None
    assert first.txn_id[0] == second.txn_id[0] != 0
    assert second.txn_id[1] > first.txn_id[1] >= 1


def test_a_durable_commit_says_so_or_is_refused(engine: Engine, db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.put("k", 1)
    if not engine.syncs:
        with pytest.raises(ServerSetupError, match="fsync"):
            txn.commit(durable=True)
        assert db.get(run, "k") is None
        return
    if db.durability != "none":
        assert txn.commit(durable=True).durability == "always"
        return
    with pytest.raises(InvalidArgumentError, match="durable") as refused:
        txn.commit(durable=True)
    assert "open a directory" in refused.value.hint
    # Nothing was sent: it goes on, and commits as it can.
    assert txn.status is TransactionStatus.ACTIVE and db.get(run, "k") is None
    assert txn.commit().durability == "none" and db.get(run, "k") == 1


def test_transaction_is_not_made_directly_nor_pickled(db: Database, run: RunId) -> None:
    with pytest.raises(TypeError):
        Transaction()
    for thing in (db.begin(run), db.begin(run).space(TypeTag.KV), db.space(run, TypeTag.KV)):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_deadline_ends_the_transaction(db: Database, run: RunId) -> None:
    txn = db.begin(run, timeout=0)
    with pytest.raises(TransactionTimeout):
        for _ in range(1_000_000):
            txn.get("k")
    assert txn.status is TransactionStatus.ABORTED
    with pytest.raises(TransactionStateError):
        txn.commit()


def test_use_from_two_threads_does_not_crash(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for index in range(2_000):
                txn.put(f"{name}{index % 50}", index)
                txn.get(f"{name}{index % 50}")
                list(txn.keys(limit=5))
        except TransactionStateError:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    txn.commit()
    for thread in threads:
        thread.join()
    assert not errors


# --- Reads and own writes --------------------------------------------------------------------------


def test_get_gives_the_default_for_an_absent_key(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        assert txn.get("k") is None
        assert txn.get("k", 7) == 7
        assert txn.get_versioned("k") is None
        assert not txn.exists("k")


def test_values_come_back_equal_and_fresh(db: Database, run: RunId) -> None:
    db.put(run, "k", RICH)
    with db.begin(run) as txn:
        one, two = txn.get("k"), txn.get("k")
        assert one == two == RICH
        one["list"].append("changed")
        assert txn.get("k") == RICH
        txn.put("own", one)
        one["list"].append("again")
        assert txn.get("own")["list"] == [1, [2, {"x": []}], "changed"]


def test_none_is_a_value(db: Database, run: RunId) -> None:
    db.put(run, "k", None)
    with db.begin(run) as txn:
        assert txn.get("k", "default") is None
        assert txn.exists("k")


def test_last_own_write_wins(db: Database, run: RunId) -> None:
    db.put(run, "k", 0)
    with db.begin(run) as txn:
        txn.put("k", 1)
        assert txn.get("k") == 1
        txn.put("k", 2)
        assert txn.get("k") == 2
        assert txn.delete("k") is True
        assert txn.get("k") is None
        assert txn.delete("k") is False
        txn.put("k", 3)
        assert txn.get("k") == 3
    assert db.get(run, "k") == 3


def test_str_and_bytes_keys_are_the_same_key(db: Database, run: RunId) -> None:
    db.put(run, "ké", 1)
    with db.begin(run) as txn:
        assert txn.get("ké".encode()) == 1
        assert [key for key, _ in txn.scan()] == ["ké"]
        txn.put(b"\xff\x00", 2)
        assert list(txn.keys()) == ["ké", "\udcff\x00"]


def test_delete_reports_whether_the_key_was_there(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    with db.begin(run) as txn:
        assert txn.delete("k") is True
        assert txn.delete("other") is False
    assert db.get(run, "k") is None


def test_runs_and_tags_never_see_each_other(db: Database, run: RunId) -> None:
    other = RunId.new()
    with db.begin(run) as txn:
        txn.put("k", "here")
        txn.space(TypeTag.STATE).put("k", "state")
        txn.for_run(other).put("k", "there")
    for where, tag, expected in ((run, 1, "here"), (run, 3, "state"), (other, 1, "there"), (other, 3, None)):
        assert db.space(where, tag).get("k") == expected
    assert db.list(run) == db.list(other) == ["k"]


def test_for_run_is_the_same_transaction(db: Database, run: RunId) -> None:
    other = RunId.new()
    txn = db.begin(run)
    seen = txn.for_run(str(other))
    seen.put("k", 1)
    assert seen.run_id == other and seen.start_version == txn.start_version
    assert txn.for_run(other).get("k") == 1
    seen.commit()
    assert txn.status is TransactionStatus.COMMITTED
    assert db.get(other, "k") == 1


def test_commit_spanning_runs_is_one_version_and_all_or_nothing(db: Database, run: RunId) -> None:
    other = RunId.new()
    with db.begin(run) as txn:
        txn.put("a", 1)
        txn.for_run(other).put("b", 2)
    assert txn.receipt.version == db.get_versioned(run, "a").version  # type: ignore[union-attr]
    assert txn.receipt.version == db.get_versioned(other, "b").version  # type: ignore[union-attr]
    txn = db.begin(run)
    txn.put("a", 3)
    txn.for_run(other).put("b", 4)
    db.put(other, "b", 5)
    with pytest.raises(ConflictError):
        txn.commit()
    assert (db.get(run, "a"), db.get(other, "b")) == (1, 5)


def test_run_ids_are_taken_in_every_form(db: Database, run: RunId) -> None:
    import uuid

    db.put(run, "k", 1)
    for form in (run, uuid.UUID(int=run.int), str(run), run.hex):
        with db.begin(form) as txn:
            assert txn.get("k") == 1
            assert txn.run_id == run
    for bad in ("no uuid", 7, None, b"x" * 16):
        with pytest.raises(InvalidArgumentError):
            db.begin(bad)  # type: ignore[arg-type]


# --- Range deletes -------------------------------------------------------------------------------------


def test_delete_range_hides_at_once_and_later_writes_stand(db: Database, run: RunId) -> None:
    for key in ("a1", "a2", "b1"):
        db.put(run, key, 1)
    with db.begin(run) as txn:
        txn.put("a3", 1)
        txn.delete_range("a")
        assert list(txn.keys()) == ["b1"]
        assert txn.get("a1") is None and not txn.exists("a3")
        assert txn.delete("a1") is False
        txn.put("a2", "new")
        txn.add("a1", 4)
        expected = {"a1": 4, "a2": "new", "b1": 1}
        assert {key: row.value for key, row in txn.scan()} == expected
        assert txn.get_versioned("a2").version == 0  # type: ignore[union-attr]
    assert {key: db.get(run, key) for key in db.list(run)} == expected


def test_delete_range_conflicts_with_a_new_key_in_it(db: Database, run: RunId) -> None:
    db.put(run, "a1", 1)
    txn = db.begin(run)
    txn.delete_range("a")
    db.put(run, "a2", 2)
    with pytest.raises(ConflictError):
        txn.commit()
    assert db.list(run) == ["a1", "a2"]


def test_delete_run_range_takes_every_tag_and_nothing_else(db: Database, run: RunId) -> None:
    other = RunId.new()
    for tag in (1, 3, 0xFE):
        db.space(run, tag).put("k", tag)
        db.space(other, tag).put("k", tag)
    with db.begin(run) as txn:
        txn.delete_run_range()
        assert txn.space(3).get("k") is None
    for tag in (1, 3, 0xFE):
        assert db.space(run, tag).get("k") is None
        assert db.space(other, tag).get("k") == tag
    with db.begin(run) as txn:
        txn.delete_run_range(other)
    assert db.list(other) == []


def test_delete_range_of_nothing_is_nothing(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.delete_range(start="b", end="a")
    assert txn.txn_id is None


# --- Read-only -----------------------------------------------------------------------------------------


def test_read_only_transaction_refuses_writes_and_goes_on_reading(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    with db.begin(run, read_only=True) as txn:
        calls: list[Callable[[], Any]] = [
            lambda: txn.put("k", 2),
            lambda: txn.delete("k"),
            lambda: txn.cas("k", 1, 2),
            lambda: txn.add("k"),
            lambda: txn.delete_range(),
            lambda: txn.delete_run_range(),
            lambda: txn.for_run(run).put("k", 2),
        ]
        for call in calls:
            with pytest.raises(ReadOnlyError):
                call()
        assert txn.get("k") == 1
        assert txn.read_only


def test_transaction_without_writes_commits_at_its_snapshot(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    for read_only in (True, False):
        txn = db.begin(run, read_only=read_only)
        assert txn.get("k") == 1
        assert len(list(txn.scan())) == 1
        db.put(run, "k", 1)
        receipt = txn.commit()
        assert receipt.version == txn.start_version
        assert txn.txn_id is None


# --- Limits --------------------------------------------------------------------------------------------


def test_limits_are_checked_before_anything_changes(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory(key_size_max=64, value_size_max=1024, transaction_size_max=65536)
    txn = db.begin(run)
    with pytest.raises(KeyTooLarge) as key_error:
        txn.put("k" * 65, 1)
    assert (key_error.value.size, key_error.value.limit) == (65, 64)
    with pytest.raises(KeyTooLarge):
        txn.get("é" * 33)
    with pytest.raises(ValueTooLarge) as value_error:
        txn.put("k", b"x" * 1025)
    assert value_error.value.limit == 1024
    with pytest.raises(TransactionTooLarge) as size_error:
        for index in range(1000):
            txn.put(f"key{index}", b"x" * 1000)
    assert size_error.value.size > size_error.value.limit == 65536
    kept = list(txn.keys())
    assert len(kept) > 50
    assert txn.pending_size <= 65536
    for key in kept[:50]:
        txn.put(key, 1)  # smaller: makes room
    txn.put("last", b"x" * 1000)
    txn.commit()
    assert db.list(run) == sorted([*kept, "last"])


def test_a_read_set_beyond_the_limit_is_refused_at_commit(db_factory: DatabaseFactory, run: RunId) -> None:
    db = db_factory(transaction_size_max=65536)
    txn = db.begin(run)
    for index in range(2000):
        txn.get(f"key{index}")
    txn.put("k", 1)
    with pytest.raises(TransactionTooLarge):
        txn.commit()
    assert txn.status is TransactionStatus.ABORTED
    assert db.get(run, "k") is None


def test_longest_keys_work_and_so_do_scans_that_stop_at_them(db: Database, run: RunId) -> None:
    size = db.handle.limits.key_size_max
    wide = db.namespace("t" * 64, "a" * 64, "g" * 64)
    for database in (db, wide):
        keys = ["a" * size, "b" * size]
        for key in keys:
            database.put(run, key, key[0])
        with database.begin(run) as txn:
            assert [next(txn.scan())[0], next(txn.scan(reverse=True))[0]] == keys
            txn.put("c", 1)
        assert txn.status is TransactionStatus.COMMITTED


def test_large_values_come_back_whole(db: Database, run: RunId) -> None:
    largest = min(5_000_000, db.handle.limits.value_size_max - 16)
    for size in (1000, 1024, 1025, largest):
        db.put(run, "k", b"x" * size)
        with db.begin(run) as txn:
            assert txn.get("k") == b"x" * size
            assert txn.get_versioned("k").value == b"x" * size  # type: ignore[union-attr]
