"""What objects show of themselves: place, state and what a person looks for; no addresses and no raw hashes."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Database, RunMetadata, Thought, ToolCall
from tests.support.databases import memory_database
from tests.support.processes import open_database


def test_a_database_shows_where_it_is_and_its_modes(database_path: Path) -> None:
    with open_database(database_path) as db:
        assert db.path == str(database_path)
        shown = repr(db)
        other = repr(db.namespace(tenant="acme", app="chat"))
    assert repr(str(database_path)) in shown and "durability='standard'" in shown and "serializable" in shown
    assert "namespace=" not in shown
    assert "namespace=acme/chat/default" in other


def test_a_closed_database_says_so(database_path: Path) -> None:
    with memory_database() as db:
        assert db.path is None
        assert repr(db).startswith("<Database in memory durability='none'") and "closed" not in repr(db)
    assert repr(db) == "<Database in memory closed>"
    with pytest.raises(occamdb.DatabaseClosedError), db:
        pass
    with open_database(database_path) as second:
        assert not repr(second).endswith(" closed>")
    assert repr(second) == f"<Database {str(database_path)!r} closed>"


def test_facades_and_transactions_show_what_they_are_of(db: Database, run: RunId) -> None:
    for name in ("kv", "events", "cells", "traces", "runs", "tasks"):
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


def everything_public(db: Database, run: RunId) -> Iterator[Any]:
    """An object of each public type that a database hands out."""
    meta = db.runs.create_run("agent", run_id=run, tags=["a"])
    root = db.traces.record(run, ToolCall("search", {"q": 1}))
    span = db.traces.span(run, Thought("hm"), parent=root)
    yield span
    with span:
        yield span
    yield span
    yield from (meta, db.traces.get(run, root), db.traces.get_tree(run, root))
    db.put(run, "k", 1)
    with db.begin(run) as txn:
        txn.put("k", 2)
        yield from (txn, txn.for_run(RunId.new()), txn.space(1), txn.scan(), txn.kv, txn.traces)
    yield from (txn, txn.receipt, db.get_versioned(run, "k"), db.space(run, 0x42), db.kv.scan(run))
    yield from (db.events.append(run, "e", {}), db.events.verify_chain(run), db.kv.mapping(run))
    db.cells.init(run, "c", 1)
    yield from (db, db.kv, db.cells, db.runs, db.cells.read(run, "c"), db.namespace(agent="x"))
    with db.snapshot(run) as view:
        yield from (view, view.kv, view.events, view.clone())
    for attempt in db.attempts(run):
        yield attempt
        with attempt:
            yield attempt
    yield from (occamdb.Settings(), occamdb.Limits(), occamdb.RetryPolicy(), occamdb.Namespace(), run)
    yield from (occamdb.Unrestored("Point", [1]), occamdb.RunStatus.ACTIVE, occamdb.TypeTag.KV)


def test_nothing_public_shows_an_address_or_raw_bytes(db: Database) -> None:
    for shown in everything_public(db, RunId.new()):
        assert not re.search(r"\bat 0x|object at|\\\\x[0-9a-f]{2}", repr(shown)), repr(shown)


def test_a_trace_tree_and_a_span_show_what_they_are_about(db: Database, run: RunId) -> None:
    span = db.traces.span(run, ToolCall("search", {"q": "x"}))
    assert repr(span) == "<Span ToolCall not begun>"
    with span:
        assert repr(span) == f"<Span ToolCall open id={span.id}>"
        shown = repr(db.traces.get_tree(run, span.id))
        assert shown == (
            f"<TraceTree ToolCall(tool='search', args={{'q': 'x'}}) open id={span.id} 0 children>"
        )
        db.traces.record(run, Thought("below"))
    assert repr(span) == f"<Span ToolCall ended id={span.id}>"
    shown = repr(db.traces.get_tree(run, span.id))
    assert " completed " in shown and " ms " in shown and "1 child>" in shown


class Balanced(HTMLParser):
    """Checks that every element is closed, and collects elements and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<script>alert(1)</script>\"'&"
TABLE = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_a_run_in_a_notebook_is_a_table_of_escaped_text(db: Database) -> None:
    run = db.runs.create_run(HOSTILE, tags=[HOSTILE], metadata={HOSTILE: HOSTILE})
    failed = db.runs.fail_run(run, HOSTILE)
    page = Balanced(failed._repr_html_())
    assert page.seen <= TABLE
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert str(run.run_id) in page.text and "failed" in page.text and "duration" in page.text
    assert isinstance(run, RunMetadata) and "duration" not in Balanced(run._repr_html_()).text


def test_a_trace_tree_in_a_notebook_is_a_table_of_escaped_text(db: Database, run: RunId) -> None:
    root = db.traces.begin_span(run, ToolCall(HOSTILE, {HOSTILE: HOSTILE}))
    below = db.traces.begin_span(run, Thought(HOSTILE), parent_id=root)
    db.traces.end_span(run, below, error=HOSTILE, duration_ms=1500)
    page = Balanced(db.traces.get_tree(run, root)._repr_html_())
    assert page.seen <= TABLE
    assert page.text.count("<script>alert(1)</script>") >= 4
    for word in ("open", "failed", "1.50 s", "UTC"):
        assert word in page.text


def test_a_large_tree_in_a_notebook_is_cut_and_says_so(run: RunId) -> None:
    with memory_database() as db:
        with db.begin(run) as txn:
            above = root = txn.traces.record(Thought("0"))
            for number in range(1, 1500):
                above = txn.traces.record_child(above, Thought(str(number)))
        page = Balanced(db.traces.get_tree(run, root)._repr_html_())
        assert (
            "… 500 more" in page.text and "content='999'" in page.text and "content='1000'" not in page.text
        )
