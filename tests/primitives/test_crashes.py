"""The coordinator dies under transactions over all primitives; after recovery everything agrees with everything.

Workers notice nothing but a pause: what they were told is committed is there once, whatever the moment of the death.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Thought
from tests.primitives.test_cross_primitive import prepared, work
from tests.support.audit import audit
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_pid,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)

MOMENTS = [
    "wal.before_write=kill",
    "wal.after_write=kill",
    "file.write=torn:100",
    "commit.after_apply=kill",
    "commit.before_publish=kill",
    "commit.after_publish=kill",
]
KEYS = 100_000


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A database of the test's own, whose coordinator is stopped at the end."""
    directory = tmp_path / "db"
    with open_database(directory):
        yield directory
    stop_coordinator(directory)


def agent(peer: Peer, number: int, path: Path, run: RunId) -> list[int]:
    """Works until told to stop; returns the steps that were acknowledged to it."""
    done = []
    with open_database(path, timeout=60.0) as db:
        peer.say("ready")
        while not peer.told():

            def step(txn: Any) -> int:
                n: int = txn.kv.get("last", 0) + 1
                work(txn, n)
                txn.kv.put(f"step {n}", number)
                return n

            done.append(db.transaction(run, step))
    return done


def check_steps(db: Any, run: RunId, acknowledged: list[list[int]]) -> int:
    """Every acknowledged step is there exactly once, in every primitive; how many there are."""
    steps = sorted(n for each in acknowledged for n in each)
    count = len(steps)
    assert steps == list(range(1, count + 1)), "a step was acknowledged twice, or one is there that was not"
    assert db.kv.get(run, "last") == db.kv.get(run, "steps") == count
    for number, each in enumerate(acknowledged):
        assert {db.kv.get(run, f"step {n}") for n in each} <= {number}
    assert [event.payload["n"] for event in db.events.iterate(run)] == steps
    assert db.cells.read(run, "state").value == count
    assert db.traces.count(run) == count
    assert db.runs.get_run(run).metadata == {"steps": count}
    audit(db, run)
    return count


def test_agents_work_on_over_kills(path: Path, start: Callable[..., Worker]) -> None:
    with open_database(path, timeout=60.0) as db:
        run = prepared(db)
        team = [start(agent, number, path, run) for number in range(3)]
        for worker in team:
            worker.hear()
        for kills_left in (3, 2, 1, 0):
            before = db.kv.get(run, "steps", 0)
            wait_until(lambda: db.kv.get(run, "steps", 0) > before + 20, what="progress")  # noqa: B023
            if kills_left:
                kill_coordinator(path)
        for worker in team:
            worker.say("stop")
        assert check_steps(db, run, [worker.result() for worker in team]) > 60


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_coordinator_dies_at_every_moment_of_a_commit(
    path: Path, start: Callable[..., Worker], moment: str
) -> None:
    name, _, action = moment.partition("=")
    with open_database(path, timeout=60.0) as db:
        run = prepared(db)
        team = [start(agent, number, path, run) for number in range(2)]
        for worker in team:
            worker.hear()
        wait_until(lambda: db.kv.get(run, "steps", 0) > 10, what="progress")
        victim = coordinator_pid(path)
        set_coordinator_failpoint(path, name, f"{action}@7")
        wait_until(lambda: coordinator_pid(path) != victim, what="a new coordinator")
        reached = db.kv.get(run, "steps", 0)
        wait_until(lambda: db.kv.get(run, "steps", 0) > reached + 10, what="progress")
        for worker in team:
            worker.say("stop")
        check_steps(db, run, [worker.result() for worker in team])


def watch(peer: Peer, path: Path, run: RunId, child: RunId) -> list[tuple[Any, ...]]:
    """Every picture of the two runs that a reader sees until told to stop, each once."""
    seen: list[tuple[Any, ...]] = []
    with open_database(path, timeout=60.0) as db:
        peer.say("ready")
        last = False
        while not last:
            last = peer.told()
            with db.begin(run, read_only=True) as txn:
                there = txn.for_run(child)
                picture = (
                    txn.kv.count(),
                    len(txn.events),
                    there.kv.count(),
                    there.traces.count(),
                    txn.runs.get_run(run) is not None,
                    txn.runs.get_run(child) is not None,
                )
            if not seen or seen[-1] != picture:
                seen.append(picture)
    return seen


@pytest.mark.parametrize(
    "moment", ["wal.after_write=kill", "commit.before_publish=kill", "file.write=torn:60"]
)
def test_a_large_run_is_deleted_whole(path: Path, start: Callable[..., Worker], moment: str) -> None:
    """A run of 100,000 keys and its child go in one commit, also when the coordinator dies in the middle of it."""
    name, _, action = moment.partition("=")
    with open_database(path, timeout=60.0) as db:
        run = db.runs.create_run("large").run_id
        child = db.runs.create_run_with_options("child", parent=run).run_id
        kept = db.runs.create_run("kept").run_id
        db.kv.put_many(run, {f"key {n}": n for n in range(KEYS)})
        db.events.append_many(run, [("t", {"n": n}) for n in range(20)])
        for each in (child, kept):
            db.kv.put(each, "k", 1)
            db.traces.record(each, Thought("x"), tags=["t"])
        reader = start(watch, path, run, child)
        reader.hear()
        victim = coordinator_pid(path)
        set_coordinator_failpoint(path, name, f"{action}@1")
        assert db.runs.delete_run(run, cascade=True) == 2
        assert coordinator_pid(path) != victim
        reader.say("stop")
        pictures = reader.result()
        full, empty = (KEYS, 20, 1, 1, True, True), (0, 0, 0, 0, False, False)
        assert pictures in ([full, empty], [empty])
        assert [each.run_id for each in db.runs.list_runs()] == [kept]
        assert db.kv.count(kept) == db.traces.count(kept) == 1
        for tag in range(1, 6):
            assert db.space(run, tag, raw=True).count() == db.space(child, tag, raw=True).count() == 0
        audit(db, kept)
