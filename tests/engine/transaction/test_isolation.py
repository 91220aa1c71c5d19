"""What a transaction promises (docs/guarantees.md), rule by rule, at both isolation levels."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, Transaction, TransactionStatus
from occamdb.engine.model.errors import CASConflict, ConflictError, ReadConflict, WriteConflict
from occamdb.engine.model.public_types import RunId, TypeTag
from tests.support.transactions import conflicts_of, rows

# --- Rules 1 and 2: atomic; snapshot reads --------------------------------------------------------------


def test_rule_1_all_or_nothing(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    for index in range(100):
        txn.put(f"k{index:02}", index)
    db.put(run, "k57", "mine")
    conflicts_of(txn.commit)
    assert db.list(run) == ["k57"]
    with db.begin(run) as txn:
        for index in range(100):
            txn.put(f"k{index:02}", index)
    versions = {row.version for _, row in db.begin(run).scan()}
    assert versions == {txn.receipt.version}


def test_rule_1_one_failing_effect_takes_all_back(db: Database, run: RunId) -> None:
    db.put(run, "text", "no number")
    txn = db.begin(run)
    txn.put("a", 1)
    txn.add("text", 1)
    txn.put("z", 1)
    with pytest.raises(Exception, match="integer"):
        txn.commit()
    assert db.list(run) == ["text"]


def test_rule_2_reads_stay_at_the_start_version(db: Database, run: RunId) -> None:
    for index in range(50):
        db.put(run, f"k{index:02}", "old")
    txn = db.begin(run)
    for index in range(0, 50, 2):
        db.put(run, f"k{index:02}", "new")
        db.delete(run, f"k{index + 1:02}")
        db.put(run, f"x{index:02}", "new")
    assert rows(txn) == {f"k{index:02}": "old" for index in range(50)}
    assert all(txn.get(f"k{index:02}") == "old" for index in range(50))
    assert all(row.version <= txn.start_version for _, row in txn.scan())


def test_rule_2_scans_merge_own_writes_in_order(db: Database, run: RunId) -> None:
    for key in "bdf":
        db.put(run, key, key)
    txn = db.begin(run)
    txn.put("a", "own")
    txn.put("d", "own")
    txn.put("g", "own")
    txn.delete("f")
    expected = {"a": "own", "b": "b", "d": "own", "g": "own"}
    assert list(rows(txn).items()) == list(expected.items())
    assert [k for k, _ in txn.scan(reverse=True)] == [*expected][::-1]


# --- Rule 3: first committer wins --------------------------------------------------------------------------


def test_rule_3_read_conflict(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    txn = db.begin(run)
    txn.get("k")
    txn.get("absent")
    txn.put("other", 1)
    newer = db.put(run, "k", 2)
    newest = db.put(run, "absent", 2)
    assert set(conflicts_of(txn.commit)) == {
        ReadConflict("k", version, newer, None, run, TypeTag.KV),
        ReadConflict("absent", 0, newest, None, run, TypeTag.KV),
    }


def test_rule_3_a_read_of_absence_is_a_read(db: Database, run: RunId) -> None:
    looks: list[Callable[[Transaction], Any]] = [
        lambda txn: txn.get("k"),
        lambda txn: txn.get_versioned("k"),
        lambda txn: txn.exists("k"),
        lambda txn: txn.delete("k"),
    ]
    for look in looks:
        txn = db.begin(run)
        assert not look(txn)
        txn.put("other", 1)
        db.put(run, "k", 1)
        assert any(isinstance(c, ReadConflict) and c.key == "k" for c in conflicts_of(txn.commit))
        db.delete(run, "k")


def test_rule_3_write_conflict_whether_read_or_not(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    writes: list[Callable[[Transaction], Any]] = [lambda txn: txn.put("k", 2), lambda txn: txn.delete("k")]
    for write in writes:
        txn = db.begin(run, isolation="snapshot")
        write(txn)
        version = db.put(run, "k", 3)
        assert conflicts_of(txn.commit) == (WriteConflict("k", txn.start_version, version, run, TypeTag.KV),)


def test_rule_3_write_conflict_with_a_delete(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    txn = db.begin(run)
    txn.put("k", 2)
    db.delete(run, "k")
    (conflict,) = conflicts_of(txn.commit)
    assert isinstance(conflict, WriteConflict) and conflict.found_version > txn.start_version
    assert db.get(run, "k") is None


def test_rule_3_write_conflict_with_a_key_made_and_deleted_meanwhile(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.put("k", 2)
    db.put(run, "k", 1)
    db.delete(run, "k")
    assert all(isinstance(conflict, WriteConflict) for conflict in conflicts_of(txn.commit))


def test_rule_3_every_conflict_is_reported_up_to_sixteen(db: Database, run: RunId) -> None:
    for found, count in ((3, 3), (16, 16), (16, 40)):
        txn = db.begin(run)
        for index in range(count):
            txn.put(f"k{index}", 1)
        with db.begin(run) as other:
            for index in range(count):
                other.put(f"k{index}", 2)
        with pytest.raises(ConflictError) as caught:
            txn.commit()
        assert len(caught.value.conflicts) == found
        assert caught.value.conflicts_found == count
        assert {c.key for c in caught.value.conflicts} <= {f"k{index}" for index in range(count)}
        assert {c.found_version for c in caught.value.conflicts} == {other.receipt.version}


def test_rule_3_kinds_are_reported_together(db: Database, run: RunId) -> None:
    read = db.put(run, "read", 1)
    txn = db.begin(run)
    txn.get("read")
    list(txn.scan("range/"))
    txn.put("write", 1)
    txn.cas("cas", 7, 1)
    with db.begin(run) as other:
        for key in ("read", "range/x", "write"):
            other.put(key, 2)
    version = other.receipt.version
    conflicts = conflicts_of(txn.commit)
    assert ReadConflict("read", read, version, None, run, TypeTag.KV) in conflicts
    assert WriteConflict("write", txn.start_version, version, run, TypeTag.KV) in conflicts
    assert CASConflict("cas", 7, 0, run, TypeTag.KV) in conflicts
    (scanned,) = [c for c in conflicts if isinstance(c, ReadConflict) and c.range is not None]
    assert scanned.range is not None and scanned.range[0] == "range/"
    assert len(conflicts) == 4


def test_rule_3_disjoint_transactions_do_not_conflict(db: Database, run: RunId) -> None:
    for key in "abcd":
        db.put(run, key, 0)
    one, two = db.begin(run), db.begin(run)
    assert rows(one, "a") and rows(two, "c")
    one.put("b", one.get("b") + 1)
    two.put("d", two.get("d") + 1)
    one.commit()
    two.commit()
    assert [db.get(run, key) for key in "abcd"] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("reverse", "written", "conflicts"),
    [
        (False, "k00", True),
        (False, "k15", True),
        (False, "k18x", True),
        (False, "k19", True),
        (False, "k19x", False),
        (False, "k20", False),
        (False, "k30", False),
        (False, "j", False),
        (True, "k30", True),
        (True, "k25", True),
        (True, "k20", True),
        (True, "k20x", True),
        (True, "k19x", False),
        (True, "k19", False),
        (True, "k00", False),
        (True, "l", False),
    ],
)
def test_rule_3_a_scan_is_checked_as_far_as_it_was_walked(
    db: Database, run: RunId, reverse: bool, written: str, conflicts: bool
) -> None:
    """Of k10..k29, ten rows are walked, then the scan is abandoned: k10..k19 forward, k29..k20 in reverse."""
    for index in range(10, 30):
        db.put(run, f"k{index}", index)
    txn = db.begin(run)
    scan = txn.scan("k", reverse=reverse)
    for _ in range(10):
        next(scan)
    txn.put("result", 1)
    db.put(run, written, "written meanwhile")
    if conflicts:
        (conflict,) = conflicts_of(txn.commit)
        assert isinstance(conflict, ReadConflict) and conflict.range is not None
    else:
        txn.commit()


def test_rule_3_beyond_the_end_of_a_reverse_scan_is_walked(db: Database, run: RunId) -> None:
    db.put(run, "k1", 1)
    txn = db.begin(run)
    assert next(txn.scan("k", reverse=True))[0] == "k1"
    txn.put("result", 1)
    db.put(run, "k9", 1)  # the newest key would have come first
    conflicts_of(txn.commit)


def test_rule_3_a_limit_ends_the_checked_range(db: Database, run: RunId) -> None:
    for key in "abcd":
        db.put(run, key, 1)
    txn = db.begin(run)
    assert len(list(txn.scan(limit=2))) == 2
    txn.put("z", 1)
    db.put(run, "c", 2)
    txn.commit()
    txn = db.begin(run)
    assert len(list(txn.scan(limit=2))) == 2
    txn.put("z", 1)
    db.put(run, "ab", 2)
    conflicts_of(txn.commit)


def test_rule_3_own_writes_count_as_walked(db: Database, run: RunId) -> None:
    db.put(run, "z", 1)
    txn = db.begin(run)
    txn.put("m", 1)
    scan = txn.scan()
    assert next(scan)[0] == "m"
    db.put(run, "a", 1)  # before the own key the scan stopped at
    conflicts_of(txn.commit)
    txn = db.begin(run)
    txn.put("m", 1)
    scan = txn.scan(start="b")
    assert next(scan)[0] == "m"
    db.put(run, "p", 1)  # behind it
    txn.commit()


def test_rule_3_a_scan_not_begun_checks_nothing(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.scan()
    list(txn.scan(limit=0))
    list(txn.scan(start="b", end="a"))
    txn.put("k", 1)
    db.put(run, "other", 1)
    txn.commit()


def test_rule_3_overlapping_scans_are_one_range(db: Database, run: RunId) -> None:
    for index in range(20):
        db.put(run, f"k{index:02}", 1)
    txn = db.begin(run)
    for _ in range(50):
        list(txn.scan("k"))
        list(txn.scan("k0"))
    txn.put("z", 1)
    db.put(run, "k05x", 1)
    assert len(conflicts_of(txn.commit)) == 1


def test_rule_3_a_count_is_a_scan(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    assert txn.count("k") == 0
    txn.put("z", 1)
    db.put(run, "k1", 1)
    conflicts_of(txn.commit)


def test_rule_3_increments_do_not_conflict_with_writers(db: Database, run: RunId) -> None:
    db.put(run, "n", 1)
    txn = db.begin(run)
    txn.add("n", 1)
    db.put(run, "n", 10)
    txn.commit()
    assert db.get(run, "n") == 11


# --- Rule 4: strict serializability, and its exceptions ------------------------------------------------------


def test_rule_4_untracked_reads_are_not_checked(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    txn = db.begin(run)
    assert txn.get("k", track=False) == 1
    assert txn.get_versioned("k", track=False) is not None
    assert txn.exists("k", track=False)
    txn.put("other", 1)
    db.put(run, "k", 2)
    txn.commit()


def test_rule_4_one_tracked_read_is_enough(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    txn = db.begin(run)
    txn.get("k", track=False)
    txn.get("k")
    txn.get("k", track=False)
    txn.put("other", 1)
    db.put(run, "k", 2)
    conflicts_of(txn.commit)


def test_rule_4_a_begin_after_a_commit_sees_it(db: Database, run: RunId) -> None:
    """Real time: an acknowledged commit is in every later snapshot, whichever thread begins it."""
    for index in range(200):
        version = db.put(run, "k", index)
        seen: list[tuple[int, Any]] = []

        def look(seen: list[tuple[int, Any]] = seen) -> None:
            txn = db.begin(run)
            seen.append((txn.start_version, txn.get("k")))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen[0][0] >= version and seen[0][1] == index


def test_default_isolation_is_that_of_the_database(db_factory: Callable[..., Database], run: RunId) -> None:
    assert db_factory().begin(run).isolation == "serializable"
    relaxed = db_factory(isolation="snapshot")
    assert relaxed.begin(run).isolation == "snapshot"
    assert relaxed.begin(run, isolation="serializable").isolation == "serializable"
    assert relaxed.namespace("t").begin(run).isolation == "snapshot"


# --- Rules 5 to 9 ----------------------------------------------------------------------------------------------


def test_rule_5_read_only_never_conflicts(db: Database, run: RunId) -> None:
    for index in range(20):
        db.put(run, f"k{index}", index)
    for read_only in (True, False):
        txn = db.begin(run, read_only=read_only)
        before = rows(txn)
        for index in range(20):
            db.put(run, f"k{index}", index)
        assert rows(txn) == before
        txn.commit()


def test_rule_6_versions_count_commits_and_never_go_back(db: Database, run: RunId) -> None:
    first = db.put(run, "k", 1)
    db.delete(run, "k")
    assert db.get_versioned(run, "k") is None
    again = db.cas(run, "k", 0, 2)
    assert again > first
    with db.begin(run) as txn:
        txn.put("a", 1)
        txn.put("b", 1)
    assert txn.receipt.version > again
    assert db.get_versioned(run, "a").version == db.get_versioned(run, "b").version  # type: ignore[union-attr]


@pytest.mark.by_default("memory")
def test_rule_6_one_commit_is_one_version(db: Database, run: RunId) -> None:
    versions = [db.put(run, "k", index) for index in range(10)]
    assert versions == list(range(versions[0], versions[0] + 10))
    txn = db.begin(run)
    txn.put("k", 1)
    db.put(run, "k", 2)
    conflicts_of(txn.commit)
    assert db.put(run, "k", 3) == versions[-1] + 2  # a refused commit takes none


def test_rule_7_open_transactions_block_nobody(db: Database, run: RunId) -> None:
    db.put(run, "k", 0)
    opened = [db.begin(run) for _ in range(50)]
    for txn in opened:
        txn.get("k")
        txn.put("k", 1)
    assert db.put(run, "k", 2)
    with db.begin(run) as txn:
        txn.put("k", txn.get("k") + 1)
    assert db.get(run, "k") == 3
    for txn in opened:
        conflicts_of(txn.commit)


def test_rule_9_a_conflict_is_one_outcome(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.put("k", 1)
    db.put(run, "k", 2)
    conflicts_of(txn.commit)
    assert txn.status is TransactionStatus.ABORTED
    assert txn.receipt is None
    with pytest.raises(Exception, match="aborted"):
        txn.commit()
    assert db.get(run, "k") == 2


def test_implicit_puts_never_conflict(db: Database, run: RunId) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(100):
                db.put(run, "k", [number, index])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert db.get(run, "k")[1] == 99


def test_validate_tells_without_ending(db: Database, run: RunId) -> None:
    version = db.put(run, "k", 1)
    txn = db.begin(run)
    txn.get("k")
    list(txn.scan("r/"))
    txn.put("w", 1)
    assert txn.validate() == ()
    newer = db.put(run, "k", 2)
    db.put(run, "r/1", 1)
    written = db.put(run, "w", 2)
    found = txn.validate()
    assert ReadConflict("k", version, newer, None, run, TypeTag.KV) in found
    assert WriteConflict("w", txn.start_version, written, run, TypeTag.KV) in found
    assert len(found) == 3
    assert txn.status is TransactionStatus.ACTIVE
    db.delete(run, "k")
    deleted = [c for c in txn.validate() if c.key == "k"]
    assert deleted == [ReadConflict("k", version, 0, None, run, TypeTag.KV)]
    assert set(conflicts_of(txn.commit)) == set(txn_conflicts(found, version, run))


def txn_conflicts(found: tuple[Any, ...], version: int, run: RunId) -> list[Any]:
    """`found` as it is once "k" was deleted."""
    return [ReadConflict("k", version, 0, None, run, TypeTag.KV) if c.key == "k" else c for c in found]


@pytest.mark.local_only("a server judges every commit itself; here a stale one is refused before it is sent")
def test_stale_transactions_are_refused_without_a_round_trip(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    txn = db.begin(run)
    txn.get("k")
    txn.put("other", 1)
    db.put(run, "k", 2)
    conflicts_of(txn.commit)
    assert txn.txn_id is None  # nothing was sent
