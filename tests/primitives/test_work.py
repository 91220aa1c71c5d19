"""What is left to clean up is cleaned up, also when no coordinator answers at that moment."""

import asyncio
from typing import Any

import pytest

import occamdb.aio
from occamdb import CommitOutcomeUnknown, CoordinatorUnavailable, RunId
from occamdb.primitives import layout
from occamdb.primitives import lease_acquisition as lease_module
from occamdb.primitives import work as module
from tests.support.processes import wait_until


class Unreachable:
    """A database whose transactions of one kind fail so many times, after they committed or before."""

    def __init__(self, db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after_commit = 0
        self.before_commit = 0
        original = type(db).waiting_transaction

        def waiting_transaction(this: Any, *arguments: Any) -> Any:
            if self.before_commit:
                self.before_commit -= 1
                raise CoordinatorUnavailable("nobody is there", hint="wait")
            result = original(this, *arguments)
            if self.after_commit:
                self.after_commit -= 1
                raise CommitOutcomeUnknown("nobody answered")
            return result

        monkeypatch.setattr(type(db), "waiting_transaction", waiting_transaction)


def test_a_claim_of_unknown_outcome_is_given_back(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Unreachable(db, monkeypatch)
    broken.after_commit = 1
    with pytest.raises(CommitOutcomeUnknown):
        db.leases.acquire(run, "leader")
    with db.leases.hold(run, "leader", timeout=30):
        pass
    calls: list[int] = []
    broken.after_commit = 1
    with pytest.raises(CommitOutcomeUnknown):
        db.steps.run(run, "note", calls.append, 1)
    db.steps.run(run, "note", calls.append, 1)
    assert calls == [1] and db.steps.get(run, "note").attempts == 2


def test_it_is_given_back_when_the_coordinator_is_there_again(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Unreachable(db, monkeypatch)
    original = module._cleaned

    def cleaned(*arguments: Any) -> bool:
        if not started:
            started.append(True)
            broken.before_commit = 3
        return original(*arguments)

    started: list[bool] = []
    monkeypatch.setattr(module, "_cleaned", cleaned)
    broken.after_commit = 1
    with pytest.raises(CommitOutcomeUnknown):
        db.leases.acquire(run, "leader")
    assert len(db.leases.list(run)) == 1
    wait_until(lambda: not db.leases.list(run))
    assert broken.before_commit == 0


def test_a_hold_that_ends_without_a_coordinator_is_given_back_later(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Unreachable(db, monkeypatch)
    with pytest.raises(CoordinatorUnavailable), db.leases.hold(run, "leader"):
        broken.before_commit = 3
    wait_until(lambda: not db.leases.list(run))
    assert broken.before_commit == 0
    with pytest.raises(CommitOutcomeUnknown), db.leases.hold(run, "leader"):
        broken.after_commit = 1
    assert not db.leases.list(run)


def test_a_commit_that_lands_late_finds_the_line_changed(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit of a claim is still under way when its caller cleans up."""
    arrive = lease_module.Acquisition._arrive
    pending: list[Any] = []

    def left_alone(this: Any, space: Any) -> Any:
        txn = db.begin(run)
        arrive(this, txn.space(0x11, raw=True))
        pending.append(txn)
        raise CommitOutcomeUnknown("nobody answered")

    monkeypatch.setattr(lease_module.Acquisition, "_arrive", left_alone)
    with pytest.raises(CommitOutcomeUnknown):
        db.leases.acquire(run, "leader")
    monkeypatch.undo()
    with pytest.raises(occamdb.ConflictError):
        pending[0].commit()
    with db.leases.hold(run, "leader", timeout=30):
        pass


def test_a_step_begun_late_finds_its_record_changed(
    db: Any, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    from occamdb.primitives import step_call as steps

    claim = steps.StepCall._claim
    pending: list[Any] = []

    def left_alone(this: Any, txn: Any, space: Any) -> Any:
        late = db.begin(run)
        claim(this, late, late.space(0x12, raw=True))
        pending.append(late)
        raise CommitOutcomeUnknown("nobody answered")

    monkeypatch.setattr(steps.StepCall, "_claim", left_alone)
    with pytest.raises(CommitOutcomeUnknown):
        db.steps.run(run, "note", len, "abc")
    monkeypatch.undo()
    with pytest.raises(occamdb.ConflictError):
        pending[0].commit()
    assert not db.space(run, 0x12, raw=True).exists(layout.step_claim("note"))
    assert db.steps.run(run, "note", len, "abc") == 3


def test_the_same_where_commits_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with occamdb.aio.open_in_memory() as db:
            run = RunId.new()
            original = module._awaited_cleaned
            failures = [1, 2, 3]

            async def cleaned(*arguments: Any) -> bool:
                if failures:
                    failures.pop()
                    return False
                return await original(*arguments)

            monkeypatch.setattr(module, "_awaited_cleaned", cleaned)
            with db.snapshot(run):
                holder = await asyncio.create_task(db.leases.acquire(run, "leader"))
                waiter = asyncio.create_task(db.leases.acquire(run, "leader"))
                while db.leases.waiting(run, "leader") != 1:
                    await asyncio.sleep(0)
                waiter.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiter
                await db.leases.release(run, holder)
                async with asyncio.timeout(30):
                    async with db.leases.hold(run, "leader"):
                        assert failures == []

    asyncio.run(main())
