"""A receipt never says more than was done, whatever the handle asked for and whatever the coordinator does."""

from __future__ import annotations

from pathlib import Path

import pytest

import occamdb
from occamdb import InvalidArgumentError, RunId, TransactionStatus
from tests.support import processes
from tests.support.processes import open_database


@pytest.mark.parametrize(
    ("coordinator", "handle", "plain", "durable"),
    [
        ("none", "none", "none", None),
        ("standard", "none", "standard", "always"),
        ("standard", "standard", "standard", "always"),
        ("standard", "always", "always", "always"),
        ("always", "none", "always", "always"),
        ("always", "standard", "always", "always"),
        ("always", "always", "always", "always"),
    ],
)
def test_what_a_receipt_says(
    coordinator: str, handle: str, plain: str, durable: str | None, database_path: Path, run: RunId
) -> None:
    """`plain` by commit(), `durable` by commit(durable=True); None: refused, with nothing sent."""
    with (
        open_database(database_path, durability=coordinator, sync_interval=60.0) as first,
        occamdb.open(database_path, durability=occamdb.Durability(handle)) as db,
    ):
        figures = first.stats()
        with db.begin(run) as txn:
            txn.put("k", 1)
        assert txn.receipt is not None and txn.receipt.durability == plain
        # What was only read is as safe as the coordinator makes all commits, and no safer.
        assert db.begin(run).commit().durability == coordinator
        txn = db.begin(run)
        txn.put("k", 2)
        if durable is not None:
            syncs = first.stats()["log"]["syncs"]
            assert txn.commit(durable=True).durability == durable
            assert first.stats()["log"]["syncs"] > syncs
            return
        commits = first.stats()["commits"]
        with pytest.raises(InvalidArgumentError, match="keeps none"):
            txn.commit(durable=True)
        assert txn.status is TransactionStatus.ACTIVE and first.stats()["commits"] == commits
        assert txn.commit().durability == "none"
        assert db.get(run, "k") == 2 and first.stats()["commits"] == commits + 1
        assert figures["pid"] == first.stats()["pid"]


def test_a_receipt_after_the_coordinator_changed(database_path: Path, run: RunId) -> None:
    """A handle that asked for nothing goes on with a coordinator that keeps a log, and the other way round."""
    with open_database(database_path, durability="none") as db:
        db.put(run, "k", 1)
        assert db.begin(run).commit().durability == "none"
        db_txn = db.begin(run)
        db_txn.put("k", 2)
        assert db_txn.commit().durability == "none"
        processes.stop_coordinator(database_path)
        with open_database(database_path, durability="always"):
            with db.begin(run) as txn:
                txn.put("k", 3)
            assert txn.receipt is not None and txn.receipt.durability == "always"
