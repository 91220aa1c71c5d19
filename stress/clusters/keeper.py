"""The user's side of a keeper: starts the process and asks it to start, signal and watch the servers of a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from occamdb.stress.clusters import keeper_main

__all__ = ["ClusterError", "Keeper", "free_port", "poll_until"]

END_TIMEOUT = 60.0
POLL = 0.02
# Below the ports that the kernel gives to outgoing connections: a server that is down would lose its port to one.
PORTS = range(10_000, 30_000)


class ClusterError(RuntimeError):
    """A cluster did not do what it was asked to; the message says what its log says."""


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def poll_until(condition: Callable[[], Any], timeout: float, what: str, *, every: float = POLL) -> Any:
    """What `condition` returns once that is true.

    Raises:
      ClusterError: it was not within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > end:
            raise ClusterError(f"{what} did not happen within {timeout:g} s")
        time.sleep(every)
    return found


def _other_user() -> str:
    """The user that servers run as: ours, or an unprivileged one when we are root."""
    if os.geteuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ClusterError("servers do not run as root, and there is neither a user postgres nor nobody")


class Keeper:
    """One keeper and its directory. Any thread may call; a fork of this process must not."""

    def __init__(self, kind: str) -> None:
        """Start it, with a fresh temporary directory whose name contains `kind`."""
        self._user = _other_user()
        self.directory = Path(tempfile.mkdtemp(prefix=f"occam-{kind}-"))
        self.own(self.directory)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                keeper_main.__file__,
                str(self.directory),
                str(os.getpid()),
                self._user,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def own(self, path: Path) -> Path:
        """Give a file that we made to the user that servers run as."""
        if self._user:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return path

    def write(self, path: Path, text: str, mode: int = 0o600) -> Path:
        """Write a file for a server."""
        path.write_text(text)
        path.chmod(mode)
        return self.own(path)

    def start(self, argv: Sequence[str], log: Path, **environment: str) -> int:
        """Start a program; its pid. What it prints is appended to `log`."""
        answer = self._ask(do="start", argv=[*argv], log=str(log), environment=environment)
        return int(answer["pid"])

    def code(self, pid: int) -> int | None:
        """The exit code of a program that was started here; None: it runs."""
        code = self._ask(do="status", pid=pid)["code"]
        return None if code is None else int(code)

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal a program. SIGKILL, SIGSTOP and SIGCONT reach all its descendants; after SIGKILL they are gone."""
        self._ask(do="signal", pid=pid, number=int(number))

    def run(self, argv: Sequence[str], log: Path, timeout: float = 120.0, **environment: str) -> None:
        """Run a program to its end.

        Raises:
          ClusterError: it failed or took too long; with the end of `log`.
        """
        pid = self.start(argv, log, **environment)
        try:
            poll_until(lambda: self.code(pid) is not None, timeout, f"the end of {argv[0]}")
        except ClusterError:
            self.signal(pid, signal.SIGKILL)
            raise
        if self.code(pid):
            raise ClusterError(f"{argv[0]} ended with {self.code(pid)}: {tail(log)}")

    def close(self) -> None:
        """End all servers at once and remove the directory. Closing twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b'{"do": "end"}\n')
            process.stdin.close()
        process.stdout.close()
        process.wait(END_TIMEOUT)
        shutil.rmtree(self.directory, ignore_errors=True)  # the keeper was killed, perhaps

    def _ask(self, **command: Any) -> dict[str, Any]:
        with self._lock:
            process = self._process
            if process is None:
                raise ClusterError("the cluster is closed")
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(command).encode() + b"\n")
                process.stdin.flush()
            except OSError:
                raise ClusterError("the keeper of the cluster has ended") from None
            line = process.stdout.readline()
        if not line:
            raise ClusterError("the keeper of the cluster has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ClusterError(f"{command}: {answer['error']}")
        return answer


def tail(log: Path, lines: int = 8) -> str:
    """The end of a log, in one line."""
    try:
        return " | ".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "it wrote no log"
