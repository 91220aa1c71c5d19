"""`occamdb wal dump`: run ids are the same text in every entry, so that entries can be joined by them."""

import uuid

import occamdb
from tests.support.shell import Shell


def test_a_run_id_is_the_same_text_in_every_entry(shell: Shell, db: occamdb.Database) -> None:
    kept, deleted = occamdb.RunId.new(), occamdb.RunId.new()
    for run in (kept, deleted):
        db.put(run, "k", 1)
    db.delete(kept, "k")
    with db.begin(kept) as txn:
        txn.put("left", 1)
    db.runs.delete_run(deleted)
    db.space(kept, 1).delete_range("l")
    rows = shell.lines("wal", "dump", "DB", "--json")
    texts = [row[name] for row in rows for name in ("run", "run_id") if name in row]
    assert all(text == str(uuid.UUID(text)) for text in texts)
    for kind, name in (("BeginTxn", "run_id"), ("Write", "run"), ("Delete", "run"), ("DeleteRange", "run")):
        assert {row[name] for row in rows if row["type"] == kind} & {str(kept), str(deleted)}, kind
    assert {row["run"] for row in rows if row["type"] == "DeleteRange"} == {str(kept), str(deleted)}
    begun = {tuple(row["txn_id"]): row["run_id"] for row in rows if row["type"] == "BeginTxn"}
    ended = [tuple(row["txn_id"]) for row in rows if row["type"] == "CommitTxn"]
    assert [begun[txn] for txn in ended].count(str(kept)) == 4
    for line in shell("wal", "dump", "DB").splitlines():
        assert kept.hex not in line and deleted.hex not in line.split("start=")[0]
