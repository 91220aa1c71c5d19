"""The classic anomalies, each at both isolation levels: which of them can happen, and which cannot."""

import pytest

from occamdb import Database
from occamdb.engine.model.errors import ReadConflict, WriteConflict
from occamdb.engine.model.public_types import IsolationName, RunId
from tests.support.transactions import conflicts_of, rows

BOTH = pytest.mark.parametrize("isolation", ["serializable", "snapshot"])


# --- Anomalies (Adya 1999; names of the SQL literature) -----------------------------------------------


@BOTH
def test_no_dirty_write(db: Database, run: RunId, isolation: IsolationName) -> None:
    """Two transactions write x and y; the pairs never mix."""
    one, two = db.begin(run, isolation=isolation), db.begin(run, isolation=isolation)
    for txn, value in ((one, 1), (two, 2)):
        txn.put("x", value)
        txn.put("y", value)
    two.commit()
    assert {type(c) for c in conflicts_of(one.commit)} == {WriteConflict}
    assert (db.get(run, "x"), db.get(run, "y")) == (2, 2)


@BOTH
def test_no_dirty_read(db: Database, run: RunId, isolation: IsolationName) -> None:
    """Nothing uncommitted, and nothing aborted, is ever seen."""
    writer = db.begin(run, isolation=isolation)
    writer.put("x", 1)
    reader = db.begin(run, isolation=isolation)
    assert reader.get("x") is None and rows(reader) == {}
    assert db.get(run, "x") is None
    writer.abort()
    assert reader.get("x") is None
    assert db.begin(run).get("x") is None


@BOTH
def test_no_fuzzy_read(db: Database, run: RunId, isolation: IsolationName) -> None:
    """A key read twice has the same value twice."""
    db.put(run, "x", 1)
    txn = db.begin(run, isolation=isolation)
    assert txn.get("x") == 1
    db.put(run, "x", 2)
    assert txn.get("x") == 1
    db.delete(run, "x")
    assert txn.get("x") == 1
    txn.commit()


@BOTH
def test_no_read_skew(db: Database, run: RunId, isolation: IsolationName) -> None:
    """x and y, changed together, are seen together."""
    db.put(run, "x", 50)
    db.put(run, "y", 50)
    reader = db.begin(run, isolation=isolation)
    assert reader.get("x") == 50
    with db.begin(run) as transfer:
        transfer.put("x", 25)
        transfer.put("y", 75)
    assert reader.get("y") == 50
    reader.commit()


@BOTH
def test_no_lost_update(db: Database, run: RunId, isolation: IsolationName) -> None:
    db.put(run, "x", 100)
    one, two = db.begin(run, isolation=isolation), db.begin(run, isolation=isolation)
    one.put("x", one.get("x") + 20)
    two.put("x", two.get("x") + 30)
    two.commit()
    kinds = {type(conflict) for conflict in conflicts_of(one.commit)}
    assert kinds == ({ReadConflict, WriteConflict} if isolation == "serializable" else {WriteConflict})
    assert db.get(run, "x") == 130


@BOTH
def test_write_skew_only_under_snapshot_isolation(db: Database, run: RunId, isolation: IsolationName) -> None:
    """Two on call; each leaves because the other is there."""
    db.put(run, "alice", True)
    db.put(run, "bob", True)
    one, two = db.begin(run, isolation=isolation), db.begin(run, isolation=isolation)
    assert one.get("bob") and two.get("alice")
    one.put("alice", False)
    two.put("bob", False)
    one.commit()
    if isolation == "serializable":
        (conflict,) = conflicts_of(two.commit)
        assert isinstance(conflict, ReadConflict) and conflict.key == "alice"
    else:
        two.commit()
    on_call = [db.get(run, name) for name in ("alice", "bob")]
    assert on_call == ([False, True] if isolation == "serializable" else [False, False])


@BOTH
def test_phantom_only_under_snapshot_isolation(db: Database, run: RunId, isolation: IsolationName) -> None:
    """A predicate read by a scan, invalidated by a new key."""
    txn = db.begin(run, isolation=isolation)
    assert rows(txn, "task/") == {}
    db.put(run, "task/1", "new")
    assert rows(txn, "task/") == {}  # never inside the transaction
    txn.put("count", 0)
    if isolation == "serializable":
        (conflict,) = conflicts_of(txn.commit)
        assert isinstance(conflict, ReadConflict) and conflict.range is not None
        assert conflict.range[0] == "task/"
    else:
        txn.commit()


@BOTH
def test_phantom_delete_only_under_snapshot_isolation(
    db: Database, run: RunId, isolation: IsolationName
) -> None:
    db.put(run, "task/1", 1)
    txn = db.begin(run, isolation=isolation)
    assert rows(txn, "task/") == {"task/1": 1}
    db.delete(run, "task/1")
    txn.put("count", 1)
    if isolation == "serializable":
        conflicts_of(txn.commit)
    else:
        txn.commit()


@BOTH
def test_predicate_write_skew_only_under_snapshot_isolation(
    db: Database, run: RunId, isolation: IsolationName
) -> None:
    """Each inserts what it made sure was not there."""
    one, two = db.begin(run, isolation=isolation), db.begin(run, isolation=isolation)
    for index, txn in enumerate((one, two)):
        if txn.count("claim/") == 0:
            txn.put(f"claim/{index}", True)
    one.commit()
    if isolation == "serializable":
        conflicts_of(two.commit)
    else:
        two.commit()
    assert len(db.list(run, "claim/")) == (1 if isolation == "serializable" else 2)


@BOTH
def test_read_only_anomaly_only_under_snapshot_isolation(
    db: Database, run: RunId, isolation: IsolationName
) -> None:
    """Fekete, O'Neil, O'Neil 2004: a read-only transaction sees a state no serial order explains."""
    db.put(run, "x", 0)
    db.put(run, "y", 0)
    withdraw = db.begin(run, isolation=isolation)
    total = withdraw.get("x") + withdraw.get("y")
    with db.begin(run, isolation=isolation) as deposit:
        deposit.put("y", deposit.get("y") + 20)
    with db.begin(run, isolation=isolation) as report:
        assert (report.get("x"), report.get("y")) == (0, 20)
    withdraw.put("x", -11 if total < 10 else -10)
    if isolation == "serializable":
        conflicts_of(withdraw.commit)
    else:
        withdraw.commit()


@BOTH
def test_circular_information_flow_only_under_snapshot_isolation(
    db: Database, run: RunId, isolation: IsolationName
) -> None:
    """Each reads what the other writes (G1c needs dirty reads; with snapshots it is G2)."""
    one, two = db.begin(run, isolation=isolation), db.begin(run, isolation=isolation)
    one.put("x", 1)
    two.put("y", 2)
    assert (one.get("y"), two.get("x")) == (None, None)
    one.commit()
    if isolation == "serializable":
        conflicts_of(two.commit)
    else:
        two.commit()
