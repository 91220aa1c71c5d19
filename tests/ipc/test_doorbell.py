"""Doorbells between real processes: no wake-up is lost if a side spins, stops, dies or is interrupted."""

import mmap
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from occamdb._testing._bell import Bell
from tests.support.children import Child, child, wait_until

SECOND = 10**9
LONG = 20 * SECOND


def two_bells() -> tuple[mmap.mmap, Bell, Bell]:
    memory = mmap.mmap(-1, 4096)
    return memory, Bell(memory, 0), Bell(memory, 1024)


@contextmanager
def echo(
    memory: mmap.mmap, rounds: int, may_spin: bool, *, check: bool = True, pause_max: int = 0
) -> Iterator[Child]:
    """A child that answers `rounds` times: waits on the bell at 1024, rings the one at 0."""

    def body() -> None:
        own, other = Bell(memory, 1024), Bell(memory, 0)
        assert own.play(other, 1, rounds, False, LONG, may_spin, pause_max) == rounds

    with child(body, check=check) as process:
        yield process


@contextmanager
def interval_signals(seconds: float) -> Iterator[list[int]]:
    """SIGALRM again and again; yields the list its handler appends to."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("rounds", "leader_spins", "echo_spins"),
    [(100_000, True, True), (100_000, False, False), (20_000, True, False), (20_000, False, True)],
)
def test_no_wake_up_is_lost(rounds: int, leader_spins: bool, echo_spins: bool) -> None:
    """A lost wake-up would leave both sides asleep until the deadline of a wait."""
    memory, own, other = two_bells()
    with echo(memory, rounds, echo_spins):
        assert own.play(other, 1, rounds, True, LONG, leader_spins) == rounds
    if not leader_spins:
        assert own.statistics["spins"] == 0, "forbidden to spin means not to"


@pytest.mark.parametrize("pause_max", [4, 40, 400])
def test_a_publication_at_any_step_into_sleep_is_seen(pause_max: int) -> None:
    """One side always sleeps at once, the other answers at random instants around that."""
    memory, own, other = two_bells()
    with echo(memory, 60_000, True, pause_max=pause_max):
        assert own.play(other, 1, 60_000, True, LONG, False) == 60_000


def test_stopping_and_continuing_the_other_side_is_a_stall_only() -> None:
    memory, own, other = two_bells()
    rounds = 3000
    with echo(memory, rounds, False) as process:
        for first in range(1, rounds + 1, 1000):
            process.stop()
            other.publish(first)
            assert own.wait_for(first, SECOND // 20, True) == 0, "a stopped process cannot answer"
            process.resume()
            assert own.wait_for(first, LONG, True) == 1
            assert own.play(other, first + 1, 999, True, LONG, True) == 999


def test_a_dead_peer_means_a_timeout_and_the_next_ringer_is_heard() -> None:
    memory, own, other = two_bells()
    with echo(memory, 10**9, True, check=False) as process:
        assert own.play(other, 1, 1000, True, LONG, True) == 1000
        process.kill()
        other.publish(1001)
        assert own.wait_for(1001, SECOND // 50, True) == 0

    def rings() -> None:
        bell = Bell(memory, 0)
        wait_until(lambda: bell.sleeping)
        bell.publish(1001)

    with child(rings):
        assert own.wait_for(1001, LONG, False) == 1


def test_signals_interrupt_a_wait_and_nothing_is_lost() -> None:
    memory, own, other = two_bells()
    with interval_signals(0.001) as seen:
        assert own.wait_for(1, LONG, False) == 2
        wait_until(lambda: seen)
        with echo(memory, 20_000, False):
            assert own.play(other, 1, 20_000, True, LONG, False) == 20_000


@pytest.mark.parametrize("may_spin", [False, True])
def test_a_timeout_is_waited_for_in_full(may_spin: bool) -> None:
    _, own, _ = two_bells()
    start = time.monotonic_ns()
    assert own.wait_for(1, SECOND // 100, may_spin) == 0
    assert time.monotonic_ns() - start >= SECOND // 100
    assert not own.sleeping


def test_what_is_ready_needs_no_wait() -> None:
    _, own, _ = two_bells()
    own.publish(5)
    assert own.wait_for(5, 0, True) == 1
    assert own.wait_for(6, 0, True) == 0
    assert own.statistics["spins"] == own.statistics["sleeps"] == 0


def test_ringing_nobody_leaves_the_word_alone() -> None:
    memory, own, _ = two_bells()
    own.publish(1)
    assert memory[:4] == bytes(4), "no system call for a waiter that is awake"


def test_ringing_a_sleeper_changes_the_word() -> None:
    """Else one that is between its last look and the system call would sleep on."""
    memory, own, _ = two_bells()

    def sleeps() -> None:
        assert Bell(memory, 0).wait_for(1, LONG, False) == 1

    with child(sleeps):
        wait_until(lambda: own.sleeping)
        own.publish(1)
        assert memory[:4] == b"\1\0\0\0"


def test_spinning_that_never_pays_ends_and_stays_rare() -> None:
    """Adaptation: waits that always outlast the spin are slept through after a few tries."""
    _, own, _ = two_bells()
    waits = 400
    for _ in range(waits):
        assert own.wait_for(1, 100_000, True) == 0
    found = own.statistics
    assert found["score"] < 128
    assert 3 <= found["spins"] < waits // 4
    assert found["sleeps"] >= waits - found["spins"]


def test_a_bell_outside_its_buffer_is_refused() -> None:
    for size, offset in ((191, 0), (4096, 3968), (4096, 8), (4096, -64)):
        with pytest.raises(ValueError):
            Bell(bytearray(size), offset)
