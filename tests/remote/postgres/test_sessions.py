"""Sessions on PostgreSQL: keys that are bound to them, how they end, and what a process learns that was frozen."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Request, RequestFlags, Status, encode_request
from occamdb.engine.remote.backend import Row
from occamdb.engine.remote.postgres import open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend
from tests.support.one_postgres import OnePostgres

BASE = b"\0\0\0"
OTHER = b"other\0\0\0"
KEY = BASE + b"key"
SECONDS = 20.0

Open = Callable[..., PostgresBackend]


@pytest.fixture
def opened(url: str) -> Iterator[Open]:
    made: list[PostgresBackend] = []

    def make(**settings: Any) -> PostgresBackend:
        settings = {"timeout": 10, "durability": "none", "session_grace": 60.0, **settings}
        made.append(open_backend(url, BASE, **settings))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def put(key: bytes, *, bound: bool = False, expires_at: int = 0) -> bytes:
    flags = OpFlags.EPHEMERAL if bound else OpFlags.NONE
    ops = (Op(OpCode.PUT, key, b"\x01", expires_at=expires_at, flags=flags),)
    return encode_request(Request(0, ops=ops, flags=RequestFlags.BLIND))


def row(backend: PostgresBackend, key: bytes) -> Row | None:
    return backend.begin([key]).rows[0]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_closing_deletes_the_bound_keys_of_every_namespace(opened: Open) -> None:
    owner, other = opened(), opened()
    second = owner.of(OTHER)
    owner.keep_session()
    owner.commit(put(KEY, bound=True), None)
    owner.commit(put(BASE + b"free"), None)
    second.commit(put(OTHER + b"key", bound=True), None)
    found = row(other, KEY)
    assert found is not None
    assert found.session == owner.session
    seen = other.begin()
    owner.close()
    assert row(other, KEY) is None
    assert row(other, BASE + b"free") is not None
    assert row(other.of(OTHER), OTHER + b"key") is None
    # It was a write: whoever read the key conflicts.
    read = Op(OpCode.READ, KEY, argument=found.version)
    request = Request(0, seen.version, seen.expiry_time, (read, Op(OpCode.PUT, KEY, b"\x02")))
    assert other.commit(encode_request(request), None).reply.status is Status.CONFLICT


def test_a_session_nobody_hears_of_ends_and_its_process_learns_it(opened: Open, monkeypatch: Any) -> None:
    frozen = opened(session_grace=0.5)
    other = opened()
    frozen.keep_session()
    frozen.commit(put(KEY, bound=True), None)
    held = row(frozen, KEY)
    assert held is not None
    frozen._server.keeper.stop()  # as if the process were stopped
    session = frozen.session
    until(lambda: frozen._server.clock() > 0 and time.monotonic() > frozen._server.kept_until + 0.5)
    seen = frozen.begin([KEY]).rows[0]
    until(lambda: row(other, KEY) is None)
    # What it holds by its key is refused: the key is gone.
    assert seen is None or seen.session == session
    begun = frozen.begin()
    check = Op(OpCode.READ, KEY, argument=held.version)
    guarded = Request(0, begun.version, begun.expiry_time, (check, Op(OpCode.PUT, BASE + b"more", b"\x01")))
    outcome = frozen.commit(encode_request(guarded), None)
    assert outcome.reply.status is Status.CONFLICT
    assert frozen.session == outcome.session != session, "it has another one, and so knows"
    bound = frozen.commit(put(KEY, bound=True), None)
    assert bound.session == getattr(row(other, KEY), "session", 0) == frozen.session
    frozen.close()
    assert row(other, KEY) is None


def test_a_key_is_never_bound_to_a_session_that_nobody_keeps(opened: Open) -> None:
    owner, other = opened(), opened()
    outcome = owner.commit(put(KEY, bound=True), None)  # without `keep_session`
    assert outcome.reply.status is Status.COMMITTED
    assert owner._server.kept
    owner.close()
    assert row(other, KEY) is None


def test_a_session_that_is_heard_of_stays(opened: Open) -> None:
    owner, other = opened(session_grace=0.6), opened()
    owner.keep_session()
    session = owner.session
    owner.commit(put(KEY, bound=True), None)
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert row(other, KEY) is not None
        time.sleep(0.05)
    assert owner.session == session


def test_a_key_written_again_is_no_longer_bound(opened: Open) -> None:
    owner, other = opened(), opened()
    owner.keep_session()
    owner.commit(put(KEY, bound=True), None)
    other.commit(put(KEY), None)
    owner.close()
    assert row(other, KEY) is not None


def test_an_increment_keeps_the_binding(opened: Open) -> None:
    owner, other = opened(), opened()
    owner.keep_session()
    owner.commit(put(KEY, bound=True), None)
    add = Request(0, ops=(Op(OpCode.ADD, KEY, argument=1),), flags=RequestFlags.BLIND)
    other.commit(encode_request(add), None)
    assert getattr(row(other, KEY), "session", 0) == owner.session
    owner.close()
    assert row(other, KEY) is None


def test_a_commit_under_way_holds_up_the_end_of_its_session(
    opened: Open, server: OnePostgres, schema: str
) -> None:
    """No key may be bound behind the look for bound keys."""
    owner, other = opened(), opened()
    owner.keep_session()
    owner.commit(put(BASE + b"first", bound=True), None)
    with server.connect() as lock, server.connect() as watcher:
        lock.autocommit = False
        lock.execute(f"lock table {schema}.now in share mode")
        committing = threading.Thread(target=lambda: owner.commit(put(KEY, bound=True), None))
        committing.start()
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like %s"
        until(lambda: watcher.execute(waits, ["%commit_many%"]).fetchone())
        ending = threading.Thread(target=owner.close)
        ending.start()
        until(lambda: watcher.execute(waits, ["%end_session%"]).fetchone())
        lock.rollback()
        committing.join(SECONDS)
        ending.join(SECONDS)
    assert row(other, KEY) is None
    assert row(other, BASE + b"first") is None


def test_a_forked_child_has_a_session_and_connections_of_its_own(opened: Open) -> None:
    parent = opened()
    parent.keep_session()
    parent.commit(put(KEY, bound=True), None)
    sessions = parent.session
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert parent.session != sessions
            parent.commit(put(BASE + b"child"), None)
            parent.close()
            os.write(writer, b"done")
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.read(reader, 10) == b"done"
    os.close(reader)
    assert parent.session == sessions
    assert row(parent, BASE + b"child") is not None
    assert row(parent, KEY) is not None, "the parent's session goes on"
    parent.commit(put(BASE + b"parent"), None)
