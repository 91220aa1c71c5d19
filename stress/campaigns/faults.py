"""The faults of the chaos campaign, each an action on a scene, after which the scene works again.

A fault returns when it is over: a stopped process continues, a full store or disk is emptied, a coordinator
whose log failed is restarted. It is counted under its name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable

from occamdb.engine.model.errors import StoreFullError
from occamdb.ipc.errors import OccamError
from occamdb.ipc.process import is_alive
from occamdb.stress.campaigns.scene import Scene
from occamdb.stress.coordinators import coordinator_of, signal_coordinator, wait_until

FILLER_RUN = uuid.UUID("0197c0de-0000-7000-8000-00000000f111")
FILLER_BYTES = 1 << 20
RESTART_TIMEOUT = 60.0

Fault = Callable[[Scene], None]


def kill_worker(scene: Scene) -> None:
    """SIGKILL for a worker, and a new one in its place."""
    alive = scene.runner.alive()
    if alive:
        victim = scene.dice.choice(alive)
        scene.runner.signal_worker(victim, signal.SIGKILL)
        scene.count("kill worker", f"{victim}, started {scene.runner.start_worker()}")


def stop_worker(scene: Scene) -> None:
    """SIGSTOP for a worker, and SIGCONT a little later; the others must not notice."""
    alive = scene.runner.alive()
    if alive:
        victim = scene.dice.choice(alive)
        scene.runner.signal_worker(victim, signal.SIGSTOP)
        time.sleep(scene.dice.uniform(0.05, 1.0))
        scene.runner.signal_worker(victim, signal.SIGCONT)
        scene.count("stop worker", str(victim))


def kill_coordinator(scene: Scene) -> None:
    """SIGKILL for the coordinator; the next worker that needs one starts another."""
    identity = signal_coordinator(scene.path, signal.SIGKILL)
    if identity is not None:
        wait_until(lambda: not is_alive(identity), 5.0)
        scene.count("kill coordinator")


def stop_coordinator_a_while(scene: Scene) -> None:
    """SIGSTOP for the coordinator: a stall, and nothing else."""
    identity = signal_coordinator(scene.path, signal.SIGSTOP)
    if identity is not None:
        try:
            time.sleep(scene.dice.uniform(0.05, 1.0))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGCONT)
        scene.count("stop coordinator")


def end_coordinator(scene: Scene) -> None:
    """SIGTERM for the coordinator while workers are at work: a clean stop and a restart."""
    identity = signal_coordinator(scene.path, signal.SIGTERM)
    if identity is not None:
        wait_until(lambda: not is_alive(identity), RESTART_TIMEOUT)
        scene.count("end coordinator")


def ask_checkpoint(scene: Scene) -> None:
    """A checkpoint in the middle of everything."""
    if scene.admin(kind="checkpoint"):
        scene.count("checkpoint")


def hold_snapshot(scene: Scene) -> None:
    """A reader that keeps an old version alive for a while and reads it again at the end."""
    try:
        with scene.db.begin(FILLER_RUN, read_only=True) as txn:
            before = [(key, found.version) for key, found in txn.scan("")]
            time.sleep(scene.dice.uniform(0.2, 1.5))
            after = [(key, found.version) for key, found in txn.scan("")]
        if before != after:
            scene.problems.append("a snapshot changed while it was held")
        scene.count("hold snapshot")
    except OccamError as error:
        scene.count("hold snapshot", f"expired: {error.code}")


def fill_store(scene: Scene) -> None:
    """Write until the store is full, let the workers meet that, then delete it all again."""
    filler = os.urandom(FILLER_BYTES)
    full = False
    try:
        for number in range(4096):
            scene.db.put(FILLER_RUN, f"filler/{number:06d}", filler)
    except StoreFullError:
        full = True
        time.sleep(scene.dice.uniform(0.1, 0.5))
    except OccamError as error:
        scene.notes.append(f"filling the store ended with {error}")
    _empty(scene)
    scene.count("fill store", "" if full else "gave up before it was full")


def _empty(scene: Scene) -> None:
    """Delete the filler in one range delete, retrying: a full store may refuse even that for a moment."""

    def delete() -> bool:
        try:
            with scene.db.begin(FILLER_RUN) as txn:
                txn.delete_run_range()
        except OccamError as error:
            scene.notes.append(f"deleting the filler: {error}")
            return False
        return True

    if not wait_until(delete, RESTART_TIMEOUT):
        scene.problems.append(f"a full store could not be emptied within {RESTART_TIMEOUT:.0f} s")


def fill_disk(scene: Scene) -> None:
    """Fill the file system the database lies on, then make room again. Only on a file system of its own."""
    ballast = scene.scratch / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        chunk = bytes(1 << 20)
        while True:
            if not file.write(chunk):
                break
    time.sleep(scene.dice.uniform(0.1, 0.8))
    ballast.unlink(missing_ok=True)
    _restart_coordinator(scene)
    scene.count("fill disk")


def fail_sync(scene: Scene) -> None:
    """Every fdatasync fails with EIO: no commit is acknowledged until the coordinator was restarted."""
    if not scene.admin(kind="failpoint", name="wal.before_sync", action="errno:EIO"):
        return
    time.sleep(scene.dice.uniform(0.1, 0.5))
    _restart_coordinator(scene)
    scene.count("fail sync")


def fail_write(scene: Scene) -> None:
    """A few writes to the log fail with ENOSPC, or are cut short."""
    action = scene.dice.choice(("errno:ENOSPC@1*3", "short:7@1*3"))
    if scene.admin(kind="failpoint", name="wal.before_write", action=action):
        time.sleep(0.1)
        scene.count("fail write", action)


def _restart_coordinator(scene: Scene) -> None:
    """End a coordinator that may have stopped taking commits; the next one recovers from the log."""
    identity = coordinator_of(scene.path)
    if identity is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(identity), 5.0)


# How often each is drawn, relative to the others. Filling comes on top where the session allows it.
COMMON: dict[Fault, int] = {
    kill_worker: 6,
    stop_worker: 3,
    kill_coordinator: 5,
    stop_coordinator_a_while: 3,
    end_coordinator: 1,
    ask_checkpoint: 2,
    hold_snapshot: 2,
    fail_sync: 2,
    fail_write: 2,
}
FILLING: dict[Fault, int] = {fill_store: 3, fill_disk: 3}
NAMES: dict[str, Fault] = {fault.__name__.replace("_", "-"): fault for fault in (*COMMON, *FILLING)}
