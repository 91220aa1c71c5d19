"""What objects show of themselves: place, state and what a person looks for; no addresses and no raw hashes."""

from pathlib import Path

from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Database
from tests.support.databases import memory_database
from tests.support.processes import open_database


def test_a_database_shows_where_it_is_and_its_modes(shared_path: Path, shared_database: Database) -> None:
    assert shared_database.path == str(shared_path)
    shown = repr(shared_database)
    assert repr(str(shared_path)) in shown and "durability='standard'" in shown and "serializable" in shown
    assert "namespace=" not in shown
    other = repr(shared_database.namespace(tenant="acme", app="chat"))
    assert "namespace=acme/chat/default" in other


def test_a_closed_database_says_so(shared_path: Path) -> None:
    with memory_database() as db:
        assert db.path is None
        assert repr(db).startswith("<Database in memory durability='none'") and "closed" not in repr(db)
    assert repr(db) == "<Database in memory closed>"
    with open_database(shared_path) as second:
        assert "closed" not in repr(second)
    assert repr(second) == f"<Database {str(shared_path)!r} closed>"


def test_facades_and_transactions_show_what_they_are_of(db: Database, run: RunId) -> None:
    for name in ("kv", "events", "cells", "traces", "runs"):
        shown = repr(getattr(db, name))
        assert repr(name) in shown and repr(db) in shown and " at 0x" not in shown
    with db.begin(run) as txn:
        assert str(run) in repr(txn) and "active" in repr(txn)
        assert repr(txn) in repr(txn.kv)
        assert repr(txn) in repr(txn.kv.mapping())
    assert "committed" in repr(txn)
    assert str(run) in repr(db.kv.mapping(run)) and " at 0x" not in repr(db.kv.mapping(run))


def test_a_snapshot_shows_its_run_and_state(db: Database, run: RunId) -> None:
    view = db.snapshot(run)
    assert repr(view) == f"<Snapshot open run={run} version={view.version}>"
    view.close()
    assert repr(view) == f"<Snapshot closed run={run} version={view.version}>"


def test_an_event_shows_the_begin_of_its_hash(db: Database, run: RunId) -> None:
    event = db.events.append(run, "started", {"a": 1})
    shown = repr(event)
    assert shown.startswith("Event(0, 'started', {'a': 1}, timestamp=")
    assert event.hash.hex()[:8] in shown and event.hash.hex()[:16] not in shown and "\\x" not in shown


def test_a_receipt_shows_its_version_and_time(db: Database, run: RunId) -> None:
    txn = db.begin(run)
    txn.put("k", 1)
    receipt = txn.commit()
    assert f"version={receipt.version}" in repr(receipt) and receipt.committed_at.isoformat() in repr(receipt)
