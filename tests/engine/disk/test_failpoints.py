"""The failpoints themselves: words, counting, actions."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from occamdb.engine.disk import failpoints
from tests.support.log_driver import in_child


def outcomes(specification: str, passes: int) -> list[int]:
    failpoints.set("worker.before_submit", specification)
    result = []
    for _ in range(passes):
        try:
            failpoints.hit("worker.before_submit")
            result.append(0)
        except OSError as error:
            assert error.errno is not None
            result.append(error.errno)
    return result


@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ("errno:EIO", [5, 5, 5, 5]),
        ("errno:EIO@2", [0, 5, 0, 0]),
        ("errno:EIO*2", [5, 5, 0, 0]),
        ("errno:ENOSPC@2*2", [0, 28, 28, 0]),
        ("sleep:0", [0, 0, 0, 0]),
        ("off", [0, 0, 0, 0]),
    ],
)
def test_when_it_acts(specification: str, expected: list[int]) -> None:
    assert outcomes(specification, 4) == expected


def test_setting_again_starts_the_count_anew() -> None:
    assert outcomes("errno:EIO@2", 3) == [0, 5, 0]
    assert outcomes("errno:EIO@2", 2) == [0, 5]
    assert failpoints.hits("worker.before_submit") == 2


def test_unarmed_points_do_nothing() -> None:
    for name in failpoints.NAMES:
        failpoints.hit(name)
    assert failpoints.active() == {}


def test_configure_and_clear() -> None:
    failpoints.configure(" wal.after_write = kill@3 ; wal.before_sync=errno:EIO;")
    assert failpoints.active() == {"wal.after_write": "kill@3", "wal.before_sync": "errno:EIO"}
    failpoints.clear()
    assert failpoints.active() == {}
    failpoints.hit("wal.before_sync")


@pytest.mark.parametrize(
    "text",
    ["nowhere=kill", "wal.rotate", "wal.rotate=", "wal.rotate=explode", "wal.rotate=errno:ENOTHING", "wal.rotate=errno",
     "wal.rotate=sleep", "wal.rotate=sleep:soon", "wal.rotate=kill:9", "wal.rotate=kill@", "wal.rotate=kill@x"],
)  # fmt: skip
def test_words_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="failpoint"):
        failpoints.configure(text)


def test_kill() -> None:
    def act() -> None:
        failpoints.set("worker.before_submit", "kill@2")
        failpoints.hit("worker.before_submit")
        failpoints.hit("worker.before_submit")

    assert in_child(act) == -signal.SIGKILL


def test_stop_and_continue() -> None:
    pid = os.fork()
    if pid == 0:
        failpoints.set("worker.before_submit", "stop")
        failpoints.hit("worker.before_submit")
        os._exit(7)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
    os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_sleep_sleeps() -> None:
    failpoints.set("worker.before_submit", "sleep:30")
    started = time.monotonic()
    failpoints.hit("worker.before_submit")
    assert time.monotonic() - started >= 0.03


def test_environment() -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from occamdb.engine.disk import failpoints; failpoints.hit('create.before_meta')",
        ],
        env={**os.environ, "OCCAMDB_FAILPOINTS": "create.before_meta=errno:EMFILE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert os.strerror(errno.EMFILE) in run.stderr
