"""Ids of new traces: UUIDs of version 7, which sort by the time at which they were made."""

from __future__ import annotations

import os
import random
import threading

__all__ = ["new_id"]


class _Counter(threading.local):
    """Per thread, so that it needs no lock, which a fork could leave held."""

    last_us = 0
    repeats = 0


_counter = _Counter()
# A generator of our own: users may seed the module's one with the same number in every worker.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def new_id(time_us: int) -> bytes:
    """A UUID of version 7: 48 bits of ms, 10 of us, a 22-bit counter within the microsecond, 42 random bits.

    Ids that one thread makes at one clock reading sort in the order they were made. Ids of different threads can only
    be equal when made in the same microsecond with the same count, and then with a chance of 2**-42.
    """
    repeats = _counter.repeats + 1 if time_us == _counter.last_us else 0
    _counter.last_us, _counter.repeats = time_us, repeats
    ms, us = divmod(max(time_us, 0), 1000)
    # After the version digit 12 bits: microseconds and the top of the counter; after the variant the rest of it.
    high = ms << 16 | 0x7 << 12 | us << 2 | (repeats >> 20) & 0x3
    low = 0b10 << 62 | (repeats & 0xFFFFF) << 42 | _random.getrandbits(42)
    return (high << 64 | low).to_bytes(16, "big")
