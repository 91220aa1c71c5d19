"""F10, W11, W14: what a worker asks for, or takes, ends at worst that worker; the coordinator goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

import occamdb
from occamdb import Database, OccamError, RunId, TooManyChannelsError
from occamdb.engine.disk.directory import socket_path
from occamdb.ipc.control import DESCRIPTORS_KEPT
from occamdb.ipc.frames import FrameParser
from tests.support.processes import (
    DEADLINE_S,
    ask_coordinator,
    coordinator_pid,
    open_database,
    segments_of,
    set_coordinator_failpoint,
    stop_coordinator,
    unheard_coordinator,
    wait_until,
)

# ---- descriptors ----------------------------------------------------------------------------------------------


def descriptor_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def open_if_room(path: Path) -> Database | None:
    with contextlib.suppress(TooManyChannelsError):
        return occamdb.open(path, start="never")
    return None


@contextlib.contextmanager
def descriptors_limited(pid: int, limit: int) -> Iterator[None]:
    """Give a running process a lower limit for a while."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_a_worker_costs_two_descriptors(path: Path, db: Database) -> None:
    """Its connection and the mapping of its channel."""
    pid = coordinator_pid(path)
    before = descriptor_count(pid)
    others = [open_database(path) for _ in range(5)]
    assert descriptor_count(pid) == before + 2 * len(others)
    for other in others:
        other.close()
    wait_until(lambda: descriptor_count(pid) == before, what="the descriptors to be given back")


def test_more_workers_than_descriptors(path: Path, db: Database, run: RunId) -> None:
    """Nobody hostile: the one too many is refused, with what the coordinator itself needs kept free."""
    pid = coordinator_pid(path)
    limit = descriptor_count(pid) + 2 * 3 + DESCRIPTORS_KEPT
    opened: list[Database] = []
    with descriptors_limited(pid, limit):
        with pytest.raises(TooManyChannelsError) as refused:
            while len(opened) < 10:
                opened.append(occamdb.open(path, start="never"))
        assert str(limit) in str(refused.value) and "ulimit" in refused.value.hint
        assert opened
        for number, other in enumerate([db, *opened]):
            other.put(run, "k", number)
        # A checkpoint opens files.
        db.checkpoint()
        opened.pop().close()
        late = wait_until(lambda: open_if_room(path), what="a place to be free")
        assert late is not None and late.get(run, "k") == len(opened) + 1
        late.close()
    for other in opened:
        other.close()
    assert coordinator_pid(path) == pid


def test_not_one_descriptor_left(path: Path, db: Database, run: RunId) -> None:
    """As after a leak in it: who comes is told why, who is there goes on."""
    pid = coordinator_pid(path)
    with open_database(path) as other:
        with descriptors_limited(pid, descriptor_count(pid)):
            with pytest.raises(TooManyChannelsError):
                occamdb.open(path, start="never")
            for number in range(50):
                other.put(run, "k", number)
            assert db.get(run, "k") == 49 and db.stats()["pid"] == pid
        with occamdb.open(path, start="never") as late:
            assert late.get(run, "k") == 49
    assert coordinator_pid(path) == pid


# ---- requests -------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """A list in a list in a list, as msgpack."""
    return b"\x91" * depth + b"\x90"


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def ask_raw(path: Path, body: bytes) -> bytes:
    """The answer to a frame that no client of ours would send; empty when the connection is closed on us."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(socket_path(os.fspath(path)))
        connection.sendall(frame(body))
        try:
            return connection.recv(1 << 16)
        except ConnectionResetError:
            return b""


HOSTILE = {
    "an operation that is nested too deep to be shown": b"\x81" + msgpack.packb("op") + nested(1005),
    "a setting that is": b"\x85"
    + b"".join(
        msgpack.packb(part)
        for part in ("op", "attach", "session", 0, "durability", "standard", "process", None, "asked")
    )
    + b"\x81"
    + msgpack.packb("ring_size")
    + nested(1000),
    "an operation that is a map": b"\x81" + msgpack.packb("op") + b"\x81\x01\x02",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_request_ends_its_connection_at_worst(
    what: str, path: Path, db: Database, run: RunId
) -> None:
    pid = coordinator_pid(path)
    reply = ask_raw(path, HOSTILE[what])
    if reply:
        (answer,) = FrameParser().feed(reply)
        assert answer["ok"] is False
    assert ask_coordinator(path, "status")["pid"] == pid
    db.put(run, "k", 1)
    assert coordinator_pid(path) == pid


def test_a_directory_whose_name_is_not_utf8(tmp_path: Path, run: RunId) -> None:
    """Its path stands in `stats` and `status`, and in errors: with the odd bytes spelled out."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xffb"))
    with open_database(path) as db:
        db.put(run, "k", 1)
        pid = coordinator_pid(path)
        stats = db.stats()
        assert stats["pid"] == pid and stats["path"].endswith("/d\\udcffb")
        assert db.checkpoint()
        set_coordinator_failpoint(path, "checkpoint.before_rename", "errno:ENOSPC@1")
        db.put(run, "k", 2)
        with pytest.raises(OccamError):
            db.checkpoint()
        assert db.get(run, "k") == 2 and coordinator_pid(path) == pid
    stop_coordinator(path)
    assert segments_of(path) == []


# ---- its own voice --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving_speechless(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A coordinator whose every complaint meets a full disk."""
    with open("/dev/full", "wb") as full, unheard_coordinator(path, full) as process:
        yield process


def test_a_complaint_that_cannot_be_written(path: Path, run: RunId) -> None:
    """A request fails in a way it must tell of; with the disk full it goes untold, and all others are served."""
    with serving_speechless(path) as process:
        with occamdb.open(path, start="never", timeout=DEADLINE_S) as db:
            set_coordinator_failpoint(path, "coordinator.attach", "errno:EIO@1")
            with pytest.raises(OccamError):
                ask_coordinator(path, "attach", session=0, asked={}, durability="standard", process=None)
            db.put(run, "k", 1)
            assert db.stats()["pid"] == process.pid
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def test_a_clean_stop_that_cannot_tell_what_went_wrong(path: Path, run: RunId) -> None:
    """No room for the last checkpoint, nor for a word about it: all the rest of the stop happens."""
    with serving_speechless(path) as process:
        with occamdb.open(path, start="never", timeout=DEADLINE_S) as db:
            db.put(run, "k", 1)
        set_coordinator_failpoint(path, "checkpoint.before_rename", "errno:ENOSPC")
        process.terminate()
        assert process.wait(DEADLINE_S) == 1
    assert segments_of(path) == []
    assert not {entry.name for entry in path.iterdir()} & {"coordinator.sock", "coordinator.json"}
    with open_database(path) as db:
        assert db.get(run, "k") == 1


def test_a_log_in_an_unknown_state_ends_it_without_a_word_too(path: Path, run: RunId) -> None:
    """A batch that could be neither written whole nor cut off: nobody is answered until the log was read anew."""
    with serving_speechless(path) as process:
        occamdb.open(path, start="never", timeout=DEADLINE_S).close()
        with occamdb.open(path, durability="always", timeout=DEADLINE_S) as db:
            assert db.stats()["pid"] == process.pid
            db.put(run, "k", 1)
            set_coordinator_failpoint(path, "wal.before_sync", "errno:EIO")
            set_coordinator_failpoint(path, "file.truncate", "errno:EIO")
            version = db.put(run, "k", 2)
            assert process.wait(DEADLINE_S) == 70
            found = db.get_versioned(run, "k")
            assert found is not None and (found.value, found.version) == (2, version)
            assert coordinator_pid(path) != process.pid
