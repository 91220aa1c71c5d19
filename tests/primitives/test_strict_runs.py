"""`open(..., strict_runs=True)`: a commit writes to runs that are active in the index, and to no others."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import ConflictError, RunId, RunNotActive, RunStatus, Thought
from occamdb.engine.model.public_types import RESERVED_RUN, TypeTag
from occamdb.primitives import layout
from occamdb.primitives.run_rule import ActiveRuns
from tests.support.engines import Engine
from tests.support.processes import Peer, Worker


@pytest.fixture
def strict(db: Any) -> Any:
    """The same engine as `db`, through a handle that is strict about runs."""
    return type(db)(db.handle, db.isolation, db.current_namespace, db.codec, ActiveRuns())


WRITES: dict[str, Callable[[Any, RunId], Any]] = {
    "put": lambda db, run: db.put(run, "k", 1),
    "delete": lambda db, run: db.delete(run, "k"),
    "cas": lambda db, run: db.cas(run, "new", 0, 1),
    "increment": lambda db, run: db.increment(run, "n"),
    "kv.put": lambda db, run: db.kv.put(run, "k", 1),
    "kv.put with ttl": lambda db, run: db.kv.put(run, "k", 1, ttl=60),
    "kv.delete_many": lambda db, run: db.kv.delete_many(run, ["k"]),
    "kv.put_many": lambda db, run: db.kv.put_many(run, {"a": 1, "b": 2}),
    "kv.put_if_absent": lambda db, run: db.kv.put_if_absent(run, "absent", 1),
    "kv.increment": lambda db, run: db.kv.increment(run, "n"),
    "kv.mapping": lambda db, run: db.kv.mapping(run).update(a=1),
    "kv.transaction": lambda db, run: db.kv.transaction(run, lambda kv: kv.put("k", 1)),
    "range": lambda db, run: db.space(run, 1).delete_range("k"),
    "events.append": lambda db, run: db.events.append(run, "e", {}),
    "cells.init": lambda db, run: db.cells.init(run, "c", 1),
    "cells.set": lambda db, run: db.cells.set(run, "c", 1),
    "traces.record": lambda db, run: db.traces.record(run, Thought("t")),
    "begin": lambda db, run: commit(db.begin(run)),
    "snapshot isolation": lambda db, run: commit(db.begin(run, isolation="snapshot")),
    "transaction": lambda db, run: db.transaction(run, lambda txn: txn.put("k", 1)),
    "cas inside": lambda db, run: db.transaction(run, lambda txn: txn.cas("new", 0, 1)),
    "from another run": lambda db, run: db.transaction(
        db.runs.create_run("other"), lambda txn: txn.for_run(run).put("k", 1)
    ),
}


def commit(txn: Any) -> None:
    with txn:
        txn.put("k", 1)


def contents(db: Any, run: RunId) -> list[Any]:
    return [[*db.space(run, tag, raw=True).scan()] for tag in (1, 2, 3, 4)]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("status", ["absent", "completed", "failed", "paused", "cancelled", "archived"])
def test_writes_to_a_run_that_is_not_active_are_refused(
    db: Any, strict: Any, write: str, status: str
) -> None:
    run = RunId.new() if status == "absent" else db.runs.create_run("r").run_id
    db.kv.put(run, "k", 0)
    if status != "absent":
        db.runs.update_status(run, status)
    before = contents(db, run)
    with pytest.raises(RunNotActive) as caught:
        WRITES[write](strict, run)
    assert caught.value.run_id == run
    assert caught.value.status == (None if status == "absent" else status)
    assert status == "absent" or status in caught.value.message
    assert contents(db, run) == before
    assert pickle.loads(pickle.dumps(caught.value)).details == caught.value.details


@pytest.mark.parametrize("write", WRITES)
def test_writes_to_an_active_run_go_through(db: Any, strict: Any, write: str) -> None:
    run = strict.runs.create_run("r").run_id
    strict.kv.put(run, "k", 0)
    before = contents(db, run)
    WRITES[write](strict, run)
    assert contents(db, run) != before or write in ("kv.put_if_absent",)


def test_the_hint_names_the_way_out(db: Any, strict: Any) -> None:
    run = db.runs.create_run("r").run_id
    db.runs.pause_run(run)
    with pytest.raises(RunNotActive, match="resume_run"):
        strict.put(run, "k", 1)
    strict.runs.resume_run(run)
    strict.put(run, "k", 1)
    strict.runs.complete_run(run)
    with pytest.raises(RunNotActive, match="create a new run"):
        strict.put(run, "k", 1)
    with pytest.raises(RunNotActive, match="create_run"):
        strict.put(RunId.new(), "k", 1)


def test_one_commit_may_create_resume_or_complete_the_run_it_writes_to(strict: Any) -> None:
    run = RunId.new()

    def create(txn: Any) -> None:
        txn.runs.create_run("new", run_id=run)
        txn.put("k", 1)

    strict.transaction(run, create)

    def complete(txn: Any) -> None:
        txn.put("k", 2)
        txn.runs.pause_run(run)

    strict.transaction(run, complete)

    def resume(txn: Any) -> None:
        txn.runs.resume_run(run)
        txn.put("k", 3)

    strict.transaction(run, resume)
    assert strict.get(run, "k") == 3
    strict.runs.complete_run(run)
    with pytest.raises(RunNotActive):
        strict.put(run, "k", 4)


def test_the_index_itself_takes_changes_of_runs_in_any_state(strict: Any) -> None:
    run = strict.runs.create_run("r").run_id
    strict.runs.complete_run(run)
    strict.runs.add_tags(run, ["late"])
    strict.runs.update_metadata(run, {"a": 1})
    strict.runs.archive_run(run)
    with strict.runs.start("child", parent=run) as child:
        strict.put(child, "k", 1)
    assert strict.runs.get_run(child.run_id).status is RunStatus.COMPLETED


def test_deleting_a_run_is_allowed_and_writing_after_that_is_not(db: Any, strict: Any) -> None:
    run = strict.runs.create_run("r").run_id
    strict.put(run, "k", 1)
    strict.runs.complete_run(run)
    assert strict.runs.delete_run(run) == 1
    assert strict.get(run, "k") is None
    stray = RunId.new()
    db.put(stray, "k", 1)
    assert strict.runs.delete_run(stray) == 0
    assert strict.get(stray, "k") is None
    run = strict.runs.create_run("r").run_id

    def delete_and_write(txn: Any) -> None:
        txn.runs.delete_run(run)
        txn.put("k", 1)

    with pytest.raises(RunNotActive, match="deleted by the transaction"):
        strict.transaction(run, delete_and_write)
    assert strict.runs.get_run(run) is not None


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
@pytest.mark.parametrize("end", ["complete_run", "delete_run", "archive_run"])
def test_a_run_that_ends_while_a_transaction_is_open_makes_its_commit_fail(
    db: Any, strict: Any, isolation: str, end: str
) -> None:
    run = strict.runs.create_run("r").run_id
    txn = strict.begin(run, isolation=isolation)
    txn.put("new key", 1)
    txn.events.append("late", {})
    getattr(db.runs, end)(run)
    with pytest.raises(RunNotActive) as caught:
        txn.commit()
    assert isinstance(caught.value.__cause__, ConflictError)
    assert txn.status is occamdb.TransactionStatus.ABORTED
    assert contents(db, run) == [[], [], [], []]


def test_a_change_of_the_record_that_leaves_the_run_active_is_a_conflict_that_is_retried(strict: Any) -> None:
    run = strict.runs.create_run("r").run_id
    tries = []

    def fn(txn: Any) -> None:
        tries.append(txn.start_version)
        txn.put("k", 1)
        if len(tries) == 1:
            thread = threading.Thread(target=strict.runs.add_tags, args=(run, ["t"]))
            thread.start()
            thread.join()

    strict.transaction(run, fn)
    assert len(tries) == 2
    assert strict.get(run, "k") == 1


def test_blind_writes_look_again_when_the_record_changed(engine: Engine, strict: Any) -> None:
    """Increments against a thread that changes the record all the time: none is lost, none conflicts."""
    run = strict.runs.create_run("r").run_id
    done = threading.Event()

    def disturb() -> None:
        turn = 0
        while not done.is_set():
            strict.runs.update_metadata(run, {"turn": turn})
            turn += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(engine.examples(200)):
            strict.increment(run, "n")
            strict.put(run, "k", 1)
    finally:
        done.set()
        thread.join()
    assert strict.get(run, "n") == engine.examples(200)


def test_a_cas_that_fails_says_so(strict: Any) -> None:
    run = strict.runs.create_run("r").run_id
    version = strict.put(run, "k", 1)
    with pytest.raises(occamdb.CASConflict):
        strict.cas(run, "k", version + 1, 2)


def test_it_goes_with_the_handle(strict: Any, db: Any) -> None:
    other = strict.namespace(agent="strict")
    with pytest.raises(RunNotActive):
        other.put(RunId.new(), "k", 1)
    run = other.runs.create_run("r").run_id
    other.put(run, "k", 1)
    with pytest.raises(RunNotActive):
        strict.put(run, "k", 1)  # active in another namespace
    db.put(RunId.new(), "k", 1)


def test_open_and_open_in_memory_take_it(database_path: Path) -> None:
    with occamdb.open_in_memory(strict_runs=True, max_store_size="16MiB") as db:
        with pytest.raises(RunNotActive):
            db.put(RunId.new(), "k", 1)
    with occamdb.open(database_path, strict_runs=True, idle_timeout=0.2) as db:
        with pytest.raises(RunNotActive):
            db.put(RunId.new(), "k", 1)
        assert "strict_runs=True" in repr(db)
        with pickle.loads(pickle.dumps(db)) as copy, pytest.raises(RunNotActive):
            copy.put(RunId.new(), "k", 1)


def write_until_refused(peer: Peer, path: str, run: RunId, kind: str) -> dict[str, Any]:
    """Write to a run until it is refused; how many writes were acknowledged."""
    db = occamdb.open(path, strict_runs=True, idle_timeout=0.2)
    writes: dict[str, Callable[[int], Any]] = {
        "blind": lambda n: db.put(run, f"{os.getpid()}/{n}", n),
        "transaction": lambda n: db.transaction(run, lambda txn: txn.put(f"{os.getpid()}/{n}", n)),
        "event": lambda n: db.events.append(run, "e", {"writer": os.getpid()}),
    }
    count = 0
    try:
        while True:
            writes[kind](count)
            count += 1
            if count == 5:
                peer.say("writing")
    except RunNotActive as error:
        return {"count": count, "status": error.status}
    finally:
        db.close()


@pytest.mark.parametrize("kind", ["blind", "transaction", "event"])
def test_no_write_of_any_process_comes_after_the_commit_that_completed_the_run(
    database_path: Path, start: Callable[..., Worker], kind: str
) -> None:
    with occamdb.open(database_path, idle_timeout=0.2) as db:
        run = db.runs.create_run("r").run_id
        workers = [start(write_until_refused, str(database_path), run, kind) for _ in range(3)]
        for worker in workers:
            assert worker.hear() == "writing"
        db.runs.complete_run(run)
        record = db.space(RESERVED_RUN, TypeTag.RUN, raw=True).get_versioned(layout.run(run.bytes))
        results = [worker.result() for worker in workers]
        assert {result["status"] for result in results} == {"completed"}
        acknowledged = sum(result["count"] for result in results)
        stored = db.events.len(run) if kind == "event" else db.kv.count(run)
        assert stored == acknowledged
        assert record is not None
        for tag in (TypeTag.KV, TypeTag.EVENT):
            assert all(row.version < record.version for _, row in db.space(run, tag, raw=True).scan())
