"""Rule 3 of the contract: expiry follows one clock, the server's, and no snapshot misses what a later commit saw."""

import functools
import threading
from collections.abc import Callable

import pytest

from occamdb.engine.commit.messages import ConflictKind, Op, RequestFlags, Status
from occamdb.engine.remote.backend import Backend, Begun
from tests.support.backends import (
    Kind,
    RemoteClient,
    adding,
    cas,
    commit,
    decoded,
    deleting,
    end_of,
    key_in,
    putting,
    range_read,
    reading,
)
from tests.support.processes import Worker, wait_until

SECOND = 10**9
HOUR = 3600
MANY = 10**9  # more than a test adds up to
Start = Callable[..., Worker]


def judged(backend: Backend, begun: Begun, *ops: Op) -> list[tuple[ConflictKind, int]]:
    """The kinds of the conflicts that a transaction would meet now, and what they found."""
    reply = commit(backend, *ops, begun=begun, flags=RequestFlags.JUDGE_ONLY).reply
    return [(entry.kind, entry.found) for entry in reply.conflicts]


def begun_after(backend: Backend, when: int) -> Begun:
    """The first snapshot by which has expired what expires at `when`."""
    begun = backend.begin()

    def look() -> bool:
        nonlocal begun
        begun = backend.begin()
        return begun.expiry_time >= when

    wait_until(look)
    return begun


def test_what_a_snapshot_held_and_has_expired_since(kind: Kind, base: bytes) -> None:
    backend, other, key = kind.open(base), kind.open(base), key_in(base, "k")
    expires_at = backend.begin().clock + SECOND
    version = commit(other, putting(key, 100, expires_at)).version
    alive = backend.begin([key])
    assert alive.expiry_time < expires_at and decoded(alive.rows[0]) == 100
    everything = range_read(base, end_of(base), 1)
    assert judged(backend, alive, reading(key, version), everything, *cas(key, version, 1)) == []

    gone = begun_after(other, expires_at)
    expired = (ConflictKind.READ, 0), (ConflictKind.CAS, 0)
    found = judged(backend, alive, reading(key, version), everything, *cas(key, version, 1))
    assert [entry for entry in found if entry[0] is not ConflictKind.RANGE] == list(expired)
    assert [entry[0] for entry in found] == [ConflictKind.READ, ConflictKind.RANGE, ConflictKind.CAS]
    assert judged(backend, alive, putting(key, 1)) == []  # nobody has written it
    # For who began behind it the key is absent, and its removal, whenever that comes, is no write.
    for _ in range(20):
        absent = [reading(key, 0), everything, *cas(key, 0, 1), putting(key_in(base, "l"), 1)]
        assert judged(other, gone, *absent) == []
        other.wait(gone.version, 0.1)
    assert commit(other, adding(key, 1), begun=gone).reply.results[0].value == 1
    (row,) = other.begin([key]).rows
    assert row is not None and (decoded(row), row.expires_at) == (1, 0)


def test_a_snapshot_without_a_key_is_older_than_no_commit_that_saw_it(kind: Kind, base: bytes) -> None:
    """If T of a snapshot at V lets a key expire, then commit V + 1 judges that it has expired.

    Increments tell: while the key is there each adds to MANY, and the first one behind its expiry begins at 1.
    """
    adder, reader, key = kind.open(base), kind.open(base), key_in(base, "n")
    expires_at = reader.begin().clock + SECOND
    commit(adder, putting(key, MANY, expires_at))
    sums: list[tuple[int, int]] = []
    stop = threading.Event()

    def add() -> None:
        while not stop.is_set():
            reply = commit(adder, adding(key, 1)).reply
            sums.append((reply.commit_version, reply.results[0].value))

    thread = threading.Thread(target=add)
    thread.start()
    snapshots: list[Begun] = []
    try:
        while not snapshots or snapshots[-1].clock < expires_at + SECOND // 5:
            snapshots.append(reader.begin([key]))
    finally:
        stop.set()
        thread.join()
    assert sums[0][1] == MANY + 1 and min(value for _, value in sums) == 1
    first_without = next(version for version, value in sums if value == 1)
    last_with = max(version for version, value in sums if value > MANY)
    assert last_with < first_without
    for begun in snapshots:
        if begun.expiry_time >= expires_at:
            assert begun.version >= last_with, "a later commit saw what this snapshot did not"
        else:
            assert begun.version < first_without, "an earlier commit missed what this snapshot has"
    order = [(begun.version, begun.expiry_time) for begun in snapshots]
    assert order == sorted(order), "neither versions nor the clock go back"


@pytest.fixture
def clients(kind: Kind, base: bytes, start: Start) -> list[RemoteClient]:
    """Two processes whose clocks are two hours apart."""
    if kind.name == "dict":
        pytest.skip("a dict lives in one process, with one clock")
    return [RemoteClient(start, kind.url, base, shift * HOUR) for shift in (-1, 1)]


def test_clients_with_clocks_two_hours_apart_agree_on_expiry(
    clients: list[RemoteClient], kind: Kind, base: bytes
) -> None:
    observer = kind.open(base)
    keys = [key_in(base, name) for name in ("early", "late")]
    for key, client in zip(keys, clients, strict=True):
        begun = client.ask("begin")
        assert abs(begun.clock - observer.begin().clock) < 60 * SECOND, "the server's clock, not the client's"
        client.commit(putting(key, "v", begun.clock + 2 * SECOND))
    everybody: list[Callable[[list[bytes]], Begun]] = [observer.begin]
    everybody += [functools.partial(client.ask, "begin") for client in clients]
    last = 0
    missing = dict.fromkeys(keys, 0)

    def all_gone() -> bool:
        nonlocal last
        for begin in everybody:
            begun = begin(keys)
            assert begun.expiry_time >= last, "the clock went back between two clients"
            last = begun.expiry_time
            for key, row in zip(keys, begun.rows, strict=True):
                is_there = row is not None and row.expires_at > begun.expiry_time
                assert not (is_there and missing[key]), "a key came back"
                missing[key] += not is_there
        return min(missing.values()) >= 3

    began = observer.begin().clock
    all_there = [row for row in observer.begin(keys).rows if row is not None]
    assert len(all_there) == 2
    wait_until(all_gone)
    assert 0 < observer.begin().clock - began < 60 * SECOND
    for client in clients:
        begun = client.ask("begin")
        sent = client.commit(*(reading(key, 0) for key in keys), putting(keys[0], "again"), begun=begun)
        assert sent.reply.status is Status.COMMITTED
        assert abs(sent.reply.committed_at - observer.begin().clock) < 60 * SECOND
        client.commit(deleting(keys[0]))
        client.end()
