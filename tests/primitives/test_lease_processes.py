"""Leases and steps over the death and the stops of processes."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from occamdb import Database, ForkedHandleError, LeaseLost, RunId
from occamdb.engine.model.errors import ConflictError
from tests.support.engines import Engine, Place
from tests.support.processes import Peer, open_database, wait_until, workers

pytestmark = pytest.mark.by_default("shared")


def hold(peer: Peer, place: Place, run: RunId, name: str, options: dict[str, Any]) -> str:
    """Hold a lease until told; then commit under it."""
    with place.open() as db:
        peer.say("open")
        lease = db.leases.acquire(run, name, **options)
        peer.say(("held", lease.token, time.monotonic()))
        peer.hear()
        try:
            with db.begin(run) as txn:
                txn.leases.require(lease)
                txn.put("by", lease.token)
        except (LeaseLost, ConflictError) as error:
            return type(error).__name__
        db.leases.release(run, lease)
        return "committed"


def in_line(db: Database, run: RunId, count: int) -> None:
    wait_until(lambda: db.leases.waiting(run, "leader") == count)


def paid(db: Database, run: RunId, at_least: int) -> None:
    wait_until(lambda: (db.kv.get(run, "paid") or 0) >= at_least)


def held(worker: Any) -> tuple[int, float]:
    word, token, when = worker.hear()
    assert word == "held"
    return token, when


def test_the_lease_of_a_killed_holder_goes_to_the_next_when_its_session_ends(
    engine: Engine, place: Place, placed: Database
) -> None:
    run = RunId.new()
    with workers() as start:
        first = start(hold, place, run, "leader", {})
        assert first.hear() == "open"
        token, _ = held(first)
        second = start(hold, place, run, "leader", {})
        assert second.hear() == "open"
        in_line(placed, run, 1)
        killed = time.monotonic()
        first.kill()
        successor, when = held(second)
        assert successor > token
        assert when - killed < engine.session_ends_within
        second.say("go")
        assert second.result() == "committed"
    assert placed.get(run, "by") == successor


def test_a_killed_waiter_leaves_the_line(place: Place, placed: Database) -> None:
    run, db = RunId.new(), placed
    with workers() as start:
        with db.leases.hold(run, "leader"):
            waiting = []
            for count in range(1, 4):
                waiting.append(start(hold, place, run, "leader", {}))
                assert waiting[-1].hear() == "open"
                in_line(db, run, count)
            waiting[0].kill()
            wait_until(lambda: db.leases.waiting(run, "leader") == 2)
        token, _ = held(waiting[1])
        assert db.leases.waiting(run, "leader") == 1
        waiting[1].say("go")
        assert waiting[1].result() == "committed"
        last, _ = held(waiting[2])
        assert last > token
        waiting[2].say("go")
        assert waiting[2].result() == "committed"


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
def test_a_stopped_holder_loses_a_lease_with_a_time_limit_and_its_commit_never_lands(
    place: Place, placed: Database, isolation: Any
) -> None:
    run, db = RunId.new(), placed
    with workers() as start:
        hung = start(hold, place, run, "leader", {"lease": 1.0})
        assert hung.hear() == "open"
        token, _ = held(hung)
        hung.stop()
        lease = db.leases.acquire(run, "leader", timeout=60)
        assert lease.token > token
        with db.begin(run, isolation=isolation) as txn:
            txn.leases.require(lease)
            txn.put("by", lease.token)
        hung.say("go")
        hung.resume()
        assert hung.result() in ("LeaseLost", "ConflictError")
        assert db.get(run, "by") == lease.token
        db.leases.release(run, lease)


def compete(peer: Peer, place: Place, run: RunId, rounds: int) -> int:
    """Under the lease, count without any transaction around the read and the write."""
    with place.open() as db:
        peer.say("open")
        peer.hear()
        for _ in range(rounds):
            with db.leases.hold(run, "counter") as lease:
                count = db.get(run, "count", 0)
                tokens = db.get(run, "token", 0)
                assert tokens < lease.token
                db.put(run, "token", lease.token)
                db.put(run, "count", count + 1)
        return rounds


def test_what_is_done_under_a_lease_is_done_by_one(engine: Engine, place: Place, placed: Database) -> None:
    run, rounds = RunId.new(), engine.examples(40)
    with workers() as start:
        all_of_them = [start(compete, place, run, rounds) for _ in range(8)]
        for worker in all_of_them:
            assert worker.hear() == "open"
        for worker in all_of_them:
            worker.say("go")
        assert sum(worker.result() for worker in all_of_them) == 8 * rounds
    assert placed.get(run, "count") == 8 * rounds
    assert placed.leases.list(run) == []


# ---- steps -------------------------------------------------------------------------------------------------


def fetch(place: Place, run: RunId, peer: Peer | None) -> str:
    """A plain function: counts its calls outside the record, and may be killed before it returns."""
    with place.open() as db:
        db.kv.increment(run, "calls")
    if peer is not None:
        peer.say("in fetch")
        peer.hear()
    return "page"


def run_step(peer: Peer, place: Place, run: RunId, stays: bool) -> Any:
    with place.open() as db:
        peer.say("open")
        result = db.steps.run(run, "fetch", fetch, place, run, peer if stays else None)
        return result, time.monotonic()


def test_a_step_whose_process_was_killed_is_run_by_the_next_caller(
    engine: Engine, place: Place, placed: Database
) -> None:
    run, db = RunId.new(), placed
    with workers() as start:
        first = start(run_step, place, run, True)
        assert first.hear() == "open" and first.hear() == "in fetch"
        second = start(run_step, place, run, False)
        assert second.hear() == "open"
        step = db.steps.get(run, "fetch")
        assert step is not None and step.state == "running" and step.attempts == 1
        killed = time.monotonic()
        first.kill()
        result, when = second.result()
        assert result == "page" and when - killed < engine.session_ends_within
    assert db.kv.get(run, "calls") == 2
    step = db.steps.get(run, "fetch")
    assert step is not None and (step.state, step.attempts, step.result) == ("done", 2, "page")
    assert db.steps.run(run, "fetch", fetch, place, run, None) == "page"
    assert db.kv.get(run, "calls") == 2


def test_concurrent_callers_of_one_step_run_it_once(place: Place, placed: Database) -> None:
    run, db = RunId.new(), placed
    with workers() as start:
        first = start(run_step, place, run, True)
        assert first.hear() == "open" and first.hear() == "in fetch"
        others = [start(run_step, place, run, False) for _ in range(4)]
        for other in others:
            assert other.hear() == "open"
        first.say("go")
        assert {worker.result()[0] for worker in (first, *others)} == {"page"}
    assert db.kv.get(run, "calls") == 1


def pay(txn: Any, amount: int) -> int:
    txn.kv.increment("paid", amount)
    txn.events.append("paid", {"amount": amount})
    return amount


def pay_forever(peer: Peer, place: Place, run: RunId) -> None:
    """Run the steps of one pipeline over and over until killed."""
    with place.open() as db:
        peer.say("open")
        number = 0
        while True:
            db.steps.run(run, f"pay {number}", pay, 1)
            number += 1


def test_effects_of_a_step_in_a_transaction_happen_once_over_kills(place: Place, placed: Database) -> None:
    run, db = RunId.new(), placed
    with workers() as start:
        for round_ in range(1, 13):
            payers = [start(pay_forever, place, run) for _ in range(2)]
            for payer in payers:
                assert payer.hear() == "open"
            paid(db, run, 20 * round_)
            for payer in payers:
                payer.kill()
    steps = db.steps.list(run)
    assert all(step.state == "done" and step.attempts == 1 for step in steps)
    assert db.kv.get(run, "paid") == db.events.len(run) == len(steps) >= 240


def test_a_forked_child_that_leaves_a_step_does_not_end_its_parents_claim(
    database_path: Path, run: RunId
) -> None:
    """It returns from the function, raises, or ends as by `sys.exit`; the parent's call goes on."""
    with open_database(database_path) as db:
        outcomes: list[int] = []

        def forking(way: str) -> str:
            child = os.fork()
            if child:
                outcomes.append(os.waitpid(child, 0)[1])
                return "the parent's"
            if way == "raise":
                raise OSError("in the child")
            if way == "exit":
                raise SystemExit(3)
            return "the child's"

        for way in ("return", "raise", "exit"):
            parent = os.getpid()
            try:
                assert db.steps.run(run, way, forking, way) == "the parent's"
            except BaseException as error:
                if os.getpid() == parent:
                    raise
                os._exit(0 if isinstance(error, ForkedHandleError | SystemExit) else 1)
            finally:
                if os.getpid() != parent:
                    os._exit(2)
            step = db.steps.get(run, way)
            assert step is not None and (step.state, step.result, step.attempts) == (
                "done",
                "the parent's",
                1,
            )
        assert outcomes == [0, 0, 0]
