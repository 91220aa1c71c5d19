"""RunIndex: which runs there are, what became of them, and the deletion of everything in a run.

The index is kept under a reserved run of the database's namespace, the all-zero id. It is ordinary data, so
one transaction can change a run's status and the run's data together.

1. A run's metadata and its entries in every index (status, tag, parent, creation, name) change in one transaction.
   Runs that an earlier version wrote may have no entry by name. A name is then looked for in all runs, until
   `occamdb check --repair` has added the entries.
2. The status changes only as `ALLOWED_TRANSITIONS` says.
3. A parent exists in the index when its child is created, and as long as the child names it: deleting a parent
   deletes its descendants with it (`cascade=True`) or leaves its children without a parent. Creation reads the parent
   and deletion walks the children; the commit checks both whatever the isolation, so of two at once one
   conflicts.
4. Deletion is one commit whatever the size: the engine removes the whole key range of a run, so a reader or a
   recovery sees all of the run or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast, overload

from ..engine.model.errors import AlreadyExistsError, InvalidArgumentError
from ..engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from . import layout
from .blocks import Block
from .extension import DatabaseBase, H_co, Primitive, RunLike, Space, TransactionBase
from .planner import Record
from .run_operations import awaited, indexed, lookup
from .run_queries import RunFilter, child_ids, descendants, find_runs
from .run_records import (
    begin_names,
    check_run_name,
    checked_run_error,
    existing_run,
    not_in_index,
    raw_run_id,
    save_run,
    with_field,
)
from .run_types import (
    COMPLETED,
    ERROR,
    METADATA,
    NAME,
    PARENT,
    STATUS,
    STATUS_NUMBER,
    STATUS_NUMBERED,
    TAGS,
    RunMetadata,
    RunStatus,
    check_transition,
    decode_run,
)
from .spans import error_text
from .trace_types import checked_metadata, checked_tags

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
          name: for people; several runs may have the same name.
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
        found = find_runs(self.space, RunFilter(name=name), 1)
        return found[0] if found else self._create(name, parent, tags, metadata, RunId(bytes=raw))

    def _create(
        self,
        name: str,
        parent: RunLike | None,
        tags: Iterable[str],
        metadata: Mapping[str, Any] | None,
        run_id: RunLike | None,
    ) -> RunMetadata:
        check_run_name(name)
        raw = RunId.new().bytes if run_id is None else raw_run_id(run_id)
        if run_id is not None and self.space.exists(layout.run(raw)):
            raise AlreadyExistsError(
                f"run {RunId(bytes=raw)} is already in the index",
                hint="get_run reads it; leave run_id out to get a new one",
                details={"run_id": str(RunId(bytes=raw))},
            )
        above = None if parent is None else raw_run_id(parent)
        # Invariant 3 rests on this read, so the commit checks it whatever the isolation.
        if above is not None and self.space.get_checked(layout.run(above)) is None:
            raise not_in_index(above)
        labels, now = checked_tags(tags), self.now_us
        record = [name, STATUS_NUMBER[RunStatus.ACTIVE], above, labels, checked_metadata(metadata) or {}]
        begin_names(self.space)
        return self._save(raw, None, [*record, now, now, None, None])

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
            return self._end(run.run_id, None if error is None else error_text(error))

        return Block(
            lambda: self.create_run_with_options(
                name, parent=parent, tags=tags, metadata=metadata, run_id=run_id
            ),
            end,
            lambda run: f"run {run.run_id} could not be marked as failed",
        )

    @indexed
    def _end(self, run_id: RunLike, error: str | None) -> None:
        """What the end of `start` does to a run that is still open."""
        raw = raw_run_id(run_id)
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
        return self._set_status(
            raw_run_id(run_id), wanted, None if error is None else checked_run_error(error)
        )

    @indexed
    def complete_run(self, run_id: RunLike) -> RunMetadata:
        """Active to completed.

        Example:
          db.runs.complete_run(run)
        """
        return self._set_status(raw_run_id(run_id), RunStatus.COMPLETED)

    @indexed
    def fail_run(self, run_id: RunLike, error: str | BaseException) -> RunMetadata:
        """Active to failed, with the error: text or an exception.

        Example:
          db.runs.fail_run(run, "no answer from the model")
        """
        return self._set_status(raw_run_id(run_id), RunStatus.FAILED, checked_run_error(error))

    @indexed
    def pause_run(self, run_id: RunLike) -> RunMetadata:
        """Active to paused.

        Example:
          db.runs.pause_run(run)
        """
        return self._set_status(raw_run_id(run_id), RunStatus.PAUSED)

    @indexed
    def resume_run(self, run_id: RunLike) -> RunMetadata:
        """Paused to active.

        Example:
          db.runs.resume_run(run)
        """
        return self._set_status(raw_run_id(run_id), RunStatus.ACTIVE)

    @indexed
    def cancel_run(self, run_id: RunLike) -> RunMetadata:
        """Active or paused to cancelled.

        Example:
          db.runs.cancel_run(run)
        """
        return self._set_status(raw_run_id(run_id), RunStatus.CANCELLED)

    @indexed
    def archive_run(self, run_id: RunLike) -> RunMetadata:
        """Anything to archived, for good. The run's data stays: `delete_run` is what removes it.

        Example:
          db.runs.archive_run(run)
        """
        return self._set_status(raw_run_id(run_id), RunStatus.ARCHIVED)

    def _set_status(self, raw: bytes, status: RunStatus, error: str | None = None) -> RunMetadata:
        old = existing_run(self.space, raw)
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

        Example:
          db.runs.rename_run(run, "agent 7, second try")
        """
        check_run_name(name)
        return self._edit(run_id, NAME, lambda old: name)

    @indexed
    def add_tags(self, run_id: RunLike, tags: Iterable[str]) -> RunMetadata:
        """Add tags; those it has stay where they are.

        Example:
          db.runs.add_tags(run, ["nightly"])
        """
        added = checked_tags(tags)
        return self._edit(run_id, TAGS, lambda old: list(dict.fromkeys(old + added)))

    @indexed
    def remove_tags(self, run_id: RunLike, tags: Iterable[str]) -> RunMetadata:
        """Remove tags; those it does not have are no error.

        Example:
          db.runs.remove_tags(run, ["nightly"])
        """
        gone = checked_tags(tags)
        return self._edit(run_id, TAGS, lambda old: [tag for tag in old if tag not in gone])

    @indexed
    def update_metadata(
        self, run_id: RunLike, metadata: Mapping[str, Any], *, replace: bool = False
    ) -> RunMetadata:
        """Set the given keys of the metadata and keep the others, or `replace` it whole.

        Example:
          db.runs.update_metadata(run, {"cost": 0.12})
        """
        given = checked_metadata(metadata) or {}
        return self._edit(run_id, METADATA, lambda old: given if replace else {**old, **given})

    def _edit(self, run_id: RunLike, field: int, change: Callable[[Any], Any]) -> RunMetadata:
        raw = raw_run_id(run_id)
        old = existing_run(self.space, raw)
        return self._save(raw, old, with_field(old, field, change(old[field])))

    def _save(self, raw: bytes, old: Record | None, new: Record | None) -> RunMetadata:
        return save_run(self.space, raw, old, new, self.now_us)

    # --- Deleting ---

    @indexed
    def delete_run(self, run_id: RunLike, *, cascade: bool = False) -> int:
        """Remove a run for good: its data in every primitive, its metadata and index entries, in one commit.

        Costs one range deletion a run in the commit, however much data there is. Without `cascade` its child runs
        stay, without a parent; with it all runs below it go as well, in the same commit.

        Example:
          db.runs.delete_run(run, cascade=True)

        Returns:
          How many runs were removed from the index: 0 for a run that was never in it, whose data is removed
          too.
        """
        raw = raw_run_id(run_id)
        doomed = [raw, *(descendants(self.space, raw) if cascade else ())]
        if not cascade:
            for child in child_ids(self.space, raw):
                old = existing_run(self.space, child)
                self._save(child, old, with_field(old, PARENT, None))
        removed = 0
        for each in doomed:
            old_record = self.space.get(layout.run(each))
            if old_record is not None:
                self._save(each, old_record, None)
                removed += 1
            cast(TransactionBase, self._handle).delete_run_range(RunId(bytes=each))
        return removed

    # --- Reading ---

    @lookup
    def get_run(self, run_id: RunLike) -> RunMetadata | None:
        """The metadata of a run; None when the index has none of that id.

        Example:
          status = db.runs.get_run(run).status
        """
        raw = raw_run_id(run_id)
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
        raw = raw_run_id(run_id)
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
        return find_runs(
            self.space, RunFilter(status, labels, name, parent, roots, created, after), limit, reverse
        )

    @lookup
    def find(self, name: str) -> RunMetadata | None:
        """The oldest run of a name; None when there is none.

            run = db.runs.find("agent 7")

        `query_runs(name=...)` gives all of them.
        """
        check_run_name(name)
        found = find_runs(self.space, RunFilter(name=name), 1)
        return found[0] if found else None

    @lookup
    def list_runs(
        self, *, after: RunLike | None = None, limit: int | None = None, reverse: bool = False
    ) -> list[RunMetadata]:
        """All runs in order of creation; `after` and the rest as for `query_runs`.

        Example:
          newest = db.runs.list_runs(limit=20, reverse=True)
        """
        return find_runs(self.space, RunFilter(after=after), limit, reverse)

    @lookup
    def get_child_runs(
        self, run_id: RunLike, *, after: RunLike | None = None, limit: int | None = None
    ) -> list[RunMetadata]:
        """The runs created under one, in order of creation; empty also when the index has no such run.

        Example:
          children = db.runs.get_child_runs(run)
        """
        raw_run_id(run_id)  # without this None would mean that any parent will do
        return find_runs(self.space, RunFilter(parent=run_id, after=after), limit)

    @lookup
    def count(self, *, status: RunStatus | str | None = None) -> int:
        """How many runs there are, of one status if given. Walks the index: O(count).

        Example:
          failed = db.runs.count(status="failed")
        """
        if status is None:
            return self.space.count(layout.RUN)
        return self.space.count(layout.runs_with_status(STATUS_NUMBER[RunStatus.of(status)]))
