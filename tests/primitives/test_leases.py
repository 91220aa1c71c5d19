"""Leases: one holder, a line in order of arrival, fencing. What death and stops do is in test_lease_processes.py."""

import functools
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any

import pytest

from occamdb import Lease, LeaseLost, TransactionTimeout
from occamdb.engine.model.errors import (
    ConflictError,
    InvalidArgumentError,
    ReadOnlyError,
    TransactionStateError,
)
from occamdb.engine.model.public_types import RunId
from occamdb.primitives.wrong_calls import WrongCallError
from tests.support.processes import wait_until


class Waiter:
    """A thread that acquires a lease, tells the order in which it came, and holds it until told."""

    def __init__(self, db: Any, run: RunId, served: list[Any], name: str = "leader", **options: Any) -> None:
        self.go = threading.Event()
        self.served = served
        self.error: BaseException | None = None

        def body() -> None:
            try:
                with db.leases.hold(run, name, **options) as lease:
                    served.append(lease)
                    assert self.go.wait(60)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=body)
        self.thread.start()

    def end(self) -> None:
        self.go.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def in_line(db: Any, run: RunId, count: int) -> None:
    """Wait until so many wait."""
    wait_until(lambda: db.leases.waiting(run, "leader") == count)


def in_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises in another thread."""
    found: list[Any] = []

    def body() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(60)
    return found[0]


def test_a_lease_has_one_holder(db: Any, run: RunId) -> None:
    with db.leases.hold(run, "leader") as lease:
        assert (lease.name, lease.slot, lease.slots, lease.run_id) == ("leader", 0, 1, run)
        (holder,) = db.leases.holders(run, "leader")
        assert holder.token == lease.token and holder.expires_at is None
        assert db.leases.is_held(run, lease)
        refused = in_thread(lambda: db.leases.acquire(run, "leader", timeout=0))
        assert isinstance(refused, TransactionTimeout) and "leader" in refused.message
        assert refused.hint and refused.details["pids"] == [holder.pid]
    assert db.leases.holders(run, "leader") == [] and not db.leases.is_held(run, lease)


def test_tokens_only_grow(db: Any, run: RunId) -> None:
    tokens = []
    for _ in range(5):
        with db.leases.hold(run, "leader") as lease:
            tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


def test_waiters_are_served_in_order_of_arrival(db: Any, run: RunId) -> None:
    served: list[Lease] = []
    waiters = []
    with db.leases.hold(run, "leader"):
        for count in range(1, 6):
            waiters.append(Waiter(db, run, []))
            in_line(db, run, count)
        assert not any(waiter.served for waiter in waiters)
    for position, waiter in enumerate(waiters):
        wait_until(functools.partial(len, waiter.served), what="its turn")
        assert [len(other.served) for other in waiters] == [1] * (position + 1) + [0] * (4 - position)
        served += waiter.served
        waiter.end()
    assert [lease.token for lease in served] == sorted(lease.token for lease in served)
    assert db.leases.waiting(run, "leader") == 0


def test_who_comes_while_others_wait_does_not_overtake(db: Any, run: RunId) -> None:
    served: list[Lease] = []
    lease = db.leases.acquire(run, "leader")
    waiter = Waiter(db, run, served)
    in_line(db, run, 1)
    db.leases.release(run, lease)
    refused = in_thread(lambda: db.leases.acquire(run, "leader", timeout=0))
    assert isinstance(refused, TransactionTimeout)
    wait_until(lambda: served)
    waiter.end()


def test_a_waiter_whose_time_is_over_leaves_the_line(db: Any, run: RunId) -> None:
    served: list[Lease] = []
    with db.leases.hold(run, "leader"):
        first = Waiter(db, run, served, timeout=0.2)
        in_line(db, run, 1)
        second = Waiter(db, run, served)
        first.end()
        assert isinstance(first.error, TransactionTimeout)
        assert db.leases.waiting(run, "leader") == 1 and not served
    wait_until(lambda: served)
    second.end()
    assert second.error is None


def test_slots_make_a_semaphore(db: Any, run: RunId) -> None:
    served: list[Lease] = []
    waiters = [Waiter(db, run, served, "gpu", slots=3) for _ in range(5)]
    wait_until(lambda: len(served) == 3 and db.leases.waiting(run, "gpu") == 2)
    assert sorted(lease.slot for lease in served) == [0, 1, 2]
    for waiter in waiters:
        waiter.go.set()
    for waiter in waiters:
        waiter.end()
        assert waiter.error is None
    assert len(served) == 5 and db.leases.list(run) == []


def test_all_name_the_same_number_of_slots(db: Any, run: RunId) -> None:
    with db.leases.hold(run, "gpu", slots=3):
        refused = in_thread(lambda: db.leases.acquire(run, "gpu", slots=2))
        assert isinstance(refused, InvalidArgumentError) and "slots=3" in refused.message and refused.hint


def test_a_nested_hold_is_an_error_and_not_a_deadlock(db: Any, run: RunId) -> None:
    with db.leases.hold(run, "leader") as lease:
        with pytest.raises(TransactionStateError, match="wait for itself") as caught:
            db.leases.acquire(run, "leader")
        assert caught.value.hint and caught.value.details["token"] == lease.token
        with db.leases.hold(run, "other"):
            pass
    lease = db.leases.acquire(run, "leader")
    db.leases.release(run, lease)
    with db.leases.hold(run, "leader"):
        pass


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
def test_a_commit_of_a_former_holder_does_not_land(db: Any, run: RunId, isolation: Any) -> None:
    lease = db.leases.acquire(run, "leader")
    txn = db.begin(run, isolation=isolation)
    txn.leases.require(lease)
    txn.put("plan", "late")
    db.leases.release(run, lease)
    with db.leases.hold(run, "leader") as other:
        with pytest.raises(ConflictError):
            txn.commit()
        with pytest.raises(LeaseLost) as caught, db.begin(run, isolation=isolation) as again:
            again.leases.require(lease)
        assert (caught.value.name, caught.value.token) == ("leader", lease.token) and caught.value.hint
        with db.begin(run, isolation=isolation) as fenced:
            fenced.leases.require(other)
            fenced.put("plan", "on time")
    assert db.get(run, "plan") == "on time"


def test_a_lease_can_be_given_back_by_the_commit(db: Any, run: RunId) -> None:
    lease = db.leases.acquire(run, "leader")
    with db.begin(run) as txn:
        txn.put("result", 1)
        txn.leases.release(lease)
    assert db.leases.holders(run, "leader") == []
    with pytest.raises(LeaseLost):
        db.leases.release(run, lease)


def test_a_copy_of_a_lease_fences_as_well(db: Any, run: RunId) -> None:
    with db.leases.hold(run, "leader") as lease:
        copy = pickle.loads(pickle.dumps(lease))
        assert copy == lease
        with db.begin(run) as txn:
            txn.leases.require(copy)
            txn.put("a", 1)


def test_a_lease_with_a_time_limit_runs_out(db: Any, run: RunId) -> None:
    lease = db.leases.acquire(run, "leader", lease=0.05)
    other = in_thread(lambda: db.leases.acquire(run, "leader", timeout=30))
    assert isinstance(other, Lease) and other.token > lease.token
    with pytest.raises(LeaseLost):
        db.leases.extend(run, lease, 5)


def test_extending_keeps_the_token(db: Any, run: RunId) -> None:
    with db.leases.hold(run, "leader", lease=30) as lease:
        (before,) = db.leases.holders(run, "leader")
        db.leases.extend(run, lease, 600)
        (after,) = db.leases.holders(run, "leader")
        assert before.token == after.token == lease.token
        assert after.expires_at > before.expires_at
        db.leases.require(run, lease)


def test_the_end_of_a_block_says_that_the_lease_was_lost(db: Any, run: RunId) -> None:
    with pytest.raises(LeaseLost), db.leases.hold(run, "leader") as lease:
        db.leases.release(run, lease)
    with pytest.raises(KeyError), db.leases.hold(run, "leader") as lease:
        db.leases.release(run, lease)
        raise KeyError("the body's own error comes first")


def test_leases_go_with_their_run(db: Any) -> None:
    run = db.runs.create_run("short").run_id
    lease = db.leases.acquire(run, "leader")
    db.runs.delete_run(run)
    assert db.leases.list(run) == [] and not db.leases.is_held(run, lease)


def test_runs_and_names_are_apart(db: Any, run: RunId) -> None:
    other = RunId.new()
    with db.leases.hold(run, "a") as lease, db.leases.hold(other, "a"), db.leases.hold(run, "ab"):
        assert [holder.name for holder in db.leases.list(run)] == ["a", "ab"]
        with pytest.raises(InvalidArgumentError, match="run"):
            db.leases.require(other, lease)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"slots": 0}, "slots"),
        ({"slots": True}, "slots"),
        ({"lease": -1}, "lease"),
        ({"lease": 0}, "lease"),
        ({"lease": "x"}, "lease"),
        ({"timeout": -1}, "timeout"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
    ],
)
def test_bad_arguments(db: Any, run: RunId, arguments: Any, word: str) -> None:
    call = {"name": "leader", **arguments}
    with pytest.raises(InvalidArgumentError, match=word) as caught:
        db.leases.acquire(run, **call)
    assert caught.value.hint
    assert db.leases.list(run) == [] and db.leases.waiting(run, "leader") == 0


def test_what_does_not_work_inside(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        for call in (txn.leases.hold, txn.leases.acquire):
            with pytest.raises(InvalidArgumentError, match="outside"):
                call(run, "leader")
        with pytest.raises(InvalidArgumentError, match="Lease"):
            txn.leases.require("leader")


def test_a_snapshot_shows_holders(db: Any, run: RunId) -> None:
    with db.leases.hold(run, "leader") as lease, db.snapshot(run) as view:
        assert [holder.token for holder in view.leases.holders("leader")] == [lease.token]
        with pytest.raises(ReadOnlyError):
            view.leases.release(lease)


def test_an_interrupted_wait_leaves_nothing_behind(db: Any, run: RunId, monkeypatch: Any) -> None:
    from occamdb.primitives import lease_acquisition as module

    with db.leases.hold(run, "leader"):

        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        def waits() -> Any:
            original = module.Acquisition._attend
            monkeypatch.setattr(module.Acquisition, "_attend", interrupted)
            try:
                db.leases.acquire(run, "leader")
            except KeyboardInterrupt:
                return "interrupted"
            finally:
                monkeypatch.setattr(module.Acquisition, "_attend", original)

        assert in_thread(waits) == "interrupted"
        assert db.leases.waiting(run, "leader") == 0


def test_a_block_is_entered_by_one_at_a_time(db: Any, run: RunId) -> None:
    """Used like a `threading.Lock`, one block would have one ticket and one nonce for all threads."""
    block = db.leases.hold(run, "leader", timeout=30)
    for _ in range(2):
        with block as lease:
            assert db.leases.is_held(run, lease)
            with ThreadPoolExecutor(1) as threads:
                other = threads.submit(block.__enter__)
                with pytest.raises(TransactionStateError, match="has not ended") as refused:
                    other.result(30)
            assert "with" in refused.value.hint
        assert db.leases.list(run) == [] and db.leases.waiting(run, "leader") == 0


def test_a_block_that_was_not_entered_can_be_entered_again(db: Any, run: RunId) -> None:
    mine = db.leases.acquire(run, "leader")
    with ThreadPoolExecutor(1) as threads:
        block = db.leases.hold(run, "leader", timeout=0)
        with pytest.raises(TransactionTimeout):
            threads.submit(block.__enter__).result(30)
        db.leases.release(run, mine)
        with block:
            assert len(db.leases.list(run)) == 1


def test_wrong_calls_of_leases_and_workers_say_the_form(db: Any, run: RunId) -> None:
    for call, name in ((db.leases.hold, "leader"), (db.leases.acquire, "leader"), (db.tasks.worker, "pages")):
        with pytest.raises(WrongCallError, match="the run comes first") as refused:
            call(name)
        assert "run_id" in refused.value.hint
        with pytest.raises(WrongCallError, match="tiemout"):
            call(run, name, tiemout=5)
    with db.begin(run) as txn:
        for call in (txn.leases.hold, txn.leases.acquire, txn.tasks.worker):
            for arguments in (("x",), (run, "x")):
                with pytest.raises(InvalidArgumentError, match="outside a transaction only") as inside:
                    call(*arguments)
                assert "db." in inside.value.hint
    with db.leases.hold(run_id=run, name="leader") as lease:
        assert db.leases.is_held(run, lease)


class Name(StrEnum):
    """Names of a program; a member is a text."""

    LEADER = "leader"


def test_a_lease_named_by_an_enumeration_is_plain_data(db: Any, run: RunId) -> None:
    with db.leases.hold(run, Name.LEADER) as lease:
        assert type(lease.name) is str and db.leases.holders(run, "leader")[0].token == lease.token
    with pytest.raises(InvalidArgumentError, match="at most 3,150,000,000"):
        db.leases.acquire(run, "leader", lease=1e10)
