"""The coordinator is killed at every failpoint it passes, under load from several writers (C1-C8).

Each test takes one database through many deaths; after each of them the writers carry on, and what they were told is
compared with what is there (`tests.support.crash`). At the end the files are checked and recovered once more.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb.engine.disk import failpoints
from tests.support import processes
from tests.support.crash import arm_next, arms_left, scene_at
from tests.support.processes import Worker, coordinator_identity, wait_until

COMMIT = [
    "commit.before_validate",
    "commit.after_validate",
    "commit.after_apply",
    "wal.before_write",
    "wal.after_write",
    "commit.before_publish",
    "commit.after_publish",
    "commit.before_reply",
    "commit.after_reply",
]
SYNC = ["wal.before_sync", "wal.after_sync", "file.sync"]
TORN = [1, 40, 100, 333]
ROTATION = ["wal.rotate", "wal.rotate_rename", "wal.after_rotate", "file.allocate", "file.directory_sync"]
CHECKPOINT = [
    "checkpoint.begin",
    "checkpoint.block",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "checkpoint.before_remove",
    "checkpoint.after_remove",
    "file.rename",
    "file.unlink",
]
# In the order in which a start passes them.
START = [
    "meta.before_rename=kill@1",
    "meta.after_rename=kill@1",
    "shm.create=kill@1",
    "shm.create=kill@2",
    "recovery.begin=kill",
    "file.read=kill@3",
    "recovery.after_checkpoint=kill",
    "recovery.after_replay=kill",
    "recovery.after_cut=kill",
    "recovery.after_segment=kill",
    "file.write=torn:17@2",
    "wal.rotate_rename=kill",
    "meta.before_rename=kill@2",
    "meta.after_rename=kill@2",
    "coordinator.before_ready=kill",
]
CREATION = [
    "file.mkdir=kill@1",
    "file.mkdir=kill@2",
    "create.before_meta=kill",
    "file.sync=kill@1",
    "meta.before_rename=kill@1",
    "meta.after_rename=kill@1",
    "meta.before_rename=kill@1",
    "meta.after_rename=kill@2",
    "shm.create=kill@1",
    "shm.create=kill@2",
    "recovery.begin=kill",
    "coordinator.before_ready=kill",
]
STALLS = [
    "commit.before_validate",
    "commit.after_apply",
    "wal.after_write",
    "commit.before_publish",
    "commit.before_reply",
    "wal.before_sync",
]
# Passed by workers, at the creation of shared memory (tests/faults/test_segment_creation.py has the rest of it) and
# in the file layer. Those of large ranges are struck in tests/engine/commit/test_range_slices.py.
ELSEWHERE = {"worker", "shm", "file", "clock", "range"}
CLOCKS = {"commit.turn_clock"}  # steps a clock: nothing is under way there that a death could interrupt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def test_no_point_is_forgotten() -> None:
    struck = {text.split("=")[0] for text in (*COMMIT, *SYNC, *ROTATION, *CHECKPOINT, *START, *CREATION)}
    struck |= {"coordinator.attach", "coordinator.stopping"}
    inside = {name for name in failpoints.NAMES if name.split(".")[0] not in ELSEWHERE}
    assert inside - CLOCKS <= struck


@pytest.mark.parametrize("durability", ["standard", "always"])
def test_during_a_commit(durability: str, path: Path, start: Callable[..., Worker]) -> None:
    """C1-C6. The hit that kills differs, so that it finds batches of different sizes."""
    with scene_at(path, start, settings={"durability": durability, "sync_interval": 0.01}) as scene:
        for number, point in enumerate((*COMMIT, *SYNC)):
            scene.strike(point, f"kill@{1 + 3 * number % 7}")
        for size in TORN:
            scene.strike("file.write", f"torn:{size}@{1 + size % 5}")


def test_during_a_rotation(path: Path, start: Callable[..., Worker]) -> None:
    with scene_at(path, start) as scene:
        for point in ROTATION:
            scene.strike(point, "kill@1")
            scene.strike(point, "kill@2")


def test_during_a_checkpoint(path: Path, start: Callable[..., Worker]) -> None:
    """C7. Two checkpoints and a rotation lie behind, so each has files to remove."""
    with scene_at(path, start) as scene:
        for point in CHECKPOINT:
            for _ in range(2):
                scene.checkpoint()
                scene.carry_on(10)
            scene.strike(point, "kill@1", trigger=scene.checkpoint)


def test_again_and_again_during_recovery(path: Path, start: Callable[..., Worker]) -> None:
    """C8. One outage in which every coordinator that comes up dies, each a step further; a torn tail to begin with."""
    with scene_at(path, start) as scene:
        for order in (START, START[::-1]):
            arm_next(scene.plan.arms, order)
            scene.strike("file.write", "torn:50@3")
            assert arms_left(scene.plan.arms) == 0
            scene.verify()


def test_while_workers_ask_for_outcomes(path: Path, start: Callable[..., Worker]) -> None:
    """Killed before it answers; the next one dies as they come back, at the first, the second, the third."""
    with scene_at(path, start) as scene:
        arm_next(scene.plan.arms, [f"coordinator.attach=kill@{n}" for n in (1, 2, 3)])
        scene.strike("commit.before_reply", "kill@2")
        assert arms_left(scene.plan.arms) == 0
        # And once more, when the outcomes are being told and what never happened is sent again.
        for point in ("wal.after_write", "commit.after_publish", "file.write"):
            action = "torn:99" if point == "file.write" else "kill"
            arm_next(scene.plan.arms, [f"{point}={action}@{n}" for n in (4, 2, 1)])
            scene.strike(point, f"{action}@2")
            wait_until(lambda: not arms_left(scene.plan.arms), what="further deaths")
            scene.carry_on()
            scene.verify()


def test_while_somebody_attaches(path: Path, start: Callable[..., Worker]) -> None:
    def attach() -> None:
        with scene.plan.open() as other:
            assert other.get(scene.plan.run, "total") > 0

    with scene_at(path, start) as scene:
        scene.strike("coordinator.attach", "kill@1", trigger=attach)
        scene.start_writers()
        scene.carry_on()


def test_during_a_clean_stop(path: Path, start: Callable[..., Worker]) -> None:
    """C12, and a death on the way: nobody hangs, nobody sees an error."""

    def stop() -> None:
        processes.stop_coordinator(path)

    with scene_at(path, start) as scene:
        for point, action in (
            ("coordinator.stopping", "kill"),
            ("checkpoint.block", "kill@1"),
            ("checkpoint.after_rename", "kill@1"),
            ("meta.before_rename", "kill@1"),
            ("meta.after_rename", "kill@1"),
            ("coordinator.stopping", "off"),
            ("coordinator.stopping", "sleep:50"),
        ):
            scene.strike(point, action, trigger=stop)


def test_during_the_creation(path: Path, start: Callable[..., Worker]) -> None:
    """F13: every process that opens it finds a coordinator in the end, and there is one database."""
    with scene_at(path, start, arms=CREATION) as scene:
        assert arms_left(scene.plan.arms) == 0
        scene.carry_on()


def test_stopped_and_continued(path: Path, start: Callable[..., Worker]) -> None:
    """C11: a stall, nothing else. The same coordinator goes on, and nothing commits twice."""
    with scene_at(path, start) as scene:
        identity = coordinator_identity(path)
        for point in STALLS:
            assert scene.stand_still_at(point, "stop@3") == identity
            # Reading needs no coordinator; nothing that it has not decided on is to be seen.
            scene.verify()
            assert scene.db.get(scene.plan.run, "total") > 0
            os.kill(identity.pid, signal.SIGCONT)
            scene.carry_on()
            scene.verify()
        assert coordinator_identity(path) == identity
