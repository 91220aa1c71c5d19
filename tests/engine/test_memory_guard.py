"""A store grows only while the machine has the memory: StoreFullError, never a process killed for it (M1)."""

from pathlib import Path

import psutil
import pytest

from occamdb import RunId, StoreFullError
from occamdb.engine import _memory
from tests.support.processes import (
    ask_coordinator,
    coordinator_pid,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
)


def test_what_is_available_is_what_the_kernel_says() -> None:
    said = psutil.virtual_memory().available + psutil.swap_memory().free
    # Others allocate while we ask.
    assert abs(_memory.available() - said) < 0.25 * psutil.virtual_memory().total


def test_more_than_there_is_is_refused() -> None:
    assert _memory.allows(1 << 20)
    assert not _memory.allows(psutil.virtual_memory().total + psutil.swap_memory().total)


def test_a_store_without_memory_behind_it_is_full_and_recovers(tmp_path: Path) -> None:
    path = tmp_path / "db"
    run = RunId.new()
    value = b"v" * 100_000
    with open_database(path) as db:
        db.put(run, "before", 1)
        pid = coordinator_pid(path)
        set_coordinator_failpoint(path, "shm.grow", "errno:ENOMEM")
        with pytest.raises(StoreFullError):
            for number in range(200):
                db.put(run, f"k{number}", value)
        # Reading goes on, and so does what needs no growth.
        assert db.get(run, "before") == 1
        assert db.delete(run, "before")
        set_coordinator_failpoint(path, "shm.grow", "off")
        for number in range(200):
            db.put(run, f"k{number}", value)
        assert db.get(run, "k199") == value
        assert ask_coordinator(path, "status")["pid"] == pid
    stop_coordinator(path)
