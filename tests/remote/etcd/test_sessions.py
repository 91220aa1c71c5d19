"""Keys that live as long as a session, and keys that expire, on etcd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Request, Status, encode_request
from occamdb.engine.model.errors import ServerUnavailable
from occamdb.engine.remote.etcd import EtcdBackend
from occamdb.engine.remote.etcd.clock import ServerClock

from .conftest import BASE, Opening
from .test_commits import SECOND, add, ask, k, names, put, read

BOUND = OpFlags.EPHEMERAL


def await_version(backend: EtcdBackend, version: int, seconds: float = 30.0) -> None:
    """Wait until a version is there."""
    deadline = time.monotonic() + seconds
    while not backend.wait(version - 1, 1.0):
        assert time.monotonic() < deadline


def changed(backend: EtcdBackend, since: int) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    newest = backend.newest()
    while since < newest:
        page = backend.changes(k(""), None, since, 100, values=False)
        found.extend((change.kind, change.key) for commit in page.commits for change in commit.changes)
        since = page.reached
    return found


def test_a_bound_key_ends_with_its_session(opened: Opening) -> None:
    mine, other = opened(), opened()
    ask(mine, put("free"), put("bound", flags=BOUND), put("counter", flags=BOUND))
    ask(other, add("counter", 1))
    (row,) = other.begin([k("counter")]).rows
    assert row is not None and row.session == mine.session and row.value == b"\x02"
    before = other.begin([k("bound")])
    mine.close()
    assert names(other, other.begin().version) == ["free"]
    assert changed(other, before.version) == [("delete", k("bound")), ("delete", k("counter"))]
    reply = ask(other, read("bound", 1), put("free"), begun=before)
    assert reply.status is Status.CONFLICT  # the end of a session is a write
    assert other.stats()["sessions_with_keys"] == 0


def test_a_key_that_was_written_again_outlives_the_session(opened: Opening) -> None:
    mine, other = opened(), opened()
    ask(mine, put("a", flags=BOUND), put("b", flags=BOUND))
    ask(other, put("a"))
    ask(other, put("b", flags=BOUND))
    mine.close()
    assert names(other, other.begin().version) == ["a", "b"]


def test_a_process_that_is_killed_loses_its_keys(opened: Opening, url: str) -> None:
    backend = opened()
    program = (
        "import sys, time\n"
        "from tests.remote.etcd.test_commits import ask, put, BASE, OpFlags\n"
        "from occamdb.engine.remote.etcd import open_backend\n"
        f"backend = open_backend({url!r}, BASE, session_grace=1)\n"
        "ask(backend, put('bound', flags=OpFlags.EPHEMERAL))\n"
        "print('bound', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"bound\n"
        assert names(backend, backend.begin().version) == ["bound"]
        child.send_signal(signal.SIGKILL)
    await_version(backend, 2)
    assert names(backend, backend.begin().version) == []


def test_nothing_of_an_ended_session_is_committed(opened: Opening) -> None:
    frozen, other = opened(), opened()
    ask(frozen, put("lease", flags=BOUND))
    session = frozen.session
    begun = frozen.begin()
    gateway = other._family.client.gateway
    gateway.ask("/v3/lease/revoke", {"ID": str(session)}, time.monotonic() + 5)  # as etcd does by its clock
    for request in (put("x"), put("y", flags=BOUND)):
        with pytest.raises(ServerUnavailable, match="ended before the commit"):
            ask(frozen, request, begun=begun)
        if frozen.session == session:
            pytest.fail("the backend keeps a session that has ended")
        session = frozen.session
        if request.flags & BOUND:
            break
        # The new session commits only on a state in which the keys of the old one are gone.
        reply = ask(frozen, read("lease", 1), put("x"), begun=begun)
        assert reply.status is Status.CONFLICT
        frozen.keep_session()
        session = frozen.session
        gateway.ask("/v3/lease/revoke", {"ID": str(session)}, time.monotonic() + 5)
    assert names(other, other.begin().version) == []
    assert ask(frozen, put("y", flags=BOUND)).status is Status.COMMITTED
    assert names(other, other.begin().version) == ["y"]


def test_a_session_that_is_kept_lives_on(opened: Opening) -> None:
    backend, other = opened(session_grace=1), opened()
    ask(backend, put("a", flags=BOUND))
    granted = other._family.client.gateway.ask(
        "/v3/lease/timetolive", {"ID": str(backend.session)}, time.monotonic() + 5
    )
    end = time.monotonic() + 2 * float(granted["grantedTTL"])
    while time.monotonic() < end:  # longer than it would live by itself
        other.wait(1, end - time.monotonic())
    assert names(other, other.begin().version) == ["a"]


def test_a_key_expires_by_the_clock_of_the_servers(opened: Opening) -> None:
    backend, ahead = opened(), opened()
    clock = ahead._family.client.clock
    ours = clock.now()
    begun = backend.begin()
    ask(
        backend,
        put("short", expires_at=begun.clock + SECOND // 2),
        put("long", expires_at=ours + 600 * SECOND),
    )
    assert names(backend, backend.begin().version) == ["long", "short"]
    await_version(backend, 2)
    begun = backend.begin()
    assert names(backend, begun.version) == ["long"]
    assert changed(backend, 1) == [("expire", k("short"))]
    (row,) = backend.read([k("short")], 1)
    assert row is not None and row.expires_at <= begun.expiry_time


def test_many_keys_that_expire_at_once_all_go(opened: Opening) -> None:
    backend = opened()
    clock = backend.begin().clock
    for batch in range(4):
        ask(backend, *(put(f"{batch}-{n:02}", expires_at=clock + SECOND) for n in range(50)))
    await_version(backend, 5)
    begun = backend.begin()
    assert names(backend, begun.version) == []
    assert sorted(key for _, key in changed(backend, 4)) == sorted(
        k(f"{batch}-{n:02}") for batch in range(4) for n in range(50)
    )
    assert backend.begin().version == begun.version


def test_a_forked_child_has_a_session_and_connections_of_its_own(opened: Opening) -> None:
    backend = opened()
    ask(backend, put("a"))
    session = backend.session
    child = os.fork()
    if child == 0:
        code = 1
        try:
            reply = ask(backend, put("child"))
            code = 0 if reply.commit_version == 2 and backend.session != session else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert backend.session == session
    assert ask(backend, put("b")).commit_version == 3


class Times:
    """The clocks of this machine, as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wall: float) -> None:
        self.wall, self.monotonic = int(wall * SECOND), 5000 * SECOND
        monkeypatch.setattr(time, "time_ns", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.monotonic)

    def pass_(self, seconds: float) -> None:
        self.wall += int(seconds * SECOND)
        self.monotonic += int(seconds * SECOND)


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_the_clock_is_that_of_the_servers_to_a_second(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    server = 1_900_000_000.4
    times = Times(monkeypatch, server + hours * 3600)
    clock = ServerClock()
    assert clock.now() == 0
    for step in range(40):
        passed = step * 0.3
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(int(server + passed)))
        sent = times.monotonic
        times.pass_(0.01)
        clock.observe(date, sent, times.monotonic)
        error = clock.now() / SECOND - (server + passed)
        assert abs(error) <= 1.02 if step < 10 else abs(error) < 0.12
        if hours == 0:
            assert abs(error) < 0.05  # our own clock decides within the second
        times.pass_(0.29)
    clock.observe("no date", times.monotonic, times.monotonic)
    assert clock.now()


def test_requests_of_a_closed_backend_are_refused(opened: Opening) -> None:
    backend = opened()
    ask(backend, put("a"))
    backend.close()
    backend.close()
    request = encode_request(Request(0, 1, 0, (Op(OpCode.PUT, BASE + b"b", b"\x01"),)))
    for call in (backend.begin, lambda: backend.commit(request, None), backend.newest):
        with pytest.raises(Exception, match="closed"):
            call()
