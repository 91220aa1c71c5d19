"""A claim that is interrupted: the task is not left claimed by somebody who does not know of it."""

import threading
from pathlib import Path

from occamdb import Database, RunId, TaskState
from tests.support.at_line import COMMIT_FILES, AtLine, interrupt
from tests.support.databases import memory_database
from tests.support.processes import open_database, stop_coordinator, wait_until

FILES = (*COMMIT_FILES, "engine/transaction/attempts.py", "engine/transaction/database.py")


def claim_interrupted_everywhere(db: Database, run: RunId, timeout: float, *, delay: float = 0) -> int:
    """Claim again and again, interrupted one line later each time, until a claim gets through; how many did not."""
    number = 1
    while True:
        task = db.tasks.put(run, "q", number, delay=delay)
        wait_until(lambda: _state(db, run, task.id) is TaskState.READY, what="the end of the delay")  # noqa: B023
        claimed = None
        with AtLine(number, interrupt, FILES) as at:
            try:
                claimed = db.tasks.claim(run, "q", lease=600, timeout=timeout)
            except KeyboardInterrupt:
                assert at.reached
        if claimed is None:
            wait_until(lambda: _state(db, run, task.id) is TaskState.READY, what="the task given back")  # noqa: B023
            claimed = db.tasks.claim(run, "q")
        assert claimed is not None and claimed.id == task.id
        assert claimed.attempts == 1, "a claim that was given back was no attempt"
        db.tasks.complete(run, claimed)
        if not at.reached:
            return number - 1
        number += 1


def _state(db: Database, run: RunId, task: str) -> TaskState:
    found = db.tasks.get(run, task)
    assert found is not None
    return found.state


def test_interrupted_in_memory(run: RunId) -> None:
    with memory_database() as db:
        assert claim_interrupted_everywhere(db, run, 0) >= 8


def test_interrupted_at_every_line(tmp_path: Path, run: RunId) -> None:
    path = tmp_path / "db"
    with open_database(path) as db:
        assert claim_interrupted_everywhere(db, run, 0) >= 10
        assert claim_interrupted_everywhere(db, run, 5) >= 10
        assert claim_interrupted_everywhere(db, run, 0, delay=0.001) >= 10
    stop_coordinator(path)


def test_the_task_of_another_thread_is_left_alone(run: RunId) -> None:
    """It lost to a thread of the same database, and is interrupted afterwards."""
    with memory_database() as db:
        task = db.tasks.put(run, "q")
        others = []

        def lose() -> None:
            thread = threading.Thread(target=lambda: others.append(db.tasks.claim(run, "q", lease=600)))
            thread.start()
            thread.join()

        number = 1
        while True:
            with AtLine(number, lose if not others else interrupt, FILES) as at:
                try:
                    mine = db.tasks.claim(run, "q")
                except KeyboardInterrupt:
                    mine = None
            assert at.reached
            if others:
                break
            number += 1
        assert mine is None and others[0] is not None
        assert _state(db, run, task.id) is TaskState.CLAIMED
        db.tasks.complete(run, others[0])
