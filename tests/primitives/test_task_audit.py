"""What the auditor finds in the keys of tasks, and what can be mended: pointers and claims, never a task's place."""

from typing import Any

import pytest

from occamdb import RunId, TypeTag
from occamdb.primitives import layout
from occamdb.primitives.auditing import apply_repair
from occamdb.primitives.task_auditor import audit_tasks

OPEN = layout.task_queue("q") + layout.TASK_OPEN
CLAIM = layout.task_queue("q") + layout.TASK_CLAIM
DELAYED = layout.task_queue("q") + layout.TASK_DELAYED


@pytest.fixture
def space(db: Any, run: RunId) -> Any:
    """The keys of a queue with tasks in every state."""
    db.tasks.put_many(run, "q", range(3))
    db.tasks.put(run, "q", "keyed", key="k")
    db.tasks.put(run, "q", "later", delay=600)
    db.tasks.complete(run, db.tasks.claim(run, "q"))
    db.tasks.fail(run, db.tasks.claim(run, "q"), "e", retry=False)
    db.tasks.claim(run, "q", lease=600)
    return db.space(run, TypeTag.TASK, raw=True)


def faults(db: Any, run: RunId) -> list[Any]:
    with db.begin(run, read_only=True) as txn:
        return list(audit_tasks(txn.space(TypeTag.TASK, raw=True)))


def mend(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        part = txn.space(TypeTag.TASK, raw=True)
        for fault in list(audit_tasks(part)):
            if fault.repair is not None:
                apply_repair(part, fault)


def first(space: Any, prefix: bytes) -> bytes:
    return next(iter(space.keys(prefix)))  # type: ignore[no-any-return]


def test_a_sound_queue_has_no_faults(db: Any, run: RunId, space: Any) -> None:
    assert faults(db, run) == []


@pytest.mark.parametrize(
    ("prefix", "what"),
    [(layout.TASK_BY_KEY, "by its key is missing"), (layout.TASK_DUE, "is not noted")],
)
def test_a_lost_pointer_is_put_back(db: Any, run: RunId, space: Any, prefix: bytes, what: str) -> None:
    key = first(space, prefix)
    value = space.get(key)
    space.delete(key)
    assert any(what in fault.message for fault in faults(db, run))
    mend(db, run)
    assert faults(db, run) == [] and space.get(key) == value


def test_what_is_left_of_a_lost_record_is_removed(db: Any, run: RunId, space: Any) -> None:
    for key in list(space.keys(layout.TASK)):
        space.delete(key)
    found = faults(db, run)
    # Five places, a claim, an entry by key and the time of the delayed task.
    assert len(found) == 8 and all(fault.repair for fault in found)
    mend(db, run)
    assert list(space.keys()) == []


@pytest.mark.parametrize("prefix", [OPEN, DELAYED])
def test_a_lost_place_is_reported_and_left_to_its_owner(
    db: Any, run: RunId, space: Any, prefix: bytes
) -> None:
    space.delete(first(space, prefix))
    found = [fault for fault in faults(db, run) if "at 0 places" in fault.message]
    assert len(found) == 1 and found[0].repair is None
    task = found[0].key[1:].hex()
    mend(db, run)
    db.tasks.requeue(run, task)
    mend(db, run)
    assert faults(db, run) == []


def test_a_claim_without_an_open_task_is_removed(db: Any, run: RunId, space: Any) -> None:
    claim = first(space, CLAIM)
    space.put(claim, 77)
    assert [fault.message for fault in faults(db, run)] == ["a claim that the open task does not call for"]
    mend(db, run)
    assert faults(db, run) == [] and db.tasks.stats(run, "q").ready == 2


def test_strange_keys_and_values_are_reported_and_stay(db: Any, run: RunId, space: Any) -> None:
    strange = {
        b"\x01short": 1,
        b"\x02\xff\xffq": 1,
        b"\x02": 1,
        layout.task_queue("q") + b"\x09" + bytes(16): 1,
        layout.task(bytes(16)): ["too", "short"],
        b"\x03\x00\x01q": 5,
        b"\x04short": 1,
        b"\x09": 1,
    }
    for key, value in strange.items():
        space.put(key, value)
    space.put(first(space, OPEN), [1])
    found = {fault.key for fault in faults(db, run)}
    assert strange.keys() <= found and first(space, OPEN) in found
    mend(db, run)
    assert strange.keys() <= set(space.keys())
