"""System calls of a living coordinator fail under load (F7-F9): what they refuse stays refused.

Writers take the error for a refusal: then the commit never appears, not after a recovery either.
"""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from occamdb import LogWriteError
from occamdb.engine.disk.reserve import RESERVE_NAME
from occamdb.ipc.process import is_alive
from tests.support import processes
from tests.support.crash import Scene, arm_next, arms_left, scene_at
from tests.support.processes import Worker, coordinator_identity, kill_coordinator, wait_until

REFUSALS = (LogWriteError.code,)
# No checkpoint begins by itself and no segment is rotated: they would take a failure that is for one write.
ONLY_THE_LOG_WRITES = {"checkpoint_bytes": 1 << 40, "wal_segment_size": 1 << 30}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def refusals(scene: Scene) -> int:
    return sum(len(journal.read().refused) for journal in scene.journals.values())


def each_is_refused(scene: Scene) -> None:
    """Wait until every writer was refused once more: what it was told before is in its journal then."""
    before = {number: len(journal.read().refused) for number, journal in scene.journals.items()}
    wait_until(
        lambda: all(len(scene.journals[each].read().refused) > count for each, count in before.items()),
        what="a refusal of every writer",
    )


def refused(scene: Scene, number: int) -> LogWriteError:
    """What a commit of the test's own is refused with, once the failure has struck; until then it commits."""
    caught: list[LogWriteError] = []

    def meet() -> bool:
        before = scene.db.get_versioned(scene.plan.run, "probe")
        try:
            scene.db.put(scene.plan.run, "probe", number)
        except LogWriteError as error:
            caught.append(error)
            assert scene.db.get_versioned(scene.plan.run, "probe") == before
        return bool(caught)

    wait_until(meet, what="a refusal")
    return caught[0]


@pytest.mark.parametrize("durability", ["standard", "always"])
def test_writes_that_fail(durability: str, path: Path, start: Callable[..., Worker]) -> None:
    """F7, F9: each refuses its batch with nothing changed; the commits after it are as good as ever."""
    settings = {"durability": durability, "sync_interval": 0.01}
    with scene_at(path, start, settings=settings, refusals=REFUSALS) as scene:
        identity = coordinator_identity(path)
        for number, (point, action, code) in enumerate(
            [
                ("wal.before_write", "errno:ENOSPC", errno.ENOSPC),
                ("wal.before_write", "errno:EIO", errno.EIO),
                ("wal.after_write", "errno:EIO", errno.EIO),
                ("file.write", "errno:EDQUOT", errno.EDQUOT),
            ]
        ):
            before = refusals(scene)
            scene.arm(point, action)
            error = refused(scene, number)
            assert error.details["errno"] == code or error.errno == code
            wait_until(lambda floor=before: refusals(scene) > floor, what="refused writers")  # type: ignore[misc]
            scene.verify()
            scene.arm(point, "off")
            scene.carry_on()
            scene.verify()
        # Cut short, it is completed.
        before = refusals(scene)
        scene.arm("file.write", "short:7@1*20")
        scene.carry_on(10)
        scene.verify()
        assert coordinator_identity(path) == identity
        kill_coordinator(path)
        scene.carry_on()
        scene.verify()


@pytest.mark.parametrize(
    ("durability", "end"), [("standard", "kill"), ("always", "kill"), ("always", "stop")]
)
def test_a_sync_that_fails(durability: str, end: str, path: Path, start: Callable[..., Worker]) -> None:
    """F8: refused until a restart, whatever the disk says later; reads go on; then all that was told holds."""
    settings = {"durability": durability, "sync_interval": 0.01}
    with scene_at(path, start, settings=settings, refusals=REFUSALS) as scene:
        for number, point in enumerate(("wal.before_sync", "file.sync", "file.directory_sync")):
            scene.arm(point, "errno:EIO")
            refused(scene, number)
            # The disk is well again: an fsync error is not forgotten, and not retried.
            scene.arm(point, "off")
            rows = scene.verify()
            each_is_refused(scene)
            reached = scene.acknowledged()
            each_is_refused(scene)
            assert scene.acknowledged() == reached
            assert scene.verify().keys() == rows.keys()
            assert refused(scene, number).hint
            if end == "kill":
                kill_coordinator(path)
            else:
                processes.stop_coordinator(path)
            scene.carry_on()
            scene.verify()


@pytest.mark.parametrize("durability", ["standard", "always"])
def test_what_cannot_be_cut_back_is_not_called_refused(
    durability: str, path: Path, start: Callable[..., Worker]
) -> None:
    """The write failed, and so does cutting it off: the coordinator ends, and the next one finds out what is there."""
    settings = {"durability": durability, **ONLY_THE_LOG_WRITES}
    with scene_at(path, start, settings=settings) as scene:
        for point in ("wal.after_write", "file.write"):
            scene.arm("file.truncate", "errno:EIO")
            scene.strike(point, "errno:EIO@3")


def test_a_rotation_that_fails(path: Path, start: Callable[..., Worker]) -> None:
    """No room for a new segment: its batch is refused or goes into the old one; once there is room all goes on."""
    with scene_at(path, start, refusals=REFUSALS) as scene:
        identity = coordinator_identity(path)
        for point in ("wal.rotate", "wal.rotate_rename", "file.open", "file.allocate"):
            scene.arm(point, "errno:ENOSPC@1*3")
            scene.carry_on(60)
            scene.verify()
            scene.arm(point, "off")
        if not is_alive(identity):
            pytest.fail("a failing rotation ended the coordinator")
        processes.stop_coordinator(path)
        scene.carry_on()


def test_a_checkpoint_that_fails(path: Path, start: Callable[..., Worker]) -> None:
    """Commits are not disturbed; the caller who asked for it gets the error; the next one works."""
    with scene_at(path, start, settings=ONLY_THE_LOG_WRITES) as scene:
        for point in ("checkpoint.begin", "checkpoint.block", "checkpoint.before_rename", "file.rename"):
            scene.arm(point, "errno:EIO@1*1")
            # A checkpoint of the newest version there already is would be the answer, and nothing would fail.
            scene.db.put(scene.plan.run, "probe", point)
            with pytest.raises(LogWriteError):
                scene.db.checkpoint()
            scene.carry_on()
            scene.verify()
            scene.db.checkpoint()
        scene.strike("commit.after_publish", "kill@1")


def test_no_room_for_a_restart(path: Path, start: Callable[..., Worker]) -> None:
    """The disk is full just when a successor is needed: a pause for those at work, and for commits on their way."""
    with scene_at(path, start) as scene:
        arm_next(
            scene.plan.arms,
            [
                "file.open=errno:ENOSPC",
                "meta.before_rename=errno:ENOSPC",
                "file.write=errno:ENOSPC",
                "wal.rotate_rename=errno:EDQUOT",
                "meta.before_rename=errno:ENOSPC@2*9",
            ],
        )
        scene.strike("commit.before_reply", "kill@2")
        assert arms_left(scene.plan.arms) == 0


@pytest.mark.parametrize(
    "arm",
    ["meta.before_rename=errno:ENOSPC@1", "file.write=errno:EDQUOT@3", "wal.rotate_rename=errno:ENOSPC@1"],
)
def test_the_reserve_makes_room_for_a_restart(arm: str, path: Path, start: Callable[..., Worker]) -> None:
    """The same start goes on with the space set aside for it, and sets space aside again."""
    with scene_at(path, start) as scene:
        arm_next(scene.plan.arms, [arm])
        scene.strike("commit.before_reply", "kill@2")
        assert arms_left(scene.plan.arms) == 0
        assert (path / RESERVE_NAME).exists()
    log = (path / "coordinator.log").read_text()
    assert "No space" not in log and "quota" not in log
