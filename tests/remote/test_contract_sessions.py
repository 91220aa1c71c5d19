"""Rules 7 and 10 of the contract: sessions and the keys bound to them, threads, processes and forks."""

import os
import threading
from collections.abc import Callable

import pytest

from occamdb.engine.commit.messages import Status
from occamdb.engine.model.errors import ServerUnavailable
from occamdb.engine.remote.backend import Backend
from tests.support.backends import (
    Kind,
    RemoteClient,
    adding,
    binding,
    commit,
    decoded,
    end_of,
    key_in,
    opened_by_url,
    putting,
    reading,
)
from tests.support.processes import Peer, Worker, wait_until

Start = Callable[..., Worker]


def is_there(backend: Backend, key: bytes) -> bool:
    begun = backend.begin([key])
    row = begun.rows[0]
    return row is not None and not 0 < row.expires_at <= begun.expiry_time


@pytest.fixture
def own_process(kind: Kind) -> Kind:
    """A kind that serves several processes."""
    if kind.name == "dict":
        pytest.skip("a dict lives in one process")
    return kind


def test_bound_keys_go_with_their_session(kind: Kind, base: bytes) -> None:
    owner, observer = kind.open(base), kind.open(base)
    bound, free = key_in(base, "bound"), key_in(base, "free")
    owner.keep_session()
    sent = commit(owner, binding(bound, "mine"), putting(free, "everybody's"))
    rows = observer.begin([bound, free]).rows
    assert rows[0] is not None and rows[0].session == owner.session == sent.outcome.session != 0
    assert rows[1] is not None and rows[1].session == 0
    assert observer.session not in (0, owner.session)
    before = observer.begin()
    owner.close()
    assert not is_there(observer, bound) and is_there(observer, free)
    # A commit has deleted it: it has a version, conflicts with who read it, and is in the changes.
    page = observer.changes(base, end_of(base), sent.version, 100, values=True)
    assert [(c.kind, c.key) for one in page.commits for c in one.changes] == [("delete", bound)]
    assert page.commits[0].version > sent.version
    reply = commit(observer, reading(bound, sent.version), putting(free, 1), begun=before).reply
    assert reply.status is Status.CONFLICT and reply.conflicts[0].found == 0
    owner.close()


def test_a_key_that_another_session_has_written_stays(kind: Kind, base: bytes) -> None:
    owner, other = kind.open(base), kind.open(base)
    key = key_in(base, "k")
    owner.keep_session()
    commit(owner, binding(key, "mine"))
    commit(other, putting(key, "mine"))
    owner.close()
    assert is_there(other, key)


def test_an_increment_keeps_the_session(kind: Kind, base: bytes) -> None:
    owner, other = kind.open(base), kind.open(base)
    key = key_in(base, "n")
    owner.keep_session()
    commit(owner, binding(key, 5))
    assert commit(other, adding(key, 1)).reply.results[0].value == 6
    row = other.begin([key]).rows[0]
    assert row is not None and row.session == owner.session
    owner.close()
    assert not is_there(other, key)


def test_bound_keys_of_a_killed_process_go_in_time(own_process: Kind, base: bytes, start: Start) -> None:
    observer, key = own_process.open(base), key_in(base, "k")
    client = RemoteClient(start, own_process.url, base)
    client.ask("keep_session")
    client.commit(binding(key, "v"))
    assert is_there(observer, key)
    client.worker.kill()
    wait_until(lambda: not is_there(observer, key), what="the end of the session of a killed process")


def test_a_frozen_client_learns_that_its_session_has_ended(
    own_process: Kind, base: bytes, start: Start
) -> None:
    observer, key = own_process.open(base), key_in(base, "k")
    client = RemoteClient(start, own_process.url, base)
    client.ask("keep_session")
    assert client.commit(binding(key, "v")).outcome.session == client.session
    client.worker.stop()
    wait_until(lambda: not is_there(observer, key), what="the end of the session of a frozen process")
    client.worker.resume()
    try:
        sent = client.commit(binding(key_in(base, "next"), "v"))
    except ServerUnavailable:  # for the old session; nothing was committed
        assert not is_there(observer, key_in(base, "next"))
        client.ask("keep_session")
        sent = client.commit(binding(key_in(base, "next"), "v"))
    assert sent.reply.status is Status.COMMITTED
    assert sent.outcome.session not in (0, client.session)
    assert client.ask("session") == sent.outcome.session
    client.ask("keep_session")
    client.end()
    assert not is_there(observer, key_in(base, "next"))


def test_a_session_is_kept_while_its_process_does_nothing_else(
    own_process: Kind, base: bytes, start: Start
) -> None:
    observer, key, killed = own_process.open(base), key_in(base, "k"), key_in(base, "killed")
    clients = [RemoteClient(start, own_process.url, base) for _ in range(2)]
    for client, one in zip(clients, (key, killed), strict=True):
        client.ask("keep_session")
        client.commit(binding(one, "v"))
    clients[1].worker.kill()
    wait_until(lambda: not is_there(observer, killed))  # so long a session lives without being kept
    assert is_there(observer, key)
    clients[0].end()
    assert not is_there(observer, key)


# ---- threads, processes, forks --------------------------------------------------------------------------------


def test_threads_of_one_client_count_exactly(kind: Kind, base: bytes) -> None:
    backend, key, checked = kind.open(base), key_in(base, "n"), key_in(base, "checked")
    threads, each = 8, 25
    sums: list[int] = []
    sequences: list[tuple[int, int]] = []

    def add() -> None:
        for _ in range(each):
            sent = commit(backend, adding(key, 1))
            sums.append(sent.reply.results[0].value)
            sequences.append((sent.outcome.session, sent.outcome.sequence))
        for _ in range(5):
            add_by_reading(backend, checked)

    workers = [threading.Thread(target=add) for _ in range(threads)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert sorted(sums) == list(range(1, threads * each + 1))
    assert len(set(sequences)) == len(sequences)
    assert decoded(backend.begin([checked]).rows[0]) == 5 * threads


def add_by_reading(backend: Backend, key: bytes) -> None:
    """Read, add one and write, until nothing conflicts."""
    while True:
        begun = backend.begin([key])
        row = begun.rows[0]
        version, value = (0, 0) if row is None else (row.version, decoded(row))
        reply = commit(backend, reading(key, version), putting(key, value + 1), begun=begun).reply
        if reply.status is Status.COMMITTED:
            return
        assert reply.status is Status.CONFLICT


def count(peer: Peer, url: str, base: bytes, times: int) -> None:
    """Count one key by increments and another by reading and writing."""
    backend = opened_by_url(url, base)
    peer.say("open")
    peer.hear()
    for _ in range(times):
        commit(backend, adding(key_in(base, "merged"), 1))
        add_by_reading(backend, key_in(base, "checked"))
    backend.close()


def test_processes_count_exactly(own_process: Kind, base: bytes, start: Start) -> None:
    backend = own_process.open(base)
    workers = [start(count, own_process.url, base, 30) for _ in range(4)]
    for worker in workers:
        assert worker.hear() == "open"
    for worker in workers:
        worker.say("go")
    for worker in workers:
        worker.result()
    rows = backend.begin([key_in(base, "merged"), key_in(base, "checked")]).rows
    assert [decoded(row) for row in rows] == [120, 120]


def fork_and_count(peer: Peer, url: str, base: bytes) -> None:
    """Parent and child use the backend that the parent opened, at the same time."""
    backend, key = opened_by_url(url, base), key_in(base, "n")
    backend.keep_session()
    commit(backend, adding(key, 1), binding(key_in(base, "parent"), "v"))
    session = backend.session
    child = os.fork()
    for _ in range(20):
        commit(backend, adding(key, 1))
        backend.begin([key])
    if child == 0:
        peer.say(("child", session, backend.session))
        backend.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    peer.say(("parent", os.waitstatus_to_exitcode(status), is_there(backend, key_in(base, "parent"))))
    assert backend.session == session
    commit(backend, adding(key, 1))
    backend.close()


def test_a_forked_child_has_connections_and_a_session_of_its_own(
    own_process: Kind, base: bytes, start: Start
) -> None:
    observer = own_process.open(base)
    worker = start(fork_and_count, own_process.url, base)
    who, of_parent, of_child = worker.hear()
    assert who == "child" and of_child not in (0, of_parent)
    # The child has closed its own session: the parent's keys are there.
    assert worker.hear() == ("parent", 0, True)
    worker.result()
    assert decoded(observer.begin([key_in(base, "n")]).rows[0]) == 42
    assert not is_there(observer, key_in(base, "parent"))
