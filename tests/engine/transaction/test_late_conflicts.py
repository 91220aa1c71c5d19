"""Conflicts that arise after the worker's own look, so that only the commit core can find them; and its canary.

Each case commits something else inside `submit`, between the worker's early check and the request itself.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from occamdb import Database, Transaction
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.model.errors import CASConflict, ConflictError, ReadConflict, WriteConflict
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.model.settings import Settings
from occamdb.engine.transaction._answer import Answer
from tests.engine.transaction.test_anomalies import (
    test_phantom_only_under_snapshot_isolation as phantom_test,
)
from tests.engine.transaction.test_anomalies import (
    test_predicate_write_skew_only_under_snapshot_isolation as predicate_test,
)
from tests.engine.transaction.test_transaction_model import Interleavings
from tests.support.broken_engines import SkipsReadValidation, broken_database

Step = Callable[[Transaction], Any]
Beside = Callable[[Database, RunId], Any]


def late(engine: type[LocalHandle]) -> type[LocalHandle]:
    """The engine with a hook that runs once, just before the next request is served."""

    class Late(engine):  # type: ignore[valid-type,misc]
        meanwhile: Callable[[], Any] | None = None

        def submit(self, request: bytearray, deadline: float | None) -> Answer:
            hook, self.meanwhile = self.meanwhile, None
            if hook is not None:
                hook()
            answer: Answer = super().submit(request, deadline)
            return answer

    return Late


def commit_with(engine: type[LocalHandle], run: RunId, work: Step, beside: Beside) -> Transaction:
    """Run `work`, let `beside` commit after the early check, then commit."""
    handle = late(engine)(Settings.of({"max_store_size": "4MiB"}))
    db = Database(handle)
    db.put(run, "k", 1)
    db.put(run, "r/1", 1)
    txn = db.begin(run)
    work(txn)
    txn.put("result", 1)
    handle.meanwhile = lambda: beside(db, run)  # type: ignore[attr-defined]
    txn.commit()
    return txn


def add_and_get(txn: Transaction) -> Any:
    txn.add("k")
    return txn.get("k")


READ_CASES: list[tuple[str, Step, Beside]] = [
    ("get", lambda txn: txn.get("k"), lambda db, run: db.put(run, "k", 2)),
    ("get, deleted", lambda txn: txn.get("k"), lambda db, run: db.delete(run, "k")),
    ("absent", lambda txn: txn.get("new"), lambda db, run: db.put(run, "new", 2)),
    ("exists", lambda txn: txn.exists("new"), lambda db, run: db.put(run, "new", 2)),
    ("own sum", add_and_get, lambda db, run: db.put(run, "k", 2)),
    ("scan, new", lambda txn: list(txn.scan("r/")), lambda db, run: db.put(run, "r/2", 2)),
    ("scan, changed", lambda txn: list(txn.scan("r/")), lambda db, run: db.put(run, "r/1", 2)),
    ("scan, deleted", lambda txn: list(txn.scan("r/")), lambda db, run: db.delete(run, "r/1")),
    (
        "scan, gone again",
        lambda txn: txn.count("q/"),
        lambda db, run: (db.put(run, "q/", 2), db.delete(run, "q/")),
    ),
    ("reverse", lambda txn: next(txn.scan("r/", reverse=True)), lambda db, run: db.put(run, "r/2", 2)),
]
READS = pytest.mark.parametrize(
    ("work", "beside"), [case[1:] for case in READ_CASES], ids=[c[0] for c in READ_CASES]
)


@READS
def test_late_read_conflicts_are_found(run: RunId, work: Step, beside: Beside) -> None:
    with pytest.raises(ConflictError) as caught:
        commit_with(LocalHandle, run, work, beside)
    assert all(isinstance(conflict, ReadConflict) for conflict in caught.value.conflicts)
    assert caught.value.conflicts


@READS
def test_canary_an_engine_that_skips_reads_is_caught_by_the_same_cases(
    run: RunId, work: Step, beside: Beside
) -> None:
    assert commit_with(SkipsReadValidation, run, work, beside).receipt is not None


@pytest.mark.parametrize(
    ("work", "beside", "kind"),
    [
        (lambda txn: txn.put("k", 3), lambda db, run: db.put(run, "k", 2), WriteConflict),
        (lambda txn: txn.put("k", 3), lambda db, run: db.delete(run, "k"), WriteConflict),
        (
            lambda txn: txn.put("n", 3),
            lambda db, run: (db.put(run, "n", 2), db.delete(run, "n")),
            WriteConflict,
        ),
        (lambda txn: txn.cas("k", 1, 3), lambda db, run: db.put(run, "k", 2), CASConflict),
        (lambda txn: txn.cas("n", 0, 3), lambda db, run: db.put(run, "n", 2), CASConflict),
        (lambda txn: txn.delete_range("r/"), lambda db, run: db.put(run, "r/2", 2), ReadConflict),
    ],
)
def test_late_write_conflicts_are_found(run: RunId, work: Step, beside: Beside, kind: type[Any]) -> None:
    with pytest.raises(ConflictError) as caught:
        commit_with(LocalHandle, run, work, beside)
    (conflict,) = caught.value.conflicts
    assert isinstance(conflict, kind)
    assert (conflict.run_id, conflict.tag) == (run, TypeTag.KV)


def test_what_does_not_conflict_commits(run: RunId) -> None:
    for work, beside in (
        (lambda txn: txn.get("k"), lambda db, run: db.put(run, "other", 2)),
        (lambda txn: list(txn.scan("r/")), lambda db, run: db.put(run, "s", 2)),
        (lambda txn: txn.get("k", track=False), lambda db, run: db.put(run, "k", 2)),
        (lambda txn: txn.add("k"), lambda db, run: db.put(run, "k", 2)),
        (lambda txn: txn.get("k"), lambda db, run: db.put(RunId.new(), "k", 2)),
    ):
        assert commit_with(LocalHandle, run, work, beside).receipt is not None


@pytest.fixture
def broken() -> Iterator[Database]:
    db = broken_database()
    yield db
    db.close()


def test_canary_the_anomaly_tests_fail_on_a_broken_engine(broken: Database) -> None:
    for check in (phantom_test, predicate_test):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(broken, RunId.new(), "serializable")


def test_canary_the_model_fails_on_a_broken_engine() -> None:
    """The history that hypothesis finds, by hand: a scan, a key put into its range beside it, a commit."""

    class OnABrokenEngine(Interleavings):
        make_database = staticmethod(broken_database)

    for machine, expected in ((Interleavings(), None), (OnABrokenEngine(), pytest.fail.Exception)):
        machine.open()
        session = machine.begin("serializable")
        machine.scan(session, "", None, None, None, False)
        machine.put(session, "a", 1)
        machine.write_beside("b", 2)
        if expected is None:
            machine.commit(session)
        else:
            with pytest.raises(expected):
                machine.commit(session)
        machine.teardown()
