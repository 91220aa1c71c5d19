"""Handles that open, bind keys, close and die, and coordinators that are killed and stopped, against the promise.

The model is the promise in plain Python: a key is bound to the handle that put it last with `ephemeral`, or to nobody;
a handle that closes or whose process dies takes its keys with it; nothing else does.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from occamdb import RunId
from tests.support.processes import (
    Peer,
    Worker,
    kill_coordinator,
    open_database,
    stop_coordinator,
    wait_until,
)

KEYS = st.sampled_from("abcd")
WHICH = st.integers(0, 7)
RUN = RunId.named("the machine")


def obey(peer: Peer, path: Path) -> None:
    """A handle in a process of its own: does what it hears and says when it is done."""
    db = open_database(path)
    peer.say(db.session)
    while (order := peer.hear()) != "close":
        kind, key = order
        match kind:
            case "bind":
                db.put(RUN, key, 1, ephemeral=True)
            case "put":
                db.put(RUN, key, 1)
            case "add":
                db.increment(RUN, key)
            case "delete":
                db.delete(RUN, key)
        peer.say("done")
    db.close()
    peer.say("done")


class Sessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "db"
        self.db = open_database(self.path, session_grace=0.5)
        self.owners: dict[int, Worker] = {}  # by session
        self.model: dict[str, int] = {}  # key -> session, 0 unbound

    def teardown(self) -> None:
        for worker in self.owners.values():
            worker.close()
        self.db.close()
        stop_coordinator(self.path)
        self.folder.cleanup()

    def owner(self, which: int) -> tuple[int, Worker]:
        session = sorted(self.owners)[which % len(self.owners)]
        return session, self.owners[session]

    def ends(self, session: int) -> None:
        for key in [key for key, owner in self.model.items() if owner == session]:
            del self.model[key]
        self.agrees()

    def agrees(self) -> None:
        """What is there is what the model says, soon."""

        def found() -> dict[str, int]:
            return {key: row.session for key, row in self.db.scan(RUN)}

        wait_until(lambda: found() == self.model, what=f"the model's state {self.model}")

    @precondition(lambda self: len(self.owners) < 3)
    @rule()
    def open(self) -> None:
        worker = Worker(obey, self.path)
        self.owners[worker.hear()] = worker

    @precondition(lambda self: self.owners)
    @rule(which=WHICH, kind=st.sampled_from(["bind", "bind", "put", "add", "delete"]), key=KEYS)
    def write(self, which: int, kind: str, key: str) -> None:
        session, worker = self.owner(which)
        worker.say((kind, key))
        worker.hear()
        match kind:
            case "bind":
                self.model[key] = session
            case "put":
                self.model[key] = 0
            case "add":
                self.model.setdefault(key, 0)
            case "delete":
                self.model.pop(key, None)
        self.agrees()

    @precondition(lambda self: self.owners)
    @rule(which=WHICH)
    def close(self, which: int) -> None:
        session, worker = self.owner(which)
        worker.say("close")
        worker.hear()
        del self.owners[session]
        self.ends(session)
        worker.close()

    @precondition(lambda self: self.owners)
    @rule(which=WHICH)
    def die(self, which: int) -> None:
        session, worker = self.owner(which)
        worker.kill()
        del self.owners[session]
        self.ends(session)
        worker.close()

    @rule(how=st.sampled_from([kill_coordinator, stop_coordinator]))
    def restart(self, how: Any) -> None:
        how(self.path)
        self.db.put(RUN, "restarts", 1)
        self.model["restarts"] = 0
        self.agrees()

    @precondition(lambda self: self.owners)
    @rule(which=WHICH)
    def die_during_a_restart(self, which: int) -> None:
        session, worker = self.owner(which)
        kill_coordinator(self.path)
        worker.kill()
        del self.owners[session]
        self.db.put(RUN, "restarts", 1)
        self.model["restarts"] = 0
        self.ends(session)
        worker.close()


def test_the_keys_of_a_handle_live_as_long_as_it_does() -> None:
    run_state_machine_as_test(
        Sessions, settings=settings(max_examples=3, stateful_step_count=14, deadline=None)
    )
