"""Commits of one process and namespace that are made at the same time travel together, in one statement.

1. One thread at a time leads: it takes what has gathered, sends it, and hands the answers out. What comes meanwhile
   gathers for the next round. A thread that finds no leader leads itself, so a commit that is alone costs no switch of
   threads. A commit of a task is led by a thread of the server's executor.
2. When a leader has its own answer, it makes another waiting thread the leader.
3. A request whose connection broke is in doubt. Its name is looked up on another connection: either it was committed,
   or the look-up has given the name up for good, and the request is sent again under another one. So it is applied
   once, whatever arrives late.
4. A request that nobody takes before its deadline is taken back; it was not sent. One that was sent and has no answer
   at its deadline raises CommitOutcomeUnknown.
5. A request that binds keys is refused unless its session is kept alive, so that no key stays bound to a session that
   nobody will end.
6. All requests of one statement commit together, or none does. If the statement fails for a reason that one of them may
   have caused, each is sent alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.types.numeric import Int8

from ...commit.messages import OpFlags, Reply, Request, Status
from ...model.errors import CommitOutcomeUnknown, OccamError, SnapshotExpired, TransactionTimeout
from ..backend import Outcome
from .calls import int4, int8
from .errors import Fate, fate_of, server_error, unavailable
from .server import Server
from .wire import SNAPSHOT_EXPIRED, VOID, Sent, encode_requests, reply_rows

__all__ = ["Combiner", "Commit"]

BATCH_MAX = 128
BATCH_BYTES_MAX = 4 << 20
_PAUSE_SECONDS = 0.01


class Commit:
    """One request on its way.

    Args:
      request: decoded.
      size: in bytes.
      deadline: on the monotonic clock.
      durable: see `Backend.commit`.
      done: called once there is an outcome or an error, in any thread; None: a thread waits for it.
    """

    def __init__(
        self,
        server: Server,
        request: Request,
        size: int,
        deadline: float,
        durable: bool,
        done: Callable[[Commit], None] | None,
    ) -> None:
        self.request = request
        self.size = size
        self.deadline = deadline
        self.durable = durable
        self.session = server.session
        self.kept = server.kept
        self.binds = any(op.flags & OpFlags.EPHEMERAL for op in request.ops)
        self.sent = Sent(request, next(server.sequences))
        self.doubtful = False  # a copy may be under way
        self.outcome: Outcome | None = None
        self.error: OccamError | None = None
        self.leads = False  # it was made the leader
        self.wake = threading.Event()
        self._done = done

    @property
    def waits(self) -> bool:
        """Whether a thread waits for it, which can lead."""
        return self._done is None

    @property
    def finished(self) -> bool:
        """Whether there is an outcome or an error."""
        return self.outcome is not None or self.error is not None

    def finish(self, outcome: Outcome | None, error: OccamError | None = None) -> None:
        """Hand out what became of it."""
        if self.finished:
            return
        self.outcome, self.error = outcome, error
        if self._done is not None:
            self._done(self)
        self.wake.set()

    def result(self) -> Outcome:
        """The outcome; raises the error."""
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome


class Combiner:
    """The commits of one process in one namespace.

    Args:
      server: where.
      ns: the number of the namespace there.
      note: called with the version and the time of each commit.
    """

    def __init__(self, server: Server, ns: int) -> None:
        self._server = server
        self._ns = ns
        self._lock = threading.Lock()
        self._queue: deque[Commit] = deque()
        self._led = False
        self.batches = 0
        self.commits = 0

    def submit(self, commit: Commit) -> None:
        """Let it be sent, and return at once: its `done` is called."""
        with self._lock:
            self._queue.append(commit)
            if self._led:
                return
            self._led = True
        self._server.executor.submit(self._lead, None)

    def carry_out(self, commit: Commit) -> Outcome:
        """Send it, and wait for its outcome."""
        with self._lock:
            self._queue.append(commit)
            lead, self._led = not self._led, True
        while not commit.finished:
            if lead or commit.leads:
                self._lead(commit)
                break
            commit.wake.wait(max(0.0, commit.deadline - time.monotonic()) + 0.001)
            if not commit.finished and not commit.leads and time.monotonic() >= commit.deadline:
                self._expire(commit)
        return commit.result()

    def _expire(self, commit: Commit) -> None:
        """The deadline has passed: take it back if it was not sent."""
        with self._lock:
            if commit.leads or commit.finished:
                return
            if commit in self._queue:
                self._queue.remove(commit)
                commit.finish(None, _timed_out())
                return
        commit.finish(None, _unknown(commit, "no answer came before the deadline"))

    # ---- leading -------------------------------------------------------------------------------------------------

    def _lead(self, own: Commit | None) -> None:
        """Send rounds until `own` has its outcome; None: until nothing waits."""
        batch: list[Commit] = []
        try:
            while own is None or not own.finished:
                batch = self._take()
                if not batch:
                    break
                self._send(batch)
        except BaseException as error:
            for commit in batch:
                failed = error if isinstance(error, OccamError) else None
                commit.finish(None, failed or _unknown(commit, "the thread that sent it was interrupted"))
            if not isinstance(error, OccamError):
                raise
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            for commit in self._queue:
                if commit.waits:
                    commit.leads = True
                    commit.wake.set()
                    return
            if not self._queue:
                self._led = False
                return
        self._server.executor.submit(self._lead, None)

    def _take(self) -> list[Commit]:
        """What goes in the next statement: of one session, and neither too many nor too large."""
        batch: list[Commit] = []
        size = 0
        with self._lock:
            while self._queue and len(batch) < BATCH_MAX:
                commit = self._queue[0]
                if batch and (size + commit.size > BATCH_BYTES_MAX or commit.session != batch[0].session):
                    break
                self._queue.popleft()
                if commit.deadline <= time.monotonic():
                    commit.finish(None, _timed_out())
                    continue
                batch.append(commit)
                size += commit.size
        return batch

    def _send(self, batch: list[Commit]) -> None:
        """Send until each has its outcome."""
        waiting = batch
        while waiting:
            deadline = max(commit.deadline for commit in waiting)
            try:
                rows = self._ask(waiting, deadline)
            except psycopg.Error as error:
                waiting = self._failed(waiting, error)
                continue
            except OccamError as error:
                for commit in waiting:
                    commit.finish(None, error if not commit.doubtful else _unknown(commit, str(error)))
                return
            waiting = self._answered(waiting, rows)

    def _ask(self, batch: Sequence[Commit], deadline: float) -> list[tuple[Any, ...]]:
        server = self._server
        self.batches += 1
        durable = any(commit.durable for commit in batch)
        with server.pool.connection(deadline) as connection:
            encoded = encode_requests([commit.sent for commit in batch], server.request_type)
            parameters = [
                int4(self._ns),
                int8(batch[0].session),
                server.durability.sync(durable),
                b"\1" if any(commit.kept or commit.binds for commit in batch) else b"\0",
                int8(server.clock()),
                encoded,
            ]
            for commit in batch:
                commit.doubtful = True
            return reply_rows(server.statements.commit.run(connection, parameters, server.pool.prepare))

    def _answered(self, batch: Sequence[Commit], rows: Sequence[tuple[Any, ...]]) -> list[Commit]:
        """Hand the answers out. What has to be sent again."""
        again = []
        answers = {row[0]: row for row in rows}
        for commit in batch:
            commit.doubtful = False
            row = answers.get(commit.sent.sequence)
            if row is None:
                commit.finish(None, _unknown(commit, "the server's answer does not mention it"))
            elif row[1] == SNAPSHOT_EXPIRED:
                commit.finish(None, SnapshotExpired())
            elif row[1] == VOID:
                commit.sent.sequence = next(self._server.sequences)
                again.append(commit)
            else:
                self._finish(commit, row)
        return again

    def _finish(self, commit: Commit, row: tuple[Any, ...]) -> None:
        try:
            reply: Reply = commit.sent.reply(row)
        except OccamError as error:
            commit.finish(None, error)
            return
        self.commits += reply.status is Status.COMMITTED
        told = self._server.durability.told(commit.durable)
        commit.finish(Outcome(commit.session, commit.sent.sequence, reply, told))

    # ---- failures ------------------------------------------------------------------------------------------------

    def _failed(self, batch: list[Commit], error: psycopg.Error) -> list[Commit]:
        """A statement failed. What has to be sent again; the others have their outcome."""
        fate = fate_of(error)
        if fate is Fate.LOST:
            return self._resolve(batch, str(error))
        for commit in batch:
            commit.doubtful = False  # the server said that it did nothing
        if fate is Fate.ENDED:
            self._begin_session(batch)
            return self._in_time(batch, str(error))
        if fate is Fate.DEFINITE:
            if len(batch) > 1:
                for commit in batch:
                    self._send([commit])
            else:
                batch[0].finish(None, server_error(error, self._server.location))
            return []
        if fate is Fate.WEAKER:
            self._ask_durability(batch)
        elif fate is Fate.UNPREPARED:
            self._server.pool.prepare = False
        elif fate is Fate.LATE:
            self._hear_clock(batch)
        return self._in_time(batch, str(error))

    def _begin_session(self, batch: Sequence[Commit]) -> None:
        """Their session has ended, so none of them was committed or will be. They go on in another one.

        What they read is judged anew: a commit that relies on a key of the old session conflicts once that is gone.
        """
        server = self._server
        server.session_ended(batch[0].session)
        for commit in batch:
            try:
                if commit.binds:
                    server.keep_session(commit.deadline)
            except OccamError as error:
                commit.finish(None, error)
                continue
            commit.session, commit.kept = server.session, server.kept
            commit.sent.sequence = next(server.sequences)

    def _hear_clock(self, batch: Sequence[Commit]) -> None:
        rows = self._server.rows(self._server.statements.request_type, None, max(c.deadline for c in batch))
        self._server.heard(rows[0][1])

    def _ask_durability(self, batch: Sequence[Commit]) -> None:
        """The server's settings have changed: those commits end here that it no longer gives what they ask for."""
        server = self._server
        for commit in batch:
            try:
                server.ask_durability(commit.deadline)
                if commit.durable:
                    server.durability.check_durable(server.location)
            except OccamError as error:
                commit.finish(None, error)

    def _in_time(self, batch: Sequence[Commit], why: str) -> list[Commit]:
        """Those whose deadline has not passed, after a pause."""
        time.sleep(_PAUSE_SECONDS)
        left = []
        for commit in batch:
            if commit.finished:
                continue
            if time.monotonic() >= commit.deadline:
                commit.finish(None, unavailable(self._server.location, why))
            else:
                left.append(commit)
        return left

    def _resolve(self, batch: Sequence[Commit], why: str) -> list[Commit]:
        """The connection broke: learn what became of each. Those that were not committed are sent again."""
        again = []
        for commit in batch:
            try:
                rows = self._server.rows(
                    self._server.statements.outcome,
                    [Int8(commit.session), Int8(commit.sent.sequence)],
                    commit.deadline,
                )
            except OccamError as error:
                commit.finish(None, _unknown(commit, self._server.location.hide(f"{why}; {error}")))
                continue
            version, at, *results = rows[0]
            if version is None:
                # The name is given up: no copy of the request can be committed under it any more.
                commit.doubtful = False
                commit.sent.sequence = next(self._server.sequences)
                again.append(commit)
            else:
                row = (commit.sent.sequence, 0, version, at, None, *results, None, None, None, None)
                self._finish(commit, row)
        return self._in_time(again, why) if again else []


def _timed_out() -> OccamError:
    return TransactionTimeout("the commit was not sent before its deadline; nothing was committed")


def _unknown(commit: Commit, why: str) -> OccamError:
    return CommitOutcomeUnknown(
        f"the commit was sent, and it is not known whether it happened: {why}",
        txn_id=(commit.session, commit.sent.sequence),
    )
