"""Many processes on the same keys: no increment is lost, no money appears, and every snapshot is one state."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from occamdb import Database, RetryPolicy, RunId, Transaction
from tests.support.processes import Peer, Worker, open_database

PROCESSES = 8
INCREMENTS = 60
ADDS = 300
ACCOUNTS = 20
OPENING_BALANCE = 100
PATIENT = RetryPolicy(max_attempts=100_000)


def increment(peer: Peer, path: Path, run: RunId, count: int) -> int:
    """`count` increments by get and put; returns how many tries they took."""
    tries = 0

    def add_one(txn: Transaction) -> None:
        nonlocal tries
        tries += 1
        txn.put("counter", txn.get("counter", 0) + 1)

    with open_database(path) as db:
        peer.say("ready")
        peer.hear()
        for _ in range(count):
            db.transaction(run, add_one, retry=PATIENT)
    return tries


def test_eight_processes_lose_no_increment(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    team = [start(increment, shared_path, run, INCREMENTS) for _ in range(PROCESSES)]
    before = shared.stats()
    for worker in team:
        worker.hear()
    for worker in team:
        worker.say("go")
    tries = sum(worker.result() for worker in team)
    found = shared.get_versioned(run, "counter")
    assert found is not None
    assert found.value == PROCESSES * INCREMENTS
    assert tries >= PROCESSES * INCREMENTS
    # Every conflict is an attempt that was repeated, no matter where it was noticed; all were about one key.
    after, repeated = shared.stats(), tries - PROCESSES * INCREMENTS
    assert after["retries"] - before["retries"] == repeated
    assert sum(after["conflicts"].values()) - sum(before["conflicts"].values()) == repeated
    hot = {item["key"]: item["conflicts"] for item in after["hot_keys"] if str(run) in item["key"]}
    # A commit that the coordinator refused counts its read and its write of the key.
    assert not repeated or (len(hot) == 1 and repeated <= sum(hot.values()) <= 2 * repeated)


def add(peer: Peer, path: Path, run: RunId, count: int) -> list[int]:
    """`count` implicit adds; returns the values they resulted in."""
    with open_database(path) as db:
        space = db.space(run, 1)
        peer.say("ready")
        peer.hear()
        return [space.add("counter", 1) for _ in range(count)]


def test_adds_of_eight_processes_each_see_another_value(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    team = [start(add, shared_path, run, ADDS) for _ in range(PROCESSES)]
    for worker in team:
        worker.hear()
    for worker in team:
        worker.say("go")
    results = [worker.result() for worker in team]
    # Each add took effect at its own place in one order: together they saw every value once, each its own in order.
    assert sorted(value for values in results for value in values) == list(range(1, PROCESSES * ADDS + 1))
    assert all(values == sorted(values) for values in results)
    assert shared.get(run, "counter") == PROCESSES * ADDS


def test_lost_update_across_processes(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """The textbook interleaving, step by step: both read, both write, the second is told."""
    shared.put(run, "x", 1)
    first, second = (start(read_then_write, shared_path, run) for _ in range(2))
    assert first.hear() == 1 and second.hear() == 1
    first.say(10)
    assert first.result() == "committed"
    second.say(20)
    assert second.result() == "ReadConflict WriteConflict"
    assert shared.get(run, "x") == 10


def read_then_write(peer: Peer, path: Path, run: RunId) -> str:
    """One transaction in two steps: what became of it."""
    from occamdb import ConflictError

    with open_database(path) as db:
        txn = db.begin(run)
        peer.say(txn.get("x"))
        txn.put("x", peer.hear())
        try:
            txn.commit()
        except ConflictError as error:
            return " ".join(type(conflict).__name__ for conflict in error.conflicts)
        return "committed"


def transfer(peer: Peer, path: Path, run: RunId, seed: int, count: int, isolation: str) -> int:
    """Random transfers; one in three deletes or makes accounts on the way."""
    chance = random.Random(seed)

    def move(txn: Transaction) -> None:
        source, target = chance.sample(range(ACCOUNTS), 2)
        amount = min(chance.randrange(30), txn.get(f"account/{source:03}", 0))
        left = txn.get(f"account/{source:03}", 0) - amount
        if left:
            txn.put(f"account/{source:03}", left)
        else:
            txn.delete(f"account/{source:03}")
        txn.put(f"account/{target:03}", txn.get(f"account/{target:03}", 0) + amount)

    with open_database(path, isolation=isolation) as db:
        peer.say("ready")
        peer.hear()
        for _ in range(count):
            db.transaction(run, move, retry=PATIENT)
    return count


def audit(peer: Peer, path: Path, run: RunId) -> int:
    """Snapshots while the others transfer, each read twice in two ways; how many there were."""
    seen = 0
    version = 0
    with open_database(path) as db:
        peer.say("ready")
        while not peer.told():
            with db.snapshot(run) as view:
                assert view.version >= version
                version = view.version
                by_scan = {key: row.value for key, row in view.scan_prefix("account/")}
                by_key = {f"account/{n:03}": view.get(f"account/{n:03}", 0) for n in range(ACCOUNTS)}
            assert sum(by_scan.values()) == ACCOUNTS * OPENING_BALANCE, (version, by_scan)
            assert by_key == {f"account/{n:03}": by_scan.get(f"account/{n:03}", 0) for n in range(ACCOUNTS)}
            seen += 1
    return seen


def test_a_bank_keeps_its_total_under_concurrent_snapshots(
    shared: Database, shared_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    def open_accounts(txn: Transaction) -> None:
        for number in range(ACCOUNTS):
            txn.put(f"account/{number:03}", OPENING_BALANCE)

    shared.transaction(run, open_accounts)
    auditors: list[Any] = [start(audit, shared_path, run) for _ in range(2)]
    # First committer wins on the written keys is enough for transfers: both isolation levels keep the total.
    tellers = [
        start(transfer, shared_path, run, seed, 150, isolation)
        for seed, isolation in enumerate(("serializable", "snapshot", "serializable", "snapshot"))
    ]
    for worker in auditors + tellers:
        worker.hear()
    for worker in tellers:
        worker.say("go")
    for _ in range(100):
        # Figures are read while everything they are about changes.
        figures = shared.stats()
        assert len(figures["workers"]) >= 2 and figures["store"]["used"] > 0
    assert sum(worker.result() for worker in tellers) == 600
    for worker in auditors:
        worker.say("stop")
    assert all(worker.result() > 0 for worker in auditors)
    with shared.snapshot(run) as view:
        assert sum(row.value for _, row in view.scan_prefix("account/")) == ACCOUNTS * OPENING_BALANCE


def test_write_skew_across_processes_is_refused_and_allowed_by_isolation(
    shared: Database, shared_path: Path, start: Callable[..., Worker]
) -> None:
    for isolation, second_outcome in (("serializable", "ReadConflict"), ("snapshot", "committed")):
        run = RunId.new()
        shared.put(run, "on call/a", True)
        shared.put(run, "on call/b", True)
        a, b = (start(leave, shared_path, run, name, isolation) for name in "ab")
        assert a.hear() == 2 and b.hear() == 2
        a.say("leave")
        assert a.result() == "committed"
        b.say("leave")
        assert b.result() == second_outcome


def leave(peer: Peer, path: Path, run: RunId, name: str, isolation: str) -> str:
    """Go off call if somebody else stays."""
    from occamdb import ConflictError

    with open_database(path) as db:
        txn = db.begin(run, isolation=isolation)
        peer.say(sum(row.value for _, row in txn.scan("on call/")))
        peer.hear()
        txn.put(f"on call/{name}", False)
        try:
            txn.commit()
        except ConflictError as error:
            return " ".join(type(conflict).__name__ for conflict in error.conflicts)
        return "committed"
