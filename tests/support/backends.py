"""Backends for the tests of the contract: how each kind is opened, and requests in plain words.

A kind of server is "dict", which is in the memory of the test, or "postgres" or "etcd", with OCCAMDB_TEST_CLUSTER=1.
Every test has namespaces of its own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Reply, Request, RequestFlags, encode_request
from occamdb.engine.model.keys import successor
from occamdb.engine.model.values import Codec
from occamdb.engine.remote.backend import Backend, Begun, Outcome, Row
from occamdb.engine.remote.opening import module_of
from occamdb.ipc.errors import OccamError
from tests.support.dict_backend import DictBackend, DictServer
from tests.support.processes import Peer, Worker

__all__ = [
    "DIRECTORY",
    "FAR",
    "Kind",
    "RemoteClient",
    "Sent",
    "adding",
    "base_of_its_own",
    "binding",
    "cas",
    "client_process",
    "commit",
    "decoded",
    "deleting",
    "deleting_range",
    "end_of",
    "every_row",
    "key_in",
    "opened_by_url",
    "putting",
    "range_read",
    "reading",
    "request_of",
    "shift_clock",
]

_codec = Codec()
DIRECTORY = (
    uuid.UUID("0197c0de-0000-7000-8000-000000000c05").bytes + b"\x01"
)  # a run and the tag of key-values
TIMEOUT = 20.0
FAR = 2**62  # an expiry time in the year 2116


def base_of_its_own() -> bytes:
    """What the stored keys of a namespace that nobody else uses begin with."""
    return f"t-{uuid.uuid4().hex[:12]}".encode() + b"\0\0\0"


def key_in(base: bytes, name: str) -> bytes:
    """A stored key."""
    return base + DIRECTORY + name.encode()


def end_of(base: bytes) -> bytes:
    """The bound behind all keys of a namespace."""
    end = successor(base)
    assert end is not None
    return end


def opened_by_url(
    url: str, base: bytes, *, timeout: float = TIMEOUT, durability: str = "standard"
) -> Backend:
    """A client of a server, as `occamdb.open` makes it."""
    backend: Backend = module_of(url).open_backend(url, base, timeout=timeout, durability=durability)
    return backend


@dataclass
class Kind:
    """One kind of server, and the clients that a test opened.

    Attributes:
      name: "dict", "postgres" or "etcd".
      url: of a server; empty for "dict".
    """

    name: str
    url: str = ""
    server: DictServer = field(default_factory=DictServer)
    opened: list[Backend] = field(default_factory=list)

    def open(self, base: bytes, *, url: str = "", **options: Any) -> Backend:
        """A client, with a session and connections of its own.

        Args:
          url: another way to the server.
        """
        backend: Backend
        if self.name == "dict":
            backend = cast(Backend, DictBackend(self.server, base))
        else:
            backend = opened_by_url(url or self.url, base, **options)
        self.opened.append(backend)
        return backend

    def close(self) -> None:
        """End all clients."""
        while self.opened:
            self.opened.pop().close()


# ---- requests ------------------------------------------------------------------------------------------------


def reading(key: bytes, version: int) -> Op:
    """The key still has this version; 0: it is absent."""
    return Op(OpCode.READ, key, argument=version)


def range_read(start: bytes, end: bytes, rows: int = 0) -> Op:
    """The range is as it was."""
    return Op(OpCode.RANGE, start, end, rows)


def cas(key: bytes, expected: int, value: Any) -> tuple[Op, Op]:
    """A compare-and-set: its check and its effect."""
    return (
        Op(OpCode.CAS, key, argument=expected),
        Op(OpCode.PUT, key, _codec.encode(value), flags=OpFlags.UNCHECKED),
    )


def putting(key: bytes, value: Any, expires_at: int = 0) -> Op:
    """A put."""
    return Op(OpCode.PUT, key, _codec.encode(value), 0, expires_at)


def binding(key: bytes, value: Any) -> Op:
    """A put of a key that lives as long as its session."""
    return Op(OpCode.PUT, key, _codec.encode(value), flags=OpFlags.EPHEMERAL)


def deleting(key: bytes) -> Op:
    """A delete that tells whether the key was there."""
    return Op(OpCode.DELETE, key, flags=OpFlags.WANT_RESULT)


def adding(key: bytes, by: int, bounds: bytes = b"") -> Op:
    """An increment that tells the sum."""
    return Op(OpCode.ADD, key, bounds, by, flags=OpFlags.WANT_RESULT)


def deleting_range(start: bytes, end: bytes) -> Op:
    """A delete of every key in [start, end)."""
    return Op(OpCode.DELETE_RANGE, start, end)


def decoded(row: Row | None) -> Any:
    """The value of a row; None: there is none."""
    return None if row is None else _codec.decode(row.value)


def request_of(
    ops: Iterable[Op], begun: Begun | None = None, flags: RequestFlags = RequestFlags.NONE
) -> bytes:
    """The bytes of a request; a blind one without a snapshot."""
    given = tuple(ops)
    checks = tuple(op for op in given if op.code.is_check)
    effects = tuple(op for op in given if not op.code.is_check)
    if begun is None:
        request = Request(0, 0, 0, checks + effects, flags=flags | RequestFlags.BLIND)
    else:
        request = Request(0, begun.version, begun.expiry_time, checks + effects, flags=flags)
    return encode_request(request)


@dataclass(frozen=True)
class Sent:
    """What became of a request: `version` is 0 unless it committed."""

    outcome: Outcome

    @property
    def reply(self) -> Reply:
        return self.outcome.reply

    @property
    def version(self) -> int:
        return self.reply.commit_version


def commit(
    backend: Backend,
    *ops: Op,
    begun: Begun | None = None,
    flags: RequestFlags = RequestFlags.NONE,
    deadline: float | None = None,
) -> Sent:
    """Send a request."""
    return Sent(backend.commit(request_of(ops, begun, flags), deadline))


def every_row(
    backend: Backend, begun: Begun, start: bytes, end: bytes, *, page: int = 100, reverse: bool = False
) -> Iterator[Row]:
    """The rows of a range that have not expired at the snapshot, page by page."""
    done = False
    while not done:
        rows, done = backend.scan(start, end, begun.version, page, reverse=reverse)
        assert len(rows) == page if not done else len(rows) <= page, "a page that is not the last one is full"
        yield from (row for row in rows if not 0 < row.expires_at <= begun.expiry_time)
        if not done and reverse:
            end = rows[-1].key
        elif not done:
            start = rows[-1].key + b"\0"


# ---- a client in a process of its own ---------------------------------------------------------------------------


def client_process(peer: Peer, url: str, base: bytes, clock_shift: float = 0.0) -> None:
    """A client that does what it is told: `(method, *arguments)` of a backend, or "session". None ends it.

    Args:
      clock_shift: the clock of this process is wrong by so many seconds.
    """
    if clock_shift:
        shift_clock(clock_shift)
    backend = opened_by_url(url, base)
    peer.say(backend.session)
    try:
        while (asked := peer.hear()) is not None:
            name, *arguments = asked
            found = getattr(backend, name)
            try:
                peer.say(found(*arguments) if callable(found) else found)
            except OccamError as error:
                peer.say(error)
    finally:
        backend.close()


def shift_clock(seconds: float) -> None:
    """Put the wall clock of this process wrong. What was imported from `time` by name before keeps the right one."""
    shift_ns = int(seconds * 1e9)
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + shift_ns


class RemoteClient:
    """The test's end of a `client_process`."""

    def __init__(self, start: Callable[..., Worker], url: str, base: bytes, clock_shift: float = 0.0) -> None:
        self.worker = start(client_process, url, base, clock_shift)
        self.session = int(self.worker.hear())

    def ask(self, name: str, *arguments: Any) -> Any:
        """What a method returns there, or raises."""
        self.worker.say((name, *arguments))
        answer = self.worker.hear()
        if isinstance(answer, OccamError):
            raise answer
        return answer

    def commit(self, *ops: Op, begun: Begun | None = None) -> Sent:
        """As `commit`."""
        return Sent(self.ask("commit", request_of(ops, begun), None))

    def end(self) -> None:
        """Close it in order."""
        self.worker.say(None)
        self.worker.result()
