"""Leases, steps and budgets against plain models: any sequence of calls, on both engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from occamdb import BoundReached, InvalidArgumentError, Lease, LeaseLost, StepFailed, TransactionTimeout
from occamdb.engine.model.errors import ConflictError, TransactionStateError
from occamdb.engine.model.public_types import RunId
from occamdb.engine.model.retry_policy import RetryPolicy
from occamdb.primitives.working_auditors import audit_leases, audit_steps
from tests.support.engines import Engine

MODEL = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def two_handles(engine: Engine) -> Any:
    """Opens one database twice: two holders in one process. In memory the two are one handle."""

    @contextmanager
    def opened() -> Iterator[tuple[Any, Any]]:
        one = engine.fresh()
        two = engine.again(one)
        try:
            yield one, two
        finally:
            for handle in (two, one):
                engine.discard(handle)

    return opened


NAMES = st.sampled_from(["a", "ab"])
HANDLES = st.integers(0, 1)
LEASE_CALL = st.one_of(
    st.tuples(st.just("acquire"), HANDLES, NAMES),
    st.tuples(st.just("release"), HANDLES, st.integers(0, 5)),
    st.tuples(st.just("require"), HANDLES, st.integers(0, 5)),
    st.tuples(st.just("late"), HANDLES, st.integers(0, 5)),
    st.tuples(st.just("extend"), HANDLES, st.integers(0, 5)),
)


@MODEL
@given(calls=st.lists(LEASE_CALL, max_size=14))
def test_leases_as_in_the_model(two_handles: Any, calls: list[Any]) -> None:
    """The model: one holder by name, tokens that grow, and only holders' commits."""
    with two_handles() as handles:
        run = RunId.new()
        held: dict[str, Lease] = {}
        known: list[Lease] = []
        newest = 0
        for call, which, what in calls:
            db = handles[which]
            if call == "acquire":
                try:
                    lease = db.leases.acquire(run, what, timeout=0)
                except (TransactionTimeout, TransactionStateError):
                    assert what in held
                    continue
                assert what not in held and lease.token > newest
                held[what], newest = lease, lease.token
                known.append(lease)
                continue
            if not known:
                continue
            lease = known[what % len(known)]
            is_held = held.get(lease.name) == lease
            assert db.leases.is_held(run, lease) == is_held
            try:
                if call == "release":
                    db.leases.release(run, lease)
                    del held[lease.name]
                elif call == "extend":
                    db.leases.extend(run, lease, 600)
                elif call == "require":
                    with db.begin(run) as txn:
                        txn.leases.require(lease)
                        txn.put("by", lease.token)
                else:
                    # Required, then given back before the commit: it must not land.
                    txn = db.begin(run, isolation="snapshot")
                    txn.leases.require(lease)
                    txn.put("late", lease.token)
                    db.leases.release(run, lease)
                    del held[lease.name]
                    with pytest.raises(ConflictError):
                        txn.commit()
            except LeaseLost:
                assert not is_held
            else:
                assert is_held
            found = {holder.name: holder.token for holder in db.leases.list(run)}
            assert found == {name: one.token for name, one in held.items()}
        assert not handles[0].exists(run, "late")
        with handles[0].begin(run, read_only=True) as txn:
            assert list(audit_leases(txn.space(0x11, raw=True))) == []
        for lease in held.values():
            handles[0].leases.release(run, lease)


STEP_CALL = st.tuples(
    st.sampled_from(["plain", "txn", "inside", "forget"]),
    HANDLES,
    NAMES,
    st.sampled_from(["works", "fails"]),
    st.sampled_from([None, 1, 2, 3]),
)


@MODEL
@given(calls=st.lists(STEP_CALL, max_size=14))
def test_steps_as_in_the_model(two_handles: Any, calls: list[Any]) -> None:
    """The model: a recorded result stays, failures are counted, effects in a transaction happen with the record."""
    works = True
    ran: list[int] = []

    def plain() -> int:
        ran.append(1)
        if not works:
            raise OSError("fails")
        return len(ran)

    def paid(txn: Any) -> int:
        txn.kv.increment("effects")
        return plain()

    with two_handles() as handles:
        run = RunId.new()
        model: dict[str, tuple[str, int, Any, bool]] = {}  # name: state, attempts, result, in a transaction
        effects = 0
        for form, which, name, how, most in calls:
            db, works, before = handles[which], how == "works", len(ran)
            state, attempts, result, transactional = model.get(name, ("new", 0, None, form != "plain"))
            if form == "forget":
                assert db.steps.forget(run, name) == (state != "new")
                model.pop(name, None)
                continue
            fn = plain if form == "plain" else paid
            retry = (
                None if most is None else RetryPolicy(max_attempts=most, max_backoff=0.0, initial_backoff=0.0)
            )
            try:
                if form == "inside":
                    found = db.transaction(run, lambda txn, fn=fn, name=name: txn.steps.run(name, fn))
                else:
                    found = db.steps.run(run, name, fn, retry=retry)
            except InvalidArgumentError:
                assert state != "new" and transactional != (form != "plain")
            except StepFailed as error:
                assert (
                    state == "failed" and most is not None and attempts >= most and error.attempts == attempts
                )
                assert len(ran) == before
            except OSError:
                tried = len(ran) - before
                assert state != "done" and not works
                assert tried == (1 if form == "inside" or most is None else most - attempts)
                if form != "inside":
                    model[name] = ("failed", attempts + tried, None, transactional)
            else:
                assert transactional == (form != "plain")
                if state == "done":
                    assert found == result and len(ran) == before
                    continue
                assert works and found == len(ran) == before + 1
                model[name] = ("done", attempts + 1, found, transactional)
                effects += transactional
            assert db.kv.get(run, "effects", 0) == effects
        found_steps = {s.name: (s.state, s.attempts, s.result) for s in handles[0].steps.list(run)}
        assert found_steps == {name: entry[:3] for name, entry in model.items()}
        with handles[0].begin(run, read_only=True) as txn:
            assert list(audit_steps(txn.space(0x12, raw=True))) == []


BUDGET_CALL = st.tuples(
    HANDLES, st.integers(-8, 8), st.none() | st.integers(0, 12), st.none() | st.integers(-6, 0)
)


@MODEL
@given(calls=st.lists(BUDGET_CALL, max_size=20))
def test_budgets_as_in_the_model(two_handles: Any, calls: list[Any]) -> None:
    with two_handles() as handles:
        run, total = RunId.new(), 0
        for which, by, at_most, at_least in calls:
            kept = (at_most is None or total + by <= at_most) and (at_least is None or total + by >= at_least)
            try:
                total = handles[which].kv.increment(run, "n", by, at_most=at_most, at_least=at_least)
                assert kept
            except BoundReached as error:
                assert not kept and error.value == total
            assert handles[1 - which].kv.get(run, "n", 0) == total


# ---- audits ------------------------------------------------------------------------------------------------


def test_audits_find_what_is_wrong(db: Any, run: RunId) -> None:
    space = db.space(run, 0x11, raw=True)
    space.put(b"\x01\x00\x01a\x00\x05", [2, b"n", 1, 0])
    space.put(b"\x01\x00\x01a\x00\x06", [9, b"n", 1, 0], ephemeral=True)
    space.put(b"\x01\x00\x01b\x00\x00", "x", ephemeral=True)
    space.put(b"\x07", 1)
    space.put(b"\x02\x00\x09a", 1)
    with db.begin(run, read_only=True) as txn:
        said = "\n".join(fault.message for fault in audit_leases(txn.space(0x11, raw=True)))
    for word in ("no session", "slot 5 of", "beside one", "unreadable"):
        assert word in said
    assert said.count("does not know") == 2
    space = db.space(run, 0x12, raw=True)
    space.put(b"\x01a", [0, "f", 1, None, 5, 0])
    space.put(b"\x01b", [1, "f", 0, None, 5, 0])
    space.put(b"\x01c", ["x"])
    space.put(b"\x01d", [7, "f", 1, None, 5, 6])
    space.put(b"\x02z", b"nonce")
    space.put(b"\x09", b"nonce")
    with db.begin(run, read_only=True) as txn:
        said = "\n".join(fault.message for fault in audit_steps(txn.space(0x12, raw=True)))
    for word in (
        "0 attempts",
        "unreadable",
        "unknown state",
        "does not say so",
        "no session",
        "no end",
        "not know",
    ):
        assert word in said
