"""One namespace on etcd: `Backend` over the parts beside this file. See `remote/backend.py` for the methods."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final

from ...commit.messages import OpCode, OpFlags, decode_request
from ...model.errors import CommitOutcomeUnknown, DatabaseClosedError, OccamError, ServerSetupError
from ...model.limits import KIB, Limits
from ..backend import Begun, Changes, Outcome, Row
from .address import Address
from .client import Client
from .combiner import Combiner
from .committer import Committer, Item, is_ours, out_of_time, outcome_unknown
from .gateway import Refused, Unanswered
from .history import changes_of, find_commit
from .records import Head
from .space import RANGES_MAX, Space
from .tending import Tending
from .upkeep import Upkeep
from .watcher import Watcher
from .wire import range_of, read_page

__all__ = ["EtcdBackend", "Member"]

_BEGINS_MAX: Final = 1024
_GRACE: Final = 3.0  # calls that a commit may still need behind its deadline, to find out what became of it


class Member:
    """One namespace as one process uses it."""

    def __init__(self, client: Client, base: bytes) -> None:
        self.space = Space(client, base)
        self.tending = Tending(self.space)
        self.committer = Committer(self.space, self.tending)
        self.watcher = Watcher(self.space, self.tending)
        self.begins: Combiner[Future[Begun]] = Combiner("occamdb-etcd-begin", self._begin_all, _BEGINS_MAX)

    def begin(self, keys: Sequence[bytes] = ()) -> Begun:
        """The newest snapshot, and rows of it."""
        space = self.space
        first = keys[: RANGES_MAX - 2]
        look = self.tending.look([range_of(space.keys.record(key)) for key in first])
        rows = [space.row(page.rows[0]) if page.rows else None for page in look.pages]
        if len(keys) > len(first):
            rows.extend(space.read(keys[len(first) :], look.revision))
        head = look.head
        space.saw(keys, rows, head.version)
        return Begun(head.version, head.clock, max(space.client.clock.now(), head.clock), rows)

    def _begin_all(self, futures: list[Future[Begun]]) -> None:
        """One look for all who asked before it was sent."""
        asked = [future for future in futures if future.set_running_or_notify_cancel()]
        try:
            begun = self.begin()
        except BaseException as error:
            for future in asked:
                future.set_exception(error)
        else:
            for future in asked:
                future.set_result(begun)

    def close(self) -> None:
        """Finish commits and end the threads."""
        self.watcher.close()
        self.committer.close()
        self.begins.close(1.0)


class Family:
    """The namespaces of one open database, and what they share. A forked child renews all of it."""

    def __init__(self, client: Client) -> None:
        self._lock = threading.Lock()
        self._take(client)

    def _take(self, client: Client) -> None:
        self.client = client
        self.upkeep = Upkeep(client)
        self.members: dict[bytes, Member] = {}

    def after_fork(self) -> None:
        """Leave the parent's threads and connections to the parent."""
        if self.client.pid != os.getpid():
            self._lock = threading.Lock()
            self._take(self.client.renewed())

    def member(self, base: bytes) -> Member:
        """A namespace, as this process uses it."""
        self.after_fork()
        self.client.require_open()
        member = self.members.get(base)
        if member is None:
            with self._lock:
                member = self.members.setdefault(base, Member(self.client, base))
        return member


class EtcdBackend:
    """See `remote/backend.py`."""

    engine = "etcd"
    durability = (
        "always"  # a member acknowledges what a majority has synced; no setting of etcd 3.4 changes that
    )

    def __init__(self, family: Family, base: bytes) -> None:
        self._family = family
        self._base = base
        client = family.client
        self.location = client.address.location
        size = client.settings.max_request_bytes
        # Larger ones are refused by etcd, with an error that names its flag.
        asked = client.settings
        self.limits = Limits(
            key_size_max=asked.key_size_max or 8 * KIB,
            value_size_max=asked.value_size_max or max(size, KIB),
            transaction_size_max=asked.transaction_size_max or max(4 * size, 64 * KIB),
        )

    @classmethod
    def open(cls, url: str, base: bytes, timeout: float, settings: Mapping[str, Any]) -> EtcdBackend:
        """Connect; see `open_backend`."""
        client = Client(Address.of(url, settings), timeout)
        try:
            client.connect()
        except BaseException:
            client.close()
            raise
        return cls(Family(client), base)

    @property
    def _member(self) -> Member:
        return self._family.member(self._base)

    @property
    def session(self) -> int:
        self._family.after_fork()
        return self._family.client.session

    @property
    def incarnation(self) -> int:
        known = self._member.space.known()
        return (known[0] if known is not None else self._member.tending.look().head).incarnation

    def of(self, base: bytes) -> EtcdBackend:
        return EtcdBackend(self._family, base)

    def namespaces(self) -> Sequence[bytes]:
        client = self._member.space.client
        first = client.prefix + b"h"
        found: list[bytes] = []
        start, end = first, client.prefix + b"i"
        while True:
            try:
                answer = client.gateway.ask(
                    "/v3/kv/range", range_of(start, end, limit=1000), client.deadline()
                )
            except Refused as refused:
                raise client.gateway.setup_error(refused) from None
            page = read_page(answer)
            found.extend(row.key[len(first) :] for row in page.rows if Head.decode(row.value).version)
            if not page.more:
                return found
            start = page.rows[-1].key + b"\x00"

    # ---- reading ------------------------------------------------------------------------------------------

    def begin(self, keys: Sequence[bytes] = ()) -> Begun:
        return self._member.begin(keys)

    async def begin_async(self) -> Begun:
        future: Future[Begun] = Future()
        if not self._member.begins.put(future):
            raise DatabaseClosedError()
        return await asyncio.wrap_future(future)

    def read(self, keys: Sequence[bytes], version: int) -> Sequence[Row | None]:
        space = self._member.space
        rows = space.at_version(version, lambda revision: space.read(keys, revision)) if keys else []
        space.saw(keys, rows, version)
        return rows

    def scan(
        self, start: bytes, end: bytes, version: int, limit: int, *, reverse: bool = False
    ) -> tuple[Sequence[Row], bool]:
        space = self._member.space
        return space.at_version(version, lambda revision: space.scan(start, end, revision, limit, reverse))

    def newest(self) -> int:
        return self._member.tending.look().head.version

    def changes(self, start: bytes, end: bytes | None, since: int, limit: int, *, values: bool) -> Changes:
        member = self._member
        return changes_of(member.space, member.tending, start, end, since, limit, values=values)

    def wait(self, since: int, timeout: float) -> bool:
        found = self._member.watcher.wait(since, timeout)
        self._family.client.require_open()
        return found

    # ---- committing ---------------------------------------------------------------------------------------

    def commit(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        item, grace = self._submit(request, deadline)
        try:
            return item.future.result(item.deadline - time.monotonic() + grace)
        except FutureTimeout:
            if item.future.done():  # the commit itself raised it
                raise
            return self._give_up(item)
        except CancelledError:
            raise self._family.client.gateway.unavailable("the database is being closed") from None

    def _give_up(self, item: Item) -> Outcome:
        """The deadline passed, and the thread that commits is still busy."""
        if item.future.cancel():
            raise out_of_time(self.location, item.has_timeout)
        raise outcome_unknown(self.location, item.session, item.sequence)

    async def commit_async(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        item, grace = (
            await asyncio.to_thread(self._submit, request, deadline)
            if _binds(request)
            else self._submit(request, deadline)
        )
        waiting = asyncio.wrap_future(item.future)
        waiting.add_done_callback(_retrieved)
        done, _ = await asyncio.wait([waiting], timeout=item.deadline - time.monotonic() + grace)
        return waiting.result() if done else self._give_up(item)

    def _submit(self, request: bytes, deadline: float | None) -> tuple[Item, float]:
        member = self._member
        client = member.space.client
        asked = decode_request(request)
        if any(op.flags & OpFlags.EPHEMERAL for op in asked.ops):
            client.keep()
        until = client.deadline() if deadline is None else deadline
        item = Item(asked, client.session, client.next_sequence(), until, deadline is not None)
        if any(op.code not in (OpCode.READ, OpCode.RANGE, OpCode.CAS) for op in asked.ops):
            self._family.upkeep.note(member.space)
        member.committer.submit(item)
        return item, _GRACE * client.settings.call_timeout

    def outcome(self, session: int, sequence: int) -> tuple[int, int] | None:
        member = self._member
        client = member.space.client
        known = client.remembered(session, sequence)
        if known is not None:
            return known
        while True:
            pending = member.committer.unknown.get((session, sequence))
            if pending is None:
                commit = find_commit(member.space, session, sequence)
                return None if commit is None else (commit.version, commit.timestamp)
            sent, version = pending
            look = member.committer.look_for(sent.version, client.deadline())
            if look.mod_revision != sent.mod_revision:
                member.committer.unknown.pop((session, sequence), None)
                return (version, _time_of(look, version)) if is_ours(look, sent) else None
            try:  # it may still be done: see that it cannot
                member.tending.touch(look, client.deadline())
            except (Unanswered, Refused) as error:
                raise CommitOutcomeUnknown(
                    f"{self.location} cannot say yet what became of the commit: {error}",
                    txn_id=(session, sequence),
                ) from None

    def keep_session(self) -> None:
        self._member.space.client.keep()

    # ---- the rest -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        member = self._member
        return describe(member) | {
            "incarnation": self.incarnation,
            "commits": member.committer.commits,
            "batches": member.committer.batches,
            "lost_races": member.committer.races,
            **member.space.client.figures(),
        }

    def close(self) -> None:
        family = self._family
        family.after_fork()
        client = family.client
        if client.closed:
            return
        client.closed = True
        for member in list(family.members.values()):
            member.close()
        family.upkeep.close()
        if client.revoke():
            for member in list(family.members.values()):
                known = member.space.known()
                if known is not None and client.session in known[0].bound:
                    _end_here(member)
        client.close()


def _end_here(member: Member) -> None:
    """Delete the keys of the session that has just ended. If that fails, the next look of any process does it."""
    try:
        member.tending.look(deadline=time.monotonic() + member.space.client.settings.call_timeout)
    except OccamError:
        return


def _time_of(look: Any, version: int) -> int:
    from .records import LogEntry

    row = look.pages[0].rows[0]
    commits = LogEntry.decode(row.value, row.mod_revision).commits
    return next((commit.timestamp for commit in commits if commit.version == version), 0)


def _binds(request: bytes) -> bool:
    return any(op.flags & OpFlags.EPHEMERAL for op in decode_request(request).ops)


def _retrieved(future: asyncio.Future[Outcome]) -> None:
    """Nobody may be left to take the error: the task was cancelled."""
    if not future.cancelled():
        future.exception()


def describe(member: Member) -> dict[str, Any]:
    """Facts of the servers and of the namespace, for `occamdb status`."""
    client = member.space.client
    try:
        status = client.gateway.ask("/v3/maintenance/status", {}, client.deadline())
    except Refused as refused:
        raise client.gateway.setup_error(refused) from None
    head = member.tending.look().head
    try:
        size, used = int(status.get("dbSize", 0)), int(status.get("dbSizeInUse", 0))
    except (TypeError, ValueError):
        raise ServerSetupError("an answer of etcd is damaged", hint="does a proxy change it?") from None
    return {
        "engine": "etcd",
        "location": client.address.location,
        "server_version": client.server_version,
        "members": len(client.address.members),
        "leader": str(status.get("leader", "")),
        "durability": "always",
        "clock": "the members' wall clocks, read to a second",
        "version": head.version,
        "oldest_snapshot": head.floor,
        "database_size": size,
        "database_size_in_use": used,
        "sessions_with_keys": len(head.bound),
        "session_kept": client.kept,
    }
