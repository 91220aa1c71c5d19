"""The runs of a namespace: page by page, and as trees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from occamdb import RunId, RunMetadata, RunStatus, Snapshot
from occamdb.engine.model.errors import InvalidArgumentError, NotFoundError, OccamError
from occamdb.primitives import layout
from occamdb.primitives.run_types import NAME, STATUS, STATUS_NUMBER, TAGS, decode_run
from occamdb.tools.inspector.reading.safely import PAGE_ROWS, problem

__all__ = [
    "RunRow",
    "RunsPage",
    "RunsWanted",
    "ancestors",
    "children_of",
    "run_id_of",
    "runs_page",
    "seconds_of",
]

LOOKED_AT_MAX = 20_000  # records of one page, where a filter refuses most of them
TREE_ROWS = 500
DEPTH_MAX = 64
# A walk up the tree: a circle, which only damage can make, ends there.
ANCESTORS_MAX = 32


@dataclass(frozen=True, slots=True)
class RunsWanted:
    """What a page of runs asks for.

    Attributes:
      status, tag: what the run has; "" for any.
      text: a part of the name, or the beginning of the id.
      before: the cursor behind which the page begins; "" for the newest run.
      tree: as trees.
    """

    status: str = ""
    tag: str = ""
    text: str = ""
    before: str = ""
    tree: bool = False


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a list.

    Attributes:
      run_id: its id.
      depth: in its tree; 0 in a plain list.
      run: its metadata; None if that cannot be read.
      error: why.
      children: how many children it has, as far as they were counted.
    """

    run_id: RunId
    depth: int = 0
    run: RunMetadata | None = None
    error: str | None = None
    children: int = 0

    @property
    def seconds(self) -> float | None:
        """How long it took, or has been going on."""
        return None if self.run is None else seconds_of(self.run)


@dataclass(slots=True)
class RunsPage:
    """One page.

    Attributes:
      rows: the runs, newest first; in trees each parent before its children.
      next: the cursor of the next page; "" if there is none.
      total: how many runs there are in all.
      looked_at_all: False if the search was given up before the end; the next page goes on.
    """

    rows: list[RunRow] = field(default_factory=list)
    next: str = ""
    total: int = 0
    looked_at_all: bool = True


def run_id_of(text: str) -> RunId:
    """The run that an address names.

    Raises:
      NotFoundError: it is not the id of a run.
    """
    try:
        return RunId.of(text)
    except InvalidArgumentError:
        raise NotFoundError(
            "this address does not name a run", hint="a run is named by its id, a UUID"
        ) from None


def seconds_of(run: RunMetadata) -> float | None:
    """How long a run took, or has been going on; None if it was archived without an outcome."""
    if run.completed_at is not None:
        return (run.completed_at - run.created_at).total_seconds()
    if run.status is RunStatus.ARCHIVED:
        return None
    return max(0.0, (datetime.now(UTC) - run.created_at).total_seconds())


def runs_page(view: Snapshot, wanted: RunsWanted) -> RunsPage:
    """The runs that meet the filters, a page of them.

    Raises:
      InvalidArgumentError: there is no such status, or the cursor is none.
    """
    page = RunsPage(total=view.runs.count())
    if wanted.tree:
        _fill_with_trees(view, wanted, page)
    else:
        _fill(view, wanted, page)
    return page


def _fill(view: Snapshot, wanted: RunsWanted, page: RunsPage) -> None:
    prefix = _index_of(wanted)
    for looked_at, suffix in enumerate(_suffixes(view, prefix, wanted.before)):
        if len(page.rows) == PAGE_ROWS or looked_at == LOOKED_AT_MAX:
            page.looked_at_all = looked_at < LOOKED_AT_MAX
            break
        row, record = _row(view, suffix[-layout.ID_SIZE :])
        if record is None or _meets(row, record, wanted):
            page.rows.append(row)
        page.next = suffix.hex()
    else:
        page.next = ""


def _index_of(wanted: RunsWanted) -> bytes:
    if wanted.status:
        return layout.runs_with_status(STATUS_NUMBER[RunStatus.of(wanted.status)])
    if wanted.tag:
        return layout.runs_tagged(wanted.tag)
    return layout.RUN_BY_CREATION


def _suffixes(view: Snapshot, prefix: bytes, before: str, limit: int | None = None) -> Iterator[bytes]:
    """The ends of the keys of an index, newest first."""
    end = prefix + cursor_bytes(before) if before else None
    for key in view.runs.space.keys(prefix, end=end, reverse=True, limit=limit):
        yield key[-layout.SUFFIX_SIZE :]


def cursor_bytes(text: str, size: int = layout.SUFFIX_SIZE) -> bytes:
    """A cursor of an address.

    Raises:
      InvalidArgumentError: it is none.
    """
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != size:
        raise InvalidArgumentError("this address has a wrong cursor", hint="begin at the first page")
    return raw


def _row(view: Snapshot, raw: bytes, depth: int = 0) -> tuple[RunRow, list[Any] | None]:
    """A row, and the record that it was made of; None if that cannot be read."""
    run_id = RunId(bytes=raw)
    try:
        record = view.runs.space.get(layout.run(raw))
        if record is None:
            return RunRow(run_id, depth, None, "the index names this run, and its metadata is missing"), None
        return RunRow(run_id, depth, decode_run(raw, record)), record
    except (OccamError, ValueError, TypeError, LookupError) as error:
        return RunRow(run_id, depth, None, problem(error)), None


def _meets(row: RunRow, record: list[Any], wanted: RunsWanted) -> bool:
    if wanted.status and record[STATUS] != STATUS_NUMBER[RunStatus.of(wanted.status)]:
        return False
    if wanted.tag and wanted.tag not in record[TAGS]:
        return False
    if not wanted.text:
        return True
    text = wanted.text.lower()
    return text in record[NAME].lower() or row.run_id.hex.startswith(text.replace("-", ""))


def _fill_with_trees(view: Snapshot, wanted: RunsWanted, page: RunsPage) -> None:
    tops = layout.runs_under(layout.ZERO_ID)
    for suffix in _suffixes(view, tops, wanted.before):
        if len(page.rows) >= PAGE_ROWS:
            break
        _add_tree(view, suffix[-layout.ID_SIZE :], page)
        page.next = suffix.hex()
    else:
        page.next = ""


def _add_tree(view: Snapshot, top: bytes, page: RunsPage) -> None:
    stack = [(0, top)]
    while stack:
        depth, raw = stack.pop()
        row, _ = _row(view, raw, depth)
        below = [
            suffix[-layout.ID_SIZE :] for suffix in _suffixes(view, layout.runs_under(raw), "", TREE_ROWS)
        ]
        page.rows.append(RunRow(row.run_id, depth, row.run, row.error, len(below)))
        if len(page.rows) >= TREE_ROWS:
            page.looked_at_all = False
            return
        if depth < DEPTH_MAX:
            stack += [(depth + 1, each) for each in below]


def children_of(view: Snapshot, run_id: RunId, before: str = "") -> list[RunRow]:
    """The children of a run, newest first, a page of them."""
    rows = []
    for suffix in _suffixes(view, layout.runs_under(run_id.bytes), before, PAGE_ROWS):
        rows.append(_row(view, suffix[-layout.ID_SIZE :])[0])
    return rows


def ancestors(view: Snapshot, run: RunMetadata) -> list[RunRow]:
    """The runs above one, the topmost first."""
    found: list[RunRow] = []
    above = run.parent_run_id
    while above is not None and len(found) < ANCESTORS_MAX:
        row, _ = _row(view, above.bytes)
        found.append(row)
        above = None if row.run is None else row.run.parent_run_id
    return found[::-1]
