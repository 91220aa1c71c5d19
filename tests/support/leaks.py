"""What a test left behind: processes and shared-memory segments, each attributed to the process that made it.

Several test processes (xdist workers, other checkouts) run on one machine, so "what is new since before" is
not enough. Invariants:

1. A process is ours if it descends from this test process, or carries this process's marker in the
   environment it was started with (a daemon that detached itself keeps its environment).
2. A segment is ours if its name carries the id of a database whose `meta` file lies below the given
   directory, or if this process created it through `posix_ipc`.
3. The helpers multiprocessing keeps for a process's whole life (resource tracker, fork server) are not a
   leak.
4. The processes of a server belong to its keeper, which ends them: the keeper may be a leak, and they are not.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import posix_ipc
import psutil

MARKER = "OCCAMDB_TEST_PROCESS"
SHARED_MEMORY = Path("/dev/shm")
GRACE_S = 10.0  # how long something that is ending may still be seen

_KEPT_BY_MULTIPROCESSING = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
)
_KEEPER = b"stress/clusters/keeper_main.py"
_META_MAGIC = b"OCCAMDB\0"  # engine/disk/directory.py; the database id follows at 16
_SEGMENT_NAME = re.compile(r"^occam-")
_created: set[str] = set()


def mark_this_process() -> str:
    """Give this process and everything it starts from here on a marker of its own; returns it."""
    marker = f"{os.getpid()}-{uuid.uuid4().hex}"
    os.environ[MARKER] = marker
    return marker


def record_segments() -> None:
    """Note the name of every segment that this process creates."""
    original: Callable[..., Any] = posix_ipc.SharedMemory

    class RecordingSharedMemory(original):  # type: ignore[misc, valid-type]
        def __init__(self, name: Any, flags: int = 0, *args: Any, **kwargs: Any) -> None:
            super().__init__(name, flags, *args, **kwargs)
            if flags & posix_ipc.O_CREAT:
                _created.add(str(self.name).lstrip("/"))

    posix_ipc.SharedMemory = RecordingSharedMemory


def all_pids() -> set[int]:
    """Every process of this machine: one listing of a directory, cheap enough for each test."""
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}


def own_processes(marker: str, besides: set[int] | None = None) -> dict[int, psutil.Process]:
    """Living processes of this test process, by pid; zombies that await their parent do not count.

    Args:
      marker: that of this test process.
      besides: pids that need not be examined, which costs more than listing them.
    """
    needle = f"{MARKER}={marker}".encode()
    found = {}
    for pid in all_pids() - (besides or set()) - {os.getpid()}:
        if _descends_from_us(pid) or needle in _environment(pid).split(b"\0"):
            try:
                found[pid] = psutil.Process(pid)
            except psutil.NoSuchProcess:
                continue
    return {pid: process for pid, process in found.items() if _counts(process) and not _is_kept(pid)}


def own_segments(directory: Path | None) -> set[str]:
    """Names in /dev/shm of databases below `directory`, and of segments this process created."""
    names = {entry for entry in os.listdir(SHARED_MEMORY) if _SEGMENT_NAME.match(entry)}
    if not names:
        return set()
    ids = tuple(f"occam-{database_id}" for database_id in _database_ids(directory)) if directory else ()
    return {name for name in names if name in _created or (ids and name.startswith(ids))}


def wait_until_gone(look: Callable[[], dict[int, psutil.Process] | set[str]]) -> list[Any]:
    """What `look` still finds after the grace period; empty as soon as it finds nothing."""
    deadline = time.monotonic() + GRACE_S
    while found := look():
        if time.monotonic() > deadline:
            return sorted(found)
        time.sleep(0.02)
    return []


def describe(pids: list[int]) -> str:
    """One line a process: pid, state, command."""
    lines = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            lines.append(f"  {pid} {process.status()} {' '.join(process.cmdline())[:200]}")
        except psutil.Error:
            continue
    return "\n".join(lines)


def kill(pids: list[int]) -> None:
    """End leaked processes, so that one test's leak does not become the next one's."""
    for pid in pids:
        try:
            psutil.Process(pid).kill()
        except psutil.Error:
            continue


def unlink(names: list[str]) -> None:
    """Remove leaked segments."""
    for name in names:
        (SHARED_MEMORY / name).unlink(missing_ok=True)


def _descends_from_us(pid: int) -> bool:
    return os.getpid() in _ancestors(pid)


def _is_kept(pid: int) -> bool:
    """Whether a process belongs to the keeper of a cluster."""
    for ancestor in _ancestors(pid):
        with contextlib.suppress(OSError):
            if _KEEPER in Path(f"/proc/{ancestor}/cmdline").read_bytes():
                return True
    return False


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return
        # The command may hold anything: the parent's pid is the second field after its closing parenthesis.
        pid = int(stat[stat.rindex(b")") + 2 :].split()[1])
        yield pid


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _counts(process: psutil.Process) -> bool:
    try:
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return False
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return not any(part in command for part in _KEPT_BY_MULTIPROCESSING)


def _database_ids(directory: Path) -> set[str]:
    """The first 16 hex digits of every database id found below `directory`."""
    found = set()
    for meta in directory.rglob("meta"):
        # Some tests damage the file on purpose; then the id is before the damage, or there is none to find.
        with contextlib.suppress(OSError):
            content = meta.read_bytes()
            if content.startswith(_META_MAGIC) and len(content) >= 32:
                found.add(content[16:32].hex()[:16])
    return found
