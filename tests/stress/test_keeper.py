"""The keeper of a cluster: its servers end with it and with the process that started it, whatever happens."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from occamdb.stress.clusters.keeper import ClusterError, Keeper, poll_until
from tests.support.processes import Peer, Worker, state_of, wait_until

# A server with a child of its own, which has left the process group and ignores SIGTERM.
SERVER = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.write(f"child {os.getpid()} of {os.getppid()}\\n")
    sys.stdout.flush()
while True:
    time.sleep(60)
"""
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
Start = Callable[..., Worker]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper("test")
    yield keeper
    keeper.close()


def start_server(keeper: Keeper) -> tuple[int, int]:
    """A server and its child."""
    log = keeper.directory / "log"
    pid = keeper.start([PYTHON, "-c", SERVER], log)
    text = poll_until(lambda: log.read_text() if log.exists() else "", 30, "the start of the server")
    return pid, int(text.split()[1])


def is_gone(pid: int) -> bool:
    return state_of(pid) in ("", "Z", "X")


def test_pause_resume_and_kill_reach_the_whole_tree(keeper: Keeper) -> None:
    pids = start_server(keeper)
    keeper.signal(pids[0], signal.SIGSTOP)
    assert [state_of(pid) for pid in pids] == ["T", "T"]
    keeper.signal(pids[0], signal.SIGCONT)
    for pid in pids:
        wait_until(lambda pid=pid: state_of(pid) == "S")  # type: ignore[misc]
    assert keeper.code(pids[0]) is None
    keeper.signal(pids[0], signal.SIGSTOP)
    keeper.signal(pids[0], signal.SIGKILL)
    assert all(is_gone(pid) for pid in pids) and keeper.code(pids[0]) == -signal.SIGKILL
    keeper.signal(pids[0], signal.SIGKILL)  # nothing happens


def test_close_ends_everything_and_removes_the_directory(keeper: Keeper) -> None:
    pids = start_server(keeper)
    keeper.close()
    assert all(is_gone(pid) for pid in pids) and not keeper.directory.exists()
    with pytest.raises(ClusterError, match="closed"):
        keeper.start(["true"], keeper.directory / "log")


def test_a_program_that_fails_is_an_error_with_its_words(keeper: Keeper) -> None:
    with pytest.raises(ClusterError, match=r"ended with 3.*no good"):
        keeper.run(["sh", "-c", "echo no good; exit 3"], keeper.directory / "log")
    with pytest.raises(ClusterError, match="no-such-program"):
        keeper.run(["/no-such-program"], keeper.directory / "log")
    keeper.run(["true"], keeper.directory / "log")


def _user_of_a_keeper(peer: Peer) -> None:
    keeper = Keeper("test")
    peer.say((str(keeper.directory), start_server(keeper)))
    if os.fork() == 0:  # holds the pipe to the keeper, and outlives its parent
        peer.say(os.getpid())
        signal.pause()
    peer.hear()


def test_everything_ends_when_the_user_is_killed(start: Start) -> None:
    worker = start(_user_of_a_keeper)
    directory, pids = worker.hear()
    fork = worker.hear()
    try:
        worker.kill()
        for pid in pids:
            wait_until(lambda pid=pid: is_gone(pid))  # type: ignore[misc]
        wait_until(lambda: not Path(directory).exists())
    finally:
        os.kill(fork, signal.SIGKILL)
    wait_until(lambda: is_gone(fork))


def test_a_server_ends_when_its_keeper_is_killed(keeper: Keeper) -> None:
    pid, child = start_server(keeper)
    assert keeper._process is not None
    keeper._process.kill()
    wait_until(lambda: is_gone(pid))
    os.kill(child, signal.SIGKILL)  # PostgreSQL's children end by themselves then; this one would not
    with pytest.raises(ClusterError, match="ended"):
        keeper.code(pid)
    keeper.close()
    assert not keeper.directory.exists()
