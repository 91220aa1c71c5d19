"""Read-only views: pinned, cloned, and revoked."""

import gc
import pickle
import threading

import pytest

from occamdb import Database
from occamdb.engine.model.errors import LimitExceeded, ReadOnlyError, SnapshotExpired, TransactionStateError
from occamdb.engine.model.public_types import RunId
from occamdb.engine.transaction.snapshot import ClonedSnapshotView, SharedSnapshotView, SnapshotView
from occamdb.ipc.layout import SLOT_COUNT
from tests.support.databases import memory_database, revoke_snapshots


def fill(db: Database, run: RunId) -> dict[str, object]:
    contents: dict[str, object] = {"a/1": 1, "a/2": {"x": [1]}, "b": b"\xff"}
    for key, value in contents.items():
        db.put(run, key, value)
    return contents


def test_views_show_one_version_whatever_happens_after(db: Database, run: RunId) -> None:
    contents = fill(db, run)
    with db.snapshot(run) as view:
        clone = view.clone()
        views: list[SnapshotView] = [view, clone]
        for key in contents:
            db.delete(run, key)
        db.put(run, "a/3", 3)
        for one in views:
            assert isinstance(one, SnapshotView)
            assert one.version == view.version
            assert {key: row.value for key, row in one.scan_prefix()} == contents
            assert [key for key, _ in one.scan_prefix("a/")] == ["a/1", "a/2"]
            assert one.get("b") == b"\xff"
            assert one.get("a/3", "default") == "default"
    assert db.list(run) == ["a/3"]


def test_shared_view_offers_what_a_read_needs(db: Database, run: RunId) -> None:
    fill(db, run)
    view = db.snapshot(run)
    assert view.run_id == run
    assert view.exists("b") and not view.exists("c")
    assert view.get_versioned("b").value == b"\xff"  # type: ignore[union-attr]
    assert list(view.keys("a/")) == ["a/1", "a/2"]
    assert view.count() == 3
    assert [key for key, _ in view.scan(start="a/2", limit=1)] == ["a/2"]
    with pytest.raises(ReadOnlyError):
        view.space(1).put("k", 1)
    assert view.transaction().get("a/1") == 1
    view.close()


def test_closed_view_says_so_and_closes_twice(db: Database, run: RunId) -> None:
    view = db.snapshot(run)
    assert isinstance(view, SharedSnapshotView)
    version = view.version
    view.close()
    view.close()
    assert view.closed and view.version == version
    for call in (
        lambda: view.get("k"),
        lambda: view.scan_prefix(),
        lambda: view.clone(),
        lambda: view.expired,
    ):
        with pytest.raises(TransactionStateError, match="snapshot is closed"):
            call()


def test_views_give_their_pins_back(db: Database, run: RunId) -> None:
    before = db.attachment().pin_count
    views = [db.snapshot(run) for _ in range(5)]
    assert db.attachment().pin_count == before + 5
    views.pop().close()
    assert db.attachment().pin_count == before + 4
    views.clear()
    gc.collect()
    assert db.attachment().pin_count == before


def test_clone_pins_nothing_and_pickles(db: Database, run: RunId) -> None:
    fill(db, run)
    with db.snapshot(run) as view:
        before = db.attachment().pin_count
        clone = view.clone("a/")
        rows = list(view.scan_prefix("a/"))
    assert db.attachment().pin_count == before - 1
    copy = pickle.loads(pickle.dumps(clone))
    assert isinstance(copy, ClonedSnapshotView)
    assert list(copy.scan_prefix()) == list(clone.scan_prefix()) == rows
    assert len(copy) == 2 and copy.get("b") is None and copy.get_versioned("b") is None
    fresh = copy.get("a/2")
    fresh["x"].append(2)
    assert copy.get("a/2") == {"x": [1]}
    assert copy.get_versioned("a/2") == rows[1][1]


def test_snapshot_is_small_whatever_the_store(db: Database, run: RunId) -> None:
    """O(1): taking a view of many keys walks none of them (a clone does)."""
    with db.begin(run) as txn:
        for index in range(2000):
            txn.put(f"k{index}", index)
    views = [db.snapshot(run) for _ in range(200)]
    assert all(view.get("k1999") == 1999 for view in views)


def test_too_many_snapshots_is_a_clear_error(run: RunId) -> None:
    db = memory_database()
    fill(db, run)
    views = [db.snapshot(run) for _ in range(SLOT_COUNT)]
    with pytest.raises(LimitExceeded, match="1,024") as caught:
        db.begin(run)
    assert caught.value.limit == SLOT_COUNT
    views.pop().close()
    with db.begin(run) as txn:
        assert txn.get("a/1") == 1
    db.close()


def test_revoked_snapshot_raises_at_every_read(run: RunId) -> None:
    db = memory_database()
    fill(db, run)
    view = db.snapshot(run)
    txn = db.begin(run)
    rows = txn.scan()
    next(rows)
    txn.put("own", 1)
    assert not view.expired
    assert revoke_snapshots(db) == 2
    assert view.expired and txn.expired
    calls = [
        lambda: view.get("a/1"),
        lambda: view.get("absent"),
        lambda: view.get_versioned("a/1"),
        lambda: list(view.scan_prefix()),
        lambda: view.clone(),
        lambda: txn.get("a/1"),
        lambda: txn.get("absent"),
        lambda: txn.exists("a/1"),
        lambda: txn.count(),
        lambda: txn.delete("b"),
        lambda: next(rows),
    ]
    for call in calls:
        with pytest.raises(SnapshotExpired) as caught:
            call()
        assert caught.value.retryable
        assert "snapshot_max_age" in caught.value.hint
    view.close()
    assert db.begin(run).get("a/1") == 1  # the slot serves again
    db.close()


def test_revoked_transaction_with_a_scan_cannot_commit(run: RunId) -> None:
    db = memory_database()
    fill(db, run)
    txn = db.begin(run)
    next(txn.scan())
    txn.put("own", 1)
    revoke_snapshots(db)
    with pytest.raises(SnapshotExpired):
        txn.commit()
    assert txn.status == "aborted"
    assert db.get(run, "own") is None
    db.close()


def test_revoked_snapshot_is_retried_by_transaction(run: RunId) -> None:
    db = memory_database()
    fill(db, run)
    calls = []

    def work(txn: object) -> object:
        calls.append(txn)
        if len(calls) == 1:
            revoke_snapshots(db)
        return txn.get("a/1")  # type: ignore[attr-defined]

    assert db.transaction(run, work) == 1
    assert len(calls) == 2
    db.close()


def test_old_values_are_kept_for_those_who_can_see_them(run: RunId) -> None:
    """Under a small store: one snapshot holds one version of a key that is rewritten many times."""
    db = memory_database(max_store_size="4MiB")
    db.put(run, "k", b"0" * 10_000)
    with db.snapshot(run) as view:
        for _ in range(2000):
            db.put(run, "k", b"1" * 10_000)
        assert view.get("k") == b"0" * 10_000
    assert db.get(run, "k") == b"1" * 10_000
    db.close()


def test_readers_and_a_writer_at_the_same_time(db: Database, run: RunId) -> None:
    """Every snapshot shows x and y equal, however many commits run beside it."""
    stop = threading.Event()
    problems: list[str] = []

    def write() -> None:
        for index in range(800):
            with db.begin(run) as txn:
                txn.put("x", [index] * (index % 50))
                txn.put("y", [index] * (index % 50))
        stop.set()

    def read() -> None:
        while not stop.is_set():
            with db.snapshot(run) as view:
                x, y = view.get("x"), view.get("y")
                pair = [row.value for _, row in view.scan_prefix()]
                if x != y or (pair and pair != [x, y]):
                    problems.append(f"{x} {y} {pair}")

    threads = [threading.Thread(target=read) for _ in range(2)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
