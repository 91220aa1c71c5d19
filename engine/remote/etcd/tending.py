"""What a namespace owes before its head may be used: expired keys, ended sessions, another cluster.

etcd runs nothing of ours, so clients do it: the client that looks at a head with work due does it first.

1. A look whose head is due removes what has expired, as a commit, at a head clock of that moment. So no snapshot
   begins, and no request is judged, at a time by which some value has expired and was not removed.
2. The keys of a session that has ended are deleted by a commit that also compares that the session's key is gone.
   Sessions never come back, so that stays true.
3. A head that was written in another cluster was restored from a snapshot of etcd: acknowledged commits may be lost.
   Its versions jump, so that none is given out twice, and every older snapshot is refused.
4. Each of these is one etcd transaction on the head that was looked at. A lost race, or a lost answer, ends in
   another look.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .gateway import Refused, Unanswered
from .records import (
    DELETE,
    EXPIRE,
    VERSION_JUMP,
    Change,
    Commit,
    Head,
    Kind,
    LogEntry,
    Record,
    session_of,
)
from .space import Look, Space
from .wire import KeyValue, Page, delete, mod_is, present, put, range_of, read_txn, txn

__all__ = ["Tending", "is_full"]

_SESSIONS_MAX: Final = 100_000


def is_full(refused: Refused) -> bool:
    """Whether etcd refused because its quota is used up."""
    return "database space exceeded" in refused.text


class Tending:
    """Looks at one namespace. Any thread may call."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._client = space.client
        self._piece = max(4, (self._client.settings.max_txn_ops - 4) // 2)
        self.tended_session = 0  # ours, when sessions were last looked at

    def look(self, ranges: Sequence[Mapping[str, Any]] = (), deadline: float | None = None) -> Look:
        """`Space.look` at a head that owes nothing. When etcd is full, it may owe.

        Raises:
          ServerUnavailable: no member answers, or others always came first.
        """
        until = deadline if deadline is not None else self._client.deadline()
        known = self._space.known()
        with_sessions = known is not None and bool(known[0].bound)
        while True:
            ours = self._client.session
            extra = [self._sessions()] if with_sessions else []
            look = self._space.look([*ranges, *extra], until)
            dead: list[int] = []
            if with_sessions:
                alive = {session_of(found.key) for found in look.pages[-1].rows}
                look = look._replace(pages=look.pages[:-1])
                dead = [session for session in look.head.bound if session not in alive]
            elif look.head.bound:
                with_sessions = True
                continue
            try:
                if not self._pay(look, dead, until):
                    self.tended_session = ours
                    return look
            except Refused as refused:
                if not is_full(refused):
                    raise self._client.gateway.setup_error(refused) from None
                return look
            except Unanswered:
                pass
            if time.monotonic() > until:
                raise self._client.gateway.unavailable("expired keys could not be removed in time")

    def _sessions(self) -> dict[str, Any]:
        first, last = self._client.session_key(0), self._client.session_key((1 << 64) - 1)
        return range_of(first, last, keys_only=True, limit=_SESSIONS_MAX)

    def _pay(self, look: Look, dead: Sequence[int], deadline: float) -> bool:
        """Do one thing that is owed; False: nothing is."""
        head = look.head
        if look.mod_revision and head.cluster != self._space.cluster:
            self._jump(look, deadline)
            return True
        now = max(self._client.clock.now(), head.clock)
        if head.due(now):
            self._expire(look, now, deadline)
            return True
        if dead:
            self._end_session(look, dead[0], now, deadline)
            return True
        return False

    # ---- the three debts ----------------------------------------------------------------------------------

    def _jump(self, look: Look, deadline: float) -> None:
        version = look.head.version + VERSION_JUMP
        head = replace(
            look.head,
            version=version,
            floor=version,
            mark=version,
            incarnation=look.head.incarnation + 1,
            cluster=self._space.cluster,
        )
        self._write(look, head, [], [], None, deadline)

    def _expire(self, look: Look, now: int, deadline: float) -> None:
        """Turn values that have expired into their remains, a piece of them, and find out what expires next."""
        keys = self._space.keys
        due = range_of(keys.expiry(0), keys.expiry(now + 1), limit=self._piece)
        later = range_of(keys.expiry(now + 1), keys.expiry_end, limit=1)
        found, behind = self._space.look([due, later], deadline).pages
        entries = self._fitting(found.rows)
        names = [keys.expiring(entry.key) for entry in entries]
        records = self._records([key for _, key in names], deadline)
        version = look.head.version + 1
        ops: list[dict[str, Any]] = [delete(entry.key) for entry in entries]
        changes = []
        for expires_at, key in names:
            record = records[key]
            if record is not None and record.kind is Kind.VALUE and record.expires_at == expires_at:
                left = Record(Kind.EXPIRED, record.version, now, expires_at, removed_at=version)
                ops.append(put(keys.record(key), left.encode()))
                changes.append(Change(EXPIRE, key))
        if len(entries) < len(found.rows):
            next_due = keys.expiring(found.rows[len(entries)].key)[0]
        elif found.more:
            next_due = names[-1][0]
        else:
            next_due = keys.expiring(behind.rows[0].key)[0] if behind.rows else 0
        self._write_commit(look, replace(look.head, next_due=next_due), changes, ops, now, [], deadline)

    def _end_session(self, look: Look, session: int, now: int, deadline: float) -> None:
        """Delete keys that are bound to an ended session, a piece of them."""
        keys = self._space.keys
        index = range_of(keys.bound(session), keys.bound(session + 1), limit=self._piece)
        (found,) = self._space.look([index], deadline).pages
        entries = self._fitting(found.rows)
        names = [keys.bound_key(entry.key) for entry in entries]
        records = self._records(names, deadline)
        version = look.head.version + 1
        ops: list[dict[str, Any]] = [delete(entry.key) for entry in entries]
        changes = []
        for key in names:
            record = records[key]
            if record is not None and record.session == session and record.is_live(now):
                ops.append(put(keys.record(key), Record(Kind.TOMBSTONE, version, now).encode()))
                changes.append(Change(DELETE, key))
        head = look.head
        if not found.more and len(entries) == len(found.rows):
            head = replace(head, bound=tuple(other for other in head.bound if other != session))
        gone = [present(self._client.session_key(session), False)]
        self._write_commit(look, head, changes, ops, now, gone, deadline)

    # ---- parts --------------------------------------------------------------------------------------------

    def _fitting(self, rows: Sequence[KeyValue]) -> Sequence[KeyValue]:
        """As many index entries as fit into one request, at least one: each key travels three times."""
        room = self._client.settings.max_request_bytes // 2
        for index, row in enumerate(rows):
            room -= 3 * len(row.key) + 200
            if room < 0 and index:
                return rows[:index]
        return rows

    def _records(self, keys: Sequence[bytes], deadline: float) -> dict[bytes, Record | None]:
        """The records of some keys. They are those of the head that is compared later, or the comparison fails."""
        found: dict[bytes, Record | None] = {}
        for first in range(0, len(keys), 50):
            piece = keys[first : first + 50]
            pages: Sequence[Page] = self._space.look(
                [range_of(self._space.keys.record(key)) for key in piece], deadline
            ).pages
            for key, page in zip(piece, pages, strict=True):
                found[key] = Record.decode(page.rows[0].value) if page.rows else None
        return found

    def _write_commit(
        self,
        look: Look,
        head: Head,
        changes: list[Change],
        ops: list[dict[str, Any]],
        now: int,
        compare: list[dict[str, Any]],
        deadline: float,
    ) -> None:
        entry = None
        if changes:
            age = int(self._client.settings.snapshot_max_age * 1e9)
            version = head.version + 1
            entry = LogEntry([Commit(version, now, changes=sorted(changes, key=lambda change: change.key))])
            head = head.advanced(version, now, age)
        else:
            head = replace(head, clock=now)
        self._write(look, head, ops, compare, entry, deadline)

    def _write(
        self,
        look: Look,
        head: Head,
        ops: list[dict[str, Any]],
        compare: list[dict[str, Any]],
        entry: LogEntry | None,
        deadline: float,
    ) -> None:
        keys = self._space.keys
        success = [put(keys.head, head.encode()), *ops]
        if entry is not None:
            success.append(put(keys.log(head.version), entry.encode()))
        asked = txn([mod_is(keys.head, look.mod_revision), *compare], success)
        answer = read_txn(self._client.gateway.send("/v3/kv/txn", asked, deadline))
        if answer.succeeded:
            self._space.note(head, answer.revision, answer.revision, answer.cluster)

    def touch(self, look: Look, deadline: float) -> None:
        """Write the head again, so that no transaction that compares it can succeed later."""
        self._write(look, look.head, [], [], None, deadline)
