"""RunIndex: which runs there are, what became of them, and the deletion of everything in a run.

The index is kept under a reserved run, the all-zero id, of the database's namespace; so it spans runs, and one
transaction can change a run's status and its data together.

1. A run's metadata and its entries in every index (status, tag, parent, creation, name) change in one transaction.
   Runs that an earlier version wrote may have no entry by name: then names are found by a walk, until
   `occamdb check --repair` has added the entries.
2. The status changes only as `ALLOWED_TRANSITIONS` says.
3. A parent exists in the index when its child is created, and as long as the child names it: deleting a parent
   deletes its descendants with it (`cascade=True`) or leaves its children without a parent. Creation reads the parent
   and deletion walks the children, both checked at commit whatever the isolation: of two at once one conflicts.
4. Deletion is one commit whatever the size: the engine removes a run's whole key range, so a reader, or a recovery,
   sees all of the run or nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast, overload

from ..engine.model.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ValueEncodingError,
)
from ..engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from . import layout
from .blocks import Block
from .extension import (
    DatabaseBase,
    H_co,
    Primitive,
    RunLike,
    Space,
    TransactionBase,
    to_microseconds,
)
from .index_operations import awaited, indexed, lookup
from .planner import Choice, IndexRange, Record, Test, beyond, checked_limit, choose, window
from .run_types import (
    COMPLETED,
    CREATED,
    ERROR,
    METADATA,
    NAME,
    PARENT,
    STATUS,
    STATUS_NUMBER,
    STATUS_NUMBERED,
    TAGS,
    UPDATED,
    RunMetadata,
    RunStatus,
    check_transition,
    decode_run,
)
from .trace_types import checked_metadata, checked_tags, explain

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["RunIndex"]


class RunIndex(Primitive[H_co]):
    """The runs of a namespace: `db.runs.create_run("agent 7")`; inside a transaction `txn.runs.create_run(...)`."""

    __slots__ = ()
    name = "runs"
    tag = TypeTag.RUN
    reserved = True

    def _space_in(self, transaction: TransactionBase) -> Space:
        return transaction.for_run(RESERVED_RUN).space(self.tag, raw=True)

    # --- Creating ---

    @indexed
    def create_run(
        self,
        name: str = "",
        *,
        parent: RunLike | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        run_id: RunLike | None = None,
    ) -> RunMetadata:
        """Enter a new run, active.

            run = db.runs.create_run("agent 7", tags=["nightly"], metadata={"model": "m1"})
            db.kv.put(run, "step", 1)

        Args:
          name: for people; several runs may have the same.
          parent: a run that the index has.
          tags, metadata: to find it by, and anything else to keep with it.
          run_id: an id of your own, which may have data already; None: a new time-ordered one.

        Raises:
          AlreadyExistsError: the index has a run `run_id`.
          NotFoundError: the index has no run `parent`.
        """
        return self._create(name, parent, tags, metadata, run_id)

    create_run_with_options = create_run

    @indexed
    def get_or_create(
        self,
        name: str,
        *,
        parent: RunLike | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """The run that a name stands for; it is created when there is none.

            run = db.runs.get_or_create("thread-42")

        That is the run with the id `RunId.named(name)`, whatever it is called by now, else the oldest run of that name,
        else a new one with that id. However many processes ask at once, they get the same run.

        Args:
          name: text with at least one character.
          parent, tags, metadata: as for `create_run`; a run that is there already stays as it is.

        Raises:
          NotFoundError: a run is to be created and the index has no run `parent`.
        """
        raw = RunId.named(name).bytes
        record = self.space.get_checked(layout.run(raw))
        if record is not None:
            return decode_run(raw, record)
        found = self._query(_Wanted(name=name), 1, False)
        return found[0] if found else self._create(name, parent, tags, metadata, RunId(bytes=raw))

    def _create(
        self,
        name: str,
        parent: RunLike | None,
        tags: Iterable[str],
        metadata: Mapping[str, Any] | None,
        run_id: RunLike | None,
    ) -> RunMetadata:
        _check_name(name)
        raw = RunId.new().bytes if run_id is None else _raw(run_id)
        if run_id is not None and self.space.exists(layout.run(raw)):
            raise AlreadyExistsError(
                f"run {_text(raw)} is already in the index",
                hint="get_run reads it; leave run_id out to get a new one",
                details={"run_id": _text(raw)},
            )
        above = None if parent is None else _raw(parent)
        if above is not None:
            self._require_parent(above)
        labels, now = checked_tags(tags), self.now_us
        record = [name, STATUS_NUMBER[RunStatus.ACTIVE], above, labels, checked_metadata(metadata) or {}]
        self._begin_names()
        return self._save(raw, None, [*record, now, now, None, None])

    def _begin_names(self) -> None:
        """The first run of an index says that all its runs have entries by name: from here on all of them do."""
        if not self.space.exists(layout.RUN_NAMES_WHOLE) and not any(
            True for _ in self.space.keys(layout.RUN_BY_CREATION, limit=1)
        ):
            self.space.put(layout.RUN_NAMES_WHOLE, None)

    @overload
    def start(
        self: RunIndex[AsyncDatabase[Any]],
        name: str = "",
        *,
        parent: RunLike | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        run_id: RunLike | None = None,
    ) -> AbstractAsyncContextManager[RunMetadata]: ...
    @overload
    def start(
        self: RunIndex[DatabaseBase],
        name: str = "",
        *,
        parent: RunLike | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        run_id: RunLike | None = None,
    ) -> AbstractContextManager[RunMetadata]: ...
    def start(
        self: RunIndex[Any],
        name: str = "",
        *,
        parent: RunLike | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
        run_id: RunLike | None = None,
    ) -> Any:
        """A run for the length of a `with` block: completed at its end, failed with the exception that leaves it.

            with db.runs.start("agent 7") as run:
                db.events.append(run, "began", {})

        A run that the block itself finished, paused (and then left cleanly), archived or deleted is left as it is.
        """

        def end(run: RunMetadata, error: BaseException | None) -> Any:
            return self._end(run.run_id, None if error is None else _error_text(error))

        return Block(
            lambda: self.create_run(name, parent=parent, tags=tags, metadata=metadata, run_id=run_id),
            end,
            lambda run: f"run {run.run_id} could not be marked as failed",
        )

    @indexed
    def _end(self, run_id: RunLike, error: str | None) -> None:
        """What the end of `start` does to a run that is still open."""
        raw = _raw(run_id)
        record = self.space.get(layout.run(raw))
        status = None if record is None else STATUS_NUMBERED[record[STATUS]]
        if status is RunStatus.PAUSED and error is not None:
            self._set_status(raw, RunStatus.ACTIVE)
            status = RunStatus.ACTIVE
        if status is RunStatus.ACTIVE:
            self._set_status(raw, RunStatus.COMPLETED if error is None else RunStatus.FAILED, error)

    # --- Status ---

    @indexed
    def update_status(
        self, run_id: RunLike, status: RunStatus | str, *, error: str | BaseException | None = None
    ) -> RunMetadata:
        """Change the status of a run; returns its new metadata.

            db.runs.update_status(run, "failed", error="no answer from the model")

        Args:
          run_id: the run.
          status: the new one.
          error: what it failed with, text or an exception; for "failed" alone.

        Raises:
          InvalidArgumentError: an error with another status.
          InvalidTransition: `ALLOWED_TRANSITIONS` has no way from the present status to that one.
          NotFoundError: the index has no such run. So do the calls below.
        """
        wanted = RunStatus.of(status)
        if error is not None and wanted is not RunStatus.FAILED:
            raise InvalidArgumentError(
                f"a run that is {wanted} has no error",
                hint='update_status(run_id, "failed", error=...), or leave error out',
            )
        return self._set_status(_raw(run_id), wanted, None if error is None else _checked_error(error))

    @indexed
    def complete_run(self, run_id: RunLike) -> RunMetadata:
        """Active to completed."""
        return self._set_status(_raw(run_id), RunStatus.COMPLETED)

    @indexed
    def fail_run(self, run_id: RunLike, error: str | BaseException) -> RunMetadata:
        """Active to failed, with the error: text or an exception."""
        return self._set_status(_raw(run_id), RunStatus.FAILED, _checked_error(error))

    @indexed
    def pause_run(self, run_id: RunLike) -> RunMetadata:
        """Active to paused."""
        return self._set_status(_raw(run_id), RunStatus.PAUSED)

    @indexed
    def resume_run(self, run_id: RunLike) -> RunMetadata:
        """Paused to active."""
        return self._set_status(_raw(run_id), RunStatus.ACTIVE)

    @indexed
    def cancel_run(self, run_id: RunLike) -> RunMetadata:
        """Active or paused to cancelled."""
        return self._set_status(_raw(run_id), RunStatus.CANCELLED)

    @indexed
    def archive_run(self, run_id: RunLike) -> RunMetadata:
        """Anything to archived, for good. The run's data stays: `delete_run` is what removes it."""
        return self._set_status(_raw(run_id), RunStatus.ARCHIVED)

    def _set_status(self, raw: bytes, status: RunStatus, error: str | None = None) -> RunMetadata:
        old = self._existing(raw)
        check_transition(STATUS_NUMBERED[old[STATUS]], status, RunId(bytes=raw))
        new = [*old]
        new[STATUS] = STATUS_NUMBER[status]
        if status.is_finished:
            new[COMPLETED], new[ERROR] = self.now_us, error
        return self._save(raw, old, new)

    # --- Name, tags and metadata ---

    @indexed
    def rename_run(self, run_id: RunLike, name: str) -> RunMetadata:
        """Give a run another name. Its id stays, also one that was made from the old name.

        db.runs.rename_run(run, "agent 7, second try")
        """
        _check_name(name)
        raw = _raw(run_id)
        old = self._existing(raw)
        return self._save(raw, old, _with(old, NAME, name))

    @indexed
    def add_tags(self, run_id: RunLike, tags: Iterable[str]) -> RunMetadata:
        """Add tags; those it has stay where they are."""
        raw = _raw(run_id)
        old, new_tags = self._existing(raw), checked_tags(tags)
        return self._save(raw, old, _with(old, TAGS, list(dict.fromkeys(old[TAGS] + new_tags))))

    @indexed
    def remove_tags(self, run_id: RunLike, tags: Iterable[str]) -> RunMetadata:
        """Remove tags; those it does not have are no error."""
        raw = _raw(run_id)
        old, gone = self._existing(raw), checked_tags(tags)
        return self._save(raw, old, _with(old, TAGS, [tag for tag in old[TAGS] if tag not in gone]))

    @indexed
    def update_metadata(
        self, run_id: RunLike, metadata: Mapping[str, Any], *, replace: bool = False
    ) -> RunMetadata:
        """Set the given keys of the metadata and keep the others, or `replace` it whole."""
        raw = _raw(run_id)
        old, given = self._existing(raw), checked_metadata(metadata) or {}
        return self._save(raw, old, _with(old, METADATA, given if replace else {**old[METADATA], **given}))

    # --- Deleting ---

    @indexed
    def delete_run(self, run_id: RunLike, *, cascade: bool = False) -> int:
        """Remove a run for good: its data in every primitive, its metadata and index entries, in one commit.

        Costs one range deletion a run in the commit, however much data there is. Without `cascade` its child runs
        stay, without a parent; with it all runs below it go as well, in the same commit.

        Returns:
          How many runs were removed from the index: 0 for a run that was never in it. Its data is removed all the same.
        """
        raw = _raw(run_id)
        doomed = [raw, *(self._descendants(raw) if cascade else ())]
        if not cascade:
            for child in self._child_ids(raw):
                old = self._existing(child)
                self._save(child, old, _with(old, PARENT, None))
        removed = 0
        for each in doomed:
            old_record = self.space.get(layout.run(each))
            if old_record is not None:
                self._save(each, old_record, None)
                removed += 1
            cast(TransactionBase, self._handle).delete_run_range(RunId(bytes=each))
        return removed

    def _child_ids(self, raw: bytes) -> list[bytes]:
        """The children of a run that is about to go. Checked: a child that comes meanwhile must conflict."""
        return [layout.suffix_id(key) for key in self.space.keys_checked(layout.runs_under(raw))]

    def _descendants(self, raw: bytes) -> list[bytes]:
        found = self._child_ids(raw)
        for each in found:  # grows while it is walked: breadth first
            found.extend(self._child_ids(each))
        return found

    # --- Reading ---

    @lookup
    def get_run(self, run_id: RunLike) -> RunMetadata | None:
        """The metadata of a run; None when the index has none of that id."""
        raw = _raw(run_id)
        record = self.space.get(layout.run(raw))
        return None if record is None else decode_run(raw, record)

    @awaited
    def wait(
        self,
        run_id: RunLike,
        *,
        status: Iterable[RunStatus | str] | RunStatus | str,
        timeout: float | None = None,
    ) -> RunMetadata:
        """Wait until a run has one of these statuses, and return its metadata.

            ended = db.runs.wait(run, status={"completed", "failed"}, timeout=60)

        Args:
          run_id: a run of the index, or one that will be.
          status: a status or several.
          timeout: outside only; seconds to wait, None: for ever.

        Raises:
          TransactionTimeout: it did not come to that in time.
        """
        given = [status] if isinstance(status, str) else list(status)
        wanted = {STATUS_NUMBER[RunStatus.of(name)] for name in given}
        if not wanted:
            raise InvalidArgumentError("no status to wait for", hint='status={"completed", "failed"}')
        raw = _raw(run_id)
        record = self.space.get(layout.run(raw))
        if record is None or record[STATUS] not in wanted:
            self._wait(timeout)
        return decode_run(raw, record)

    @lookup
    def query_runs(
        self,
        *,
        status: RunStatus | str | None = None,
        tag: str | None = None,
        tags: Iterable[str] = (),
        name: str | None = None,
        parent: RunLike | None = None,
        roots: bool = False,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        after: RunLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> list[RunMetadata]:
        """The runs that meet every filter given, in order of creation; read by the index that promises the fewest.

            page = db.runs.query_runs(status="failed", tags=["nightly"], limit=50)
            rest = db.runs.query_runs(status="failed", tags=["nightly"], limit=50, after=page[-1])

        A run that is not in the index has no children: with such a `parent` the answer is empty.

        Args:
          status, name, parent: what the run has.
          tag, tags: tags that must all be there.
          roots: only runs without a parent.
          created_after, created_before: created from the one up to but not including the other.
          after: only what comes behind this run in the order of the answer. The `RunMetadata` of a run, rather than its
            id, also works after the run was deleted.
          limit: at most so many.
          reverse: the latest first.

        Raises:
          NotFoundError: the index has no run `after`, given by its id.
        """
        labels = (*((tag,) if tag is not None else ()), *checked_tags(tags))
        created = created_after, created_before
        return self._query(_Wanted(status, labels, name, parent, roots, created, after), limit, reverse)

    @lookup
    def find(self, name: str) -> RunMetadata | None:
        """The oldest run of a name; None when there is none.

            run = db.runs.find("agent 7")

        `query_runs(name=...)` gives all of them.
        """
        _check_name(name)
        found = self._query(_Wanted(name=name), 1, False)
        return found[0] if found else None

    @lookup
    def list_runs(
        self, *, after: RunLike | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[RunMetadata]:
        """All runs in order of creation; `after` and the rest as for `query_runs`.

        newest = db.runs.list_runs(limit=20, reverse=True)
        """
        return self._query(_Wanted(after=after), limit, reverse)

    @lookup
    def get_child_runs(
        self, run_id: RunLike, *, after: RunLike | None = None, limit: int | None = None
    ) -> list[RunMetadata]:
        """The runs created under one, in order of creation; empty also when the index has no such run.

        children = db.runs.get_child_runs(run)
        """
        _raw(run_id)  # None is no run, though no filter
        return self._query(_Wanted(parent=run_id, after=after), limit, False)

    @lookup
    def count(self, *, status: RunStatus | str | None = None) -> int:
        """How many runs there are, of one status if given. Walks the index: O(count)."""
        if status is None:
            return self.space.count(layout.RUN)
        return self.space.count(layout.runs_with_status(STATUS_NUMBER[RunStatus.of(status)]))

    def _query(self, wanted: _Wanted, limit: int | None, reverse: bool) -> list[RunMetadata]:
        filters, name = _filters(wanted), wanted.name
        if name is not None:
            _check_name(name)
            if self.space.exists(layout.RUN_NAMES_WHOLE):
                filters.insert(0, (layout.runs_named(name), _any))
        if checked_limit(limit) == 0:
            return []
        bounds = window(*wanted.created, ("created_after", "created_before"))
        if wanted.after is not None:
            bounds = beyond(bounds, self._place_of(wanted.after), reverse=reverse)
        choices = [
            Choice(IndexRange(prefix, *bounds), test)
            for prefix, test in filters or [(layout.RUN_BY_CREATION, _any)]
        ]
        index, tests = choose(self.space, choices)
        if name is not None:  # whichever index is read: its own name entries hold a digest alone
            tests = [*tests, lambda record: record[NAME] == name]
        found: list[RunMetadata] = []
        for key in index.keys(self.space, limit=None if tests else limit, reverse=reverse):
            raw = layout.suffix_id(key)
            record = self._existing(raw)
            if all(test(record) for test in tests):
                found.append(decode_run(raw, record))
                if len(found) == limit:
                    break
        return found

    def _place_of(self, run: RunLike) -> bytes:
        """Where a run is in every index: the end of its keys there."""
        raw = _raw(run)
        if isinstance(run, RunMetadata):
            return layout.run_suffix(to_microseconds(run.created_at, "created_at"), raw)
        return layout.run_suffix(self._existing(raw)[CREATED], raw)

    # --- Records ---

    def _existing(self, raw: bytes) -> Record:
        record: Record | None = self.space.get(layout.run(raw))
        if record is None:
            raise _not_in_index(raw)
        return record

    def _require_parent(self, raw: bytes) -> None:
        """Invariant 3 rests on this read, so the commit checks it whatever the isolation."""
        if self.space.get_checked(layout.run(raw)) is None:
            raise _not_in_index(raw)

    def _save(self, raw: bytes, old: Record | None, new: Record | None) -> RunMetadata:
        """Replace a record and the index entries that differ; None for none."""
        before = run_entries(raw, old) if old is not None else set()
        if new is None:
            for key in sorted(before):
                self.space.delete(key)
            self.space.delete(layout.run(raw))
            return decode_run(raw, cast(Record, old))
        if old is not None:
            new = _with(new, UPDATED, self.now_us)
        after = run_entries(raw, new)
        try:
            # First: who catches the error and commits all the same has written nothing of it.
            self.space.put(layout.run(raw), new)
        except ValueEncodingError:
            explain({"name": new[NAME], "metadata": new[METADATA], "error": new[ERROR]}, self.space.codec)
            raise
        for key in sorted(before - after):
            self.space.delete(key)
        for key in sorted(after - before):
            self.space.put(key, None)
        return decode_run(raw, new)


def run_entries(raw: bytes, record: Record) -> set[bytes]:
    """The keys of all index entries of a record."""
    suffix = layout.run_suffix(record[CREATED], raw)
    prefixes = [
        layout.RUN_BY_CREATION,
        layout.runs_with_status(record[STATUS]),
        layout.runs_under(record[PARENT] or layout.ZERO_ID),
        layout.runs_named(record[NAME]),
        *(layout.runs_tagged(tag) for tag in record[TAGS]),
    ]
    return {prefix + suffix for prefix in prefixes}


class _Wanted(NamedTuple):
    status: RunStatus | str | None = None
    tags: tuple[str, ...] = ()
    name: str | None = None
    parent: RunLike | None = None
    roots: bool = False
    created: tuple[datetime | None, datetime | None] = (None, None)
    after: RunLike | None = None


def _filters(wanted: _Wanted) -> list[tuple[bytes, Test]]:
    """Where the runs of each filter are listed, and how to tell them by their record; the name's is not among them."""
    filters: list[tuple[bytes, Test]] = []
    if wanted.parent is not None or wanted.roots:
        if wanted.parent is not None and wanted.roots:
            raise InvalidArgumentError(
                "a run with a parent is not a root", hint="give parent= or roots=True, not both"
            )
        above = None if wanted.parent is None else _raw(wanted.parent)
        filters.append((layout.runs_under(above or layout.ZERO_ID), lambda record: record[PARENT] == above))
    filters += [(layout.runs_tagged(tag), _tagged(tag)) for tag in wanted.tags]
    if wanted.status is not None:
        number = STATUS_NUMBER[RunStatus.of(wanted.status)]
        filters.append((layout.runs_with_status(number), lambda record: record[STATUS] == number))
    return filters


def _tagged(tag: str) -> Test:
    return lambda record: tag in record[TAGS]


def _any(record: Record) -> bool:
    return True


def _check_name(name: object) -> None:
    if type(name) is not str:
        raise InvalidArgumentError(
            f"a run's name is str, got {type(name).__name__}", hint="run_id= names its id"
        )


def _checked_error(error: object) -> str:
    text = _error_text(error) if isinstance(error, BaseException) else error
    if type(text) is not str:
        raise InvalidArgumentError(
            f"an error is text or an exception, got {type(error).__name__}",
            hint="fail_run(run_id, str(error))",
        )
    return text


def _with(record: Record, position: int, value: Any) -> Record:
    changed = [*record]
    changed[position] = value
    return changed


def _raw(run_id: RunLike) -> bytes:
    raw = RunId.of(run_id).bytes
    if raw == layout.ZERO_ID:
        raise InvalidArgumentError(
            "the all-zero run id is reserved for the run index", hint="RunId.new() makes a run id"
        )
    return raw


def _not_in_index(raw: bytes) -> NotFoundError:
    return NotFoundError(
        f"run {_text(raw)} is not in the index",
        hint="create it with create_run(run_id=...), or look in its own namespace",
        details={"run_id": _text(raw)},
    )


def _text(raw: bytes) -> str:
    return str(RunId(bytes=raw))


def _error_text(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
