"""Everything that must hold in a run, whatever was committed, aborted, killed or recovered.

Used by the tests of primitives, crashes and processes. It reads raw keys, not the facades, and computes which keys
must exist from the records alone: any missing or superfluous one is found.
"""

from typing import Any

from occamdb.engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from occamdb.engine.model.values import decode_value
from occamdb.primitives import layout
from occamdb.primitives.run_types import STATUS_NUMBERED
from occamdb.primitives.trace_types import CUSTOM


def audit(db: Any, *run_ids: RunId) -> None:
    """Check the event chains, all indices of the runs, and the run index of the namespace.

    Raises:
      AssertionError: saying what does not hold.
    """
    for run_id in run_ids:
        with db.begin(run_id, read_only=True) as txn:
            audit_events(txn)
            audit_traces(txn)
    with db.begin(RESERVED_RUN, read_only=True) as txn:
        audit_runs(txn)


def rows(txn: Any, tag: int) -> dict[bytes, Any]:
    return {key: found.value for key, found in txn.space(tag, raw=True).scan()}


def audit_events(txn: Any) -> None:
    verdict = txn.events.verify_chain()
    assert verdict.is_valid, verdict
    stored = rows(txn, TypeTag.EVENT)
    events = list(txn.events.iterate())
    assert [event.sequence for event in events] == list(range(verdict.length))
    expected = {layout.event(event.sequence) for event in events}
    expected |= {layout.events_of_type(event.event_type) + layout.u64(event.sequence) for event in events}
    expected |= {layout.EVENT_HEAD} if events else set()
    assert set(stored) == expected, "the keys of the log are not those its events call for"


def audit_traces(txn: Any) -> None:
    stored = rows(txn, TypeTag.TRACE)
    records = {key[1:]: decode_value(record) for key, record in stored.items() if key[:1] == layout.TRACE}
    expected = set()
    for raw, record in records.items():
        kind, fields, time_us, root, parent, tags, _, *form = record
        assert root in records, f"trace {raw.hex()} is in the tree of a missing root"
        if parent is None:
            assert root == raw
        else:
            assert parent in records, f"trace {raw.hex()} has a missing parent"
            assert records[parent][3] == root, f"trace {raw.hex()} is not in its parent's tree"
        suffix = layout.trace_suffix(time_us, raw)
        family = layout.traces_of_family(layout.ZERO_ID if parent is None else root, parent or layout.ZERO_ID)
        expected |= {layout.trace(raw), layout.traces_of_kind(kind) + suffix, family + suffix}
        expected |= {layout.TRACE_BY_TIME + suffix}
        if form and form[0] >> 16:  # a span, which may have ended
            expected |= {layout.span_end(root, raw)} & set(stored)
        expected |= {layout.traces_tagged(tag) + suffix for tag in tags or ()}
        expected |= {layout.traces_named(fields[0]) + suffix} if kind == CUSTOM else set()
    assert set(stored) == expected, "the trace indices are not those the traces call for"


def audit_runs(txn: Any) -> None:
    stored = rows(txn, TypeTag.RUN)
    records = {key[1:]: record for key, record in stored.items() if key[:1] == layout.RUN}
    expected = set()
    for raw, record in records.items():
        called, status, parent, tags, _, created, _, completed, error = record
        name = STATUS_NUMBERED[status]
        assert parent is None or parent in records, f"run {raw.hex()} has a missing parent"
        assert completed is not None or not name.is_finished, f"run {raw.hex()} is {name} without a time"
        assert error is None or name in ("failed", "archived"), f"run {raw.hex()} is {name} with an error"
        suffix = layout.run_suffix(created, raw)
        expected |= {
            layout.run(raw),
            layout.runs_with_status(status) + suffix,
            layout.RUN_BY_CREATION + suffix,
        }
        expected |= {layout.runs_under(parent or layout.ZERO_ID) + suffix}
        expected |= {layout.runs_tagged(tag) + suffix for tag in tags}
        expected |= {layout.runs_named(called) + suffix}
    if stored:  # it stays when the last run goes
        expected |= {layout.RUN_NAMES_WHOLE}
    assert set(stored) == expected, "the run indices are not those the runs call for"
