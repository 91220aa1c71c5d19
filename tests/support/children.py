"""Forked children with a deadline: the other process of the ipc tests."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Poll `condition` until it is true; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"nothing happened within {deadline_s} s"
        time.sleep(0.001)


class Child:
    """One forked process running `body`; exit status 0 when it returned."""

    def __init__(self, body: Callable[[], object]) -> None:
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                body()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)

    def state(self) -> str:
        """One letter, as in /proc/<pid>/stat."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(lambda: self.state() == "T")

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        os.kill(self.pid, signal.SIGKILL)
        self.join()

    def join(self) -> int:
        """Wait for its end; the status as of os.waitstatus_to_exitcode."""

        def reaped() -> bool:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = os.waitstatus_to_exitcode(status)
            return self.status is not None

        wait_until(reaped)
        assert self.status is not None
        return self.status


@contextlib.contextmanager
def child(body: Callable[[], object], *, check: bool = True) -> Iterator[Child]:
    """Run `body` in a forked child during the block; afterwards it must have ended well, or it is killed."""
    process = Child(body)
    try:
        yield process
        if check:
            assert process.join() == 0
    finally:
        if process.status is None:
            process.kill()
