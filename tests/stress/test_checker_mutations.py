"""Damage done to a good history at random is always noticed: the checker's own fuzzer."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.histories import LIST_APPEND, REGISTER, Txn, good, verdict

OK = 0
Mutation = Callable[[list[Txn], random.Random], set[str] | None]


def _readers(txns: list[Txn], least: int) -> list[tuple[Txn, int]]:
    """(transaction, read number) of committed reads of at least `least` elements, before the final one."""
    return [
        (txn, number)
        for txn in txns[:-1]
        if txn.outcome == OK and all(op[0] == "r" for op in txn.ops)
        for number, value in enumerate(txn.reads)
        if len(value) >= least
    ]


def drop_from_final_read(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """A committed append is in no read at all."""
    sure = {op[2]: (op[1], txn) for txn in txns if txn.outcome == OK for op in txn.ops if op[0] == "a"}
    value = dice.choice(sorted(sure))
    for txn in txns:
        for number, found in enumerate(txn.reads):
            txn.reads[number] = [one for one in found if one != value]
    return {"vanished-write", "internal"}


def double_an_append(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """One append took effect twice."""
    found = dice.choice([one for one in txns[-1].reads if one])
    found.append(dice.choice(found))
    return {"duplicated-write"}


def swap_in_one_read(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """One reader saw two appends in the other order."""
    readers = _readers(txns, 2)
    txn, number = dice.choice(readers)
    found = txn.reads[number]
    found[-1], found[-2] = found[-2], found[-1]
    return {"incompatible-order", "internal"}


def refuse_a_visible_writer(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """A transaction that others saw was answered with a conflict."""
    shown = {value for found in txns[-1].reads for value in found}
    writers = [
        txn for txn in txns if txn.outcome == OK and any(op[0] == "a" and op[2] in shown for op in txn.ops)
    ]
    dice.choice(writers).outcome = 1
    return {"G1a"}


def read_stale(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """The last read of all misses the newest element of a key, whose append was acknowledged long ago."""
    acknowledged = {op[2] for txn in txns[:-1] if txn.outcome == OK for op in txn.ops if op[0] == "a"}
    keys = [number for number, found in enumerate(txns[-1].reads) if found and found[-1] in acknowledged]
    if not keys:
        return None
    number = dice.choice(keys)
    txns[-1].reads[number] = txns[-1].reads[number][:-1]
    return {"G-single-realtime", "vanished-write", "G-single"}


def move_to_the_past(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """A read-only transaction claims to have ended before what it read was invoked."""
    readers = [entry for entry in _readers(txns, 5) if entry[0].invoked > 60_000]
    txn, _ = dice.choice(readers)
    txn.invoked, txn.returned, txn.worker = 1, 2, 77
    return {"G1c-realtime", "G-single-realtime", "G2-realtime", "G1c"}


def misread_own_write(txns: list[Txn], dice: random.Random) -> set[str] | None:
    """A transaction does not see its own append."""
    for txn in dice.sample(txns, len(txns)):
        if txn.outcome == OK:
            txn.ops += [["a", "own", 10**9], ["r", "own"]]
            txn.reads.append([])
            return {"internal"}
    return None


MUTATIONS: list[Mutation] = [
    drop_from_final_read,
    double_an_append,
    swap_in_one_read,
    refuse_a_visible_writer,
    read_stale,
    move_to_the_past,
    misread_own_write,
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda one: one.__name__)
def test_every_mutation_is_caught(tmp_path: Path, mutate: Mutation, seed: int) -> None:
    txns = copy.deepcopy(good(LIST_APPEND, 400, seed))
    expected = mutate(txns, random.Random(seed))
    if expected is None:
        pytest.skip("this history offers no place for the mutation")
    report = verdict(tmp_path, LIST_APPEND, txns)
    assert not report.valid
    assert expected & set(report.anomalies), report.text()


@pytest.mark.parametrize("seed", range(4))
def test_a_stale_register_read_is_caught(tmp_path: Path, seed: int) -> None:
    """The final read returns a value that two acknowledged read-modify-writes have replaced."""
    txns = copy.deepcopy(good(REGISTER, 200, seed))
    end = txns[-1].returned
    for step, value in enumerate((10**9, 10**9 + 1, 10**9 + 2)):
        before = None if step == 0 else value - 1
        at = end + 10 * step
        txns.append(Txn([["r", "z"], ["w", "z", value]], at + 1, at + 5, [before]))
    txns.append(Txn([["r", "z"]], end + 100, end + 110, [10**9]))
    assert not verdict(tmp_path, REGISTER, txns).valid
