"""A request has one outcome: over answers that were lost, copies that arrive late, and connections that were cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.numeric import Int8

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Request, RequestFlags, Status, encode_request
from occamdb.engine.model.errors import CommitOutcomeUnknown, ServerUnavailable, TransactionTimeout
from occamdb.engine.model.values import decode_value
from occamdb.engine.remote.postgres import open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend
from occamdb.engine.remote.postgres.calls import int4, int8
from occamdb.engine.remote.postgres.wire import VOID, Sent, encode_requests, reply_rows
from tests.support.answer_cutter import AnswerCutter
from tests.support.one_postgres import OnePostgres

BASE = b"\0\0\0"
COUNTER = BASE + b"counter"
SECONDS = 20.0


@pytest.fixture
def backend(url: str) -> Iterator[PostgresBackend]:
    opened = open_backend(url, BASE, timeout=10, durability="standard")
    yield opened
    opened.close()


def add_one(count: int = 1) -> bytes:
    add = Op(OpCode.ADD, COUNTER, argument=count, flags=OpFlags.WANT_RESULT)
    return encode_request(Request(0, ops=(add,), flags=RequestFlags.BLIND))


def counter(backend: PostgresBackend) -> int:
    row = backend.begin([COUNTER]).rows[0]
    return 0 if row is None else int(decode_value(row.value))


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class Held:
    """The lock of every head row, held by somebody else, and what waits for it."""

    def __init__(self, server: OnePostgres, schema: str) -> None:
        self.connection = server.connect()
        self.connection.autocommit = False
        self.connection.execute(f"select from {schema}.head for update")
        self.watcher = server.connect()

    def waiting(self) -> list[int]:
        """The pids of the server's processes that wait for it."""
        rows = self.watcher.execute(
            "select pid from pg_stat_activity where application_name = 'occamdb' and wait_event_type = 'Lock'"
        ).fetchall()
        return [int(str(row[0])) for row in rows]

    def release(self) -> None:
        self.connection.rollback()

    def close(self) -> None:
        self.connection.close()
        self.watcher.close()


@pytest.fixture
def held(server: OnePostgres, schema: str, backend: PostgresBackend) -> Iterator[Held]:
    backend.begin()
    lock = Held(server, schema)
    yield lock
    lock.close()


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_a_request_whose_server_process_is_killed_is_applied_once(
    backend: PostgresBackend, held: Held
) -> None:
    thread, found = in_thread(lambda: backend.commit(add_one(), None))
    (pid,) = until(held.waiting)
    held.watcher.execute("select pg_terminate_backend(%s)", [pid])
    until(lambda: [other for other in held.waiting() if other != pid])
    held.release()
    thread.join(SECONDS)
    assert found[0].reply.status is Status.COMMITTED
    assert found[0].reply.results[0].value == 1
    assert found[0].sequence > 1, "the name of the copy that was killed is given up"
    assert backend.outcome(found[0].session, 1) is None
    assert counter(backend) == 1


@pytest.fixture
def cutter(server: OnePostgres) -> Iterator[AnswerCutter]:
    proxy = AnswerCutter("127.0.0.1", server.port)
    yield proxy
    proxy.close()


def test_an_answer_that_is_lost_is_learned_from_the_server(
    server: OnePostgres, schema: str, cutter: AnswerCutter
) -> None:
    url = server.url(schema=schema).replace(str(server.port), str(cutter.port))
    through = open_backend(url, BASE, timeout=10, durability="standard")
    try:
        for number in range(1, 6):
            through.begin()
            cutter.swallow_next_answer()
            outcome = through.commit(add_one(), None)
            assert cutter.swallowed == number
            assert outcome.reply.status is Status.COMMITTED
            assert [result.value for result in outcome.reply.results] == [number]
            assert counter(through) == number
            assert through.outcome(outcome.session, outcome.sequence) == (
                outcome.reply.commit_version,
                outcome.reply.committed_at,
            )
    finally:
        through.close()


def copy_of(backend: PostgresBackend, request: Request, sequence: int) -> tuple[Any, ...]:
    """Send a copy of a request, as if the network had kept it until now."""
    server = backend._server
    encoded = encode_requests([Sent(request, sequence)], server.request_type)
    parameters = [int4(backend.number), int8(server.session), b"on", b"\0", int8(server.clock()), encoded]
    with server.pool.connection(time.monotonic() + 10) as connection:
        return reply_rows(server.statements.commit.run(connection, parameters, True))[0]


def test_a_copy_that_arrives_late_changes_nothing(backend: PostgresBackend) -> None:
    add = Op(OpCode.ADD, COUNTER, argument=1, flags=OpFlags.WANT_RESULT)
    request = Request(0, ops=(add,), flags=RequestFlags.BLIND)
    outcome = backend.commit(encode_request(request), None)
    late = copy_of(backend, request, outcome.sequence)
    assert late[1:4] == (Status.COMMITTED, outcome.reply.commit_version, outcome.reply.committed_at)
    assert late[7] == [b"\x01"], "its result is the first one's"
    assert counter(backend) == 1


def test_a_request_that_was_given_up_is_never_applied(backend: PostgresBackend) -> None:
    request = Request(0, ops=(Op(OpCode.PUT, COUNTER, b"\x07"),), flags=RequestFlags.BLIND)
    assert backend.outcome(backend.session, 4711) is None
    assert copy_of(backend, request, 4711)[1] == VOID
    assert backend.outcome(backend.session, 4711) is None
    assert counter(backend) == 0


def test_asking_for_an_outcome_waits_for_a_commit_under_way(
    server: OnePostgres, schema: str, backend: PostgresBackend
) -> None:
    """The answer must not be "no" while a copy can still commit."""
    backend.begin()
    session = backend.session
    with server.connect() as other:
        other.autocommit = False
        other.execute(
            f"insert into {schema}.outcome (session, sequence, version, at) values (%s, 9, 77, 5)",
            [Int8(session)],
        )
        thread, found = in_thread(lambda: backend.outcome(session, 9))
        with server.connect() as watcher:
            until(
                lambda: watcher.execute(
                    "select 1 from pg_stat_activity where query like '%outcome_of%' and wait_event_type = 'Lock'"
                ).fetchone()
            )
        assert not found
        other.commit()
        thread.join(SECONDS)
    assert found == [(77, 5)]


def test_a_commit_that_takes_too_long_is_given_up_for_good(backend: PostgresBackend, held: Held) -> None:
    deadline = time.monotonic() + 1.5
    thread, found = in_thread(lambda: backend.commit(add_one(), deadline))
    until(held.waiting)
    thread.join(SECONDS)
    assert isinstance(found[0], ServerUnavailable | CommitOutcomeUnknown)
    held.release()
    until(lambda: not held.waiting())
    if isinstance(found[0], CommitOutcomeUnknown):
        assert found[0].txn_id is not None
        assert (backend.outcome(*found[0].txn_id) is not None) == (counter(backend) == 1)
    else:
        assert counter(backend) == 0, "it said that nothing was committed"


def test_a_server_that_dies_and_stays_away_leaves_the_outcome_unknown(
    server: OnePostgres, backend: PostgresBackend, held: Held
) -> None:
    deadline = time.monotonic() + 3.0
    thread, found = in_thread(lambda: backend.commit(add_one(), deadline))
    until(held.waiting)
    server.stop()
    thread.join(SECONDS)
    server.start()
    assert isinstance(found[0], CommitOutcomeUnknown)
    assert found[0].txn_id is not None
    assert backend.outcome(*found[0].txn_id) is None
    assert counter(backend) == 0


def test_a_request_that_was_never_sent_times_out(backend: PostgresBackend, held: Held) -> None:
    first, _ = in_thread(lambda: backend.commit(add_one(), time.monotonic() + SECONDS))
    until(held.waiting)
    with pytest.raises(TransactionTimeout):
        backend.commit(add_one(100), time.monotonic() + 0.2)
    held.release()
    first.join(SECONDS)
    assert counter(backend) == 1


def test_deadlocks_and_serialization_failures_are_repeated(
    server: OnePostgres, schema: str, backend: PostgresBackend
) -> None:
    backend.begin()
    with server.connect() as admin:
        admin.execute(f"create sequence {schema}.fails")
        admin.execute(
            f"create function {schema}.fail() returns trigger language plpgsql as $$ begin "
            f"if nextval('{schema}.fails') < 3 then raise exception using errcode = '40001'; end if; "
            "return new; end $$"
        )
        admin.execute(
            f"create trigger fail before insert on {schema}.outcome for each row execute function {schema}.fail()"
        )
    outcome = backend.commit(add_one(), None)
    assert (outcome.reply.status, outcome.sequence) == (Status.COMMITTED, 1)
    assert counter(backend) == 1


def test_a_request_from_long_ago_is_refused_and_sent_anew(
    server: OnePostgres, schema: str, backend: PostgresBackend
) -> None:
    """A copy that arrives after its name was forgotten must not be applied."""
    backend.begin()
    backend._server.offset -= 3600 * 10**9
    request = Request(0, ops=(Op(OpCode.PUT, COUNTER, b"\x07"),), flags=RequestFlags.BLIND)
    with pytest.raises(psycopg.Error, match="too long ago"):
        copy_of(backend, request, 4711)
    assert backend.commit(add_one(), None).reply.status is Status.COMMITTED


def test_reads_go_on_when_their_connection_is_killed(server: OnePostgres, backend: PostgresBackend) -> None:
    backend.commit(add_one(), None)
    with server.connect() as admin:
        for _ in range(3):
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'occamdb'"
            )
            assert counter(backend) == 1


def test_nobody_there_is_unavailable(url: str, server: OnePostgres) -> None:
    dead = url.replace(str(server.port), "1")
    with pytest.raises(ServerUnavailable):
        open_backend(dead, BASE, timeout=0.5, durability="standard")
