"""M1-M6: shared memory runs out, is limited, is held back, is tampered with. An error each time, never a SIGBUS.

M2's memlock has no test: nothing is ever locked in memory.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import (
    Database,
    KeyTooLarge,
    OccamError,
    RunId,
    SnapshotExpired,
    StoreFullError,
    TransactionTimeout,
    TransactionTooLarge,
    ValueTooLarge,
)
from tests.support import processes
from tests.support.processes import Peer, Worker, coordinator_identity, open_database, segments_of, wait_until

BLOCK = bytes(100_000)
ROOT = str(Path(occamdb.__file__).parent.parent)
TREE = str(Path(__file__).parent.parent.parent)


def fill(db: Database, run: RunId, prefix: str = "block") -> int:
    """Put blocks until the store is full; how many there are."""
    count = 0
    while True:
        try:
            db.put(run, f"{prefix}/{count:05}", BLOCK)
        except StoreFullError:
            return count
        count += 1
        assert count < 10_000


# ---- a store of limited size ---------------------------------------------------------------------------------


def test_a_full_store_is_an_error_and_no_end(database_path: Path, run: RunId) -> None:
    """max_store_size: commits are refused whole, reads go on, deletes make room, and nothing was lost."""
    with open_database(database_path, max_store_size="8MiB") as db:
        db.put(run, "small", 1)
        count = fill(db, run)
        assert 60 < count < 84
        with pytest.raises(StoreFullError) as refused, db.begin(run) as txn:
            txn.put("small", 2)
            txn.put("block/more", BLOCK)
        assert "max_store_size" in refused.value.hint
        assert db.get(run, "small") == 1 and db.get(run, "block/more") is None
        assert len(db.list(run, "block/")) == count
        for number in range(count // 2):
            assert db.delete(run, f"block/{number:05}")
        wait_until(lambda: try_put(db, run, "block/more"), what="room after the deletes")
        assert db.get(run, f"block/{count - 1:05}") == BLOCK
        processes.stop_coordinator(database_path)
        # Nothing the store refused is in the log: it fits again, and is the same.
        assert len(db.list(run, "block/")) == count - count // 2 + 1


def try_put(db: Database, run: RunId, key: str) -> bool:
    try:
        db.put(run, key, BLOCK)
    except StoreFullError:
        return False
    return True


def hold(peer: Peer, path: Path, run: RunId, key: str) -> list[str]:
    """Hold a snapshot; say what each read of it gave in the end."""
    with occamdb.open(path, start="never") as db, db.snapshot(run) as view:
        peer.say(view.version)
        peer.hear()
        seen = []
        for _ in range(3):
            try:
                seen.append("whole" if view.get(key) == BLOCK else "other")
            except SnapshotExpired:
                seen.append("expired")
        return seen


def test_a_store_filled_by_old_snapshots(
    database_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    """M5: under endless overwriting only the snapshots that keep the store full are revoked, oldest first."""
    path = database_path
    with open_database(path, max_store_size="8MiB") as db:
        other = RunId.new()
        db.put(other, "kept", BLOCK)
        holders = []
        for number in range(3):
            # Each holds 2 MB of its own; "kept" is what all of them see.
            for key in range(20):
                db.put(run, f"k{key or ''}", BLOCK)
            holders.append(start(hold, path, run, "k"))
            holders[-1].hear()
            holders[-1].stop()
            db.put(other, f"between {number}", 1)
        for number in range(400):
            db.put(run, f"k{number % 20 or ''}", BLOCK)
        assert db.stats()["snapshots_revoked"] >= 1
        with db.snapshot(run) as recent:
            assert recent.get("k") == BLOCK
            for number in range(20):
                db.put(run, "k", bytes([number]) * 1000)
            assert recent.get("k") == BLOCK and recent.version > 0
        for worker in holders:
            worker.say("read")
            worker.resume()
            assert set(worker.result()) <= {"expired", "whole"}
        assert db.get(other, "kept") == BLOCK
        wait_until(lambda: db.stats()["store"]["superseded"] == 0, what="reclamation")


# ---- a small tmpfs --------------------------------------------------------------------------------------------


def _can_mount() -> bool:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1M tmpfs /dev/shm"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


needs_mount = pytest.mark.skipif(not _can_mount(), reason="needs the right to mount a tmpfs of its own")


def run_script(body: str, path: Path, *, shm: str = "", limits: str = "") -> dict[str, Any]:
    """Run Python in a process of its own, with a /dev/shm or with limits of its own; the JSON it prints."""
    script = f"import json, os, sys, occamdb\nfrom tests.faults import test_memory as t\npath = {str(path)!r}\n{body}"
    command = [sys.executable, "-c", script]
    if limits:
        command = ["sh", "-c", f'{limits}; exec "$@"', "sh", *command]
    if shm:
        mount = f'mount -t tmpfs -o size={shm} tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{TREE}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


FILL_A_TMPFS = """
run = occamdb.RunId.new()
db = occamdb.open(path, max_store_size="1GiB", idle_timeout=0.0)
db.put(run, "small", 1)
view = db.snapshot(run)
count = t.fill(db, run)
pid = db.stats()["pid"]
t.try_small(db, run)
for number in range(count):
    db.delete(run, f"block/{number:05}")
t.wait_until(lambda: t.try_put(db, run, "again"))
again = db.get(run, "again") == t.BLOCK
assert view.get("small") == 1
view.close()
same = db.stats()["pid"] == pid

db.close()
t.wait_until(lambda: not os.listdir("/dev/shm"))
print(json.dumps({"count": count, "again": again, "same": same}))
"""


def try_small(db: Database, run: RunId) -> bool:
    """Whether a small put still fits."""
    try:
        db.put(run, "small", 2)
    except StoreFullError:
        return False
    return True


@needs_mount
def test_64_mib_of_shared_memory(tmp_path: Path) -> None:
    """M1 at growth: the file is larger than what there is. StoreFullError on a commit, and it goes on after deletes."""
    answer = run_script(FILL_A_TMPFS, tmp_path / "db", shm="64M")
    assert answer["again"] and answer["same"]
    assert 500 < answer["count"] < 680


FULL_BECAUSE_OF_SHM = """
run = occamdb.RunId.new()
with occamdb.open(path, max_store_size="1GiB", idle_timeout=0.0) as db:
    try:
        while True:
            db.put(run, str(os.urandom(8)), t.BLOCK)
    except occamdb.StoreFullError as error:
        answer = {"text": str(error), "setting": error.setting, "limit": error.limit, "details": error.details}
t.wait_until(lambda: not os.listdir("/dev/shm"))
print(json.dumps(answer))
"""


@needs_mount
@pytest.mark.parametrize("size", [16, 64])
def test_a_full_shm_is_not_blamed_on_max_store_size(size: int, tmp_path: Path) -> None:
    answer = run_script(FULL_BECAUSE_OF_SHM, tmp_path / "db", shm=f"{size}M")
    assert answer["setting"] == "/dev/shm" and answer["limit"] == size << 20
    assert "/dev/shm is full" in answer["text"] and "--shm-size" in answer["text"]
    assert "max_store_size does not help" in answer["text"] and "raise max_store_size" not in answer["text"]
    assert answer["details"]["shortage"] == "shm" and 0 <= answer["details"]["free"] < size << 20
    assert f"{answer['details']['free']:,} of {size << 20:,} bytes are free" in answer["text"]


def test_the_limit_is_blamed_again_when_memory_is_there(database_path: Path, run: RunId) -> None:
    """The reason is that of the commit that was refused, not of one before."""
    with open_database(database_path, max_store_size="16MiB") as db:
        db.put(run, "k", 1)
        processes.set_coordinator_failpoint(database_path, "shm.grow", "errno:ENOSPC")
        with pytest.raises(StoreFullError, match="/dev/shm is full"):
            fill_until_refused(db, run)
        processes.set_coordinator_failpoint(database_path, "shm.grow", "off")
        with pytest.raises(StoreFullError, match=r"the store is full.*within max_store_size") as refused:
            fill_until_refused(db, run)
        assert refused.value.setting == "max_store_size" and refused.value.limit == 16 << 20


def fill_until_refused(db: Database, run: RunId) -> None:
    for _ in range(1000):
        db.put(run, os.urandom(8), BLOCK)


CREATE_ON_A_FULL_TMPFS = """
with open("/dev/shm/ballast", "wb") as ballast:
    os.posix_fallocate(ballast.fileno(), 0, os.statvfs("/dev/shm").f_bavail * 4096)
answers = []
try:
    occamdb.open(path, timeout=60)
except occamdb.OccamError as error:
    answers.append([type(error).__name__, error.hint])
names = os.listdir("/dev/shm")
os.unlink("/dev/shm/ballast")
with occamdb.open(path, idle_timeout=0.0, session_grace=0.3, max_store_size="16MiB") as db:
    run = occamdb.RunId.new()
    db.put(run, "k", 1)
    # Now nothing is left for one more worker; those who are there go on.
    with open("/dev/shm/ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, os.statvfs("/dev/shm").f_bavail * 4096)
    try:
        occamdb.open(path, timeout=60)
    except occamdb.OccamError as error:
        answers.append([type(error).__name__, error.hint])
    db.put(run, "k", 2)
    os.unlink("/dev/shm/ballast")
    with occamdb.open(path) as other:
        assert other.get(run, "k") == 2
t.wait_until(lambda: not os.listdir("/dev/shm"))
print(json.dumps({"answers": answers, "names": names}))
"""


@needs_mount
def test_creation_without_shared_memory(tmp_path: Path) -> None:
    """M1 at creation: of the store, and of one more worker's channel. Nothing is left of the try."""
    answer = run_script(CREATE_ON_A_FULL_TMPFS, tmp_path / "db", shm="32M")
    assert [name for name, _ in answer["answers"]] == ["StoreFullError"] * 2
    assert all("/dev/shm" in hint for _, hint in answer["answers"])
    assert answer["names"] == ["ballast"]


# ---- limits of the process ------------------------------------------------------------------------------------

OPEN_UNDER_A_LIMIT = """
import time
began = time.monotonic()
try:
    db = occamdb.open(path, timeout=60, idle_timeout=0.0)
except occamdb.OccamError as error:
    answer = [type(error).__name__, error.message, error.hint]
else:
    answer = ["opened", "", ""]
    db.close()
print(json.dumps({"answer": answer, "seconds": time.monotonic() - began}))
"""


@pytest.mark.parametrize(
    ("limit", "hint"), [("ulimit -f 65536", "ulimit -f"), ("ulimit -v 2000000", "max_store_size")]
)
def test_a_limit_in_the_way_of_the_coordinator(limit: str, hint: str, tmp_path: Path) -> None:
    """M2: RLIMIT_FSIZE and RLIMIT_AS are named, at once, by who opens."""
    answer = run_script(OPEN_UNDER_A_LIMIT, tmp_path / "db", limits=limit)
    assert answer["answer"][0] == "StoreFullError" and hint in answer["answer"][2], answer
    assert answer["seconds"] < 50
    assert not (tmp_path / "db" / "coordinator.sock").exists()


def test_a_limit_in_the_way_of_a_worker(database_path: Path, run: RunId) -> None:
    """M2: the store is larger than this worker's address space; the others go on, its channel is not left over."""
    with occamdb.open(database_path, idle_timeout=20.0) as db:
        db.put(run, "k", 1)
        channels = segments_of(database_path, "c")
        answer = run_script(
            OPEN_UNDER_A_LIMIT.replace(", idle_timeout=0.0", ""), database_path, limits="ulimit -v 2000000"
        )
        assert answer["answer"][0] == "AddressSpaceError" and "ulimit -v" in answer["answer"][2], answer
        assert answer["seconds"] < 50
        wait_until(lambda: segments_of(database_path, "c") == channels, what="the removal of its channel")
        assert db.put(run, "k", 2)


# ---- a full ring, requests that are too large -------------------------------------------------------------------


def test_a_full_ring_is_a_bounded_wait(database_path: Path, run: RunId) -> None:
    """M3: nobody takes the request; at the deadline it was not committed, and the half of it that is there never is."""
    with open_database(database_path, ring_size="16KiB") as db:
        db.put(run, "k", 1)
        identity = coordinator_identity(database_path)
        txn = db.begin(run, timeout=0.3)
        txn.put("large", bytes(500_000))
        processes.stop_process(identity.pid)
        try:
            with pytest.raises(TransactionTimeout):
                txn.commit()
        finally:
            os.kill(identity.pid, signal.SIGCONT)
        assert txn.status is occamdb.TransactionStatus.ABORTED
        assert db.put(run, "k", 2)
        assert db.get(run, "large") is None
        # Whole requests far larger than the ring, from several sides at once, arrive as they were sent.
        with open_database(database_path) as other:
            blocks = {name: os.urandom(300_000) for name in ("a", "b")}
            db.put(run, "a", blocks["a"])
            other.put(run, "b", blocks["b"])
            assert {name: db.get(run, name) for name in blocks} == blocks
        assert coordinator_identity(database_path) == identity


def test_what_is_too_large_is_never_sent(database_path: Path, run: RunId) -> None:
    """M4: refused by the worker; the coordinator never hears of it."""
    limits = {"key_size_max": 100, "value_size_max": "100KiB", "transaction_size_max": "1MiB"}
    with open_database(database_path, **limits) as db:
        version = db.put(run, "k", 1)
        with pytest.raises(KeyTooLarge):
            db.put(run, "k" * 101, 1)
        with pytest.raises(ValueTooLarge):
            db.put(run, "k", bytes(100 * 1024))
        with pytest.raises(TransactionTooLarge), db.begin(run) as txn:
            for number in range(20):
                txn.put(f"k{number}", bytes(90_000))
        for key in ("", b""):
            with pytest.raises(OccamError):
                db.put(run, key, 1)
        figures = db.stats()
        assert figures["version"] == version and figures["refused"] == 0
        assert db.get(run, "k") == 1


# ---- names that others can see -----------------------------------------------------------------------------------


def test_segments_are_the_owners_alone(database_path: Path, run: RunId) -> None:
    """M6: mode 0600 whatever the umask; a planted name is refused and what it points to is not touched."""
    umask = os.umask(0)
    try:
        with open_database(database_path) as db:
            db.put(run, "k", 1)
            names = segments_of(database_path)
            assert len(names) == 3
            for name in names:
                assert stat.S_IMODE((Path("/dev/shm") / name).stat().st_mode) == 0o600
            assert stat.S_IMODE((database_path / "coordinator.sock").stat().st_mode) == 0o600
    finally:
        os.umask(umask)
    processes.stop_coordinator(database_path)
    victim = database_path.parent / "victim"
    victim.write_text("precious")
    following = [Path("/dev/shm") / _next_incarnation(name) for name in names if name.endswith("-store")]
    following[0].symlink_to(victim)
    try:
        # The start that meets it fails; the next one has another number.
        with open_database(database_path) as db:
            assert db.get(run, "k") == 1
            assert _next_incarnation(following[0].name) in segments_of(database_path)
        assert victim.read_text() == "precious"
        assert following[0].is_symlink() or not following[0].exists()
    finally:
        following[0].unlink(missing_ok=True)


def _next_incarnation(name: str) -> str:
    prefix, database, number, kind = name.split("-")
    return f"{prefix}-{database}-{int(number) + 1}-{kind}"
