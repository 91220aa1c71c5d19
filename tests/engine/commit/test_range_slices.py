"""Range deletes and range checks in slices: what the commit thread does between two of them, and what interrupts it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, RunId
from occamdb.engine.commit.messages import Op, OpCode, Status
from occamdb.engine.disk import failpoints
from tests.engine.commit.test_commit_core import PREFIX, Core, make_core  # noqa: F401  (a fixture)
from tests.support import processes
from tests.support.processes import Peer, Worker

KEYS = [PREFIX + b"k%05d" % number for number in range(3000)]
END = PREFIX + b"z"
DELETE_ALL = Op(OpCode.DELETE_RANGE, PREFIX, END)
SCAN_ALL = Op(OpCode.RANGE, PREFIX, END)
ELSEWHERE = b"\0\0\0" + bytes(16) + b"\x02other"
MakeCore = Callable[..., Core]


def put(*keys: bytes) -> tuple[Op, ...]:
    return tuple(Op(OpCode.PUT, key, b"\x01") for key in keys)


@pytest.fixture
def core(make_core: MakeCore) -> Iterator[Core]:  # noqa: F811
    made = make_core(3)
    made.run()
    for first in range(0, len(KEYS), 500):
        assert made.commit(*put(*KEYS[first : first + 500])).status is Status.COMMITTED
    yield made
    failpoints.clear()


def ranges(core: Core) -> int:
    return int(core.core.stats()["range_tombstones"])


def test_a_large_delete_is_one_entry_and_is_converted(core: Core) -> None:
    failpoints.set("range.convert", "errno:ENOSPC")
    assert core.commit(DELETE_ALL).status is Status.COMMITTED
    assert ranges(core) == 1
    # The store is "full" for conversions: others go on, and so do writes into the range.
    assert core.commit(*put(KEYS[7], ELSEWHERE)).status is Status.COMMITTED
    core.wait(lambda: failpoints.hits("range.convert") >= 3)
    assert ranges(core) == 1
    failpoints.clear()
    core.wait(lambda: ranges(core) == 0)
    assert core.core.stats()["keys"] == 2


def test_a_batch_that_the_log_refuses_takes_the_entry_along(core: Core) -> None:
    version = core.core.committed_version
    failpoints.set("wal.before_write", "errno:ENOSPC@1")
    assert core.commit(DELETE_ALL).status is Status.LOG_WRITE_ERROR
    failpoints.clear()
    assert (ranges(core), core.core.committed_version) == (0, version)
    assert core.core.stats()["keys"] == len(KEYS)
    # Nothing is left of it in the history either: a write from before it goes through.
    core.send(1, *put(PREFIX + b"new"), start_version=version)
    assert core.receive(1).status is Status.COMMITTED


@pytest.fixture
def parked(core: Core) -> Core:
    """Channel 1 has a request whose range takes many slices and makes no progress until the failpoint is cleared."""
    assert core.commit(*put(ELSEWHERE)).status is Status.COMMITTED
    version = core.core.committed_version
    core.core.start_at(version)  # as after a restart: the recent writes are not known
    core.core.set_range_limits(walk_slice=10)
    failpoints.set("range.check", "errno:EAGAIN")
    # Older than the last write, which is elsewhere: all of the range has to be walked.
    core.send(1, SCAN_ALL, *put(ELSEWHERE + b"1"), start_version=version - 1)
    core.wait(lambda: failpoints.hits("range.check") > 3)
    return core


def test_others_commit_while_a_range_is_walked(parked: Core) -> None:
    for _ in range(20):
        assert parked.commit(*put(ELSEWHERE)).status is Status.COMMITTED
    failpoints.clear()
    assert parked.receive(1).status is Status.COMMITTED


@pytest.mark.parametrize("key", [KEYS[0], KEYS[-1], PREFIX + b"k00000new"])
def test_what_is_written_behind_the_cursor_is_found(parked: Core, key: bytes) -> None:
    written = parked.commit(*put(key))
    failpoints.clear()
    reply = parked.receive(1)
    assert reply.status is Status.CONFLICT
    assert reply.conflicts[0].found == written.commit_version


def test_a_range_deleted_meanwhile_is_found(parked: Core) -> None:
    deleted = parked.commit(DELETE_ALL)
    assert deleted.status is Status.COMMITTED
    failpoints.clear()
    reply = parked.receive(1)
    assert reply.status is Status.CONFLICT
    assert reply.conflicts[0].found == deleted.commit_version


def test_more_writes_than_are_remembered_refuse_it(parked: Core) -> None:
    names = [ELSEWHERE + b"%05d" % number for number in range(1000)]
    for _ in range(70):
        assert parked.commit(*put(*names)).status is Status.COMMITTED
    failpoints.clear()
    assert parked.receive(1).status in (Status.CONFLICT, Status.COMMITTED)
    parked.send(1, SCAN_ALL, *put(ELSEWHERE), start_version=parked.core.committed_version)
    assert parked.receive(1).status is Status.COMMITTED


def test_a_batch_undone_meanwhile_refuses_it(parked: Core) -> None:
    failpoints.set("wal.before_write", "errno:ENOSPC@1")
    assert parked.commit(*put(KEYS[0])).status is Status.LOG_WRITE_ERROR
    failpoints.clear()
    assert parked.receive(1).status is Status.CONFLICT


def test_a_channel_closes_when_its_parked_request_is_served(parked: Core) -> None:
    parked.core.close_channel(1)
    assert parked.commit(*put(ELSEWHERE)).status is Status.COMMITTED
    assert parked.core.channel_state(1) == 2
    failpoints.clear()
    parked.wait(lambda: parked.core.channel_state(1) == 3)
    assert parked.receive(1).status is Status.COMMITTED


def test_the_thread_stops_with_a_request_parked(parked: Core) -> None:
    version = parked.core.committed_version
    parked.stop()
    assert parked.core.committed_version == version


def test_ranges_side_by_side_and_over_each_other(core: Core) -> None:
    """More large deletes at once than the table has slots; all but those beyond it are converted in the background."""
    core.core.set_range_limits(inline_max=5)
    failpoints.set("range.convert", "errno:ENOSPC")
    for first in range(0, 2800, 40):
        op = Op(OpCode.DELETE_RANGE, KEYS[first], KEYS[first + 80])
        assert core.commit(op).status is Status.COMMITTED
    assert ranges(core) == 64
    assert core.commit(*put(KEYS[100], KEYS[2700])).status is Status.COMMITTED
    failpoints.clear()
    core.wait(lambda: ranges(core) == 0)
    assert core.core.stats()["keys"] == len(KEYS) - 2840 + 2


# ---- processes --------------------------------------------------------------------------------------------

COUNT = 20_000


SETTINGS: dict[str, Any] = {"max_store_size": "256MiB"}


@contextlib.contextmanager
def database(path: Path) -> Iterator[Database]:
    """A shared database whose coordinator is gone afterwards."""
    with processes.open_database(path, **SETTINGS) as db:
        yield db
        processes.stop_coordinator(path)


def watch(peer: Peer, path: Path, run: RunId) -> set[int]:
    """How many keys of the run snapshots show, until the test says something."""
    seen = set()
    with processes.open_database(path, **SETTINGS) as db:
        peer.say("ready")
        while not peer.told():
            with db.begin(run, read_only=True) as txn:
                first = txn.count()
                backwards = sum(1 for _ in txn.keys(reverse=True))
                assert first == backwards == (COUNT if txn.exists("00000007") else 0)
                seen.add(first)
    return seen


def fill(db: Database, run: RunId) -> None:
    with db.begin(run) as txn:
        for number in range(COUNT):
            txn.put(f"{number:08d}", number)


def test_readers_see_the_run_whole_or_gone(tmp_path: Path) -> None:
    run = RunId.new()
    path = tmp_path / "db"
    with database(path) as db, processes.workers() as start:
        fill(db, run)
        readers: list[Worker] = [start(watch, path, run) for _ in range(2)]
        for reader in readers:
            assert reader.hear() == "ready"
        old = db.begin(run)
        for _ in range(3):
            with db.begin(run) as txn:
                txn.delete_range()
            fill(db, run)
        with db.begin(run) as txn:
            txn.delete_run_range()
        assert old.count() == COUNT
        old.abort()
        for reader in readers:
            reader.say("enough")
            assert reader.result() <= {0, COUNT}
        processes.wait_until(lambda: db.stats()["keys"] == 0)


@pytest.mark.parametrize("slice_number", [1, 2, 30])
def test_a_crash_between_two_slices_is_finished_after_the_restart(tmp_path: Path, slice_number: int) -> None:
    run = RunId.new()
    path = tmp_path / "db"
    with database(path) as db:
        fill(db, run)
        identity = processes.coordinator_identity(path)
        processes.set_coordinator_failpoint(path, "range.convert", f"kill@{slice_number}")
        with db.begin(run) as txn:
            txn.delete_run_range()
            txn.put("after", 1)
        processes.wait_gone(identity)
        with db.begin(run, read_only=True) as txn:
            assert [key for key, _ in txn.scan()] == ["after"]
        assert db.stats()["keys"] == 1
        with contextlib.closing(db.snapshot(run)) as snapshot:
            assert snapshot.get("00000007") is None


def test_others_are_served_between_two_slices(tmp_path: Path) -> None:
    """A slice that is slow beyond measure delays each commit by one slice at most, not by the whole conversion."""
    run, other = RunId.new(), RunId.new()
    path = tmp_path / "db"
    with database(path) as db:
        fill(db, run)
        processes.set_coordinator_failpoint(path, "range.convert", "sleep:20")
        with db.begin(run) as txn:
            txn.delete_run_range()
        took = []
        for number in range(10):
            began = time.monotonic()
            db.put(other, "key", number)
            took.append(time.monotonic() - began)
        # About 78 slices of 20 ms are due; ten commits met at most a few each.
        assert min(took) < 0.5
        processes.set_coordinator_failpoint(path, "range.convert", "off")
        processes.wait_until(lambda: db.stats()["keys"] == 1)
