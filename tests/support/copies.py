"""What tests of copies need: runs that hold something of every primitive, and the content of a run as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import occamdb
from occamdb import Database, RunId
from occamdb.engine.model.values import Codec

__all__ = ["Point", "content", "fill", "hooks"]

Content = dict[tuple[int, bytes], tuple[bytes, bool]]


@dataclass
class Point:
    """A type of the user's own."""

    x: int
    y: int


hooks = occamdb.value_hooks(Point)


def fill(db: Database, name: str = "mission", keys: int = 20) -> RunId:
    """A run with something of every primitive, a key bound to this session, and one that expires in an hour.

    Args:
      db: opened with `hooks`.
    """
    run = db.runs.create_run(name, tags=["one", "two"], metadata={"of": "test"}).run_id
    db.runs.create_run(name + "/child", parent=run)
    for number in range(keys):
        db.kv.put(run, f"key-{number:04}", {"number": number, "text": "x" * number})
    for number in range(0, keys, 3):  # so that the order of keys is not the order of versions
        db.kv.put(run, f"key-{number:04}", [number])
    db.kv.put(run, b"\xff\x00binary", b"\x00\x01")
    db.kv.put(run, "typed", Point(1, 2))
    db.kv.put(run, "soon gone", 1, ttl=3600)
    db.kv.put(run, "mine", 1, ephemeral=True)
    for number in range(5):
        db.events.append(run, "step", {"number": number})
    db.cells.init(run, "phase", "plan")
    with db.traces.span(run, occamdb.ToolCall("search", {"q": 1}), tags=["t"]):
        pass
    db.tasks.put(run, "work", {"file": "a"}, key="a")
    db.tasks.put(run, "work", {"file": "b"}, priority=5)
    claimed = db.tasks.claim(run, "work")
    assert claimed is not None
    db.tasks.complete(run, claimed, 7)
    db.steps.run(run, "fetch", lambda: {"done": True})
    db.runs.complete_run(run)
    return run


def content(db: Database, run: RunId) -> Content:
    """Of every key of a run that is bound to no session, the value, and whether it expires."""
    codec = Codec()
    found: Content = {}
    plain: Database = Database(
        db.handle, namespace=db.current_namespace
    )  # types of the user's own stay as they are
    with plain.begin(run, read_only=True) as txn:
        for tag in range(1, 0xFF):
            for key, row in txn.space(tag, raw=True).scan():
                if not row.session:
                    value: Any = codec.encode(row.value)
                    found[tag, key] = value, row.expires_at_ns > 0
    return found
