"""Agents with families of runs, over coordinators that die everywhere: afterwards each picture matches every other.

Each agent has a run of its own below a common one. In one transaction a step touches several runs and all primitives:
it bears child runs filled with everything, changes their statuses, deletes them with all they hold, writes down in its
own run what it did, and appends to the common event log, where all agents meet. What the agent was told is its
model: at the end the database must hold that, exactly, with every index and every chain (`audit`).
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.model.public_types import RESERVED_RUN, RunId, TypeTag
from occamdb.primitives import Decision, RunStatus, Thought, ToolCall
from tests.support import crash
from tests.support.audit import audit
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    kill_coordinator,
    open_database,
    stop_coordinator,
    wait_until,
)

SETTINGS = {key: value for key, value in crash.SETTINGS.items() if key != "timeout"} | {"timeout": 60.0}
NEXT = {
    RunStatus.ACTIVE: (RunStatus.PAUSED, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.ARCHIVED),
    RunStatus.PAUSED: (RunStatus.ACTIVE, RunStatus.CANCELLED),
    RunStatus.COMPLETED: (RunStatus.ARCHIVED,),
    RunStatus.FAILED: (RunStatus.ARCHIVED,),
    RunStatus.CANCELLED: (RunStatus.ARCHIVED,),
    RunStatus.ARCHIVED: (),
}
DEATHS = [
    "commit.after_validate=kill@5",
    "commit.after_apply=kill@9",
    "wal.before_write=kill@2",
    "file.write=torn:200@3",
    "file.write=torn:3000@4",
    "wal.after_write=kill@4",
    "commit.before_publish=kill@3",
    "commit.after_publish=kill@7",
    "commit.before_reply=kill@1",
    "wal.rotate_rename=kill@1",
    "checkpoint.after_rename=kill@1",
    "checkpoint.before_remove=kill@1",
]
# The time goes into starts of coordinators, about two a death. Each death is in one share, so all of them happen.
SHARES = 3
SUCCESSORS = ["recovery.after_replay=kill", "recovery.after_cut=kill", "coordinator.attach=kill@2"]


class Agent:
    """One agent and its model: the children it must have, with their statuses."""

    def __init__(self, db: Any, common: RunId, number: int) -> None:
        self.db = db
        self.common = common
        self.number = number
        self.dice = random.Random(number)
        self.run: RunId = db.runs.create_run_with_options("agent", parent=common, tags=["agent"]).run_id
        self.children: dict[RunId, RunStatus] = {}
        self.steps = 0
        self.deleted = 0

    def step(self) -> None:
        """One transaction; the model follows once it is acknowledged."""
        n = self.steps + 1
        kind = self.dice.choice(("bear", "bear", "change", "change", "delete", "work"))
        child = self.dice.choice([RunId.new(), *self.children]) if kind != "bear" else RunId.new()
        if child not in self.children and kind != "bear":
            kind = "work"
        status = self.children.get(child)
        after = self.dice.choice(NEXT[status] or (None,)) if status else None

        def body(txn: Any) -> None:
            assert txn.kv.get("steps", 0) == n - 1
            txn.kv.put("steps", n)
            self._leave_marks(txn, n)
            if kind == "bear":
                self._bear(txn, child, n)
                txn.kv.put(f"child/{child}", RunStatus.ACTIVE.value)
            elif kind == "change" and after is not None:
                txn.runs.update_status(child, after)
                txn.for_run(child).events.append("status", {"to": after.value})
                txn.kv.put(f"child/{child}", after.value)
            elif kind == "delete":
                assert txn.runs.delete_run(child, cascade=True) == 2
                assert txn.kv.delete(f"child/{child}")
                txn.kv.increment("deleted")

        self.db.transaction(self.run, body)
        self.steps = n
        if kind == "bear":
            self.children[child] = RunStatus.ACTIVE
        elif kind == "change" and after is not None:
            self.children[child] = after
        elif kind == "delete":
            del self.children[child]
            self.deleted += 1

    def _leave_marks(self, txn: Any, n: int) -> None:
        common = txn.for_run(self.common)
        common.events.append(f"agent {self.number}", {"agent": self.number, "n": n})
        common.kv.increment("steps")
        common.cells.transition("steps", lambda state: (state.value + 1, None))
        txn.runs.update_metadata(self.run, {"steps": n})

    def _bear(self, txn: Any, child: RunId, n: int) -> None:
        txn.runs.create_run_with_options("child", parent=self.run, run_id=child, tags=["child", f"n{n % 3}"])
        grandchild = txn.runs.create_run_with_options("grandchild", parent=child).run_id
        for each in (child, grandchild):
            inside = txn.for_run(each)
            for key in range(5):
                inside.kv.put(f"key {key}", n)
            inside.events.append_many([("born", {"n": n}), ("odd", {"n": 1}), ("born", {"n": 2})])
            inside.cells.init("cell", n)
            root = inside.traces.record(ToolCall("bear", {"n": n}), tags=["root"])
            leaf = inside.traces.record_child(root, Thought("hm"), tags=["leaf", "thought"])
            inside.traces.record_child(leaf, Decision("which", ["a", "b"], "a", "because"))


def agent(peer: Peer, number: int, path: Path, common: RunId, arms: Path) -> dict[str, Any]:
    """Works until told to stop; returns its model."""
    crash.take_arms_from(arms)
    with open_database(path, **SETTINGS) as db:
        me = Agent(db, common, number)
        peer.say(me.run)
        while not peer.told():
            me.step()
    return {"run": me.run, "steps": me.steps, "deleted": me.deleted, "children": me.children}


def whole(db: Any, runs: list[RunId]) -> dict[tuple[RunId, int, bytes], Any]:
    """Every key of these runs and of the run index, with value and version, at one snapshot."""
    found = {}
    with db.begin(RESERVED_RUN, read_only=True) as txn:
        for run in [RESERVED_RUN, *runs]:
            for tag in TypeTag:
                for key, row in txn.for_run(run).space(tag, raw=True).scan():
                    found[run, int(tag), key] = (row.value, row.version)
    return found


def check_family(db: Any, common: RunId, models: list[dict[str, Any]]) -> list[RunId]:
    """Compare the database with what the agents were told; returns all runs there must be."""
    total = sum(model["steps"] for model in models)
    assert db.kv.get(common, "steps") == db.cells.read(common, "steps").value == total
    log = [event.payload for event in db.events.iterate(common)]
    assert len(log) == total
    everybody = [common]
    for number, model in enumerate(models):
        run = model["run"]
        assert [each["n"] for each in log if each["agent"] == number] == list(range(1, model["steps"] + 1))
        assert len(db.events.read_by_type(common, f"agent {number}")) == model["steps"]
        assert db.kv.get(run, "steps", 0) == model["steps"]
        assert db.kv.get(run, "deleted", 0) == model["deleted"]
        children = {each.run_id: each.status for each in db.runs.get_child_runs(run)}
        assert children == model["children"]
        written = {key.removeprefix("child/"): value for key, value in db.kv.list_with_values(run, "child/")}
        assert written == {str(child): status.value for child, status in model["children"].items()}
        everybody.append(run)
        for child in children:
            (grandchild,) = db.runs.get_child_runs(child)
            assert db.kv.count(child) == db.kv.count(grandchild.run_id) == 5
            assert db.traces.count(child) == db.traces.count(grandchild.run_id) == 3
            everybody += [child, grandchild.run_id]
    assert {each.run_id for each in db.runs.list_runs()} == set(everybody)
    for status in RunStatus:
        expected = sum(list(model["children"].values()).count(status) for model in models)
        grandchildren = sum(len(model["children"]) for model in models) if status is RunStatus.ACTIVE else 0
        others = 1 + len(models) if status is RunStatus.ACTIVE else 0
        assert db.runs.count(status=status) == expected + grandchildren + others
    audit(db, *everybody)
    return everybody


@pytest.fixture
def arms(tmp_path: Path) -> Iterator[Path]:
    """Failpoints for coordinators to come. This process too may be the one that starts the next."""
    end = crash.take_arms_from(tmp_path / "arms")
    yield tmp_path / "arms"
    end()


@pytest.mark.parametrize("seed", range(SHARES))
def test_families_survive(seed: int, tmp_path: Path, arms: Path, start: Callable[..., Worker]) -> None:
    path = tmp_path / "db"
    dice = random.Random(seed)
    deaths = [*DEATHS[seed::SHARES], ""]
    dice.shuffle(deaths)
    with open_database(path, **SETTINGS) as db:
        common = db.runs.create_run("common").run_id
        db.cells.init(common, "steps", 0)
        team = [start(agent, number, path, common, arms) for number in range(3)]
        for worker in team:
            worker.hear()
        scene = crash.Scene(crash.Plan(path, tmp_path, common), start, db)
        for death in deaths:
            _progress(db, common)
            if dice.random() < 0.3:
                crash.arm_next(arms, dice.sample(SUCCESSORS, 2))
            _die(scene, path, death)
            wait_until(lambda: not crash.arms_left(arms), what="the deaths of successors")
            _progress(db, common)
        for worker in team:
            worker.say("stop")
        models = [worker.result() for worker in team]
        everybody = check_family(db, common, models)
        assert sum(model["deleted"] for model in models) > 0
        # Two more recoveries, from the log and from the final checkpoint, bring back the same to the last version.
        before = whole(db, everybody)
        kill_coordinator(path)
        db.kv.put(RunId.new(), "k", 1)
        assert whole(db, everybody) == before
        stop_coordinator(path)
        db.kv.put(RunId.new(), "k", 1)
        assert whole(db, everybody) == before
        check_family(db, common, models)
    stop_coordinator(path)
    assert "Traceback" not in (path / "coordinator.log").read_text()


def _progress(db: Any, common: RunId) -> None:
    reached = db.kv.get(common, "steps", 0)
    wait_until(lambda: db.kv.get(common, "steps", 0) > reached + 10, what="progress")


def _die(scene: crash.Scene, path: Path, death: str) -> None:
    if not death:
        kill_coordinator(path)
        return
    name, _, action = death.partition("=")
    victim = scene.arm(name, action)
    if name.startswith("checkpoint"):
        # Those before it leave something to remove.
        while coordinator_identity(path) == victim:
            scene.checkpoint()
            _progress(scene.db, scene.plan.run)
    wait_until(lambda: coordinator_identity(path) != victim, what=f"a death at {death}")
