"""Tasks against a plain model: puts, claims by several sessions, every end of a claim, time, sessions that go."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from occamdb import InvalidTransition, LeaseLost, RunId, Task, TypeTag
from occamdb.primitives.task_auditor import audit_tasks
from tests.support.databases import own_engine
from tests.support.engines import Engine
from tests.support.processes import wait_until

SESSIONS = 3
QUEUE = "q"
# Seconds; time is stepped by much less, or more, than the test itself takes.
SPANS = st.sampled_from([100.0, 1000.0])
STEPS = st.sampled_from([150.0, 1500.0])

# The tests step its clock.
engine = own_engine


@dataclass
class Entry:
    """What the model knows of a task."""

    number: int  # counts puts
    priority: int
    most: int
    state: str = "ready"
    attempts: int = 0
    claims: int = 0
    until: float = 0.0
    holder: int = -1

    def comes_to(self, now: float) -> None:
        """Let time pass."""
        if self.state == "claimed" and self.until <= now:
            self.gives_up()
        elif self.state == "delayed" and self.until <= now:
            self.state = "ready"

    def gives_up(self) -> None:
        """The claim is over, by nobody's wish."""
        self.state = "ready" if self.attempts < self.most else "dead"


class TaskMachine(RuleBasedStateMachine):
    """The model is a list of entries, and a clock."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.run = RunId.new()
        self.handles: list[Any] = [engine.fresh()]
        if engine.has_sessions:
            self.handles += [engine.again(self.handles[0]) for _ in range(1, SESSIONS)]
        self.tasks: dict[str, Entry] = {}
        self.puts = 0
        self.held: list[tuple[Task, int]] = []  # every claim ever made, with the model's number of it
        self.now = 0.0
        self.began = engine.expiry_clock(self.handles[0])

    def teardown(self) -> None:
        try:
            self.compare()
            with self.handles[0].begin(self.run, read_only=True) as txn:
                assert list(audit_tasks(txn.space(TypeTag.TASK, raw=True))) == []
        finally:
            for handle in reversed(self.handles):
                self.engine.discard(handle)

    def compare(self) -> None:
        """The states of all tasks, and what a listing says of them."""
        wanted = {task_id: (entry.state, entry.attempts) for task_id, entry in self.tasks.items()}

        def agree() -> bool:
            self.engine.step_clock(self.handles[0], self.began + int(self.now * 1e9))
            found = self.handles[0].tasks.list(self.run, QUEUE, limit=None)
            return {task.id: (str(task.state), task.attempts) for task in found} == wanted

        # The engine applies what time, and the ends of sessions, did within moments.
        wait_until(agree, what=f"{wanted}")
        stats = self.handles[0].tasks.stats(self.run, QUEUE)
        states = [entry.state for entry in self.tasks.values()]
        assert {name: getattr(stats, name) for name in ("ready", "delayed", "claimed", "done", "dead")} == {
            name: states.count(name) for name in ("ready", "delayed", "claimed", "done", "dead")
        }

    @rule(
        priority=st.integers(-1, 1),
        delay=st.just(0.0) | SPANS,
        most=st.integers(1, 3),
        count=st.integers(1, 3),
        data=st.data(),
    )
    def put(self, priority: int, delay: float, most: int, count: int, data: Any) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        options = {"priority": priority, "delay": delay, "max_attempts": most}
        for task in handle.tasks.put_many(self.run, QUEUE, range(count), **options):
            state = "delayed" if delay else "ready"
            self.tasks[task.id] = Entry(self.puts, priority, most, state, until=self.now + delay)
            self.puts += 1

    @rule(session=st.integers(0, SESSIONS - 1), lease=SPANS, inside=st.booleans())
    def claim(self, session: int, lease: float, inside: bool) -> None:
        session %= len(self.handles)
        self.compare()
        ready = [
            (-entry.priority, entry.number, key)
            for key, entry in self.tasks.items()
            if entry.state == "ready"
        ]
        handle = self.handles[session]
        if inside:
            task = handle.transaction(self.run, lambda txn: txn.tasks.claim(QUEUE, lease=lease))
        else:
            task = handle.tasks.claim(self.run, QUEUE, lease=lease)
        assert (task and task.id) == (min(ready)[2] if ready else None)
        if task is not None:
            entry = self.tasks[task.id]
            entry.state, entry.holder, entry.until = "claimed", session, self.now + lease
            entry.attempts, entry.claims = entry.attempts + 1, entry.claims + 1
            assert task.attempts == entry.attempts
            self.held.append((task, entry.claims))

    @precondition(lambda self: self.held)
    @rule(
        what=st.sampled_from(["complete", "complete", "fail", "later", "give up", "release", "extend"]),
        data=st.data(),
    )
    def end(self, what: str, data: Any) -> None:
        task, number = data.draw(st.sampled_from(self.held[-4:]))
        handle = self.handles[data.draw(st.integers(0, len(self.handles) - 1))]
        entry = self.tasks[task.id]
        self.compare()
        calls = {
            "complete": lambda: handle.tasks.complete(self.run, task, number),
            "fail": lambda: handle.tasks.fail(self.run, task, "error"),
            "later": lambda: handle.tasks.fail(self.run, task, "error", delay=100),
            "give up": lambda: handle.tasks.fail(self.run, task, "error", retry=False),
            "release": lambda: handle.tasks.release(self.run, task),
            "extend": lambda: handle.tasks.extend(self.run, task, 100),
        }
        if entry.state != "claimed" or entry.claims != number:
            with pytest.raises((LeaseLost, InvalidTransition)):
                calls[what]()
            return
        calls[what]()
        if what == "complete":
            entry.state = "done"
        elif what == "extend":
            entry.until, entry.holder = self.now + 100, self.handles.index(handle)
        elif what == "release":
            entry.state, entry.attempts = "ready", entry.attempts - 1
        elif what == "give up" or entry.attempts >= entry.most:
            entry.state = "dead"
        else:
            entry.state, entry.until = ("delayed", self.now + 100) if what == "later" else ("ready", 0.0)

    @rule(seconds=STEPS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for entry in self.tasks.values():
            entry.comes_to(self.now)
        self.compare()

    @precondition(lambda self: self.engine.has_sessions)
    @rule(session=st.integers(1, SESSIONS - 1))
    def a_session_ends(self, session: int) -> None:
        self.handles[session].close()
        for entry in self.tasks.values():
            if entry.state == "claimed" and entry.holder == session:
                entry.gives_up()
        self.handles[session] = self.engine.again(self.handles[0])
        self.compare()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def requeue(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.tasks)))
        entry = self.tasks[key]
        self.compare()
        if entry.state == "claimed":
            with pytest.raises(InvalidTransition):
                self.handles[0].tasks.requeue(self.run, key)
            return
        self.handles[0].tasks.requeue(self.run, key)
        entry.state, entry.attempts = "ready", 0

    @rule(state=st.sampled_from(["done", "dead", "ready", "delayed"]))
    def purge(self, state: str) -> None:
        self.compare()
        gone = [key for key, entry in self.tasks.items() if entry.state == state]
        assert self.handles[0].tasks.purge(self.run, QUEUE, state=state) == len(gone)
        for key in gone:
            del self.tasks[key]
        self.held = [(task, number) for task, number in self.held if task.id in self.tasks]


def test_tasks_agree_with_the_model(engine: Engine) -> None:
    made: Any = functools.partial(TaskMachine, engine)
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=engine.examples(20),
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        ),
    )
