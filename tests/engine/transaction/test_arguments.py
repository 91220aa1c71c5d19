"""Arguments of transactions: what is refused before anything changes, and with which error."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from occamdb import Database, Transaction
from occamdb.engine.model.errors import (
    ConflictError,
    InvalidArgumentError,
    InvalidKeyError,
    KeyTooLarge,
    TransactionStateError,
    ValueEncodingError,
    WriteConflict,
)
from occamdb.engine.model.public_types import RunId, TypeTag

# --- Arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", b"", 7, None, ["k"], bytearray(b"k"), "\ud800"])
def test_bad_keys_are_refused(db: Database, run: RunId, key: Any) -> None:
    with db.begin(run) as txn:
        calls: list[Callable[[], Any]] = [
            lambda: txn.get(key),
            lambda: txn.get(key, track=False),
            lambda: txn.get_versioned(key),
            lambda: txn.put(key, 1),
            lambda: txn.delete(key),
            lambda: txn.cas(key, 0, 1),
            lambda: txn.add(key),
            lambda: db.put(run, key, 1),
            lambda: db.get(run, key),
            lambda: db.delete(run, key),
        ]
        for call in calls:
            with pytest.raises(InvalidKeyError):
                call()
    assert txn.txn_id is None


@pytest.mark.parametrize("value", [{1: 2}, (1,), {1}, object(), 2**64, "\ud800", dt.datetime(2026, 1, 1)])
def test_bad_values_are_refused(db: Database, run: RunId, value: Any) -> None:
    with db.begin(run) as txn:
        for call in (
            lambda: txn.put("k", value),
            lambda: txn.cas("k", 0, {"in": [value]}),
            lambda: db.put(run, "k", value),
        ):
            with pytest.raises(ValueEncodingError):
                call()
        assert txn.get("k") is None
    assert txn.txn_id is None


@pytest.mark.parametrize("version", [-1, 1.0, "1", None, True, 2**64])
def test_bad_expected_versions_are_refused(db: Database, run: RunId, version: Any) -> None:
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError):
        txn.cas("k", version, 1)


@pytest.mark.parametrize("delta", [1.5, "1", None, True, 2**63, -(2**63) - 1])
def test_bad_deltas_are_refused(db: Database, run: RunId, delta: Any) -> None:
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError):
        txn.add("k", delta)


@pytest.mark.parametrize("limit", [-1, 1.0, "1", True])
def test_bad_scan_limits_are_refused(db: Database, run: RunId, limit: Any) -> None:
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError):
        txn.scan(limit=limit)


@pytest.mark.parametrize("name", ["prefix", "start", "end"])
def test_bad_scan_bounds_are_refused(db: Database, run: RunId, name: str) -> None:
    with db.begin(run) as txn:
        for bad in (7, ["a"], "\ud800"):
            with pytest.raises(InvalidKeyError):
                txn.scan(**{name: bad})  # type: ignore[call-overload]
        with pytest.raises(KeyTooLarge):
            txn.scan(**{name: "x" * 9000})  # type: ignore[call-overload]


@pytest.mark.parametrize("tag", [0, 0xFF, -1, "1", True, 1.0])
def test_bad_tags_are_refused(db: Database, run: RunId, tag: Any) -> None:
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError):
        txn.space(tag)
    with pytest.raises(InvalidArgumentError):
        db.space(run, tag)


def test_bad_isolation_and_timeout_are_refused(db: Database, run: RunId) -> None:
    for isolation in ("dirty", "", 1):
        with pytest.raises(InvalidArgumentError):
            db.begin(run, isolation=isolation)  # type: ignore[arg-type]
    for timeout in (-1, "1", True, float("nan")):
        with pytest.raises(InvalidArgumentError):
            db.begin(run, timeout=timeout)  # type: ignore[arg-type]


def test_conflict_records_name_run_and_tag(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.space(TypeTag.STATE).put("cell", 1)
    version = db.space(run, TypeTag.STATE).put("cell", 2)
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    (conflict,) = caught.value.conflicts
    assert conflict == WriteConflict("cell", txn.start_version, version, run, TypeTag.STATE)


def test_receipt_is_seen_from_every_run_of_the_transaction(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    seen = txn.for_run(RunId.new())
    seen.put("k", 1)
    assert txn.receipt is None
    assert seen.commit() is txn.receipt


def test_what_was_made_by_hand_refuses_calls(run: RunId) -> None:
    made: Transaction = Transaction.__new__(Transaction)
    for call in (
        made.commit,
        made.abort,
        made.scan,
        made.validate,
        lambda: made.get("k"),
        lambda: made.put("k", 1),
    ):
        with pytest.raises(TransactionStateError):
            call()
