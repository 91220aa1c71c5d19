"""What a default etcd does not take, each with the flag of etcd in the error; and its history, compacted and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from occamdb.engine.commit.messages import Status
from occamdb.engine.model.errors import (
    LimitExceeded,
    SnapshotExpired,
    StoreFullError,
    TransactionTooLarge,
    ValueTooLarge,
    WatchLagged,
)
from occamdb.engine.remote.etcd.records import Head
from occamdb.engine.remote.etcd.upkeep import compact, sweep
from occamdb.engine.remote.etcd.wire import put as write
from occamdb.engine.remote.etcd.wire import range_of, read_page, txn
from tests.support.etcd_servers import EtcdCluster

from .conftest import Opening
from .test_commits import SECOND, ask, delete, delete_range, k, names, put, read, scanned


def bin_of(size: int) -> bytes:
    return b"\xc6" + size.to_bytes(4, "big") + b"x" * size


def test_too_many_operations_name_the_flag(opened: Opening) -> None:
    backend = opened()
    fits = ask(backend, *(put(f"{n:03}") for n in range(126)))
    assert fits.commit_version == 1
    with pytest.raises(TransactionTooLarge, match="152 operations") as caught:
        ask(backend, *(put(f"{n:03}") for n in range(150)))
    assert (caught.value.setting, caught.value.size) == ("--max-txn-ops", 152)
    assert "--max-txn-ops" in caught.value.hint
    # Reading, scanning and deleting many takes one operation a page, or one at all.
    begun = backend.begin([k(f"{n:03}") for n in range(150)])
    assert [row is not None for row in begun.rows] == [True] * 126 + [False] * 24
    checks = [read(f"{n:03}", 1 if n < 126 else 0) for n in range(150)]
    assert ask(backend, *checks, delete_range("0", "9"), put("x"), begun=begun).commit_version == 2
    assert names(backend, 2) == ["x"]


@pytest.mark.parametrize("size", [1_600_000, 3_000_000])
def test_too_large_a_value_names_the_flag(opened: Opening, size: int) -> None:
    backend = opened()
    ask(backend, put("a", bin_of(1_400_000)))
    with pytest.raises(ValueTooLarge, match=f"{size + 5:,} bytes") as caught:
        ask(backend, put("a", bin_of(size)))
    assert caught.value.setting == "--max-request-bytes"
    with pytest.raises(TransactionTooLarge) as whole:
        ask(backend, *(put(f"{n}", bin_of(400_000)) for n in range(6)))
    assert whole.value.setting == "--max-request-bytes"
    assert names(backend, backend.newest()) == ["a"]


def test_large_values_are_scanned_in_pages(opened: Opening) -> None:
    backend = opened()
    for n in range(12):
        ask(backend, put(f"{n:02}", bin_of(1_000_000)))
    for round in range(2):
        found: list[bytes] = []
        start, whole, pages = k(""), False, 0
        while not whole:
            rows, whole = backend.scan(start, k("") + b"\xff", 12, 1000)
            found.extend(row.key for row in rows)
            start, pages = rows[-1].key + b"\0", pages + 1
        assert found == [k(f"{n:02}") for n in range(12)]
        assert round == 0 or pages > 1  # the first one learns how large the rows are


@pytest.fixture
def small(tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path, flags=["--quota-backend-bytes", str(6 << 20)])
    cluster.start()
    yield cluster
    cluster.stop()


def test_a_full_etcd_is_a_definite_error_and_reads_go_on(small: EtcdCluster, opened: Opening) -> None:
    backend = opened(at=small.url("full"))
    stored = 0
    with pytest.raises(StoreFullError, match="--quota-backend-bytes") as caught:
        for n in range(30):
            ask(backend, put(f"{n % 2}", bin_of(500_000)))
            stored = n + 1
    assert isinstance(caught.value, LimitExceeded) and "alarm disarm" in caught.value.hint
    begun = backend.begin()
    assert begun.version == stored and names(backend, stored) == ["0", "1"]
    member = small.members[0]
    revision = backend._member.space.look().revision
    member.ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})
    member.ask("/v3/maintenance/defragment")
    alarms = member.ask("/v3/maintenance/alarm", {"action": "GET"})["alarms"]
    assert isinstance(alarms, list) and alarms[0]["alarm"] == "NOSPACE"
    member.ask("/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarms[0]})
    assert ask(backend, delete("0")).commit_version == stored + 1


def test_a_compacted_snapshot_is_refused_and_never_wrong(opened: Opening) -> None:
    backend, other = opened(), opened()
    ask(backend, put("a"), put("b"))
    begun = backend.begin()
    seen = names(backend, begun.version)
    ask(backend, put("a", b"\x02"), delete("b"))
    ask(backend, put("c"))
    gateway = backend._family.client.gateway
    look = backend._member.space.look()
    gateway.ask("/v3/kv/compaction", {"revision": str(look.revision)}, time.monotonic() + 5)
    for call in (
        lambda: backend.read([k("a")], begun.version),
        lambda: backend.scan(k(""), k("z"), begun.version, 10),
        lambda: other.read([k("a")], begun.version),
    ):
        with pytest.raises(SnapshotExpired):
            call()
    # What conflicts is still known, and so is what fits.
    reply = ask(backend, read("b", 1), scanned("b", "c"), put("d"), begun=begun)
    assert (seen, reply.conflicts_found) == (["a", "b"], 2)
    assert ask(backend, scanned("m", "n"), put("d"), begun=begun).commit_version == 4
    with pytest.raises(WatchLagged):
        backend.changes(k(""), None, 0, 100, values=True)
    assert [c.version for c in backend.changes(k(""), None, 0, 100, values=False).commits] == [1, 2, 3, 4]
    assert [c.version for c in backend.changes(k(""), None, 3, 100, values=True).commits] == [4]


def test_a_snapshot_of_an_idle_namespace_outlives_compaction(opened: Opening) -> None:
    backend, busy = opened(), opened(base=b"busy\0\0\0")
    ask(backend, put("a"))
    begun = backend.begin()
    gateway = backend._family.client.gateway
    for _ in range(2):
        gateway.ask("/v3/kv/put", {"key": "YQ==", "value": ""}, time.monotonic() + 5)  # somebody else's key
        revision = busy._member.space.look().revision
        gateway.ask("/v3/kv/compaction", {"revision": str(revision)}, time.monotonic() + 5)
        assert names(backend, begun.version) == ["a"]


def test_a_range_too_large_to_delete_at_once_names_the_flag(opened: Opening) -> None:
    backend = opened(max_txn_ops=16)
    for n in range(0, 240, 12):
        ask(backend, *(put(f"{m:03}" + "x" * 8000) for m in range(n, n + 12)))
    with pytest.raises(TransactionTooLarge, match="log and indices included") as caught:
        ask(backend, delete_range("0", "9"))
    assert caught.value.size > 1_600_000 and caught.value.setting == "--max-request-bytes"
    assert ask(backend, delete_range("0", "1")).status is Status.COMMITTED
    assert len(names(backend, backend.newest())) == 140


def test_what_no_snapshot_needs_is_forgotten(opened: Opening) -> None:
    backend = opened(snapshot_max_age=1)
    client, space = backend._family.client, backend._member.space
    now = client.clock.now()
    client.clock.now = lambda: now  # type: ignore[method-assign]
    ask(backend, *(put(f"{n}") for n in range(9)))
    old = backend.begin()
    ask(backend, delete("1"), put("ttl", expires_at=now + SECOND))
    ask(backend, delete_range("2", "5"))
    for _ in range(3):
        now += 2 * SECOND
        ask(backend, put("x"))
    assert sweep(space) > 0
    page = read_page(
        client.gateway.ask(
            "/v3/kv/range",
            range_of(space.keys.record(k("")), space.keys.record(k("") + b"\xff")),
            client.deadline(),
        )
    )
    left = [space.keys.stored(row.key)[len(k("")) :].decode() for row in page.rows]
    assert left == ["0", "5", "6", "7", "8", "x"]
    floor = space.look().head.floor
    assert old.version < floor
    with pytest.raises(WatchLagged) as lagged:
        backend.changes(k(""), None, old.version, 10, values=False)
    assert lagged.value.oldest == floor
    with pytest.raises(SnapshotExpired):
        ask(backend, put("1"), begun=old)
    assert names(backend, old.version) == [str(n) for n in range(9)]  # etcd still has it


def test_compaction_takes_turns_and_keeps_what_is_young(opened: Opening) -> None:
    backends = [opened(snapshot_max_age=100), opened(snapshot_max_age=100)]
    clients = [backend._family.client for backend in backends]
    now = clients[0].clock.now()
    for client in clients:
        client.clock.now = lambda: now  # type: ignore[method-assign]
    ask(backends[0], put("a"))
    first = backends[0]._member.space.look().revision
    assert [compact(client) for client in clients] == [0, 0]  # the turn begins
    ask(backends[0], put("a", b"\x02"))
    now += 99 * SECOND
    assert [compact(client) for client in clients] == [0, 0]
    now += 2 * SECOND
    done = [compact(client) for client in clients]
    assert done[0] >= first and done[1] == 0
    assert names(backends[0], 1) == ["a"]
    now += 101 * SECOND
    assert compact(clients[1]) > done[0]
    with pytest.raises(SnapshotExpired):
        backends[0].read([k("a")], 1)


def test_a_restored_cluster_gives_no_version_twice(opened: Opening) -> None:
    backend = opened()
    ask(backend, put("a"))
    begun = backend.begin()
    space = backend._member.space
    found = space.look()
    # As after `etcdctl snapshot restore`: the head says another cluster.
    foreign = Head.decode(found.head.encode())
    object.__setattr__(foreign, "cluster", foreign.cluster + 1)
    asked = txn([], [write(space.keys.head, foreign.encode())])
    space.client.gateway.ask("/v3/kv/txn", asked, space.client.deadline())
    again = backend.begin()
    assert again.version == begun.version + (1 << 32)
    assert backend.incarnation == 2
    with pytest.raises(SnapshotExpired):
        ask(backend, put("b"), begun=begun)
    with pytest.raises(WatchLagged):
        backend.changes(k(""), None, 1, 10, values=False)
    assert ask(backend, put("b")).commit_version == again.version + 1
    assert names(backend, again.version + 1) == ["a", "b"]
