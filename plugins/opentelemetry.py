"""OpenTelemetry spans in a database's traces, and a database's traces as OpenTelemetry spans.

    import occamdb
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from occamdb.plugins.opentelemetry import OccamSpanExporter, read_spans

    with occamdb.open("agents.db") as db:
        exporter = OccamSpanExporter(db)
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        with provider.get_tracer("agent").start_as_current_span("invoke_agent planner"):
            ...
        provider.shutdown()
        print(read_spans(db, exporter.run_id))

1. A batch is one commit, and a span that was exported before is skipped: a batch may be exported again.
2. Children end before their parents, and so come first. A span whose parent is not there waits in the run, under
   `pending/`, and is recorded in the commit that records its parent, whichever process that is.
3. What OpenTelemetry knows of a span is kept whole in the metadata of its trace, so `read_spans` gives it back as it
   was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import occamdb
from occamdb import Database, OccamError, RunId, Transaction

from ._support import AnyDatabase, Engine, missing_extra, run_named, warn_if_newer

try:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from ._otel_otlp import to_otlp
    from ._otel_spans import (
        INTERNED,
        METADATA,
        Interned,
        Packed,
        error_of,
        native_span,
        packed,
        safe,
        span_record,
        unpacked,
    )
except ImportError as error:
    missing_extra("opentelemetry", error)

__all__ = ["OccamSpanExporter", "read_spans", "to_otlp"]

KIND = "opentelemetry"
BATCH_MAX = 2048
SWEEP_S = 10.0
LOCAL_ORPHAN_S = 86_400.0
PENDING = "pending/"

logger = logging.getLogger(__name__)


class OccamSpanExporter(SpanExporter):
    """Exports spans into the traces of a run.

    Args:
      db: an open database of either form, which stays its owner's to close; or the path of one, which is opened here
        and closed by `shutdown`.
      name: of the run, `opentelemetry/NAME`. Processes whose spans belong to the same traces share it.
      orphans_after: seconds after which a span whose parent is in a process that does not export it here is recorded
        without it.

    Attributes:
      run_id: the run.

    Raises:
      TypeError: `db` or `name` is of another type.
    """

    def __init__(self, db: AnyDatabase, *, name: str = "default", orphans_after: float = 60.0) -> None:
        warn_if_newer("opentelemetry-sdk", "1.45")
        self.run_id = run_named(KIND, name)
        self._name = f"{KIND}/{name}"
        self._engine = Engine(db)
        self._orphans_after = orphans_after
        self._swept = time.monotonic()
        self._ended = False

    @property
    def _db(self) -> Database:
        return self._engine.db

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Record a batch in one commit. It never raises: what went wrong is logged."""
        if self._ended:
            return SpanExportResult.FAILURE
        try:
            for first in range(0, len(spans), BATCH_MAX):
                self._export(spans[first : first + BATCH_MAX])
            if time.monotonic() - self._swept > max(SWEEP_S, self._orphans_after):
                self.record_orphans()
        except OccamError as error:
            logger.error("%d spans were not exported: %s", len(spans), error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _export(self, spans: Sequence[ReadableSpan]) -> None:
        interned = Interned()
        rows = [packed(span, interned) for span in spans]
        try:
            self._db.transaction(self.run_id, lambda txn: self._record_all(txn, rows, interned))
        except (occamdb.InvalidArgumentError, occamdb.LimitExceeded) as error:
            if isinstance(error, occamdb.StoreFullError):
                raise
            # One of them cannot be stored. Each for itself then, with what does not fit as text.
            for row in rows:
                self._export_alone(safe(row), interned)

    def _export_alone(self, row: Packed, interned: Interned) -> None:
        try:
            self._db.transaction(self.run_id, lambda txn: self._record_all(txn, [row], interned))
        except (occamdb.InvalidArgumentError, occamdb.LimitExceeded) as error:
            if isinstance(error, occamdb.StoreFullError):
                raise
            logger.error("span %s was dropped, because it cannot be stored: %s", row["span"], error)

    # --- Recording, in a transaction ---

    def _record_all(self, txn: Transaction, rows: list[Packed], interned: Interned) -> None:
        txn.runs.get_or_create(self._name, tags=[KIND])
        for key, value in interned.items.items():
            if not txn.kv.exists(key):
                txn.kv.put(key, value)
        waiting = _Waiting(txn, {row["trace"] for row in rows})
        own = {(row["trace"], row["span"]) for row in rows}
        ready: list[_Entry] = []
        for row in rows:
            if (row["trace"], row["parent"]) in own:
                waiting.add(row)
            else:
                ready.append((None, row))
        _record(txn, ready, waiting)
        for row in waiting.new():  # under one that waits itself
            _keep(txn, row)

    def record_orphans(self, *, older_than: float | None = None) -> int:
        """Record spans that wait for a parent in vain, without it; gives how many.

        Args:
          older_than: seconds for which they have waited. None: `orphans_after` for those whose parent is in another
            process, and a day for those whose parent may still be running in theirs.
        """
        self._swept = time.monotonic()
        now = time.time_ns()

        def overdue(row: Packed, since_ns: int) -> bool:
            limit = self._orphans_after if row.get("remote") else LOCAL_ORPHAN_S
            return now - since_ns >= (limit if older_than is None else older_than) * 1e9

        with self._db.snapshot(self.run_id) as snapshot:
            rows = snapshot.kv.scan(PENDING)
            keys = [key for key, kept in rows if overdue(kept.value, kept.timestamp_ns)]
        return sum(self._db.transaction(self.run_id, partial(_record_orphan, key)) for key in keys)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held back: what was exported is committed."""
        return True

    def shutdown(self) -> None:
        """Export nothing more, and close the database if it was opened here."""
        if not self._ended:
            self._ended = True
            self._engine.close()


# A span, and the key under which it waits; None: it comes from this batch.
_Entry = tuple[str | None, Packed]


class _Waiting:
    """Spans by the one that they wait for: those of this batch, and those that the run keeps.

    A trace whose root runs for long has many that wait. So those that the run keeps are looked up by their parent, and
    only in traces that have any.
    """

    def __init__(self, txn: Transaction, trace_ids: Iterable[str]) -> None:
        self._txn = txn
        self._kept = {each for each in trace_ids if txn.kv.list(f"{PENDING}{each}/", limit=1)}
        self._groups: dict[tuple[str, str], list[_Entry]] = {}

    def add(self, row: Packed) -> None:
        """One of this batch."""
        self._groups.setdefault((row["trace"], row["parent"]), []).append((None, row))

    def pop(self, row: Packed) -> list[_Entry]:
        """Those that wait for this span, the last one first."""
        found = self._groups.pop((row["trace"], row["span"]), [])
        if row["trace"] in self._kept:
            found += self._txn.kv.list_with_values(f"{PENDING}{row['trace']}/{row['span']}/")
        return found[::-1]

    def new(self) -> Iterator[Packed]:
        """Those of this batch that still wait."""
        return (row for group in self._groups.values() for _, row in group)


def _record(txn: Transaction, ready: list[_Entry], waiting: _Waiting, *, orphan: bool = False) -> None:
    """Record spans and what waits for them; keep those whose parents are not there.

    The key of a parent that is not there is in the read set, and so are the ranges of the spans that wait. So of two
    commits at once that record a parent and keep its child, one conflicts and finds the other's when it is repeated.
    """
    stack = ready[::-1]
    # The transaction's own operations on keys are compiled, and those of traces are looked up once.
    get, put, exists, traces = txn.get, txn.put, txn.exists, txn.traces
    begin, end = traces.begin_span, traces.end_span
    places: dict[str, str] = {}  # of what was recorded here
    while stack:
        key, row = stack.pop()
        place = _place(row["trace"], row["span"])
        if not exists(place):  # else it was exported before
            parent = None
            if row["parent"] is not None and not orphan:
                above = _place(row["trace"], row["parent"])
                parent = places.get(above) or get(above)
                if parent is None:
                    _keep(txn, row)
                    continue
            recorded = span_record(row, parent, orphan=orphan)
            begin(**recorded)
            if row["end"] is not None:
                end(recorded["id"], duration_ms=max(row["end"] - row["start"], 0) / 1e6, error=error_of(row))
            places[place] = recorded["id"]
            put(place, recorded["id"])
        orphan = False
        if key is not None:
            txn.delete(key)
        stack += waiting.pop(row)


def _place(trace_id: str, span_id: str) -> str:
    """The key that holds the id of a span's trace record."""
    return f"span/{trace_id}/{span_id}"


def _keep(txn: Transaction, row: Packed) -> None:
    txn.kv.put(f"{PENDING}{row['trace']}/{row['parent']}/{row['span']}", row)


def _record_orphan(key: str, txn: Transaction) -> int:
    row = txn.kv.get(key)
    if row is None:
        return 0  # its parent came, or another process recorded it
    _record(txn, [(key, row)], _Waiting(txn, [row["trace"]]), orphan=True)
    return 1


def read_spans(db: AnyDatabase, run_id: RunId) -> list[ReadableSpan]:
    """The traces of a run as spans, for any exporter of OpenTelemetry or for `to_otlp`.

    Spans that an `OccamSpanExporter` recorded come back as they were, also those that wait for their parents. Other
    traces get the names and attributes of the GenAI conventions: a ToolCall is `execute_tool`, a Query `retrieval`, a
    Thought or a Decision `plan`.

    Args:
      db: an open database of either form, or the path of one.
      run_id: the run.
    """
    engine = Engine(db)
    try:
        with engine.db.snapshot(run_id) as snapshot:
            interned: dict[str, Any] = dict(snapshot.kv.list_with_values(INTERNED))
            spans = []
            for trace in snapshot.traces.query():
                row = trace.metadata.get(METADATA)
                spans.append(native_span(trace, run_id) if row is None else unpacked(row, interned))
            return spans + [unpacked(row, interned) for _, row in snapshot.kv.list_with_values(PENDING)]
    finally:
        engine.close()
