"""The keeper: a process that owns the servers of one cluster, and ends them when their user has ended.

It is a script of its own that imports the standard library alone. It reads one JSON command a line from its
standard input and answers each with one line.

Invariants:
1. Every server is a descendant of the keeper: it is a subreaper, so a server's orphans become its children.
2. When its parent ends, or its standard input does, the keeper kills every descendant and removes the directory.
   It watches the parent by a pidfd, because a fork of the parent may hold the other end of the pipe.
3. When the keeper itself is killed, so is each server that it started (PR_SET_PDEATHSIG; the keeper has one thread).
4. It never signals a process that is not its descendant.
5. It may have taken on a user who cannot read the interpreter's files: after that nothing is imported, codecs
   included.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # options of prctl
IPC_RMID = 0
TREE_TIMEOUT = 30.0
POLL = 0.002

_libc = ctypes.CDLL(None, use_errno=True)


def parents() -> dict[int, tuple[int, str]]:
    """Parent and state of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_bytes()
            except OSError:
                continue
            state, parent = text.rpartition(b")")[2].split()[:2]
            found[int(name)] = (int(parent), chr(state[0]))
    return found


def descendants(pid: int) -> dict[int, str]:
    """The living descendants of a process and their states."""
    table = parents()
    found: dict[int, str] = {}
    level = {pid}
    while level:
        level = {one for one, (parent, _) in table.items() if parent in level} - found.keys()
        found.update((one, table[one][1]) for one in level)
    return {one: state for one, state in found.items() if state not in "ZX"}


def send(pid: int, number: int) -> None:
    """Signal a process, unless it has just ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Keeper:
    """The servers and what became of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.codes: dict[int, int | None] = {}  # of everything that `start` started; None: it runs

    def start(self, argv: list[str], log: str, environment: dict[str, str]) -> dict[str, Any]:
        """Start a program in the directory."""
        with open(log, "ab") as file:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.directory,
                env={**os.environ, **environment},
                start_new_session=True,
                preexec_fn=lambda: _libc.prctl(SET_PDEATHSIG, signal.SIGKILL),
            )
        process.returncode = 0  # it is reaped here, by pid
        self.codes[process.pid] = None
        return {"pid": process.pid}

    def reap(self) -> None:
        """Take the exit codes of children that have ended, adopted ones included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.codes:
                self.codes[pid] = os.waitstatus_to_exitcode(status)

    def status(self, pid: int) -> dict[str, Any]:
        """The exit code of a program; None: it runs."""
        self.reap()
        return {"code": self.codes.get(pid, -1)}

    def signal(self, pid: int, number: int) -> dict[str, Any]:
        """Signal a program: SIGKILL, SIGSTOP and SIGCONT with all its descendants, the others alone."""
        self.reap()
        if self.codes.get(pid, -1) is not None:
            return {"signalled": 0}
        if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
            send(pid, number)
            return {"signalled": 1}
        if number == signal.SIGCONT:
            tree = [*descendants(pid), pid]
            for one in tree:
                send(one, signal.SIGCONT)
            return {"signalled": len(tree)}
        tree = self.freeze(pid)
        if number == signal.SIGKILL:
            for one in tree:
                send(one, signal.SIGKILL)
            self.wait_gone(pid, tree)
        return {"signalled": len(tree)}

    def freeze(self, pid: int) -> list[int]:
        """Stop a program and all its descendants. The root stands before its children are listed: it forks no more."""
        stopped = [pid]
        send(pid, signal.SIGSTOP)
        end = time.monotonic() + TREE_TIMEOUT
        while time.monotonic() < end:
            table = parents()
            tree = descendants(pid)
            new = [one for one in tree if one not in stopped]
            for one in new:
                send(one, signal.SIGSTOP)
            stopped += new
            states = [table[one][1] for one in stopped if one in table]
            if not new and all(state in "TtZX" for state in states):
                break
            time.sleep(POLL)
        return stopped

    def wait_gone(self, pid: int, tree: list[int]) -> None:
        """Wait until killed processes have ended and are reaped."""
        end = time.monotonic() + TREE_TIMEOUT
        while time.monotonic() < end:
            self.reap()
            if self.codes[pid] is not None and not any(os.path.exists(f"/proc/{one}") for one in tree):
                return
            time.sleep(POLL)

    def end(self) -> None:
        """Kill every descendant, remove what PostgreSQL left in System V shared memory, and the directory."""
        end = time.monotonic() + TREE_TIMEOUT
        while (left := descendants(os.getpid())) and time.monotonic() < end:
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(POLL)
            self.reap()
        for file in self.directory.glob("*/postmaster.pid"):
            fields = b"".join(file.read_bytes().splitlines()[6:7]).split()  # key and number of the segment
            if len(fields) == 2:
                _libc.shmctl(int(fields[1]), IPC_RMID, None)
        shutil.rmtree(self.directory, ignore_errors=True)


def serve(keeper: Keeper, parent: int) -> None:
    """Answer commands until the parent has ended or says so."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(parent, select.POLLIN)
    pending = b""
    while True:
        ready = dict(poll.poll(200))
        keeper.reap()
        if parent in ready:
            return
        if 0 not in ready:
            continue
        data = os.read(0, 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            verb = command.pop("do")
            if verb == "end":
                return
            try:
                answer = getattr(keeper, verb)(**command)
            except OSError as error:
                answer = {"error": str(error)}
            os.write(1, json.dumps(answer).encode() + b"\n")


def main() -> None:
    """`keeper_main.py DIRECTORY PARENT USER`; USER is empty unless another is to be taken on."""
    directory, parent, user = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    watched = os.pidfd_open(parent)
    orphan = os.getppid() != parent
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    os.chdir(directory)
    _libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    keeper = Keeper(directory)
    try:
        if not orphan:
            serve(keeper, watched)
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
