"""A store grows only while the machine has the memory: StoreFullError, never a process killed for it (M1)."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from occamdb import RunId, StoreFullError
from occamdb.engine.store import _memory
from occamdb.engine.store.cgroups import MemoryGroup, memory_groups
from tests.support.processes import (
    ask_coordinator,
    coordinator_pid,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)


def test_what_is_available_is_what_the_kernel_says() -> None:
    said = psutil.virtual_memory().available + psutil.swap_memory().free
    # Others allocate while we ask.
    assert abs(_memory.available() - said) < 0.25 * psutil.virtual_memory().total


@pytest.fixture
def watched() -> Iterator[Callable[[list[MemoryGroup]], None]]:
    yield _memory.watch
    _memory.watch([])


def make_group(place: Path, limit: str, usage: int, cached: int, version: int = 2) -> None:
    """The files of one control group, as the kernel writes them."""
    place.mkdir(parents=True, exist_ok=True)
    if version == 2:
        names, statistic = ("memory.max", "memory.current"), "inactive_file"
    else:
        names, statistic = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
    (place / names[0]).write_text(f"{limit}\n")
    (place / names[1]).write_text(f"{usage}\n")
    (place / "memory.stat").write_text(f"anon 5\nnot_{statistic} 1\n{statistic} {cached}\nlast 7\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_is_respected(
    version: int, tmp_path: Path, watched: Callable[[list[MemoryGroup]], None]
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    make_group(root, "9223372036854771712" if version == 1 else "max", 0, 0, version)
    make_group(root / "outer", str(300 << 20), 260 << 20, 60 << 20, version)
    make_group(root / "outer/inner", str(4 << 30), 1 << 20, 0, version)
    own = tmp_path / "own"
    own.write_text("4:cpu,memory:/outer/inner\n" if version == 1 else "0::/outer/inner\n")
    groups = memory_groups(own, tmp_path)
    assert [Path(group.limit).parent for group in groups] == [root / "outer/inner", root / "outer", root]
    watched(groups)
    assert _memory.available() == (300 - 260 + 60) << 20
    assert _memory.allows(60 << 20) and not _memory.allows(70 << 20)
    make_group(root / "outer", str(1 << 40), 260 << 20, 0, version)  # raised while we run
    assert _memory.allows(70 << 20)
    make_group(root / "outer", str(1 << 20), 260 << 20, 0, version)
    assert _memory.available() == 0


def test_groups_that_cannot_be_read_limit_nothing(
    tmp_path: Path, watched: Callable[[list[MemoryGroup]], None]
) -> None:
    assert memory_groups(tmp_path / "none", tmp_path) == []
    (tmp_path / "own").write_text("rubbish\n1:name=systemd:/\n0::/nowhere\n3:memory:/nowhere\n")
    assert memory_groups(tmp_path / "own", tmp_path) == []
    watched([MemoryGroup("/nowhere", "/nowhere", "/nowhere", "x"), MemoryGroup("/" * 600, "", "", "")])
    assert _memory.allows(1 << 20)


def test_a_store_in_a_full_container_is_full(tmp_path: Path) -> None:
    """A real group, where the test may make one: the coordinator is not killed, and says that the store is full."""
    place = _limited_group(160 << 20)
    path, run = tmp_path / "db", RunId.new()
    try:
        stage = multiprocessing.get_context("forkserver").Process(
            target=_fill_inside, args=(place, path, run)
        )
        stage.start()
        stage.join(120)
        assert stage.exitcode == 0
    finally:
        stop_coordinator(path)
        wait_until(lambda: not (place / "cgroup.procs").read_text().split(), what="the group to be empty")
        place.rmdir()


def _limited_group(size: int) -> Path:
    own = next(iter(memory_groups()), None)
    if own is None:
        pytest.skip("this process is in no control group with a limit on memory")
    place = Path(own.limit).parent / f"occamdb-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        # In version 2 the file is there only where the group above hands the controller down.
        (place / Path(own.limit).name).write_text(str(size))
    except OSError as error:
        place.rmdir()
        pytest.skip(f"the memory of a control group cannot be limited here: {error}")
    return place


def _fill_inside(place: Path, path: Path, run: RunId) -> None:
    (place / "cgroup.procs").write_text(str(os.getpid()))
    with open_database(path, max_store_size="1GiB") as db:
        pid = coordinator_pid(path)
        with pytest.raises(StoreFullError):
            for number in range(400):
                db.put(run, f"k{number}", b"v" * 1_000_000)
        assert db.get(run, "k0") == b"v" * 1_000_000
        assert db.delete(run, "k0")
        assert coordinator_pid(path) == pid


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
