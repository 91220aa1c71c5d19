"""`OccamTracing`: the traces and spans of the OpenAI Agents SDK as trees of a run's traces.

1. The agent's thread only puts steps into a queue. One thread writes them, as many as wait in one transaction, so a
   span is in the database a few milliseconds after it began, and open there until it ends.
2. A trace has a run of its own, which is completed when it ends. Its first record is the root of a tree, and each span
   is below its parent.
3. Nothing here raises into an agent: what cannot be written is logged, and left out with what is below it.
4. The ids of open traces belong to the writing thread. A child process after a fork begins with none, and a queue of
   its own.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agents.tracing import Span, Trace
from agents.tracing.processor_interface import TracingProcessor

from occamdb import (
    CommitOutcomeUnknown,
    CoordinatorUnavailable,
    Custom,
    DatabaseClosedError,
    LogWriteError,
    RunId,
    RunStatus,
    StoreFullError,
    ToolCall,
    Transaction,
)
from occamdb.plugins._support import AnyDatabase, Engine, run_named

__all__ = ["OccamTracing"]

KIND = "openai-trace"
ROOT = ""  # the id of the first record of a trace, among those of its spans
BATCH_MAX = 512

# With these no step can be written, and after an unknown outcome none should be written twice.
_OF_THE_DATABASE = (
    CommitOutcomeUnknown,
    CoordinatorUnavailable,
    DatabaseClosedError,
    LogWriteError,
    StoreFullError,
)

_log = logging.getLogger("occamdb.plugins.openai_agents")


@dataclass(frozen=True)
class _TraceBegan:
    trace_id: str
    about: dict[str, Any]


@dataclass(frozen=True)
class _SpanBegan:
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    about: dict[str, Any]
    started_at: str | None


@dataclass(frozen=True)
class _Ended:
    trace_id: str
    span_id: str
    about: dict[str, Any]
    error: str | None
    duration_ms: float | None


_Step = _TraceBegan | _SpanBegan | _Ended


@dataclass
class _Tree:
    """What the writing thread knows of a trace.

    Attributes:
      run: its run.
      ids: the ids of its records that have not ended.
      about: what each of them began with.
      ended: its root has ended; the ends of further spans may follow.
    """

    run: RunId
    ids: dict[str, str] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: bool = False


class OccamTracing(TracingProcessor):
    """A tracing processor that writes to an occamdb database: `add_trace_processor(OccamTracing(db))`.

    `occamdb runs PATH --tag openai-trace` lists the traces, and `occamdb traces PATH RUN --tree` shows one.

    Args:
      db: a Database, an AsyncDatabase, or the path of a database.
      pending_max: when so many steps wait to be written, new spans are left out until fewer do.

    Raises:
      TypeError: `db` is nothing of the kind.
    """

    def __init__(self, db: AnyDatabase, *, pending_max: int = 50_000) -> None:
        self._engine = Engine(db)
        self._pending_max = pending_max
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._starting = threading.Lock()  # only held to start the thread
        self._queue: queue.SimpleQueue[_Step | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trees: dict[str, _Tree] = {}
        self._began: dict[str, float] = {}
        self._stopped = False
        self._full = False
        self._pid = os.getpid()

    def run_of(self, trace_id: str) -> RunId:
        """The run that holds a trace."""
        return run_named(KIND, trace_id)

    # --- What the SDK calls, in the threads of agents ---

    def on_trace_start(self, trace: Trace) -> None:
        """Begin a run and the root of its tree."""
        self._safely(self._trace_began, trace)

    def on_trace_end(self, trace: Trace) -> None:
        """End the root, and complete the run."""
        self._safely(self._trace_ended, trace)

    def on_span_start(self, span: Span[Any]) -> None:
        """Begin a record below the one of its parent."""
        self._safely(self._span_began, span)

    def on_span_end(self, span: Span[Any]) -> None:
        """End it, with what the span has come to."""
        self._safely(self._span_ended, span)

    def force_flush(self) -> None:
        """Wait until everything that was reported so far is written."""
        written = threading.Event()
        if self._put(written):
            thread = self._thread
            # A shutdown at the same moment may end the thread before it comes to this.
            while not written.wait(0.2) and thread is not None and thread.is_alive():
                pass

    def shutdown(self, timeout: float | None = None) -> None:
        """Write what is left, and end the thread. What is reported afterwards is left out.

        Args:
          timeout: seconds to wait for it; None: until it is done.
        """
        if self._put(None):
            self._stopped = True
            if self._thread is not None:
                self._thread.join(timeout)
        self._engine.close()

    def _safely(self, report: Any, reported: Any) -> None:
        try:
            report(reported)
        except Exception:
            _log.exception("a step of an agent could not be traced")

    def _trace_began(self, trace: Trace) -> None:
        exported = _plain(trace.export() or {})
        self._began[trace.trace_id] = time.monotonic()
        if self._has_room():
            self._put(_TraceBegan(trace.trace_id, _given(exported, leave_out={"object"})))

    def _trace_ended(self, trace: Trace) -> None:
        began = self._began.pop(trace.trace_id, None)
        took = None if began is None else (time.monotonic() - began) * 1000
        self._put(_Ended(trace.trace_id, ROOT, {}, None, took))

    def _span_began(self, span: Span[Any]) -> None:
        if self._has_room():
            kind, about = _described(span)
            parent_id = span.parent_id or ROOT
            self._put(_SpanBegan(span.trace_id, span.span_id, parent_id, kind, about, span.started_at))

    def _span_ended(self, span: Span[Any]) -> None:
        error = None
        if span.error is not None:
            error, data = span.error["message"], span.error.get("data")
            if data:
                error = f"{error} {json.dumps(_plain(data), ensure_ascii=False)}"
        _, about = _described(span)
        self._put(_Ended(span.trace_id, span.span_id, about, error, _duration_ms(span)))

    def _has_room(self) -> bool:
        full = self._queue.qsize() >= self._pending_max
        if full and not self._full:
            _log.warning("%d steps wait to be written: new spans are left out", self._pending_max)
        self._full = full
        return not full

    def _put(self, step: _Step | threading.Event | None) -> bool:
        """Queue a step for the writing thread, which is started if there is none. False after `shutdown`."""
        if self._pid != os.getpid():
            self._begin_anew()
        if self._stopped:
            return False
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, args=(self._queue,), name="occamdb-traces", daemon=True
                    )
                    self._thread.start()
        self._queue.put(step)
        return True

    # --- The writing thread ---

    def _run(self, steps: queue.SimpleQueue[_Step | threading.Event | None]) -> None:
        going_on = True
        while going_on:
            batch: list[_Step] = []
            flushed: list[threading.Event] = []
            taken = steps.get()
            while True:
                if taken is None:
                    going_on = False
                elif isinstance(taken, threading.Event):
                    flushed.append(taken)
                else:
                    batch.append(taken)
                if len(batch) == BATCH_MAX or not going_on:
                    break
                try:
                    taken = steps.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._write(batch)
            for event in flushed:
                event.set()

    def _write(self, batch: Sequence[_Step]) -> None:
        """Write steps in one transaction; if one of them cannot be written, each in one of its own."""
        try:
            self._write_together(batch)
        except Exception as problem:
            if len(batch) > 1 and not isinstance(problem, _OF_THE_DATABASE):
                for step in batch:
                    self._write([step])
            else:
                _log.warning("steps of traces that were not written: %d (%s)", len(batch), problem)

    def _write_together(self, batch: Sequence[_Step]) -> None:
        changed: dict[str, _Tree] = {}

        def write(txn: Transaction) -> None:
            changed.clear()  # it may be called several times
            for step in batch:
                tree = changed.get(step.trace_id)
                if tree is None:
                    known = self._trees.get(step.trace_id) or _Tree(self.run_of(step.trace_id))
                    tree = _Tree(known.run, {**known.ids}, {**known.about}, known.ended)
                    changed[step.trace_id] = tree
                _write_step(txn.for_run(tree.run), tree, step)

        self._engine.db.transaction(self.run_of(batch[0].trace_id), write)
        self._trees |= changed
        for trace_id, tree in changed.items():
            if tree.ended and not tree.ids:
                del self._trees[trace_id]


def _write_step(txn: Transaction, tree: _Tree, step: _Step) -> None:
    """Write a step to its run, and note it in the tree."""
    if isinstance(step, _Ended):
        _write_end(txn, tree, step)
    elif isinstance(step, _TraceBegan):
        if txn.runs.get_run(tree.run) is None:
            group = step.about.get("group_id")
            tags = [KIND] if group is None else [KIND, f"openai-group/{group}"]
            txn.runs.create_run(f"{KIND}/{step.trace_id}", run_id=tree.run, tags=tags, metadata=step.about)
        tree.ids[ROOT] = txn.traces.begin_span(Custom("workflow", step.about), parent_id=None)
    else:
        about = step.about
        what: ToolCall | Custom = Custom(step.kind, about)
        if step.kind == "function":
            about = {name: value for name, value in about.items() if name in ("name", "input")}
            what = ToolCall(str(about.get("name")), about.get("input"))
        parent = tree.ids.get(step.parent_id) or tree.ids.get(ROOT)
        metadata = {"span_id": step.span_id, "started_at": step.started_at}
        tree.ids[step.span_id] = txn.traces.begin_span(what, parent_id=parent, metadata=metadata)
        tree.about[step.span_id] = about


def _write_end(txn: Transaction, tree: _Tree, step: _Ended) -> None:
    if step.span_id == ROOT:
        tree.ended = True
        run = txn.runs.get_run(tree.run)
        if run is not None and run.status is RunStatus.ACTIVE:
            txn.runs.complete_run(tree.run)
    trace_id = tree.ids.pop(step.span_id, None)
    if trace_id is None:
        return  # its beginning was left out
    before = tree.about.pop(step.span_id, {})
    result = {name: value for name, value in step.about.items() if before.get(name) != value}
    txn.traces.end_span(trace_id, result=result or None, error=step.error, duration_ms=step.duration_ms)


def _described(span: Span[Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a span, and what it has to say so far."""
    data = span.span_data
    exported = _plain(data.export())
    inner = exported.get("data")
    if data.type == "custom":
        return str(exported.get("name") or "custom"), _given(inner if isinstance(inner, dict) else {})
    if isinstance(inner, dict):  # a kind of span that the SDK exports as a custom one
        return data.type, _given(inner, leave_out={"sdk_span_type"})
    return data.type, _given(exported, leave_out={"type"})


def _given(about: Mapping[str, Any], leave_out: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    return {name: value for name, value in about.items() if value is not None and name not in leave_out}


def _duration_ms(span: Span[Any]) -> float | None:
    if span.started_at is None or span.ended_at is None:
        return None
    took = datetime.fromisoformat(span.ended_at) - datetime.fromisoformat(span.started_at)
    return max(took.total_seconds() * 1000, 0.0)


def _plain(value: Any) -> Any:
    """A value as it can be stored: what is not plain data becomes its text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, str):
        return str(value).encode(errors="replace").decode()  # without lone surrogates
    if isinstance(value, Mapping):
        return {str(_plain(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    dump = getattr(value, "model_dump", None)  # models of pydantic, as the SDK uses for outputs
    return _plain(dump(mode="json")) if callable(dump) else _plain(str(value))
