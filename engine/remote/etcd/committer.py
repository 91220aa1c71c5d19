"""Commits of one namespace: what many threads hand in is judged and written together, in one etcd transaction.

1. A transaction compares the head that its requests were judged at and writes the next one. If the comparison fails
   nothing was done, and the requests are judged again at the newer head: that is a lost race, and no conflict.
2. When every request of a batch began at the newest head that we know and only reads, scans and puts, there is nothing
   to read before: if that is still the head, nothing can conflict. Otherwise the records are read first. The branch of
   a lost comparison reads them as well, so a repeated attempt is one round trip.
3. A transaction without an answer may have been done, or may be done later. As long as the head is the one that it
   compares it is sent again; once the head has moved it can no longer be done, and the log entry of its first version
   says whether it was. So each request has one outcome.
4. A transaction of a session with a lease compares that the session is alive.
5. No answer is given before the transaction is acknowledged, also none that only says what conflicts with another
   request of the batch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ...commit.messages import OpCode, OpFlags, Reply, Request, Status
from ...model.errors import (
    CommitOutcomeUnknown,
    OccamError,
    ServerUnavailable,
    SnapshotExpired,
    TransactionTimeout,
)
from ..backend import Outcome
from .combiner import Combiner
from .gateway import Refused, Unanswered
from .judge import Batch, View, may_trust
from .records import LogEntry
from .refusals import commit_refused
from .space import Look, Space
from .tending import Tending, is_full
from .views import Plan, expired, needs_floor
from .wire import mod_is, present, range_of, read_txn, txn
from .writes import Writes

__all__ = ["Committer", "Item"]

_BATCH_MAX: Final = 256
_PAUSE_MAX: Final = 0.03  # between lost races


@dataclass
class Item:
    """A request that waits for its outcome."""

    request: Request
    session: int
    sequence: int
    deadline: float
    has_timeout: bool  # the caller gave the deadline
    future: Future[Outcome] = field(default_factory=Future)

    @property
    def alone(self) -> bool:
        """Whether it must be alone in its batch."""
        return any(op.code is OpCode.DELETE_RANGE for op in self.request.ops)

    @property
    def binds(self) -> bool:
        """Whether it binds keys to the session."""
        return any(op.flags & OpFlags.EPHEMERAL for op in self.request.ops)


class Sent(NamedTuple):
    """A transaction that is on its way: what it compares, and the name of its first commit."""

    mod_revision: int
    version: int
    session: int
    sequence: int


class Committer:
    """One namespace. Any thread may submit."""

    def __init__(self, space: Space, tending: Tending) -> None:
        self._space = space
        self._client = space.client
        self._tending = tending
        self._combiner: Combiner[Item] = Combiner("occamdb-etcd-commit", self._serve, _BATCH_MAX)
        self._random = random.Random()
        self.unknown: dict[tuple[int, int], tuple[Sent, int]] = {}  # and the version of the request itself
        self.commits = 0
        self.batches = 0
        self.races = 0

    def submit(self, item: Item) -> None:
        """Take a request; its future gets the outcome."""
        if not self._combiner.put(item):
            item.future.set_exception(self._client.gateway.unavailable("the database is being closed"))

    def close(self) -> None:
        """Finish what was handed in."""
        self._combiner.close(self._client.timeout + 1)

    # ---- batches ------------------------------------------------------------------------------------------

    def _serve(self, items: list[Item]) -> None:
        waiting = [item for item in items if item.future.set_running_or_notify_cancel()]
        while waiting:
            try:
                done = self._round(waiting)
            except BaseException as error:  # an answer is owed in any case
                done = waiting[:]
                for item in waiting:
                    if not item.future.done():
                        item.future.set_exception(error)
            waiting = [item for item in waiting if item not in done and not item.future.done()]

    def _round(self, items: list[Item]) -> list[Item]:
        """Commit the first of some requests, as many as fit, and return those that are answered."""
        view: View | None = None
        attempt = 0
        while True:
            items = [item for item in items if not self._is_late(item)]
            if not items:
                return []
            if items[0].alone:
                items = items[:1]
            if view is None:
                view = self._trusted(items) if attempt == 0 else None
                if view is None:
                    view, items = self._read(items)
            items = [item for item in items if not self._is_stale(item, view)]
            if not items:
                return []
            batch, judged = self._judge(items, view)
            if not batch.commits:
                if not view.unchanged:
                    return self._answer(judged, {})
                view, attempt = None, attempt + 1  # the view may be an old one: only a write would show it
                continue
            try:
                view = self._write(batch, judged)
            except Refused as refused:
                if "too many requests" in refused.text:
                    view = None
                elif len(judged) > 1:
                    items, view = items[:1], None
                    continue
                else:
                    judged[0][0].future.set_exception(
                        commit_refused(refused, self._client, batch, judged[0][0].request)
                    )
                    return [judged[0][0]]
            else:
                if all(item.future.done() for item, _ in judged):
                    return [item for item, _ in judged]
            self.races += 1
            attempt += 1
            if attempt > 1:
                time.sleep(self._random.uniform(0, min(_PAUSE_MAX, 0.001 * 2**attempt)))

    def _is_late(self, item: Item) -> bool:
        """Answer a request whose time is up; nothing of it is on its way."""
        if item.future.done():
            return True
        if item.session != self._client.session or (item.binds and not self._client.kept):
            item.future.set_exception(session_ended(item.session))
            return True
        if time.monotonic() < item.deadline:
            return False
        item.future.set_exception(out_of_time(self._client.address.location, item.has_timeout))
        return True

    def _is_stale(self, item: Item, view: View) -> bool:
        start = item.request.start_version
        if start >= view.head.floor or not needs_floor(item.request):
            return False
        item.future.set_exception(expired(start, view.head.floor))
        return True

    def _trusted(self, items: Sequence[Item]) -> View | None:
        """A view for which nothing has to be read, if the requests allow it."""
        known = self._space.known()
        if known is None or self._tending.tended_session != self._client.session:
            return None
        head, mod_revision = known
        if head.cluster != self._space.cluster or head.due(max(self._client.clock.now(), head.clock)):
            return None
        if not all(may_trust(item.request, head, self._space.was_read) for item in items):
            return None
        return View(head, mod_revision, unchanged=True)

    def _read(self, items: list[Item]) -> tuple[View, list[Item]]:
        deadline = max(item.deadline for item in items)
        try:
            return self._plan(items).read(self._tending, deadline), items
        except SnapshotExpired as error:
            if len(items) > 1:
                return self._read(items[:1])
            items[0].future.set_exception(error)
            return View(self._space.look().head, 0), []

    def _plan(self, items: Sequence[Item]) -> Plan:
        return Plan(self._space, [item.request for item in items])

    def _judge(self, items: Sequence[Item], view: View) -> tuple[Batch, list[tuple[Item, Reply]]]:
        """Judge as many requests as fit into one transaction."""
        head = view.head
        now = max(self._client.clock.now(), head.clock)
        if head.due(now):  # something has expired since the look: judge by an earlier moment
            now = max(head.clock, head.next_due - 1)
        batch = Batch(view, now)
        writes = Writes(self._space, batch)
        judged: list[tuple[Item, Reply]] = []
        for item in items:
            if item.alone and judged:
                break
            before = len(batch.commits)
            reply = batch.judge(item.request, item.session, item.sequence)
            if len(batch.commits) > before and not writes.fits() and before:
                batch.undo_last()
                break
            judged.append((item, reply))
            if item.alone:
                break
        return batch, judged

    # ---- writing ------------------------------------------------------------------------------------------

    def _write(self, batch: Batch, judged: list[tuple[Item, Reply]]) -> View | None:
        """Send a batch, and answer its requests if it was done.

        Returns:
          What the lost comparison read, if that was enough.

        Raises:
          Refused: nothing was done.
        """
        items = [item for item, _ in judged]
        first = batch.commits[0]
        sent = Sent(batch.view.revision, first.version, first.session, first.sequence)
        versions = {commit.sequence: commit.version for commit in batch.commits}
        keys, head, success = self._space.keys, *Writes(self._space, batch).build()
        compare = [mod_is(keys.head, batch.view.revision)]
        fenced = self._client.kept and self._client.session == first.session
        if fenced:
            compare.append(present(self._client.session_key(first.session), True))
        plan = self._plan(items)
        ranges = plan.inline
        alive = [range_of(self._client.session_key(first.session), keys_only=True)] if fenced else []
        failure = [range_of(keys.head), *alive, *(ranges or [])]
        asked = txn(compare, success, failure)
        deadline = max(item.deadline for item in items)
        try:
            answer = read_txn(self._client.gateway.send("/v3/kv/txn", asked, deadline))
        except (Refused, Unanswered) as error:
            # etcd answers the very transaction that uses up its quota with an error, and does it all the same.
            full = isinstance(error, Refused)
            if isinstance(error, Refused) and not is_full(error):
                raise
            try:
                done = self._settle(sent, None if full else asked, versions, items, deadline)
            except CommitOutcomeUnknown:
                self._leave_open(judged, versions)
                return None
            if done:
                self._won(judged, versions)
            elif full:
                raise
            return None
        if answer.succeeded:
            self._space.note(head, answer.revision, answer.revision, answer.cluster)
            self._won(judged, versions)
            return None
        look = self._space.take(answer)
        if fenced and not look.pages[0].rows:
            self._client.lost(first.session)
            return None
        now = max(self._client.clock.now(), look.head.clock)
        if ranges is None or look.head.due(now) or not plan.is_whole(look.head):
            return None
        if look.head.cluster != self._space.cluster:
            return None
        return plan.view(look, look.pages[len(alive) :])

    def _won(self, judged: list[tuple[Item, Reply]], versions: dict[int, int]) -> None:
        self.batches += 1
        self.commits += len(versions)
        self._answer(judged, versions)

    def _answer(self, judged: list[tuple[Item, Reply]], versions: dict[int, int]) -> list[Item]:
        for item, reply in judged:
            self.unknown.pop((item.session, item.sequence), None)
            if reply.status is Status.COMMITTED and item.sequence in versions:
                self._client.remember(item.session, item.sequence, reply.commit_version, reply.committed_at)
            item.future.set_result(Outcome(item.session, item.sequence, reply, "always"))
        return [item for item, _ in judged]

    def _settle(
        self,
        sent: Sent,
        asked: dict[str, Any] | None,
        versions: dict[int, int],
        items: Sequence[Item],
        deadline: float,
    ) -> bool:
        """Find out what became of a transaction without an answer; whether it was done.

        Args:
          asked: to be sent again while it may still be done; None: it was answered, so it will not be done later.

        Raises:
          CommitOutcomeUnknown: nobody could be asked in time.
        """
        for item in items:
            if item.sequence in versions:
                self.unknown[item.session, item.sequence] = (sent, versions[item.sequence])
        while True:
            try:
                look = self.look_for(sent.version, deadline)
                if look.mod_revision != sent.mod_revision or asked is None:
                    done = is_ours(look, sent)
                    self._forget(items)
                    return done
                answer = read_txn(self._client.gateway.send("/v3/kv/txn", asked, deadline))
                if answer.succeeded:
                    return True
                if self._space.take(answer).mod_revision == sent.mod_revision:
                    # So it was the session's key that is gone, and it never comes back.
                    self._client.lost(sent.session)
                    self._forget(items)
                    return False
            except Unanswered:
                pass
            except Refused:
                # The earlier one may still be done, by a member with other flags. Once the head has moved it cannot.
                self._move(look, deadline)
            except ServerUnavailable:
                raise outcome_unknown(self._client.address.location, *sent[2:]) from None
            if time.monotonic() >= deadline:
                raise outcome_unknown(self._client.address.location, *sent[2:])

    def _move(self, look: Look, deadline: float) -> None:
        try:
            self._tending.touch(look, deadline)
        except (Refused, Unanswered):
            time.sleep(0.01)  # etcd is full, or cut off: the caller looks again

    def _leave_open(self, judged: list[tuple[Item, Reply]], versions: dict[int, int]) -> None:
        """Answer the requests of a batch whose outcome is not known. Those that lost had nothing in it."""
        where = self._client.address.location
        for item, _ in judged:
            if item.sequence in versions:
                item.future.set_exception(outcome_unknown(where, item.session, item.sequence))
            else:
                item.future.set_exception(out_of_time(where, item.has_timeout))

    def _forget(self, items: Sequence[Item]) -> None:
        for item in items:
            self.unknown.pop((item.session, item.sequence), None)

    def look_for(self, version: int, deadline: float) -> Look:
        """The head, and the log entry with a version, if there is one."""
        keys = self._space.keys
        return self._space.look([range_of(keys.log(version), keys.log_end, limit=1)], deadline)


def is_ours(look: Look, sent: Sent) -> bool:
    """Whether the log entry that `look_for` found is that of the transaction that was sent."""
    rows = look.pages[0].rows
    if not rows:
        return False
    commits = LogEntry.decode(rows[0].value, rows[0].mod_revision).commits
    return any((c.version, c.session, c.sequence) == sent[1:] for c in commits)


def outcome_unknown(location: str, session: int, sequence: int) -> CommitOutcomeUnknown:
    """No member could be asked in time."""
    return CommitOutcomeUnknown(
        f"the connection to {location} was lost during a commit, and no member could be asked about it in time",
        txn_id=(session, sequence),
    )


def out_of_time(location: str, has_timeout: bool) -> OccamError:
    """The deadline passed while nothing was on its way."""
    text = f"the commit did not reach {location} in time; nothing was committed"
    if has_timeout:
        return TransactionTimeout(text)
    return ServerUnavailable(text, hint="try again; `etcdctl endpoint status` shows the load of the members")


def session_ended(session: int) -> ServerUnavailable:
    """The session was lost between the request and its commit."""
    return ServerUnavailable(
        f"the session {session} of this process ended before the commit; nothing was committed, and the keys that "
        "were bound to it are deleted",
        hint="begin again: another session has begun. A larger session_grace outlives longer pauses",
        details={"session": session},
    )
