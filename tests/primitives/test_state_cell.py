"""StateCell: every method in both forms; versions only grow; transitions retry."""

from typing import Any

import pytest

from occamdb.engine.model.errors import (
    AlreadyExistsError,
    CASConflict,
    ConflictError,
    NotFoundError,
    RetriesExhausted,
)
from occamdb.engine.model.public_types import RunId
from occamdb.engine.model.retry_policy import RetryPolicy
from occamdb.primitives import State


def test_init_and_read(do: Any) -> None:
    do.cells.init("c", {"n": 1})
    state = do.cells.read("c")
    assert isinstance(state, State)
    assert state.value == {"n": 1}
    assert state.version > 0
    assert state.updated_at.tzinfo is not None


def test_init_only_if_absent(do: Any) -> None:
    do.cells.init("c", 1)
    with pytest.raises(AlreadyExistsError) as caught:
        do.cells.init("c", 2)
    assert caught.value.hint and "'c'" in caught.value.message
    assert do.cells.read("c").value == 1


def test_two_inits_at_once(db: Any, run: RunId) -> None:
    txn = db.begin(run)
    txn.cells.init("c", "late")
    db.cells.init(run, "c", "first")
    with pytest.raises(ConflictError) as caught:
        txn.commit()
    assert isinstance(caught.value.conflicts[0], CASConflict)
    assert db.cells.read(run, "c").value == "first"


def test_an_absent_cell(do: Any) -> None:
    assert do.cells.read("c") is None
    assert do.cells.exists("c") is False
    assert do.cells.delete("c") is False
    assert do.cells.list() == []


def test_set_delete_exists_list(do: Any) -> None:
    for name in ("b", "a", "c/1"):
        do.cells.set(name, name)
    do.cells.set("a", 2)
    assert do.cells.list() == ["a", "b", "c/1"]
    assert do.cells.list("c/") == ["c/1"]
    assert do.cells.list(limit=1) == ["a"]
    assert do.cells.delete("a") is True
    assert do.cells.exists("a") is False
    assert do.cells.exists("b") is True


def test_cas(do: Any) -> None:
    do.cells.set("c", 1)
    version = do.cells.read("c").version
    do.cells.cas("c", version, 2)
    assert do.cells.read("c").value == 2
    with pytest.raises(ConflictError) as caught:
        do.cells.cas("c", version, 3)
    conflict = caught.value.conflicts[0]
    assert isinstance(conflict, CASConflict)
    assert (conflict.key, conflict.expected_version) == ("c", version)
    assert do.cells.read("c").value == 2


def test_implicit_writes_return_the_version(db: Any, run: RunId) -> None:
    first = db.cells.init(run, "c", 1)
    assert db.cells.read(run, "c").version == first
    second = db.cells.cas(run, "c", first, 2)
    third = db.cells.set(run, "c", 3)
    assert first < second < third == db.cells.read(run, "c").version
    with pytest.raises(CASConflict):
        db.cells.cas(run, "c", first, 4)


def test_versions_grow_over_delete_and_init(do: Any) -> None:
    versions = []
    for n in range(3):
        do.cells.init("c", n)
        versions.append(do.cells.read("c").version)
        do.cells.set("c", n)
        versions.append(do.cells.read("c").version)
        do.cells.delete("c")
    assert versions == sorted(set(versions))


def test_cas_adds_nothing_to_the_read_set(db: Any, run: RunId) -> None:
    db.cells.set(run, "other", 1)
    version = db.cells.set(run, "c", 1)
    txn = db.begin(run)
    txn.cells.cas("c", version, 2)
    db.cells.set(run, "other", 2)
    txn.commit()
    assert db.cells.read(run, "c").value == 2


def test_transition(do: Any) -> None:
    do.cells.init("c", 5)
    assert do.cells.transition("c", lambda state: (state.value + 1, ("was", state.value))) == ("was", 5)
    assert do.cells.read("c").value == 6


def test_transition_of_an_absent_cell(do: Any) -> None:
    with pytest.raises(NotFoundError) as caught:
        do.cells.transition("c", lambda state: (1, None))
    assert "init" in caught.value.hint


def test_transition_retries_until_it_commits(db: Any, run: RunId) -> None:
    db.cells.init(run, "c", 0)
    seen = []

    def step(state: State) -> tuple[int, int]:
        seen.append(state.value)
        if len(seen) <= 3:
            db.cells.set(run, "c", state.value + 100)
        return state.value + 1, len(seen)

    assert db.cells.transition(run, "c", step) == 4
    assert seen == [0, 100, 200, 300]
    assert db.cells.read(run, "c").value == 301


def test_transition_gives_up_when_told_to(db: Any, run: RunId) -> None:
    db.cells.init(run, "c", 0)

    def hopeless(state: State) -> tuple[int, None]:
        db.cells.set(run, "c", state.value + 1)
        return -1, None

    with pytest.raises(RetriesExhausted) as caught:
        db.cells.transition(run, "c", hopeless, retry=RetryPolicy(max_attempts=3))
    assert caught.value.attempts == 3
    assert db.cells.read(run, "c").value == 3


def test_a_failing_transition_changes_nothing(do: Any) -> None:
    do.cells.init("c", 1)
    with pytest.raises(ZeroDivisionError):
        do.cells.transition("c", lambda state: (state.value // 0, None))
    assert do.cells.read("c").value == 1


def test_two_transitions_in_one_transaction(db: Any, run: RunId) -> None:
    db.cells.init(run, "c", 1)
    with db.begin(run) as txn:
        for _ in range(3):
            txn.cells.transition("c", lambda state: (state.value * 2, None))
        assert txn.cells.read("c").value == 8
    assert db.cells.read(run, "c").value == 8
