"""Hand-written and generated histories for the checker's tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from occamdb.stress.checker import Report, check_history
from occamdb.stress.history import CONFLICT, FORMAT, LIST_APPEND, OK, REGISTER, UNKNOWN

OUTCOMES = {"ok": OK, "conflict": CONFLICT, "unknown": UNKNOWN}


@dataclass
class Txn:
    """One transaction with explicit times; `reads` are the results in order."""

    ops: list[list[Any]]
    invoked: int
    returned: int
    reads: list[Any] = field(default_factory=list)
    outcome: int = OK
    version: int = 0
    worker: int = 0


def t(text: str, invoked: int, returned: int, outcome: str = "ok") -> Txn:
    """Parse `a x 1; r x 1,2; w y 3; r y -` into a transaction (`-` is an empty list or None)."""
    ops: list[list[Any]] = []
    reads: list[Any] = []
    for part in text.split(";"):
        name, key, *rest = part.split()
        if name == "r":
            ops.append(["r", key])
            reads.append(rest[0] if rest else "-")
        else:
            ops.append([name, key, int(rest[0])])
    return Txn(ops, invoked, returned, reads, OUTCOMES[outcome])


def write(path: Path, kind: str, txns: Sequence[Txn]) -> Path:
    """Write a history as one worker each transaction would, into files below `path`."""
    path.mkdir(parents=True, exist_ok=True)
    by_worker: dict[int, list[Txn]] = {}
    for place, txn in enumerate(txns):
        by_worker.setdefault(txn.worker or place % 5 + 1, []).append(txn)
    for worker, mine in by_worker.items():
        with open(path / f"{worker}.hist", "wb") as file:
            file.write(msgpack.packb({"format": FORMAT, "kind": kind, "worker": worker, "meta": {}}))
            for number, txn in enumerate(mine):
                file.write(msgpack.packb([0, number, txn.invoked, txn.ops]))
                if txn.outcome != UNKNOWN:
                    reads = [_result(kind, value) for value in txn.reads] if txn.outcome == OK else []
                    record = [1, number, txn.returned, txn.outcome, reads, txn.version]
                    file.write(msgpack.packb(record))
    return path


def _result(kind: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "-":
        return [] if kind == LIST_APPEND else None
    return [int(one) for one in value.split(",")] if kind == LIST_APPEND else int(value)


def verdict(tmp_path: Path, kind: str, txns: Sequence[Txn], level: str = "strict-serializable") -> Report:
    """Write and check."""
    return check_history(write(tmp_path / "history", kind, txns), level)


def good(kind: str, count: int, seed: int, *, keys: int = 6, workers: int = 5) -> list[Txn]:
    """A strictly serializable history: `count` transactions executed one at a time, with overlapping times.

    Transaction i takes effect at the instant 1000 * i, which lies between its invocation and its return.
    Some are refused and some unknown (with and without effect).
    """
    dice = random.Random(seed)
    state: dict[str, list[int]] = {}
    next_value = 0
    txns = []
    free = [0] * workers  # when each worker may invoke again
    for number in range(count):
        instant = 1000 * (number + 5)
        worker = min(range(workers), key=free.__getitem__) if dice.random() < 0.5 else dice.randrange(workers)
        if free[worker] >= instant:
            continue
        txn = Txn(
            [], max(free[worker] + 1, instant - dice.randrange(4000)), instant + dice.randrange(1, 4000)
        )
        txn.worker = worker + 1
        txn.outcome = dice.choices([OK, CONFLICT, UNKNOWN], [90, 7, 3])[0]
        effective = txn.outcome == OK or (txn.outcome == UNKNOWN and dice.random() < 0.5)
        view = {key: list(values) for key, values in state.items()}
        for _ in range(dice.randrange(1, 5)):
            key = f"k{dice.randrange(keys)}"
            if dice.random() < 0.5:
                values = view.get(key, [])
                txn.ops.append(["r", key])
                txn.reads.append(list(values) if kind == LIST_APPEND else (values[-1] if values else None))
            else:
                next_value += 1
                txn.ops.append(["a" if kind == LIST_APPEND else "w", key, next_value])
                view.setdefault(key, []).append(next_value)
        if effective:
            state = view
            txn.version = number + 1 if any(op[0] != "r" for op in txn.ops) else 0
        if txn.outcome == UNKNOWN:
            txn.reads = []
        free[worker] = txn.returned
        txns.append(txn)
    final = [["r", f"k{key}"] for key in range(keys)]
    shown = [state.get(f"k{key}", []) for key in range(keys)]
    results = [list(one) if kind == LIST_APPEND else (one[-1] if one else None) for one in shown]
    txns.append(Txn(final, 1000 * (count + 50), 1000 * (count + 51), results, worker=1))
    return txns


__all__ = ["LIST_APPEND", "REGISTER", "Txn", "good", "t", "verdict", "write"]
