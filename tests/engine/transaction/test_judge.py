"""The commit core alone judges conflicts: `validate` asks it, and an early refusal only compares versions."""

from __future__ import annotations

import pytest

from occamdb import Database
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.commit.messages import (
    Op,
    OpCode,
    Request,
    RequestFlags,
    Status,
    decode_reply,
    encode_request,
)
from occamdb.engine.model.errors import (
    CASConflict,
    CommitOutcomeUnknown,
    ConflictError,
    CoordinatorUnavailable,
    ReadConflict,
    WriteConflict,
)
from occamdb.engine.model.public_types import RunId, TransactionStatus, TypeTag
from occamdb.engine.model.settings import Settings
from occamdb.engine.transaction._answer import Answer
from tests.support.databases import memory_database


def test_validate_sees_a_key_that_was_made_and_deleted_since_the_snapshot(db: Database, run: RunId) -> None:
    """It left no value and no version to compare: only the commit core can know."""
    txn = db.begin(run)
    assert list(txn.scan("r/")) == []
    txn.put("w", 1)
    db.put(run, "r/1", 1)
    db.put(run, "w", 1)
    db.delete(run, "r/1")
    db.delete(run, "w")
    found = txn.validate()
    assert {type(conflict) for conflict in found} == {ReadConflict, WriteConflict} and len(found) == 2
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert set(caught.value.conflicts) == set(found)


def test_validate_sees_that_a_range_with_an_increment_in_it_was_deleted(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.add("counters/a")
    db.space(run, TypeTag.KV).delete_range("counters/")
    (conflict,) = txn.validate()
    assert isinstance(conflict, WriteConflict) and conflict.key == "counters/a"
    txn.abort()


def test_validate_neither_commits_nor_counts(db: Database, run: RunId) -> None:
    db.put(run, "k", 1)
    txn = db.begin(run)
    txn.get("k")
    txn.put("w", 1)
    version = db.attachment().committed_version
    assert txn.validate() == ()
    assert (db.attachment().committed_version, db.get(run, "w")) == (version, None)
    db.put(run, "k", 2)
    before = db.stats()
    assert len(txn.validate()) == 1
    after = db.stats()
    changed = {name for name in before if "conflict" in name and before[name] != after[name]}
    assert not changed
    for figure in ("commits", "refused"):
        assert before.get(figure) == after.get(figure)
    assert txn.status is TransactionStatus.ACTIVE and txn.txn_id is None
    txn.abort()


def test_a_transaction_that_was_validated_commits(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.cas("k", 0, "new")
    for _ in range(3):
        assert txn.validate() == ()
    txn.commit()
    assert db.get(run, "k") == "new"


@pytest.mark.local_only("a server judges every commit itself; here a stale one is refused before it is sent")
def test_an_early_refusal_names_every_changed_read_and_every_failed_expectation(
    db: Database, run: RunId
) -> None:
    versions = {name: db.put(run, name, 0) for name in "abcd"}
    txn = db.begin(run)
    for name in "abc":
        txn.get(name)
    txn.cas("d", versions["d"], 1)
    txn.put("b", 1)
    txn.put("c", 1)
    newer = {name: db.put(run, name, 1) for name in "acd"}
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert txn.txn_id is None  # nothing was sent
    tag = TypeTag.KV
    assert caught.value.conflicts == (
        ReadConflict("a", versions["a"], newer["a"], None, run, tag),
        ReadConflict("c", versions["c"], newer["c"], None, run, tag),
        CASConflict("d", versions["d"], newer["d"], run, tag),
        WriteConflict("c", txn.start_version, newer["c"], run, tag),
    )
    assert caught.value.conflicts_found == 4


def test_a_stale_transaction_that_walked_a_range_is_judged_as_a_whole(db: Database, run: RunId) -> None:
    db.put(run, "k", 0)
    txn = db.begin(run)
    txn.get("k")
    list(txn.scan("r/"))
    txn.put("w", 1)
    db.put(run, "k", 1)
    db.put(run, "r/1", 1)
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert [conflict.key for conflict in caught.value.conflicts] == ["k", "r/"]
    assert txn.txn_id is not None


def test_an_early_refusal_lists_sixteen_and_counts_all(db: Database, run: RunId) -> None:
    names = [f"k{number:02}" for number in range(20)]
    for name in names:
        db.put(run, name, 0)
    txn = db.begin(run)
    for name in names:
        txn.get(name)
    txn.put("w", 1)
    for name in names:
        db.put(run, name, 1)
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert [conflict.key for conflict in caught.value.conflicts] == names[:16]
    assert caught.value.conflicts_found == 20


@pytest.mark.parametrize("expected", [0, 9])
def test_a_request_that_asks_for_a_judgement_applies_nothing(expected: int) -> None:
    handle = LocalHandle(Settings.of({"max_store_size": "4MiB"}))
    ops = (Op(OpCode.CAS, b"key", argument=expected), Op(OpCode.PUT, b"key", b"\x01"))
    request = bytearray(
        encode_request(Request(1, ops=ops, flags=RequestFlags.BLIND | RequestFlags.JUDGE_ONLY))
    )
    answer = handle.submit(request, None)
    assert isinstance(answer.reply, bytes)
    reply = decode_reply(answer.reply)
    assert reply.status is (Status.CONFLICT if expected else Status.COMMITTED)
    assert (reply.commit_version, reply.conflicts_found) == (0, int(expected != 0))
    assert handle.attachment().committed_version == 0
    assert handle.admin({"kind": "check"}) == {"problem": None}
    handle.close()


def test_without_an_answer_the_transaction_stays_active(run: RunId) -> None:
    class Silent(LocalHandle):
        silent = False

        def submit(self, request: bytearray, deadline: float | None) -> Answer:
            if self.silent:
                raise CommitOutcomeUnknown("no answer")
            return super().submit(request, deadline)

    handle = Silent(Settings.of({"max_store_size": "4MiB"}))
    with Database(handle) as db:
        txn = db.begin(run)
        txn.put("k", 1)
        handle.silent = True
        with pytest.raises(CoordinatorUnavailable, match="still active"):
            txn.validate()
        handle.silent = False
        txn.commit()
        assert db.get(run, "k") == 1


def test_validate_of_a_transaction_that_did_nothing_asks_nobody(run: RunId) -> None:
    with memory_database() as db:
        txn = db.begin(run)
        sequence = db.put(run, "other", 1)
        assert txn.validate() == () and sequence
        txn.abort()
