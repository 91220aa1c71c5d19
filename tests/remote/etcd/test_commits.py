"""Commits and snapshots of one namespace on etcd: effects, versions, conflicts with their names."""

from __future__ import annotations

import threading
import time

import pytest

from occamdb.engine.commit.messages import (
    ConflictEntry,
    ConflictKind,
    Op,
    OpCode,
    OpFlags,
    Reply,
    Request,
    RequestFlags,
    ResultEntry,
    ResultKind,
    Status,
    encode_request,
)
from occamdb.engine.model.bounds import encode_bounds
from occamdb.engine.model.errors import SnapshotExpired
from occamdb.engine.remote.backend import Begun, Row
from occamdb.engine.remote.etcd import EtcdBackend

from .conftest import BASE, Opening

SECOND = 1_000_000_000


def k(name: str) -> bytes:
    return BASE + name.encode()


def ask(backend: EtcdBackend, *ops: Op, begun: Begun | None = None, flags: int = 0) -> Reply:
    """Commit with these operations, as a transaction that began with `begun`; None: now."""
    at = begun or backend.begin()
    request = Request(0, at.version, at.expiry_time, ops, flags=RequestFlags(flags))
    return backend.commit(encode_request(request), None).reply


def put(name: str, value: bytes = b"\x01", expires_at: int = 0, flags: OpFlags = OpFlags.NONE) -> Op:
    return Op(OpCode.PUT, k(name), value, expires_at=expires_at, flags=flags)


def delete(name: str) -> Op:
    return Op(OpCode.DELETE, k(name), flags=OpFlags.WANT_RESULT)


def add(name: str, delta: int, bounds: bytes = b"") -> Op:
    return Op(OpCode.ADD, k(name), bounds, delta, flags=OpFlags.WANT_RESULT)


def delete_range(start: str, end: str) -> Op:
    return Op(OpCode.DELETE_RANGE, k(start), k(end))


def read(name: str, version: int) -> Op:
    return Op(OpCode.READ, k(name), argument=version)


def scanned(start: str, end: str) -> Op:
    return Op(OpCode.RANGE, k(start), k(end))


def names(backend: EtcdBackend, version: int, **how: object) -> list[str]:
    rows, whole = backend.scan(k(""), BASE + b"\xff", version, 1000, **how)  # type: ignore[arg-type]
    assert whole
    return [row.key[len(BASE) :].decode() for row in rows]


def test_a_commit_is_read_back_with_its_version_and_time(backend: EtcdBackend) -> None:
    before = backend.begin([k("a")])
    assert before.version == 0 and list(before.rows) == [None]
    reply = ask(backend, put("a", b"\xa3one"), put("b", b"\xa3two", expires_at=before.clock + 900 * SECOND))
    assert reply.status is Status.COMMITTED and reply.commit_version == 1
    begun = backend.begin([k("a"), k("b"), k("c")])
    assert begun.version == 1
    first = Row(k("a"), b"\xa3one", 1, reply.committed_at)
    second = Row(k("b"), b"\xa3two", 1, reply.committed_at, before.clock + 900 * SECOND)
    assert list(begun.rows) == [first, second, None]
    assert abs(begun.clock - time.time_ns()) < 2 * SECOND
    assert backend.scan(k(""), BASE + b"\xff", 1, 10) == ([first, second], True)
    assert backend.scan(k(""), BASE + b"\xff", 1, 1) == ([first], False)
    assert backend.scan(k(""), BASE + b"\xff", 1, 1, reverse=True) == ([second], False)
    assert backend.read([k("c"), k("b")], 1) == [None, second]


def test_a_snapshot_stays_as_it_was(backend: EtcdBackend) -> None:
    ask(backend, put("a"), put("b"), put("c"))
    begun = backend.begin()
    ask(backend, put("a", b"\x02"), delete("b"), put("d"))
    ask(backend, delete_range("a", "z"), put("m"))
    assert names(backend, begun.version) == ["a", "b", "c"]
    assert names(backend, begun.version, reverse=True) == ["c", "b", "a"]
    assert names(backend, begun.version + 1) == ["a", "c", "d"]
    assert names(backend, begun.version + 2) == ["m"]
    assert [row and row.value for row in backend.read([k("a")], begun.version)] == [b"\x01"]


def test_a_snapshot_of_another_process_is_found_by_the_log(opened: Opening) -> None:
    first, second = opened(), opened()
    for number in range(1, 6):
        ask(first, put("a", bytes([number])))
    assert [[r and r.value for r in second.read([k("a")], v)] for v in (1, 3, 5)] == [
        [b"\1"],
        [b"\3"],
        [b"\5"],
    ]
    with pytest.raises(SnapshotExpired):
        second.read([k("a")], 99)


def test_conflicts_are_named(backend: EtcdBackend) -> None:
    ask(backend, put("a"), put("b"), put("c"))
    begun = backend.begin()
    ask(backend, put("a"), delete("b"), put("new"))
    cases = [
        (read("a", 1), ConflictEntry(ConflictKind.READ, k("a"), 1, 2)),
        (read("b", 1), ConflictEntry(ConflictKind.READ, k("b"), 1, 0)),
        (scanned("m", "z"), ConflictEntry(ConflictKind.RANGE, k("m"), 1, 2, k("z"))),
        (scanned("b", "c"), ConflictEntry(ConflictKind.RANGE, k("b"), 1, 2, k("c"))),
        (Op(OpCode.CAS, k("c"), argument=9), ConflictEntry(ConflictKind.CAS, k("c"), 9, 1)),
        (put("a"), ConflictEntry(ConflictKind.WRITE, k("a"), 1, 2)),
        (put("b"), ConflictEntry(ConflictKind.WRITE, k("b"), 1, 2)),
        (delete("b"), ConflictEntry(ConflictKind.WRITE, k("b"), 1, 2)),
        (delete_range("n", "o"), ConflictEntry(ConflictKind.RANGE, k("n"), 1, 2, k("o"))),
    ]
    for op, expected in cases:
        reply = ask(backend, op, begun=begun)
        assert (reply.status, reply.conflicts, reply.conflicts_found) == (Status.CONFLICT, (expected,), 1)
    everything = sorted((op for op, _ in cases), key=lambda op: not op.code.is_check)
    assert ask(backend, *everything, begun=begun).conflicts_found == len(cases)
    assert ask(backend, scanned("c", "m"), read("c", 1), put("x"), begun=begun).commit_version == 3
    assert names(backend, 3) == ["a", "c", "new", "x"]


def test_a_deleted_range_conflicts_with_what_goes_into_it(backend: EtcdBackend) -> None:
    ask(backend, put("b"), put("d"))
    begun = backend.begin()
    assert ask(backend, delete_range("a", "c"), put("bb")).commit_version == 2
    for op in (add("never", 1), put("never")):
        assert ask(backend, op, begun=begun, flags=RequestFlags.JUDGE_ONLY).status is Status.COMMITTED
    for op, kind in [
        (put("a1"), ConflictKind.WRITE),
        (add("a1", 1), ConflictKind.WRITE),
        (Op(OpCode.CAS, k("a1")), ConflictKind.WRITE),
        (scanned("a", "c"), ConflictKind.RANGE),
        (scanned("b", "b\0"), ConflictKind.RANGE),
        (delete_range("a", "b"), ConflictKind.RANGE),
        (put("b"), ConflictKind.WRITE),
    ]:
        reply = ask(backend, op, begun=begun)
        assert [c.kind for c in reply.conflicts] == [kind], op
    # Nothing lay between: a scan of that part saw what is there now.
    assert ask(backend, scanned("a", "b"), put("z"), begun=begun).status is Status.COMMITTED
    assert names(backend, 3) == ["bb", "d", "z"]


def test_increments_add_to_what_is_there(backend: EtcdBackend) -> None:
    begun = backend.begin()
    ends = begun.clock + 900 * SECOND
    ask(backend, put("n", b"\x05", expires_at=ends))
    for delta, total, kind in [(1, 6, ResultKind.UNSIGNED), (-10, -4, ResultKind.SIGNED)]:
        assert ask(backend, add("n", delta), begun=begun).results == (ResultEntry(0, kind, total),)
    (row,) = backend.begin([k("n")]).rows
    assert row is not None and row.value == b"\xfc" and row.expires_at == ends
    assert ask(backend, add("absent", 7)).results == (ResultEntry(0, ResultKind.UNSIGNED, 7),)
    ask(backend, put("text", b"\xa1x"), put("big", b"\xcf" + b"\xff" * 8))
    assert ask(backend, put("q"), add("text", 1)).status is Status.NOT_AN_INTEGER
    reply = ask(backend, put("q"), add("big", 1))
    assert (reply.status, reply.detail) == (Status.INTEGER_OVERFLOW, 1)
    reply = ask(backend, add("absent", 4, encode_bounds(10, None) or b""))
    assert (reply.status, reply.results[0].value) == (Status.BOUND_REACHED, 7)
    assert list(backend.begin([k("q")]).rows) == [None]


def test_deletes_tell_whether_the_key_was_there(backend: EtcdBackend) -> None:
    ask(backend, put("a"))
    reply = ask(backend, delete("a"), delete("b"), put("b"), delete("b"))
    assert [(r.op_index, r.value) for r in reply.results] == [(0, 1), (1, 0), (3, 1)]
    assert names(backend, reply.commit_version) == []


def test_judging_only_changes_nothing(backend: EtcdBackend) -> None:
    begun = backend.begin()
    ask(backend, put("a"))
    judged = ask(backend, read("a", 0), begun=begun, flags=RequestFlags.JUDGE_ONLY)
    assert judged.conflicts == (ConflictEntry(ConflictKind.READ, k("a"), 0, 1),)
    judged = ask(backend, put("b"), begun=begun, flags=RequestFlags.JUDGE_ONLY)
    assert (judged.status, judged.commit_version) == (Status.COMMITTED, 0)
    assert backend.newest() == 1


def test_blind_writes_are_not_checked(backend: EtcdBackend) -> None:
    begun = backend.begin()
    ask(backend, put("a"))
    assert ask(backend, put("a"), begun=begun, flags=RequestFlags.BLIND).commit_version == 2


def test_what_threads_hand_in_travels_together(opened: Opening) -> None:
    backend, other = opened(), opened()
    replies: list[Reply] = []

    def work(mine: EtcdBackend) -> None:
        for _ in range(20):
            replies.append(ask(mine, add("n", 1)))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in [backend, other] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reply.commit_version for reply in replies) == list(range(1, 321))
    assert sorted(reply.results[0].value for reply in replies) == list(range(1, 321))
    batches = [each.stats()["batches"] for each in (backend, other)]
    assert sum(batches) < 320


def test_namespaces_count_their_versions_apart(opened: Opening) -> None:
    backend = opened()
    other = backend.of(b"t\0\0\0")
    reply = other.commit(encode_request(Request(0, 0, 0, (Op(OpCode.PUT, b"t\0\0\0x", b"\1"),))), None).reply
    assert reply.commit_version == 1 and backend.newest() == 0
    assert backend.namespaces() == [b"t\0\0\0"]
    ask(backend, put("a"))
    assert backend.namespaces() == [BASE, b"t\0\0\0"]
    assert names(backend, 1) == ["a"]
