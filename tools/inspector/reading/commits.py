"""Commits as rows: what one commit did, across all primitives and all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import occamdb
from occamdb import RunId, TypeTag
from occamdb.engine.model.errors import CorruptionError, InvalidArgumentError, NotFoundError, OccamError
from occamdb.engine.model.keys import decode_key
from occamdb.engine.model.values import Codec
from occamdb.primitives import layout
from occamdb.primitives.event_log import HASH_SIZE, decode_event
from occamdb.primitives.trace_types import Names, decode_record, decode_trace
from occamdb.tools.inspector.following import Commit, RawChange, commits_after, newest_version
from occamdb.tools.inspector.reading.safely import PAGE_ROWS, problem
from occamdb.tools.trace_view import headline

__all__ = [
    "ChangeRow",
    "CommitDetail",
    "CommitRow",
    "CommitsPage",
    "commit_detail",
    "commits_page",
    "noun_of",
]

CHANGES_MAX = 5_000  # of one page
CHANGES_SHOWN = 500  # of one commit
CHANGES_OF_PAGE_MAX = 50_000  # a page with so many ends early: it takes long to say what they are
RUNS_SHOWN = 12  # of one row
SCANNED_MAX = 20_000  # versions looked at for the commits of one run
INDEX_RUN = RunId(int=0)

# What the keys of a primitive are, by their first byte; the others are entries of its indices.
_NOUNS: dict[int, dict[bytes, str]] = {
    TypeTag.EVENT: {layout.EVENT: "event"},
    TypeTag.TRACE: {layout.TRACE: "trace", layout.SPAN_END: "end of a span"},
    TypeTag.RUN: {layout.RUN: "run"},
    TypeTag.TASK: {layout.TASK: "task", layout.TASK_PLACE: "place of a task"},
    TypeTag.LEASE: {layout.LEASE_CLAIM: "lease", layout.LEASE_TICKET: "place in a line"},
    TypeTag.STEP: {layout.STEP: "step", layout.STEP_CLAIM: "claim of a step"},
}
_WHOLE = {TypeTag.KV: "key", TypeTag.STATE: "cell"}
_PLURALS = {
    "end of a span": "ends of spans",
    "place of a task": "places of tasks",
    "place in a line": "places in lines",
    "claim of a step": "claims of steps",
}


@dataclass(frozen=True, slots=True)
class CommitRow:
    """One commit on one row.

    Attributes:
      version, at: of the commit; seconds since 1970.
      runs: each run that it changed, and what it did there in words. A page shows the first `RUNS_SHOWN`.
      index_entries: keys that only help to find others.
    """

    version: int
    at: float
    runs: tuple[tuple[RunId, str], ...]
    index_entries: int


@dataclass(slots=True)
class CommitsPage:
    """Some commits, newest first.

    Attributes:
      rows: the commits.
      before: the version before which the next page ends; None if there is none.
      missing: why earlier ones are not there; None if none are missing.
    """

    rows: list[CommitRow]
    before: int | None
    missing: str | None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """What a commit did to one key.

    Attributes:
      run: whose key it is.
      kind: "put", "delete", "expire" or "range".
      noun: what the key is.
      name: the key for people.
      value: what it was set to, for people; None if it is gone.
      error: why the value cannot be read.
    """

    run: RunId | None
    kind: str
    noun: str
    name: str
    value: Any
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CommitDetail:
    """One commit in full.

    Attributes:
      row: its row.
      changes: what it did, index entries left out, at most so many.
      count: how many keys it changed.
    """

    row: CommitRow
    changes: tuple[ChangeRow, ...]
    count: int


def noun_of(tag: int, user_key: bytes) -> str | None:
    """What a key is: "key", "event", ...; None for an entry of an index."""
    if tag in _WHOLE:
        return _WHOLE[TypeTag(tag)]
    if tag in _NOUNS:
        return _NOUNS[tag].get(user_key[:1])
    return f"key of tag {tag:#04x}"


def commits_page(
    db: occamdb.Database, log: str | None, *, before: int | None = None, run: RunId | None = None
) -> CommitsPage:
    """A page of commits, those of one run or all.

    Args:
      log: the directory whose log may be read.
      before: only commits before this version; None: the newest.
      run: only those that changed it.
    """
    newest = newest_version(db)
    until = newest if before is None else min(before - 1, newest)
    rows: list[CommitRow] = []
    missing = None
    span = PAGE_ROWS // 10 if run is None else SCANNED_MAX // 10
    looked_at = changes = 0
    # Commits can only be read forwards: a piece before the end, then the one before that, until the page is full.
    while until > 0 and len(rows) < PAGE_ROWS and looked_at < SCANNED_MAX:
        since = max(0, until - span)
        found, missing = _piece(db, log, since, until)
        looked_at += until - since
        changes += sum(len(commit.changes) for commit in found)
        kept = [
            row
            for row in map(_row, reversed(found))
            if run is None or any(each == run for each, _ in row.runs)
        ]
        room = PAGE_ROWS - len(rows)
        rows += kept[:room]
        if len(kept) > room:
            until = rows[-1].version - 1
            break
        until = since
        if missing is not None:
            until = 0
        if changes > CHANGES_OF_PAGE_MAX:
            break
        span *= 2
    return CommitsPage(rows, until + 1 if until > 0 else None, missing)


def _piece(db: occamdb.Database, log: str | None, since: int, until: int) -> tuple[list[Commit], str | None]:
    found: list[Commit] = []
    missing = None
    reached = since
    while reached < until:
        more, upto, lost = commits_after(db, reached, until, CHANGES_MAX, log)
        found += more
        missing = missing or lost
        if upto <= reached:
            break
        reached = upto
    return found, missing


def _row(commit: Commit) -> CommitRow:
    counts: dict[RunId, Counter[str]] = {}
    index_entries = 0
    keys = _Keys()
    for kind, key, _ in commit.changes:
        run, tag, user_key = keys.taken_apart(key)
        if run is None:
            counts.setdefault(INDEX_RUN, Counter())["key that cannot be read"] += 1
            continue
        noun = "range" if kind == "range" else noun_of(tag, user_key)
        if noun is None:
            index_entries += 1
            counts.setdefault(run, Counter())
        else:
            verb = {"delete": "deleted ", "expire": "expired ", "range": "deleted "}.get(kind, "")
            counts.setdefault(run, Counter())[verb + noun] += 1
    runs = tuple((run, _in_words(found)) for run, found in counts.items())
    return CommitRow(commit.version, commit.at_ns / 1e9, runs, index_entries)


def _in_words(counts: Counter[str]) -> str:
    if not counts:
        return "index entries alone"
    return ", ".join(f"{count:,} {_plural(noun) if count != 1 else noun}" for noun, count in counts.items())


def _plural(noun: str) -> str:
    verb, space, name = noun.rpartition("deleted ") if noun.startswith("deleted ") else ("", "", noun)
    return f"{verb}{space}{_PLURALS.get(name, name + 's')}"


class _Keys:
    """Takes keys apart. Most keys of a commit are of the run of the one before, so that its prefix is kept."""

    def __init__(self) -> None:
        self._prefix: bytes | None = None
        self._run: RunId | None = None

    def taken_apart(self, key: bytes) -> tuple[RunId | None, int, bytes]:
        """The run, the tag and the user's part of a key; the run is None where the key cannot be read."""
        prefix = self._prefix
        if prefix is None or not key.startswith(prefix) or len(key) == len(prefix):
            try:
                # A byte more, since the end of a range may be a bare prefix; it is taken off again.
                decoded = decode_key(key + b"\0")
            except CorruptionError:
                return None, 0, key
            prefix = self._prefix = decoded.namespace.prefix
            self._run = decoded.namespace.run_id
        return self._run, key[len(prefix)], key[len(prefix) + 1 :]


def commit_detail(db: occamdb.Database, log: str | None, version: int) -> CommitDetail:
    """One commit.

    Raises:
      NotFoundError: there is none, or its changes are no longer kept.
    """
    newest = newest_version(db)
    if not 0 < version <= newest:
        raise NotFoundError(f"there is no commit {version:,}", hint=f"the newest is {newest:,}")
    found, missing = _piece(db, log, version - 1, version)
    commits = [commit for commit in found if commit.version == version]
    if not commits:
        why = missing or "it changed nothing in this namespace"
        raise NotFoundError(f"commit {version:,} cannot be shown: {why}", hint="later commits are listed")
    changes = commits[0].changes
    rows = tuple(_shown(changes, db.codec))
    return CommitDetail(_row(commits[0]), rows, len(changes))


def _shown(changes: Sequence[RawChange], codec: Codec) -> Iterator[ChangeRow]:
    count = 0
    keys = _Keys()
    for kind, key, stored in changes:
        run, tag, user_key = keys.taken_apart(key)
        noun = noun_of(tag, user_key) if run is not None else "key that cannot be read"
        if noun is None and kind != "range":
            continue
        count += 1
        if count > CHANGES_SHOWN:
            return
        if kind == "range":
            yield ChangeRow(run, kind, "range", "", None)
            continue
        name = user_key.decode("utf-8", "surrogateescape") if noun in ("key", "cell") else user_key[1:].hex()
        try:
            value = None if stored is None else _value(tag, user_key, stored, codec)
            yield ChangeRow(run, kind, noun or "", name, value)
        except (OccamError, ValueError, TypeError, LookupError, RecursionError) as error:
            yield ChangeRow(run, kind, noun or "", name, None, problem(error))


def _value(tag: int, user_key: bytes, stored: bytes, codec: Codec) -> Any:
    """A stored value for people."""
    value = codec.decode(stored)
    if tag == TypeTag.EVENT and isinstance(value, bytes) and len(value) > HASH_SIZE:
        event = decode_event(layout.event_sequence(user_key), value, codec)
        return {"sequence": event.sequence, "type": event.event_type, "payload": event.payload}
    if tag == TypeTag.TRACE and user_key[:1] == layout.TRACE:
        raw = user_key[1:]
        trace = decode_trace(raw, decode_record(raw, value, codec), Names(codec))
        return f"{trace.type_name}: {headline(trace)}"
    return value


def wanted_version(text: str) -> int:
    """The version in an address.

    Raises:
      InvalidArgumentError: it is none.
    """
    if not text.isascii() or not text.isdecimal() or len(text) > 19:
        raise InvalidArgumentError("this address does not name a version", hint="a version is a whole number")
    return int(text)
