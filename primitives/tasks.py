"""Tasks: queues of work that many processes share; each task is done by one worker at a time.

1. A task is at one place of its queue (`task_records.py`), and every change of it writes or deletes the key of that
   place. Of two changes at once the commit therefore refuses one, under every isolation.
2. A claim is a key bound to the claimer's session, with the lease as its ttl. The engine takes it away when the session
   ends or the lease does, and the task is ready again at that very version: no reaper, no clock of a worker.
3. The number of the claim only grows. What a former holder does is refused by it (`LeaseLost`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast, overload

from ..engine.model.errors import InvalidArgumentError, InvalidTransition, LeaseLost, NotFoundError
from ..engine.model.public_types import TypeTag
from . import layout
from ._task_moves import claim_task, complete_task, extend_claim, give_up, put_task, set_out
from .extension import DatabaseBase, H_co, Primitive, RunLike, operation, reader
from .layout import TASK_DEAD, TASK_DELAYED, TASK_DONE, TASK_OPEN
from .operations import Form, Operation
from .read_ahead import read_ahead
from .spans import error_text
from .task_claiming import claim_outside
from .task_records import (
    CLAIMS,
    ERROR,
    KEY,
    MAX_ATTEMPTS,
    ORDER,
    QUEUE,
    RELEASED,
    Place,
    decode_task,
    find_place,
    queue_names,
    suffix_of,
    walk_queue,
)
from .task_types import (
    ATTEMPTS_MAX,
    PRIORITY_MAX,
    PRIORITY_MIN,
    QueueStats,
    Task,
    TaskState,
    checked_number,
    checked_seconds,
    raw_task_id,
)
from .task_worker import AsyncWorker, Worker, note_ended
from .wrong_calls import outside_only

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["Tasks"]

P = ParamSpec("P")
R = TypeVar("R")

# Which places hold tasks of a state, in the order of a listing.
_KINDS = {
    None: (TASK_OPEN, TASK_DELAYED, TASK_DONE, TASK_DEAD),
    TaskState.READY: (TASK_OPEN, TASK_DELAYED),
    TaskState.CLAIMED: (TASK_OPEN,),
    TaskState.DELAYED: (TASK_DELAYED,),
    TaskState.DONE: (TASK_DONE,),
    TaskState.DEAD: (TASK_OPEN, TASK_DEAD),
}


def _claiming(body: Callable[Concatenate[Any, P], R]) -> Operation[P, R, R]:
    """A claim: outside it chooses among several ready tasks when others claim too, and can wait for one."""
    return Operation(body, Form(lambda _: claim_outside))


class Tasks(Primitive[H_co]):
    """Queues of tasks: `db.tasks.put(run, "pages", {"url": ...})`, and `db.tasks.worker(run, "pages")` works on them.

    for task in db.tasks.worker(run, "pages"):
        fetch(task.payload)
    """

    __slots__ = ()
    name = "tasks"
    tag = TypeTag.TASK

    # --- Putting ---

    @operation
    def put(
        self,
        queue: str,
        payload: Any = None,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float | timedelta = 0,
        max_attempts: int = 3,
    ) -> Task:
        """Put a task into a queue.

        Example:
          task = db.tasks.put(run, "pages", {"url": "a.html"}, priority=5)

        Args:
          queue: any name; a queue exists as long as it has tasks.
          payload: any value that can be stored.
          key: makes the put idempotent: if the queue has a task of this key, whatever became of it, that one is
            returned and nothing is put.
          priority: -32768 to 32767; the higher is claimed first, and among equals the one that was put first.
          delay: seconds until it is ready.
          max_attempts: so often it is claimed at most; then it is dead.

        Raises:
          ValueEncodingError: the payload cannot be stored.
        """
        made = put_task(self.space, queue, payload, key, priority, delay, max_attempts)
        return self._existing(made) if type(made) is bytes else cast(Task, made)

    @operation
    def put_many(
        self,
        queue: str,
        payloads: Iterable[Any],
        *,
        priority: int = 0,
        delay: float | timedelta = 0,
        max_attempts: int = 3,
    ) -> list[Task]:
        """Put a task for each payload, in their order: all of them or none.

        Example:
          tasks = db.tasks.put_many(run, "pages", ["a.html", "b.html"])
        """
        if isinstance(payloads, str | bytes | Mapping) or not isinstance(payloads, Iterable):
            raise InvalidArgumentError(
                f"put_many takes several payloads, got {type(payloads).__name__}",
                hint="put_many(queue, [payload])",
            )
        # With no payload too, a wrong argument is an error.
        layout.task_queue(queue)
        checked_number(priority, "priority", PRIORITY_MIN, PRIORITY_MAX)
        checked_number(max_attempts, "max_attempts", 1, ATTEMPTS_MAX)
        checked_seconds(delay, "delay", zero=True)
        put = type(self).put
        return [
            put(self, queue, payload, priority=priority, delay=delay, max_attempts=max_attempts)
            for payload in payloads
        ]

    # --- Working ---

    @_claiming
    def claim(self, queue: str, *, lease: float | timedelta = 30, timeout: float | None = 0) -> Task | None:
        """Claim the first ready task of a queue; None if there is none.

        The claim is the caller's until it completes the task, fails or releases it, until its lease ends, or until
        this open database goes: by `close` or by the death of its process. Then the task is ready again.

        Example:
          task = db.tasks.claim(run, "pages", lease=60, timeout=0.1)

        Args:
          queue: the queue.
          lease: seconds for which it is the caller's; `extend` gives more.
          timeout: outside only; seconds to wait for a task, None: for ever.
        """
        if timeout != 0:
            raise InvalidArgumentError(
                "inside a transaction a claim does not wait",
                hint="db.tasks.claim(run_id, queue, timeout=...), or txn.wait() when claim returns None",
            )
        return claim_task(self.space, queue, lease, 1)

    @operation
    def complete(self, task: Task, result: Any = None) -> None:
        """Record that a claimed task is done.

        `txn.tasks.complete(task)` in the transaction that writes the task's effects makes them exactly once: it commits
        only if the task is still the caller's.

        Example:
          db.tasks.complete(run, task, {"size": 512})

        Raises:
          LeaseLost: the task is no longer the caller's.
          InvalidTransition: the caller completed it already.
        """
        if not complete_task(self.space, task, result):
            raise self._not_held(task)
        note_ended(task)

    @operation
    def fail(
        self, task: Task, error: str | BaseException, retry: bool = True, *, delay: float | timedelta = 0
    ) -> TaskState:
        """Record that a claimed task failed: it is ready again, or dead when no attempt is left.

        Example:
          state = db.tasks.fail(run, task, "no answer", delay=0.5)

        Args:
          task: as `claim` returned it.
          error: text or an exception.
          retry: False: it is dead at once.
          delay: seconds until it is ready again.

        Raises:
          LeaseLost: the task is no longer the caller's.
        """
        text = error_text(error) if isinstance(error, BaseException) else error
        if type(text) is not str:
            raise InvalidArgumentError(
                f"an error is text or an exception, got {type(error).__name__}", hint="fail(task, str(error))"
            )
        if type(retry) is not bool:
            raise InvalidArgumentError(
                f"retry is True or False, got {retry!r:.80}",
                hint="fail(task, error, delay=5) tries it again in 5 s",
            )
        wait = checked_seconds(delay, "delay", zero=True)
        prefix, suffix, entry = self._give_up(task)
        claims, released, most = entry[:ERROR]
        if not retry or claims - released >= most:
            self.space.delete(prefix + TASK_OPEN + suffix)
            self.space.put(prefix + TASK_DEAD + suffix[2:], [claims, released, most, self.now_us, text])
            return TaskState.DEAD
        if wait:
            self.space.delete(prefix + TASK_OPEN + suffix)
        set_out(self.space, prefix, suffix, [claims, released, most, text, entry[ORDER]], wait)
        return TaskState.DELAYED if wait else TaskState.READY

    @operation
    def release(self, task: Task) -> None:
        """Give a claimed task back: it is ready again where it was, and this was no attempt.

        Example:
          db.tasks.release(run, task)

        Raises:
          LeaseLost: the task is no longer the caller's.
        """
        prefix, suffix, entry = self._give_up(task)
        entry[RELEASED] += 1
        self.space.put(prefix + TASK_OPEN + suffix, entry)

    @operation
    def extend(self, task: Task, lease: float | timedelta = 30) -> Task:
        """Let the lease of a claimed task end `lease` seconds from now; returns the task with its new lease.

        The claim is bound to the session of the database that calls this, so it can also be handed over to another
        process.

        Example:
          task = db.tasks.extend(run, task, 120)

        Raises:
          LeaseLost: the task is no longer the caller's.
        """
        seconds = checked_seconds(lease, "lease")
        extended = extend_claim(self.space, task, seconds)
        if extended is None:
            raise self._not_held(task)
        return extended

    @overload
    def worker(
        self: Tasks[DatabaseBase],
        run_id: RunLike,
        queue: str,
        *,
        lease: float | timedelta = ...,
        timeout: float | None = ...,
    ) -> Worker: ...
    @overload
    def worker(
        self: Tasks[AsyncDatabase[Any]],
        run_id: RunLike,
        queue: str,
        *,
        lease: float | timedelta = ...,
        timeout: float | None = ...,
    ) -> AsyncWorker: ...
    @outside_only
    def worker(
        self: Tasks[Any],
        run_id: RunLike,
        queue: str,
        *,
        lease: float | timedelta = 30,
        timeout: float | None = None,
    ) -> Worker | AsyncWorker:
        """Work on a queue, as a loop: each task is claimed, and completed at the end of the loop's body.

            for task in db.tasks.worker(run, "pages", timeout=0):
                print(task.payload)

        When an exception, `break` or `return` leaves the body, the task is failed, which counts as an attempt; a body
        that ends its task itself, by `complete`, `fail` or `release`, may leave as it likes. In a `with` block around
        the loop the error is recorded too, and Ctrl-C gives the task back:

            with db.tasks.worker(run, "pages", timeout=0) as tasks:
                for task in tasks:
                    print(task.payload)

        Args:
          run_id: the run.
          queue: the queue.
          lease: seconds for one task. A worker whose lease ran out meets LeaseLost at the end of the body.
          timeout: the loop ends when no task came for so many seconds; None: never.

        Raises:
          LeaseLost: at the end of the body: the task was no longer this worker's.
        """
        made = Worker if isinstance(self._handle, DatabaseBase) else AsyncWorker
        return made(self, run_id, queue, lease, timeout)

    def _give_up(self, task: Task) -> tuple[bytes, bytes, list[Any]]:
        """Delete the claim that the caller holds; the queue's prefix, rank and id, and the open entry.

        Raises:
          LeaseLost, InvalidTransition, NotFoundError: it does not hold it.
        """
        found = give_up(self.space, task)
        if found is None:
            raise self._not_held(task)
        note_ended(task)
        return found

    def _not_held(self, task: Task) -> Exception:
        raw = raw_task_id(task)
        place = find_place(self.space, layout.task_queue(task.queue), layout.task_rank(task.priority) + raw)
        if place is None:
            return _unknown(raw)
        details = {"task": task.id, "claim": task.claim, "claims": place.entry[CLAIMS]}
        if place.kind in (TASK_DONE, TASK_DEAD) and place.entry[CLAIMS] == task.claim:
            state = str(place.state(0))
            return InvalidTransition(
                f"task {task.id} is {state} already",
                current=state,
                requested="done",
                hint="it was completed or failed once before; requeue makes it ready again",
                details=details,
            )
        return LeaseLost(
            f"task {task.id} is no longer the caller's: its claim {task.claim} is over",
            name=task.id,
            token=task.claim,
            details=details,
        )

    # --- Reading ---

    @reader
    def get(self, task: Task | str) -> Task | None:
        """A task as it is now, by its id; None if there is none.

        Example:
          state = db.tasks.get(run, task).state
        """
        raw = raw_task_id(task)
        record = self.space.get(layout.task(raw))
        return None if record is None else self._read(raw, record)

    def _read(self, raw: bytes, record: list[Any]) -> Task:
        place = find_place(self.space, layout.task_queue(record[QUEUE]), suffix_of(record, raw))
        if place is None:
            raise _unknown(raw)
        return decode_task(raw, record, place, self.now_us)

    def _existing(self, raw: bytes) -> Task:
        """A task that is known to be there.

        Raises:
          NotFoundError: it is not.
        """
        record = self.space.get(layout.task(raw))
        if record is None:
            raise _unknown(raw)
        return self._read(raw, record)

    @reader
    def list(
        self,
        queue: str,
        *,
        state: TaskState | str | None = None,
        after: Task | str | None = None,
        limit: int | None = 100,
    ) -> list[Task]:
        """The tasks of a queue, or those in one state, in a fixed order: open ones by priority, delayed ones by time.

        Example:
          for task in db.tasks.list(run, "pages", state="dead"): print(task.error)

        Args:
          queue: the queue.
          state: ready, delayed, claimed, done or dead; None: all.
          after: the last task of the page before, as it was listed; its id if it has not moved since.
          limit: at most so many; None: all.

        Raises:
          NotFoundError: there is no task `after`.
        """
        wanted = None if state is None else TaskState.of(state)
        if limit is not None and (type(limit) is not int or limit < 0):
            raise InvalidArgumentError(
                f"limit must be a whole number from 0, got {limit!r}", hint="None means all"
            )
        prefix, kinds, now = layout.task_queue(queue), _KINDS[wanted], self.now_us
        start = b""
        if after is not None:
            last = after if isinstance(after, Task) else self._existing(raw_task_id(after))
            kind, start = _cursor(last)
            if kind not in kinds:
                raise InvalidArgumentError(
                    f"task {last.id}, which is {last.state}, is not among those that are {wanted}",
                    hint="pass the last task of the page before, as it was listed",
                )
            kinds = kinds[kinds.index(kind) :]
        found: list[Task] = []
        for kind in kinds:
            if limit is not None and len(found) >= limit:
                break
            places = walk_queue(self.space, prefix, kind, start)
            for place in read_ahead(self.space, places, _record_key):
                if wanted is not None and place.state(now) is not wanted:
                    continue
                if limit is not None and len(found) >= limit:
                    break
                raw = layout.suffix_id(place.key)
                found.append(decode_task(raw, self.space.get(layout.task(raw)), place, now))
            start = b""
        return found

    @reader
    def stats(self, queue: str) -> QueueStats:
        """How many tasks of a queue are in each state. Walks the open ones: O(count).

        Example:
          waiting = db.tasks.stats(run, "pages").ready
        """
        prefix, now = layout.task_queue(queue), self.now_us
        counts = dict.fromkeys(TaskState, 0)
        for kind in (TASK_OPEN, TASK_DELAYED):
            for place in walk_queue(self.space, prefix, kind):
                counts[place.state(now)] += 1
        counts[TaskState.DONE] += self.space.count(prefix + TASK_DONE)
        counts[TaskState.DEAD] += self.space.count(prefix + TASK_DEAD)
        return QueueStats(*(counts[state] for state in TaskState))

    @reader
    def queues(self) -> tuple[str, ...]:
        """The names of the queues that have tasks, in order.

        Example:
          for queue in db.tasks.queues(run): print(queue, db.tasks.stats(run, queue))
        """
        return tuple(sorted(queue_names(self.space)))

    # --- Looking after a queue ---

    @operation
    def requeue(self, task: Task | str) -> Task:
        """Make a task ready now, with all its attempts: one that is dead, done or delayed.

        Example:
          task = db.tasks.requeue(run, task)

        Raises:
          NotFoundError: there is no such task.
          InvalidTransition: it is claimed.
        """
        raw = raw_task_id(task)
        record = self.space.get(layout.task(raw))
        if record is None:
            raise _unknown(raw)
        prefix, suffix = layout.task_queue(record[QUEUE]), suffix_of(record, raw)
        place = find_place(self.space, prefix, suffix)
        entry = [0, 0, 3, None, 0]
        if place is not None:
            if place.claim:
                raise InvalidTransition(
                    f"task {raw.hex()} is claimed",
                    current="claimed",
                    requested="ready",
                    hint="release gives it back",
                )
            self._remove(place, raw)
            entry = [place.entry[CLAIMS], place.entry[CLAIMS], place.entry[MAX_ATTEMPTS], None, 0]
        # Back to where it was: before all that were put by transactions which began later.
        entry[ORDER] = int.from_bytes(raw[:8], "big") + 1
        set_out(self.space, prefix, suffix, entry, 0)
        return decode_task(raw, record, Place(b"", TASK_OPEN, entry), self.now_us)

    @operation
    def purge(self, queue: str, *, state: TaskState | str = "done", limit: int = 1000) -> int:
        """Remove tasks for good, with their keys; returns how many. Call it until it returns less than `limit`.

        Example:
          removed = db.tasks.purge(run, "pages", state="dead")

        Args:
          queue: the queue.
          state: which; all but claimed.
          limit: at most so many, since they are removed in one transaction.
        """
        wanted = TaskState.of(state)
        if wanted is TaskState.CLAIMED:
            raise InvalidArgumentError(
                "claimed tasks cannot be purged", hint="they can once they are done or dead"
            )
        checked_number(limit, "limit", 1, 1 << 31)
        prefix, now, removed = layout.task_queue(queue), self.now_us, 0
        for kind in _KINDS[wanted]:
            for place in read_ahead(self.space, walk_queue(self.space, prefix, kind), _record_key):
                if removed >= limit:
                    break
                if place.state(now) is not wanted:
                    continue
                raw = layout.suffix_id(place.key)
                record = self.space.get(layout.task(raw))
                if record is not None and record[KEY] is not None:
                    self.space.delete(layout.task_key(queue, record[KEY]))
                self.space.delete(layout.task(raw))
                self._remove(place, raw)
                removed += 1
        return removed

    def _remove(self, place: Place, raw: bytes) -> None:
        self.space.delete(place.key)
        if place.kind == TASK_DELAYED:
            self.space.delete(layout.task_due(raw))


def _cursor(task: Task) -> tuple[bytes, bytes]:
    """The kind of place where a task was listed, and what its key has behind that."""
    raw = raw_task_id(task)
    suffix = layout.task_rank(task.priority) + raw
    if task.due_us:
        return TASK_DELAYED, layout.time_key(task.due_us) + suffix
    if task.finished_us:
        return (TASK_DONE if task.state is TaskState.DONE else TASK_DEAD), raw
    return TASK_OPEN, suffix


def _unknown(raw: bytes) -> NotFoundError:
    return NotFoundError(
        f"there is no task {raw.hex()}",
        hint="it was purged, its run was deleted, or it belongs to another run",
        details={"task": raw.hex()},
    )


def _record_key(place: Place) -> bytes:
    """The key of the record of a task that waits at a place of its queue."""
    return layout.task(layout.suffix_id(place.key))
