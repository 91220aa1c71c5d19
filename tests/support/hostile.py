"""A database in which every text of every primitive tries to be markup, script or an address."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest

import occamdb
from occamdb import Custom, Decision, Error, Query, RunId, Thought, ToolCall, Transaction

__all__ = ["MARK", "NASTY", "Hostile", "fill"]

MARK = "hostile"  # in each of them, so that a test finds where they went
NASTY = (
    f"<script>alert('{MARK}')</script>",
    f'"><img src=x onerror=alert("{MARK}")>',
    f"' onmouseover='alert(\"{MARK}\")' x='",
    f"javascript:alert('{MARK}')",
    f"]]></svg></style></title></textarea></pre><svg onload=alert({MARK})>",
    f"{{{{ 7919 * 7907 }}}} {{% raw %}} ${{{MARK}}} <%= {MARK} %>",
    f"<!-- {MARK} --> <a href='https://evil.example/{MARK}'>{MARK}</a> &lt;b&gt; &#60;i&#62;",
    f"\x00\x1b[2J\u202e{MARK}\u2066\ufeff\ud800\r\n\tend",
    f"data:text/html,<script>{MARK}</script>",
    f"`{MARK}` \\u003cscript\\u003e <ſcript> ＜script＞ <STYLE>*{{x:expression({MARK})}}</STYLE>",
)


@dataclass(frozen=True)
class Hostile:
    """The runs that were made.

    Attributes:
      runs: one for each text.
      trace: a trace of the first run.
    """

    runs: list[RunId]
    trace: str


def fill(db: occamdb.Database) -> Hostile:
    """Store every text in every field that takes text, and as bytes where bytes are taken."""
    runs = [_fill_run(db, at, _plain(text)) for at, text in enumerate(NASTY)]
    roots = db.traces.get_roots(runs[0])
    for text in map(_plain, NASTY):
        _lose(db, runs[0], text)
    return Hostile(runs, roots[0].id)


def _plain(text: str) -> str:
    """Without what no field may hold: lone surrogates are stored as bytes of a value instead."""
    return text.encode("utf-8", "replace").decode()


def _fill_run(db: occamdb.Database, at: int, text: str) -> RunId:
    data: dict[str, Any] = {text: [text, {text: text.encode()}, 1.5, None]}
    run = db.runs.create_run(text, tags=[text, f"{at} {text}"], metadata=data).run_id
    for trace in (
        Thought(text),
        ToolCall(text, data, data),
        Decision(text, [text, text], text, text),
        Query(text, text, data),
        Error(text, text),
        Custom(text, data),
    ):
        db.traces.record(run, trace, tags=[text], metadata=data)
    with contextlib.suppress(ValueError), db.traces.span(run, ToolCall(text)):
        db.traces.record(run, Thought(text))
        raise ValueError(text)
    db.traces.begin_span(run, Custom(text, text))
    db.events.append(run, text, data)
    db.cells.init(run, text, data)
    db.kv.put(run, text, data)
    db.kv.put(run, text.encode() + b"\xff", text.encode() + b"\xff\x00")
    db.kv.put(run, f"ttl {text}", text, ttl=3600)
    db.tasks.put(run, text, data, key=text)
    task = db.tasks.claim(run, text)
    assert task is not None
    db.tasks.fail(run, task, text)
    db.tasks.put(run, text, text)
    db.leases.acquire(run, f"{text} lease")
    db.steps.run(run, text, lambda: data)
    with contextlib.suppress(ValueError):
        db.steps.run(run, f"failing {text}", _failing(text))
    db.runs.fail_run(run, text)
    return run


def _failing(text: str) -> Any:
    def fail() -> None:
        raise ValueError(text)

    fail.__name__ = fail.__qualname__ = text
    return fail


def _lose(db: occamdb.Database, run: RunId, text: str) -> None:
    """A conflict about a key of this name."""
    txn: Transaction = db.begin(run)
    txn.get(text)
    txn.put("other", 1)
    db.put(run, text, text)
    with pytest.raises(occamdb.ConflictError):
        txn.commit()
