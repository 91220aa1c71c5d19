"""The commit thread leaves a core that it shares with the worker that wakes it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from occamdb._testing._mover import Mover

SECOND = 10**9


def in_a_thread(body: Callable[[], None], cores: set[int]) -> None:
    """Run it in a thread confined to these cores: affinity is a thread's own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            os.sched_setaffinity(0, cores)
            body()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def moves(mover: Mover, wakes: int, now: int) -> int:
    """How often it moves while somebody on the same core wakes it."""
    return sum(mover.woken_by(mover.cpu(), now) for _ in range(wakes))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_it_leaves_a_shared_core_and_keeps_its_affinity() -> None:
    cores = os.sched_getaffinity(0)

    def body() -> None:
        mover = Mover()
        # Between two looks at the core the scheduler may move us itself: then counting begins anew.
        assert any(moves(mover, 200, now * SECOND) for now in range(1, 50))
        assert os.sched_getaffinity(0) == cores

    in_a_thread(body, cores)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_moves_that_do_not_help_become_rare() -> None:
    def body() -> None:
        mover = Mover()
        # 10 s of wake-ups by a worker that shares our core, on any core.
        found = sum(moves(mover, 100, SECOND + step * 1_000_000) for step in range(10_000))
        assert 3 <= found <= 40

    in_a_thread(body, os.sched_getaffinity(0))


def test_on_one_core_it_stays() -> None:
    core = min(os.sched_getaffinity(0))

    def body() -> None:
        mover = Mover()
        assert mover.cpu() == core + 1
        assert moves(mover, 1000, SECOND) == 0
        assert os.sched_getaffinity(0) == {core}

    in_a_thread(body, {core})


def test_strangers_do_not_move_it() -> None:
    def body() -> None:
        mover = Mover()
        for forged in (0, 2**31, 2**32 - 1, 4096):
            assert not any(mover.woken_by(forged, SECOND) for _ in range(1000))

    in_a_thread(body, os.sched_getaffinity(0))
