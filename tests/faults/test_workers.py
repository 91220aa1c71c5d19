"""W1-W7, W10: workers that die or stop at any instant. What they left is cleared; the others never notice.

Each test ends with an audit: exactly the commits that were acknowledged, or whose outcome nobody was told, are there.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, RetryPolicy, RunId, SnapshotExpired, Transaction
from occamdb.engine.disk import failpoints
from tests.support import processes
from tests.support.processes import Peer, Worker, open_database, segments_of, wait_until

PATIENT = RetryPolicy(max_attempts=100_000)
LARGE = 400_000  # bytes: several times around a ring of 64 KiB
SETTINGS = {"ring_size": "64KiB"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("workers") / "db"
    keeper = open_database(path, **SETTINGS)
    yield path
    keeper.close()
    processes.stop_coordinator(path)


def wait_cleared(db: Database, path: Path, pid: int) -> None:
    """Until the coordinator has forgotten a worker: no pins, no channel."""
    wait_until(lambda: all(w["pid"] != pid for w in db.stats()["workers"]), what="the end of its attachment")
    sessions = {f"c{w['session']:016x}" for w in db.stats()["workers"]}
    wait_until(
        lambda: {name.rsplit("-", 1)[1] for name in segments_of(path, "c")} <= sessions,
        what="the removal of its channel segment",
    )


# ---- killed -----------------------------------------------------------------------------------------------


def count_with_marks(peer: Peer, path: Path, run: RunId, name: str, point: str, action: str) -> None:
    """Commit one after the other: a shared counter and an own mark for each try, together."""
    with open_database(path) as db:
        peer.say("ready")
        peer.hear()
        if point:
            failpoints.set(point, action)
        number = 0

        def step(txn: Transaction) -> None:
            txn.put("counter", txn.get("counter", 0) + 1)
            txn.put(f"mark/{name}/{number:06}", 1)
            if point == "worker.mid_submit":
                txn.put(f"large/{name}", bytes(LARGE))

        while True:
            db.transaction(run, step, retry=PATIENT)
            peer.say(number)
            number += 1


def audit_marks(db: Database, run: RunId, acknowledged: dict[str, int]) -> None:
    """The counter equals the marks; each worker's marks are those it was told of, and at most one more."""
    with db.snapshot(run) as view:
        marks = list(view.keys("mark/"))
        assert view.get("counter", 0) == len(marks)
        for name, count in acknowledged.items():
            own = sum(1 for _ in view.keys(f"mark/{name}/"))
            assert count <= own <= count + 1, (name, count, own)


def hear_until_dead(worker: Worker, count: int = 0) -> int:
    """How many commits a worker was told of before it died."""
    while True:
        kind, message = worker._receive(processes.DEADLINE_S)
        if kind == "dead":
            return count
        assert kind == "said", message
        count = int(message) + 1


def test_killed_at_random_instants(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """SIGKILL whenever: while reading, validating, sending, waiting. Nothing is lost, nothing half, nothing twice."""
    chance = random.Random(7)
    survivor = start(count_with_marks, path, run, "survivor", "", "")
    survivor.hear()
    survivor.say("go")
    acknowledged: dict[str, int] = {}
    for number in range(12):
        victims = [start(count_with_marks, path, run, f"{number}-{n}", "", "") for n in range(2)]
        for victim in victims:
            victim.hear()
        for victim in victims:
            victim.say("go")
        for n, victim in enumerate(victims):
            # After a number of commits of its own, at an instant that nobody chose.
            heard = 0
            for _ in range(chance.randrange(6)):
                heard = victim.hear() + 1
            victim.kill()
            acknowledged[f"{number}-{n}"] = hear_until_dead(victim, heard)
            wait_cleared(db, path, victim.pid)
    progress = survivor.hear()
    wait_until(lambda: survivor.hear() > progress, what="progress of the survivor")
    survivor.kill()
    acknowledged["survivor"] = hear_until_dead(survivor)
    audit_marks(db, run, acknowledged)


@pytest.mark.parametrize(
    "point",
    [
        "worker.after_pin",
        "worker.before_submit",
        "worker.mid_submit",
        "worker.after_submit",
        "worker.before_result",
    ],
)
def test_killed_at_a_failpoint(
    point: str, db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W1-W3: the commit it died in is whole or absent, and its segment goes once what was complete is served."""
    worker = start(count_with_marks, path, run, "victim", point, "kill@4")
    worker.hear()
    worker.say("go")
    told = hear_until_dead(worker)
    assert worker.wait_dead() == -signal.SIGKILL
    wait_cleared(db, path, worker.pid)
    audit_marks(db, run, {"victim": told})
    found = sum(1 for _ in db.list(run, "mark/"))
    # Never sent, or sent by halves: absent. Sent whole: it may only be there, the coordinator lives.
    assert found == (
        told if point in ("worker.after_pin", "worker.before_submit", "worker.mid_submit") else told + 1
    )
    db.put(run, "after", 1)


def hold_snapshot(peer: Peer, path: Path, run: RunId) -> list[Any]:
    """Pin, tell, wait; then read what the snapshot shows, as often as it takes to see a mixture if there were one."""
    with open_database(path) as db, db.snapshot(run) as view:
        peer.say(view.version)
        peer.hear()
        seen: list[Any] = []
        for _ in range(3):
            try:
                seen.append(sorted({row.value for _, row in view.scan_prefix("row/")}))
                seen.append(sorted({view.get(f"row/{n:03}") for n in range(50)}))
            except SnapshotExpired:
                seen.append("expired")
        return seen


def rewrite_rows(db: Database, run: RunId, value: int) -> None:
    def step(txn: Transaction) -> None:
        for number in range(50):
            txn.put(f"row/{number:03}", value)

    db.transaction(run, step)


def held_by(db: Database, pid: int) -> dict[str, Any] | None:
    return next((w for w in db.stats()["workers"] if w["pid"] == pid), None)


def test_killed_with_a_pinned_snapshot(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W1: its pin holds memory back while it lives, and none afterwards."""
    rewrite_rows(db, run, 0)
    worker = start(hold_snapshot, path, run)
    version = worker.hear()
    for value in range(1, 30):
        rewrite_rows(db, run, value)

    def holds() -> bool:
        figures = held_by(db, worker.pid)
        assert figures is not None
        return bool(figures["snapshot_version"] == version and figures["held_bytes"] > 0)

    wait_until(holds, what="the snapshot to show in stats")
    worker.kill()
    wait_cleared(db, path, worker.pid)
    wait_until(lambda: db.stats()["store"]["superseded"] == 0, what="the memory to come back")


# ---- stopped --------------------------------------------------------------------------------------------------


def test_stopped_with_a_snapshot_and_woken_after_thousands_of_commits(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W6, the snapshot still valid: it shows its own state and nothing else."""
    rewrite_rows(db, run, 0)
    worker = start(hold_snapshot, path, run)
    worker.hear()
    worker.stop()
    for value in range(1, 60):
        rewrite_rows(db, run, value)
        for _ in range(50):
            db.put(run, "noise", value)
    worker.say("read")
    worker.resume()
    assert worker.result() == [[0]] * 6


def test_stopped_for_longer_than_a_snapshot_may_live(tmp_path: Path, start: Callable[..., Worker]) -> None:
    """W6 with a small snapshot_max_age: SnapshotExpired every time, and the memory is free before it wakes."""
    path, run = tmp_path / "db", RunId.new()
    with open_database(path, snapshot_max_age=0.05) as db:
        rewrite_rows(db, run, 0)
        worker = start(hold_snapshot, path, run)
        worker.hear()
        worker.stop()
        value = 0

        def revoked() -> bool:
            nonlocal value
            value += 1
            rewrite_rows(db, run, value)
            return bool(db.stats()["snapshots_revoked"])

        wait_until(revoked, what="the revocation")
        for value in range(1000, 2000):
            rewrite_rows(db, run, value)
        worker.say("read")
        worker.resume()
        assert worker.result() == ["expired"] * 3
        wait_until(lambda: db.stats()["store"]["superseded"] == 0, what="the memory to come back")
    processes.stop_coordinator(path)


def test_stopped_in_mid_read(tmp_path: Path, start: Callable[..., Worker]) -> None:
    """W6 at no chosen instant: a reader stopped and woken again and again sees one state or is told it expired."""
    path, run = tmp_path / "db", RunId.new()
    with open_database(path, snapshot_max_age=0.05) as db:
        rewrite_rows(db, run, 0)
        reader = start(read_for_ever, path, run)
        reader.hear()
        stop = threading.Event()
        writer = threading.Thread(target=rewrite_until, args=(db, run, stop))
        writer.start()
        try:
            chance = random.Random(3)
            for _ in range(25):
                reader.stop()
                version = db.stats()["version"]
                ahead = chance.choice((1, 30, 300))
                wait_until(functools.partial(is_past, db, version + ahead), what="commits")
                reader.resume()
        finally:
            stop.set()
            writer.join()
        reader.say("stop")
        whole, expired = reader.result()
        assert whole > 0 and expired >= 0
    processes.stop_coordinator(path)


def is_past(db: Database, version: int) -> bool:
    return bool(db.stats()["version"] > version)


def rewrite_until(db: Database, run: RunId, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        rewrite_rows(db, run, number)


def read_for_ever(peer: Peer, path: Path, run: RunId) -> tuple[int, int]:
    """Snapshots of all rows: (whole ones, expired ones). A mixture fails."""
    whole = expired = 0
    with open_database(path) as db:
        peer.say("ready")
        # At the end the writer is silent, so one more is sure to be whole.
        while not (whole and peer.told()):
            try:
                with db.snapshot(run) as view:
                    values = {row.value for _, row in view.scan_prefix("row/")}
                    values |= {view.get(f"row/{n:03}") for n in range(50)}
                assert len(values) == 1, values
                whole += 1
            except SnapshotExpired:
                expired += 1
    return whole, expired


def submit_large(peer: Peer, path: Path, run: RunId, action: str) -> str:
    """One commit several times the size of a ring, with something happening while half of it is in there."""
    with open_database(path) as db:
        failpoints.set("worker.mid_submit", action)
        peer.say("ready")
        db.put(run, "large", bytes(LARGE))
        return "committed"


def test_stopped_in_mid_ring_write(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W5: the coordinator waits for nobody's second half. Progress, not time, is what is measured."""
    worker = start(submit_large, path, run, "stop@1")
    worker.hear()
    worker.wait_stopped()
    before = db.stats()
    for number in range(2000):
        db.put(run, "other", number)
    after = db.stats()
    assert after["commits"] - before["commits"] == 2000
    assert worker.pid in {w["pid"] for w in after["workers"]}
    assert db.get(run, "large") is None
    worker.resume()
    assert worker.result() == "committed"
    assert db.get(run, "large") == bytes(LARGE)


def test_killed_in_mid_ring_write_while_others_commit(
    db: Database, path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """W2: half a request is skipped at once, and its place in the coordinator goes to the next one."""
    for _ in range(5):
        worker = start(submit_large, path, run, "kill@2")
        worker.hear()
        assert worker.wait_dead() == -signal.SIGKILL
        db.put(run, "other", 1)
        wait_cleared(db, path, worker.pid)
    assert db.get(run, "large") is None


# ---- who is who ---------------------------------------------------------------------------------------------


def test_a_reused_pid_is_not_taken_for_the_worker(db: Database, path: Path, run: RunId) -> None:
    """W10, as the coordinator sees it: an identity is pid and start time, and only the latter was wrong."""
    from occamdb.engine.disk.directory import socket_path
    from occamdb.ipc.control import ControlClient
    from occamdb.ipc.process import own_identity

    claimed = own_identity().to_dict() | {"start_time": own_identity().start_time - 1}
    client = ControlClient.connect(socket_path(str(path)), 10.0)
    with client:
        reply = client.call(
            {"op": "attach", "session": 0, "asked": {}, "durability": "standard", "process": claimed}, 10.0
        )
        assert reply["ok"]
        # The process with that start time is dead; that another one has its pid keeps nothing alive.
        wait_until(client.peer_gone, what="the disconnection of a dead process")
        name = reply["channel"].lstrip("/")
        wait_until(lambda: name not in segments_of(path, "c"), what="the removal of its channel")
    db.put(run, "k", 1)
    assert os.getpid() in {w["pid"] for w in db.stats()["workers"]}
