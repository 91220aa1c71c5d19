"""`Backend` over PostgreSQL: reads, commits and changes of one namespace. See ../backend.py for the rules.

What keeps each rule is argued beside it: the order of commits, ranges and effects in sql/, snapshots and expiry in
statements.py, one outcome in combiner.py, sessions in keeper.py, durability in durability.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from psycopg import pq
from psycopg.types.numeric import Int4, Int8

from ...commit.messages import decode_request
from ...model.errors import ProtocolError, SnapshotExpired, WatchLagged
from ...model.limits import Limits
from ..backend import Begun, ChangedKey, Changes, CommitOfChanges, Outcome, Row
from .calls import arrays_of_bytes, int4, int8
from .combiner import Combiner, Commit
from .facts import schema_facts
from .server import Server

__all__ = ["PostgresBackend"]

_log = logging.getLogger("occamdb")
_KINDS = {1: "put", 2: "delete", 3: "expire"}
_CHANGES_MAX = 1 << 30
_VERSION_MAX = (1 << 63) - 1
_BEGUN = struct.Struct(">6q")
_BOUNDS = struct.Struct(">4q")
_ROW = struct.Struct(">5q")  # place, version, time, expiry, session


class PostgresBackend:
    """One namespace of a server. Any thread may call.

    Args:
      server: shared by all namespaces of this process.
      base: what the namespace's stored keys begin with.
      limits: the largest key, value and transaction.
      family: the backends of this server by namespace.
    """

    engine = "postgres"

    def __init__(
        self, server: Server, base: bytes, limits: Limits, family: dict[bytes, PostgresBackend]
    ) -> None:
        self._server = server
        self._base = base
        self._family = family
        self._number: int | None = None
        self._combiner: Combiner | None = None
        self._combiner_of: object = None
        self._lock = threading.Lock()
        self._beginning: tuple[object, Future[Begun] | None] = (None, None)  # by process, not yet sent
        self.limits = limits
        self.incarnation = 1
        family[base] = self

    @property
    def location(self) -> str:
        """Where it is, without secrets."""
        return self._server.location.shown

    @property
    def durability(self) -> str:
        """What an acknowledged commit survives."""
        return self._server.durability.usual

    @property
    def session(self) -> int:
        """Of this process."""
        return self._server.here().session

    def of(self, base: bytes) -> PostgresBackend:
        """The same server for another namespace."""
        return self._family.get(base) or PostgresBackend(self._server, base, self.limits, self._family)

    def namespaces(self) -> Sequence[bytes]:
        """Those in which something was written."""
        return [row[0] for row in self._server.rows(self._server.statements.namespaces, None)]

    @property
    def number(self) -> int:
        """The number of the namespace on the server; makes its head row at the first use."""
        if self._number is None:
            statements = self._server.statements
            rows = self._server.rows(statements.find, [self._base])
            if not rows:
                self._server.rows(statements.add, [self._base])
                rows = self._server.rows(statements.find, [self._base])
            self._number = int(rows[0][0])
            self._server.numbers.add(self._number)
            self._server.keeper.start()
        return self._number

    # ---- snapshots -----------------------------------------------------------------------------------------------

    def begin(self, keys: Sequence[bytes] = ()) -> Begun:
        """The newest snapshot, and some of its rows."""
        server, ns = self._server, int4(self.number)
        while True:
            if keys:
                result = server.call(server.statements.begin_with, [ns, arrays_of_bytes(keys)])
            else:
                result = server.call(server.statements.begin, [ns])
            version, expiry_time, next_due, clock, moved, incarnation = _head(result, _BEGUN)
            server.heard(clock)
            if moved or 0 < next_due <= clock:
                server.rows(server.statements.tick, [Int4(self.number)])
                continue
            self._note_incarnation(incarnation)
            return Begun(version, expiry_time, max(clock, expiry_time), _placed(keys, result))

    def _note_incarnation(self, incarnation: int) -> None:
        if incarnation > self.incarnation:
            if self.incarnation > 1 or incarnation > 1:
                _log.warning(
                    "%s runs on another server than before: commits that had been acknowledged may be lost, "
                    "unless standbys were synchronous (incarnation %d)",
                    self.location,
                    incarnation,
                )
            self.incarnation = incarnation

    def read(self, keys: Sequence[bytes], version: int) -> Sequence[Row | None]:
        """The rows of some keys at a version."""
        if not keys:
            return []
        result = self._server.call(
            self._server.statements.read, [int4(self.number), arrays_of_bytes(keys), int8(version)]
        )
        _check_version(_head(result, _BOUNDS), version)
        return _placed(keys, result)

    def scan(
        self, start: bytes, end: bytes, version: int, limit: int, *, reverse: bool = False
    ) -> tuple[Sequence[Row], bool]:
        """At most `limit` rows of a range at a version, and whether that was all."""
        statements = self._server.statements
        rows = self._server.rows(
            statements.scan_back if reverse else statements.scan,
            {
                "start": start,
                "end": end,
                "version": Int8(version),
                "limit": Int8(limit + 1),
                "ns": Int4(self.number),
            },
        )
        _check_version(rows[0][:4], version)
        found = [Row(*row[4:10]) for row in rows if row[4] is not None]
        return found[:limit], len(found) <= limit

    # ---- commits -------------------------------------------------------------------------------------------------

    def commit(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        """Commit one request."""
        return self._combined().carry_out(self._commit(request, deadline, durable, None))

    async def commit_async(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        """`commit`, for a task."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        combiner = (
            await loop.run_in_executor(None, self._combined) if self._number is None else self._combined()
        )

        def done(_: Commit) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(_wake, future)

        commit = self._commit(request, deadline, durable, done)
        combiner.submit(commit)
        await asyncio.shield(future)
        return commit.result()

    def _commit(self, request: bytes, deadline: float | None, durable: bool, done: Any) -> Commit:
        server = self._server.here()
        if durable:
            server.durability.check_durable(server.location)
        until = server.pool.deadline(deadline)
        decoded = decode_request(request)
        if not all(op.key.startswith(self._base) for op in decoded.ops):
            raise ProtocolError("a request names a key of another namespace")
        return Commit(server, decoded, len(request), until, durable, done)

    def _combined(self) -> Combiner:
        server = self._server.here()
        server.keeper.start()  # again in a forked child
        with self._lock:
            if self._combiner is None or self._combiner_of is not server.token:
                self._combiner = Combiner(server, self.number)
                self._combiner_of = server.token
            return self._combiner

    async def begin_async(self) -> Begun:
        """`begin`, for a task. Tasks that begin before the server is asked share the answer: it is as new as theirs."""
        server = self._server.here()
        with self._lock:
            token, shared = self._beginning
            if shared is None or token is not server.token:
                shared = server.executor.submit(self._begin_shared)
                self._beginning = server.token, shared
        # Shielded: a task that is cancelled must not take the answer from the others.
        return await asyncio.shield(asyncio.wrap_future(shared))

    def _begin_shared(self) -> Begun:
        with self._lock:
            self._beginning = None, None  # a task that begins from now on may have seen a later commit
        return self.begin()

    def outcome(self, session: int, sequence: int) -> tuple[int, int] | None:
        """(version, committed_at) of a commit of ours; None: it never happens."""
        rows = self._server.rows(self._server.statements.outcome, [Int8(session), Int8(sequence)])
        version, at = rows[0][:2]
        return None if version is None else (version, at)

    # ---- changes -------------------------------------------------------------------------------------------------

    def newest(self) -> int:
        """The newest version."""
        rows = self._server.rows(self._server.statements.newest, [Int4(self.number)])
        return int(rows[0][0])

    def changes(self, start: bytes, end: bytes | None, since: int, limit: int, *, values: bool) -> Changes:
        """Commits after `since` that changed something in a range."""
        rows, newest = self._change_rows(start, end, since, _VERSION_MAX, max(1, limit) + 1, values)
        if len(rows) <= limit:
            return Changes(_commits(rows), newest)
        # The last commit may not be whole. If it is the only one, ask for all of it.
        last = rows[-1][0]
        whole = [row for row in rows if row[0] < last]
        if whole:
            return Changes(_commits(whole), last - 1)
        rows, _ = self._change_rows(start, end, since, last, _CHANGES_MAX, values)
        return Changes(_commits(rows), last)

    def _change_rows(
        self, start: bytes, end: bytes | None, since: int, until: int, limit: int, values: bool
    ) -> tuple[list[tuple[Any, ...]], int]:
        statements = self._server.statements
        rows = self._server.rows(
            statements.changes if values else statements.changed_keys,
            {
                "start": start,
                "end": end,
                "since": Int8(since),
                "until": Int8(until),
                "limit": Int8(limit),
                "ns": Int4(self.number),
            },
        )
        version, floor, gap_low, gap_high = rows[0][:4]
        if since < floor or since > version or gap_low < since < gap_high:
            raise WatchLagged(since=since, oldest=max(floor, gap_high) if since > gap_low else floor)
        return [row[4:] for row in rows if row[4] is not None], version

    def wait(self, since: int, timeout: float) -> bool:
        """Sleep until there is a version after `since`."""
        return self._server.here().listener.wait(self.number, since, timeout)

    # ---- the rest ------------------------------------------------------------------------------------------------

    def keep_session(self) -> None:
        """From now on the session is kept alive."""
        self._server.here().keep_session()

    def stats(self) -> dict[str, Any]:
        """Figures of this process and of the namespace's head, for `status`."""
        server = self._server.here()
        combiner = self._combiner
        facts = server.pool.run(lambda connection: schema_facts(connection, server.location))
        row = server.rows(server.statements.figures, [Int4(self.number)])[0]
        names = ("version", "floor", "incarnation", "timeline", "expiry_time", "next_due", "swept_at")
        return {
            "engine": self.engine,
            "location": self.location,
            "schema": server.location.schema,
            "session": server.session,
            "session_kept": server.kept,
            "commits": combiner.commits if combiner else 0,
            "batches": combiner.batches if combiner else 0,
            "reconnects": server.pool.reconnects,
            "prepared_statements": server.pool.prepare,
            "notifications": server.listener.hears,
            **dict(zip(names, row, strict=True)),
        } | facts

    def close(self) -> None:
        """End the session and the connections."""
        self._server.close()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _head(result: pq.abc.PGresult, form: struct.Struct) -> tuple[int, ...]:
    """What the first row says of the head."""
    packed = result.get_value(0, 1) if result.ntuples else None
    if packed is None or result.get_value(0, 0) is not None or len(packed) != form.size:
        raise ProtocolError("the server's answer does not begin with the head of the namespace")
    return form.unpack(packed)


def _check_version(bounds: Sequence[int], version: int) -> None:
    """Refuse rows at a version that is not kept, or was lost in a failover."""
    newest, floor, gap_low, gap_high = bounds
    if version < floor or version > newest or gap_low < version < gap_high:
        raise SnapshotExpired(
            details={"version": version, "oldest": floor, "newest": newest, "lost": [gap_low, gap_high]}
        )


def _placed(keys: Sequence[bytes], result: pq.abc.PGresult) -> list[Row | None]:
    """The rows behind the first one, in the order of the keys."""
    found: list[Row | None] = [None] * len(keys)
    get, unpack, count = result.get_value, _ROW.unpack, len(keys)
    try:
        for row in range(1, result.ntuples):
            place, version, ts, expires_at, session = unpack(get(row, 1) or b"")
            value = get(row, 0)
            if not 1 <= place <= count or value is None:
                raise ProtocolError(f"the server answered about key {place} of {count}")
            found[place - 1] = Row(keys[place - 1], value, version, ts, expires_at, session)
    except struct.error:
        raise ProtocolError("the server answered with a damaged row") from None
    return found


def _commits(rows: Sequence[tuple[Any, ...]]) -> list[CommitOfChanges]:
    commits: list[CommitOfChanges] = []
    changes: list[ChangedKey] = []
    for version, ts, kind, key, value in rows:
        if not commits or commits[-1].version != version:
            changes = []
            commits.append(CommitOfChanges(version, ts, changes))
        if kind not in _KINDS:
            raise ProtocolError(f"the server named a change of kind {kind}")
        changes.append(ChangedKey(_KINDS[kind], key, value))  # type: ignore[arg-type]
    return commits
