"""Waiting for a newer version: woken by notifications, and right without them; what expires is a change."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from occamdb.engine.commit.messages import Op, OpCode, Request, RequestFlags, encode_request
from occamdb.engine.remote.postgres import listener, open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend
from tests.support.one_postgres import OnePostgres

BASE = b"\0\0\0"
OTHER = b"other\0\0\0"
KEY = BASE + b"key"
SECONDS = 20.0


@pytest.fixture
def backend(url: str) -> Iterator[PostgresBackend]:
    opened = open_backend(url, BASE, timeout=10, durability="none")
    yield opened
    opened.close()


def put(key: bytes = KEY, expires_at: int = 0) -> bytes:
    ops = (Op(OpCode.PUT, key, b"\x01", expires_at=expires_at),)
    return encode_request(Request(0, ops=ops, flags=RequestFlags.BLIND))


def waiting(
    backend: PostgresBackend, since: int, timeout: float = SECONDS
) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(backend.wait(since, timeout)))
    thread.start()
    return thread, found


def hears(backend: PostgresBackend) -> None:
    deadline = time.monotonic() + SECONDS
    while not backend._server.listener.hears:
        assert time.monotonic() < deadline
        backend.wait(backend.newest(), 0.05)


def test_a_wait_ends_with_the_next_commit(backend: PostgresBackend) -> None:
    hears(backend)
    for _ in range(20):
        since = backend.newest()
        thread, found = waiting(backend, since)
        backend.commit(put(), None)
        thread.join(SECONDS)
        assert found == [True]


def test_a_notification_wakes_before_the_next_look(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LOOK_SECONDS", SECONDS * 10)
    hears(backend)
    since = backend.newest()
    thread, found = waiting(backend, since, SECONDS * 5)
    until_asleep(backend)
    backend.commit(put(), None)
    thread.join(SECONDS)
    assert found == [True]


def until_asleep(backend: PostgresBackend) -> None:
    """Until a waiter sleeps in the listener's condition."""
    deadline = time.monotonic() + SECONDS
    while not backend._server.listener._changed._waiters:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_without_notifications_it_looks(backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener.Listener, "_listen", lambda self: self._wait_for_another_server())
    since = backend.newest()
    thread, found = waiting(backend, since)
    until_asleep(backend)
    backend.commit(put(), None)
    thread.join(SECONDS)
    assert found == [True]


def test_a_wait_ends_at_its_timeout(backend: PostgresBackend) -> None:
    assert not backend.wait(backend.newest(), 0.05)
    assert not backend.wait(backend.newest(), 0.0)


def test_another_namespace_does_not_end_it(backend: PostgresBackend) -> None:
    since = backend.newest()
    backend.of(OTHER).commit(put(OTHER + b"key"), None)
    assert not backend.wait(since, 0.05)


def test_a_value_that_expires_ends_it(backend: PostgresBackend) -> None:
    clock = backend.begin().clock
    backend.commit(put(expires_at=clock + 300_000_000), None)
    since = backend.newest()
    assert backend.wait(since, SECONDS)
    changes = backend.changes(BASE, None, since, 10, values=True)
    assert [(c.kind, c.key) for commit in changes.commits for c in commit.changes] == [("expire", KEY)]
    assert backend.begin([KEY]).rows == [None]


def test_a_wait_goes_on_over_a_lost_connection(backend: PostgresBackend, server: OnePostgres) -> None:
    hears(backend)
    since = backend.newest()
    thread, found = waiting(backend, since)
    until_asleep(backend)
    with server.connect() as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'occamdb'"
        )
    backend.commit(put(), None)
    thread.join(SECONDS)
    assert found == [True]


def test_nobody_listens_nobody_is_notified(
    backend: PostgresBackend, server: OnePostgres, schema: str
) -> None:
    backend.commit(put(), None)
    with server.connect() as admin:
        admin.execute(f'listen "{backend._server.location.channel}"')
        backend.commit(put(), None)
        assert [note.payload for note in admin.notifies(timeout=0.2)] == []
        hears(backend)
        backend.commit(put(), None)
        notes = [note.payload for note in admin.notifies(timeout=SECONDS, stop_after=2)]
    assert notes[-1] == f"{backend.number} {backend.newest()}"


def test_closing_ends_the_waits(url: str) -> None:
    opened = open_backend(url, BASE, timeout=10, durability="none")
    thread, _ = waiting(opened, opened.newest())
    until_asleep(opened)
    opened.close()
    thread.join(SECONDS)
    assert not thread.is_alive()
