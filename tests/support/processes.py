"""Processes for tests: workers that can be stopped, killed and asked, coordinators found by their lock.

A worker runs a function of an importable test module. Most start from multiprocessing's fork server, which has occamdb
imported: real processes of their own, a few milliseconds each. `method="spawn"` or "fork" where the way of starting is
what is tested. Nothing here sleeps to synchronise: it waits for conditions, up to a deadline.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, TypeVar

import occamdb
from occamdb import Database
from occamdb.ipc.errors import LockHeldError
from occamdb.ipc.process import ProcessIdentity, identify, is_alive
from occamdb.tools import coordinator

__all__ = [
    "DEADLINE_S",
    "Peer",
    "Worker",
    "ask_coordinator",
    "coordinator_identity",
    "coordinator_pid",
    "identity_of",
    "kill_coordinator",
    "open_database",
    "python",
    "segments_of",
    "set_coordinator_failpoint",
    "state_of",
    "stop_coordinator",
    "stop_process",
    "wait_gone",
    "wait_until",
    "workers",
]

T = TypeVar("T")

DEADLINE_S = 60.0
SETTINGS: dict[str, Any] = {"max_store_size": "64MiB", "idle_timeout": 20.0}
_PRELOAD = ["occamdb", "tests.support.processes"]


def wait_until(condition: Callable[[], T], deadline_s: float = DEADLINE_S, what: str = "it") -> T:
    """Poll until `condition` is true and return what it said; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(0.002)
    return found


# ---- workers ----------------------------------------------------------------------------------------------


class Peer:
    """The worker's end of the conversation with its test."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def say(self, message: Any) -> None:
        """Tell the test something."""
        self._pipe.send(("said", message))

    def hear(self) -> Any:
        """The next message of the test. Ends the process when the test is gone."""
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(3)

    def told(self) -> bool:
        """Whether the test has said something that was not heard yet."""
        return self._pipe.poll(0)


def _run(function: Callable[..., Any], pipe: Connection, arguments: tuple[Any, ...]) -> None:
    # A forked worker inherits the signal handlers and alarms of its test; every worker starts without them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outcome = ("done", function(Peer(pipe), *arguments))
    except BaseException:
        outcome = ("failed", traceback.format_exc())
    with contextlib.suppress(OSError):
        pipe.send(outcome)


class Worker:
    """One process running `function(peer, *arguments)`.

    Args:
      function: of an importable module.
      method: "forkserver", "spawn" or "fork".
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, method: str = "forkserver") -> None:
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(_PRELOAD)
        self._pipe, theirs = context.Pipe()
        self.name = function.__name__
        self.process = context.Process(target=_run, args=(function, theirs, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.pid = int(self.process.pid)

    def say(self, message: Any) -> None:
        """Send it something, which it gets by `peer.hear()`. If it has failed meanwhile, `result` says so."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(message)

    def hear(self, deadline_s: float = DEADLINE_S) -> Any:
        """The next thing it says; fails with its traceback if it failed instead."""
        kind, message = self._receive(deadline_s)
        assert kind == "said", f"{self.name} ended instead of saying something: {message}"
        return message

    def result(self, deadline_s: float = DEADLINE_S) -> Any:
        """What the function returned; messages before it are skipped."""
        end = time.monotonic() + deadline_s
        while True:
            kind, message = self._receive(end - time.monotonic())
            if kind == "done":
                self.process.join(DEADLINE_S)
                return message
            assert kind == "said", f"{self.name} failed:\n{message}"

    def _receive(self, deadline_s: float) -> tuple[str, Any]:
        assert self._pipe.poll(max(0.0, deadline_s)), f"{self.name}: not a word within {deadline_s:g} s"
        try:
            kind, message = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(DEADLINE_S)
            kind, message = "dead", f"it died with {self.process.exitcode}"
        return str(kind), message

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands."""
        self.signal(signal.SIGSTOP)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        """Wait until it is stopped, by itself or by another process."""
        wait_until(lambda: state_of(self.pid) == "T", what=f"the stop of {self.name}")

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        if self.process.is_alive():
            # It may end by itself at this moment. Its parent, the fork server, reaps it at once.
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
        self.wait_dead()

    def wait_dead(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        self.process.join(DEADLINE_S)
        assert self.process.exitcode is not None, f"{self.name} did not end"
        return int(self.process.exitcode)

    def close(self) -> None:
        """End it, whatever it does."""
        self.kill()
        self._pipe.close()
        self.process.close()


@contextlib.contextmanager
def workers() -> Iterator[Callable[..., Worker]]:
    """Starts workers: `start(function, *arguments, method=...)`. Those still there at the end are killed."""
    started: list[Worker] = []

    def start(function: Callable[..., Any], *arguments: Any, method: str = "forkserver") -> Worker:
        started.append(Worker(function, *arguments, method=method))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.close()


def stop_process(pid: int) -> None:
    """SIGSTOP, and wait until every thread has stopped: until then one may still finish its work."""
    os.kill(pid, signal.SIGSTOP)

    def stands() -> bool:
        tasks = [path.read_text(errors="replace") for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(text.rpartition(")")[2].split()[0] == "T" for text in tasks)

    wait_until(stands, what=f"the stop of process {pid}")


def state_of(pid: int) -> str:
    """One letter as in /proc/<pid>/stat; "" when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return text.rpartition(")")[2].split()[0]


# ---- databases and their coordinators ---------------------------------------------------------------------


def open_database(path: str | os.PathLike[str], **settings: Any) -> Database:
    """A small shared database; its coordinator is started by the first to open it."""
    return occamdb.open(path, **(SETTINGS | settings))


def coordinator_identity(path: Path) -> ProcessIdentity:
    """Who serves a directory; fails when nobody does."""
    identity: ProcessIdentity | None = None

    def look() -> bool:
        nonlocal identity
        with contextlib.suppress(LockHeldError):
            identity = coordinator.coordinator_of(path)
        return identity is not None

    wait_until(look, what=f"a coordinator for {path}")
    assert identity is not None
    return identity


def coordinator_pid(path: Path) -> int:
    """The pid of who serves a directory."""
    return coordinator_identity(path).pid


def wait_gone(identity: ProcessIdentity) -> None:
    """Wait until a process has ended."""
    wait_until(lambda: not is_alive(identity), what=f"the end of process {identity.pid}")


def kill_coordinator(path: Path) -> int:
    """SIGKILL the coordinator of a directory and wait until it is gone; its pid."""
    identity = coordinator_identity(path)
    os.kill(identity.pid, signal.SIGKILL)
    wait_gone(identity)
    return identity.pid


def stop_coordinator(path: Path, *, wait: bool = True) -> ProcessIdentity:
    """SIGTERM the coordinator of a directory."""
    identity = coordinator_identity(path)
    os.kill(identity.pid, signal.SIGTERM)
    if wait:
        wait_gone(identity)
    return identity


def ask_coordinator(path: Path, operation: str, **fields: Any) -> dict[str, Any]:
    """Ask over the socket without attaching."""
    return coordinator.ask(path, operation, timeout=DEADLINE_S, **fields)


def set_coordinator_failpoint(path: Path, name: str, action: str) -> None:
    """Arm (or, by "off", disarm) a failpoint in the coordinator."""
    ask_coordinator(path, "failpoint", name=name, action=action)


def segments_of(path: Path, kind: str = "") -> list[str]:
    """Names in /dev/shm of a database's segments; kind: "c" channels, "store", "bell"."""
    meta = (path / "meta").read_bytes()
    prefix = f"occam-{meta[16:32].hex()[:16]}-"
    names = [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]
    return sorted(name for name in names if name.rsplit("-", 1)[1].startswith(kind))


def identity_of(pid: int) -> ProcessIdentity:
    """Pid and start time of a living process."""
    identity = identify(pid)
    assert identity is not None, f"process {pid} is gone"
    return identity


def environment(**more: str) -> dict[str, str]:
    """For a program of its own: ours, with this very occamdb to import."""
    return {**os.environ, "PYTHONPATH": str(Path(occamdb.__file__).parent.parent), **more}


@contextlib.contextmanager
def unheard_coordinator(path: Path, output: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A coordinator whose starter is gone before it can report.

    Args:
      path: the database directory.
      output: where its complaints go; None: where ours do.
    """
    read_end, write_end = os.pipe()
    options = {
        "path": os.fspath(path),
        "durability": "standard",
        "settings": {"max_store_size": 64 << 20},
        "report_fd": write_end,
    }
    process = subprocess.Popen(
        [python(), "-m", "occamdb.engine.coordinator.main", json.dumps(options)],
        env=environment(),
        pass_fds=[write_end],
        stdout=output,
        stderr=output,
    )
    os.close(write_end)
    os.close(read_end)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def python() -> str:
    """The interpreter, for plain subprocesses."""
    return sys.executable
