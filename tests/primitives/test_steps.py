"""Steps: run once, recorded, tried again, waited for. What death does is in test_lease_processes.py."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from occamdb import (
    CommitOutcomeUnknown,
    InvalidArgumentError,
    LeaseLost,
    RetryPolicy,
    StepFailed,
    TypeTag,
    ValueEncodingError,
)
from occamdb.engine.model.errors import TransactionStateError
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import layout
from occamdb.primitives.working_auditors import audit_steps
from occamdb.primitives.wrong_calls import WrongCallError

THREE = RetryPolicy(max_attempts=3, initial_backoff=0.0, max_backoff=0.0)


class Calls:
    """A function that notes its calls, fails so many times, and can be held up."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.seen: list[Any] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((args, kwargs))
        self.entered.set()
        assert self.go.wait(60)
        if len(self.seen) <= self.failures:
            raise OSError(f"failure {len(self.seen)}")
        return {"args": list(args), **kwargs}


def test_a_step_runs_once_and_its_result_is_kept(db: Any, run: RunId) -> None:
    fetch = Calls()
    assert db.steps.run(run, "fetch", fetch, 1, b=2) == {"args": [1], "b": 2}
    assert db.steps.run(run, "fetch", fetch, 1, b=2) == {"args": [1], "b": 2}
    assert len(fetch.seen) == 1
    step = db.steps.get(run, "fetch")
    assert (step.name, step.state, step.attempts, step.error) == ("fetch", "done", 1, None)
    assert step.result == {"args": [1], "b": 2} and step.ended >= step.began
    assert db.steps.is_done(run, "fetch") and not db.steps.is_done(run, "other")


def test_names_and_runs_are_apart(db: Any, run: RunId) -> None:
    fetch, other = Calls(), RunId.new()
    for name in ("a", "ab"):
        db.steps.run(run, name, fetch)
    db.steps.run(other, "a", fetch)
    assert len(fetch.seen) == 3
    assert [step.name for step in db.steps.list(run)] == ["a", "ab"]


def test_none_is_a_result(db: Any, run: RunId) -> None:
    calls: list[int] = []
    for _ in range(2):
        assert db.steps.run(run, "log", calls.append, 1) is None
    assert calls == [1]


def test_a_failure_is_recorded_and_raised_and_a_later_call_tries_again(db: Any, run: RunId) -> None:
    fetch = Calls(failures=1)
    with pytest.raises(OSError, match="failure 1"):
        db.steps.run(run, "fetch", fetch)
    step = db.steps.get(run, "fetch")
    assert (step.state, step.attempts, step.error, step.result) == ("failed", 1, "OSError: failure 1", None)
    assert db.steps.run(run, "fetch", fetch) == {"args": []}
    assert db.steps.get(run, "fetch").attempts == 2


def test_a_step_is_tried_as_often_as_its_policy_says(db: Any, run: RunId) -> None:
    fetch = Calls(failures=2)
    assert db.steps.run(run, "fetch", fetch, retry=THREE) == {"args": []}
    assert len(fetch.seen) == 3
    broken = Calls(failures=99)
    with pytest.raises(OSError, match="failure 3"):
        db.steps.run(run, "broken", broken, retry=THREE)
    with pytest.raises(StepFailed) as caught:
        db.steps.run(run, "broken", broken, retry=THREE)
    assert (caught.value.name, caught.value.attempts, caught.value.error) == (
        "broken",
        3,
        "OSError: failure 3",
    )
    assert caught.value.hint and len(broken.seen) == 3
    assert db.steps.forget(run, "broken") is True
    assert db.steps.forget(run, "broken") is False
    with pytest.raises(OSError, match="failure 4"):
        db.steps.run(run, "broken", broken)


def test_the_end_of_a_process_counts_as_an_attempt(db: Any, run: RunId) -> None:
    fetch = Calls(failures=99)
    with pytest.raises(OSError):
        db.steps.run(run, "fetch", fetch, retry=THREE)
    # What a process leaves that was killed in its third attempt.
    record = db.space(run, 0x12, raw=True).get(layout.step("fetch"))
    db.space(run, 0x12, raw=True).put(layout.step("fetch"), [0, record[1], 3, None, record[4], 0])
    with pytest.raises(StepFailed, match="process"):
        db.steps.run(run, "fetch", fetch, retry=THREE)


def pay(txn: Any, amount: int, fails: list[int]) -> int:
    txn.kv.increment("paid", amount)
    if fails:
        raise OSError(f"no money {fails.pop()}")
    return amount


def test_a_function_of_a_transaction_is_one_commit_with_its_record(db: Any, run: RunId) -> None:
    for _ in range(3):
        assert db.steps.run(run, "pay", pay, 5, []) == 5
    assert db.kv.get(run, "paid") == 5
    with pytest.raises(OSError):
        db.steps.run(run, "again", pay, 5, [1])
    assert db.kv.get(run, "paid") == 5
    assert (db.steps.get(run, "again").state, db.steps.get(run, "again").attempts) == ("failed", 1)
    assert db.steps.run(run, "again", pay, 5, [2, 1], retry=RetryPolicy(max_attempts=5)) == 5
    assert db.kv.get(run, "paid") == 10 and db.steps.get(run, "again").attempts == 4


def test_inside_a_transaction_the_step_belongs_to_its_commit(db: Any, run: RunId) -> None:
    fetch = Calls()
    txn = db.begin(run)
    assert txn.steps.run("pay", pay, 5, []) == 5
    assert txn.steps.run("pay", pay, 5, []) == 5
    txn.steps.run("fetch", fetch)
    txn.abort()
    assert db.steps.list(run) == [] and not db.kv.exists(run, "paid")
    with db.begin(run) as txn:
        txn.steps.run("pay", pay, 5, [])
    assert db.kv.get(run, "paid") == 5 and db.steps.run(run, "pay", pay, 5, []) == 5
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError, match="retry"):
        txn.steps.run("pay", pay, 5, [], retry=THREE)


def test_one_name_belongs_to_one_function(db: Any, run: RunId) -> None:
    db.steps.run(run, "fetch", Calls())
    with pytest.raises(InvalidArgumentError, match="belongs to") as caught:
        db.steps.run(run, "fetch", pay, 1, [])
    assert caught.value.hint and caught.value.details["name"] == "fetch"
    with db.begin(run) as txn, pytest.raises(InvalidArgumentError, match="belongs to"):
        txn.steps.run("fetch", pay, 1, [])
    assert db.steps.run(run, "fetch", functools.partial(Calls(), 1)) == {"args": []}


def test_concurrent_callers_wait_for_the_one_that_runs(db: Any, run: RunId) -> None:
    fetch = Calls()
    fetch.go.clear()
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(db.steps.run(run, "fetch", fetch))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert fetch.entered.wait(60)
    assert db.steps.get(run, "fetch").state == "running"
    fetch.go.set()
    for thread in threads:
        thread.join(60)
    assert results == [{"args": []}] * 6 and len(fetch.seen) == 1


def test_who_waits_for_a_step_that_fails_tries_itself(db: Any, run: RunId) -> None:
    fetch = Calls(failures=1)
    fetch.go.clear()
    outcomes: list[Any] = []

    def call() -> None:
        try:
            outcomes.append(db.steps.run(run, "fetch", fetch))
        except OSError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert fetch.entered.wait(60)
    fetch.go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, outcomes)) == ["failure 1", "{'args': []}"]


def test_a_step_that_calls_itself_is_an_error_and_not_a_deadlock(db: Any, run: RunId) -> None:
    def again() -> Any:
        return db.steps.run(run, "loop", again)

    with pytest.raises(TransactionStateError, match="itself") as caught:
        db.steps.run(run, "loop", again)
    assert caught.value.hint


def test_steps_may_run_steps(db: Any, run: RunId) -> None:
    inner = Calls()

    def outer() -> Any:
        return db.steps.run(run, "inner", inner)

    assert db.steps.run(run, "outer", outer) == {"args": []}
    assert [step.state for step in db.steps.list(run)] == ["done", "done"]


def test_an_interrupted_step_is_free_for_others(db: Any, run: RunId) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.steps.run(run, "fetch", interrupted)
    assert db.steps.get(run, "fetch").state == "running"
    with pytest.raises(KeyboardInterrupt):  # it runs again, and does not wait
        db.steps.run(run, "fetch", interrupted)


def test_a_result_that_cannot_be_stored_is_a_failure(db: Any, run: RunId) -> None:
    with pytest.raises(ValueEncodingError):
        db.steps.run(run, "fetch", object)
    assert "ValueEncodingError" in db.steps.get(run, "fetch").error


def test_the_outcome_of_a_lost_claim_is_not_recorded(db: Any) -> None:
    run = db.runs.create_run("short").run_id

    def fetch() -> str:
        db.runs.delete_run(run)
        return "late"

    with pytest.raises(LeaseLost) as caught:
        db.steps.run(run, "fetch", fetch)
    assert caught.value.name == "fetch" and caught.value.hint
    assert db.steps.list(run) == []


@pytest.mark.parametrize("name", ["", 5, "x" * 1025])
def test_bad_names(db: Any, run: RunId, name: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="name"):
        db.steps.run(run, name, pay, 1, [])


def test_bad_functions(db: Any, run: RunId) -> None:
    async def later() -> None: ...

    for wrong in (5, later):
        with pytest.raises(InvalidArgumentError) as caught:
            db.steps.run(run, "fetch", wrong)
        assert caught.value.hint
    with pytest.raises(InvalidArgumentError, match="RetryPolicy"):
        db.steps.run(run, "fetch", pay, 1, [], retry=3)
    with pytest.raises(WrongCallError, match="fn"):
        db.steps.run(run, "fetch")
    assert db.steps.list(run) == []


def test_a_step_of_a_transaction_waits_for_the_call_that_runs_it(db: Any, run: RunId) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        begun.set()
        assert go_on.wait(30)
        return len(calls)

    with ThreadPoolExecutor(2) as threads:
        plain = threads.submit(db.steps.run, run, "work", work)
        assert begun.wait(30)
        inside = threads.submit(db.transaction, run, lambda txn: txn.steps.run("work", work))
        with db.begin(run) as txn, pytest.raises(TransactionStateError, match="may wait"):
            txn.steps.run("work", work)
        go_on.set()
        assert plain.result(30) == inside.result(30) == db.steps.get(run, "work").result == 1
    assert calls == [1]


def test_a_step_does_not_wait_for_itself_in_a_transaction(db: Any, run: RunId) -> None:
    def work() -> int:
        return int(db.transaction(run, lambda txn: txn.steps.run("work", work)))

    with pytest.raises(TransactionStateError, match="called by itself"):
        db.steps.run(run, "work", work)


def test_a_step_that_is_forgotten_while_it_runs_is_not_recorded(db: Any, run: RunId) -> None:
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        if len(calls) == 1:
            assert db.steps.forget(run, "work")
            assert list(audit_steps(db.space(run, TypeTag.STEP, raw=True))) == []
        return len(calls)

    with pytest.raises(LeaseLost, match="forgotten"):
        db.steps.run(run, "work", work)
    assert db.steps.get(run, "work") is None
    assert db.steps.run(run, "work", work) == 2


def test_a_result_that_cannot_be_stored_is_named(db: Any, run: RunId) -> None:
    def plain() -> object:
        return {"at": object()}

    def written(txn: Any) -> object:
        return {"at": object()}

    for name, function in (("plain", plain), ("written", written)):
        with pytest.raises(ValueEncodingError) as refused:
            db.steps.run(run, name, function)
        assert refused.value.path == 'result["at"]'
    assert db.steps.get(run, "plain").state == "failed"
    with db.begin(run) as txn, pytest.raises(ValueEncodingError, match="result"):
        txn.steps.run("inside", plain)


def test_an_outcome_that_cannot_be_recorded_is_no_failure_of_the_function(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With attempts left, and a coordinator that is there again at once, the function is not run a second time."""
    calls: list[int] = []
    original = type(db).waiting_transaction

    def waiting_transaction(this: Any, *arguments: Any) -> Any:
        if len(calls) == 1:
            calls.append(0)
            raise CommitOutcomeUnknown("nobody answered")
        return original(this, *arguments)

    monkeypatch.setattr(type(db), "waiting_transaction", waiting_transaction)
    with pytest.raises(CommitOutcomeUnknown):
        db.steps.run(run, "pay", calls.append, 1, retry=RetryPolicy(max_attempts=5, initial_backoff=0.001))
    assert calls == [1, 0]
    assert db.steps.get(run, "pay").error is None
