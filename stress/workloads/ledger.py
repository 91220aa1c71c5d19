"""A ledger for crash campaigns: each commit leaves marks that show whether it is there, whole and once.

Each transaction writes an entry and its twin (same content, far apart in key order), and moves the worker's own
head from one sequence number to the next. Every acknowledged one is noted, with its version, in a file of
the worker that survives SIGKILL. So afterwards: acknowledged is a subset of present is a subset of begun, entry
and twin agree, versions are those acknowledged, and heads match the newest entry.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Outcome, Settings

NOTE = struct.Struct("<BxxxIQ")  # kind, sequence, version
BEGUN, ACKNOWLEDGED, REFUSED = 1, 2, 3


class Ledger(Workload):
    """Entries with twins, heads and shared totals."""

    name = "ledger"
    summary = "entries with twins and heads; each acknowledged commit is there, once and whole"
    counters = ("entries",)
    keys = 4

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """The ledger starts empty."""

    def step(self, context: Context) -> None:
        """Write the next entry. The sequence also advances after a conflict or an unknown outcome."""
        sequence = context.next_count()
        total = f"total/{context.dice.randrange(context.settings.keys)}"
        mine = f"{context.worker:04d}"
        padding = "x" * context.dice.choices((0, 10, 100, 2000), (8, 8, 8, 1))[0]

        def body(txn: occamdb.Transaction) -> None:
            txn.get(f"head/{mine}")
            txn.put(f"entry/{mine}/{sequence:08d}", {"sequence": sequence, "padding": padding})
            txn.put(f"head/{mine}", sequence)
            txn.kv.increment(total)
            txn.put(f"twin/{mine}/{sequence:08d}", {"sequence": sequence, "padding": padding})

        _note(context, BEGUN, sequence, 0)
        outcome: Outcome = context.attempt(body, entries=1)
        if outcome.ok:
            _note(context, ACKNOWLEDGED, sequence, outcome.version)
        elif outcome.name != "unknown":
            _note(context, REFUSED, sequence, 0)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Compare the database with every worker's notes."""
        problems: list[Problem] = []
        with context.db.begin(RUN, read_only=True) as txn:
            entries = {key[6:]: (found.version, found.value) for key, found in txn.scan("entry/")}
            twins = {key[5:]: (found.version, found.value) for key, found in txn.scan("twin/")}
            heads = {key[5:]: found for key, found in txn.scan("head/")}
            total = sum(found.value for _, found in txn.scan("total/"))
        halves = [key for key in entries.keys() | twins.keys() if entries.get(key) != twins.get(key)]
        if halves:
            problems.append(
                Problem(
                    f"{len(halves)} commits are there in part or with two versions, {min(halves)} among them"
                )
            )
        problems += between("the sum of the totals", total, len(entries), len(entries))
        versions = [version for version, _ in entries.values()]
        if len(set(versions)) != len(versions):
            problems.append(
                Problem(f"{len(versions) - len(set(versions))} commits share a version with another")
            )
        begun: set[str] = set()
        for worker, path in _note_files(context):
            problems += _check_worker(worker, path, entries, heads, begun)
        unasked = entries.keys() - begun
        if unasked:
            problems.append(Problem(f"{len(unasked)} entries nobody began, {min(unasked)} among them"))
        return problems


def _check_worker(
    worker: str,
    path: Path,
    entries: dict[str, tuple[int, object]],
    heads: dict[str, occamdb.VersionedValue],
    begun: set[str],
) -> list[Problem]:
    lost, risen, moved, newest = [], [], [], 0
    for kind, sequence, version in read_notes(path):
        key = f"{worker}/{sequence:08d}"
        found = entries.get(key)
        if kind == BEGUN:
            begun.add(key)
        elif kind == ACKNOWLEDGED and found is None:
            lost.append(key)
        elif kind == ACKNOWLEDGED and found is not None and found[0] != version:
            moved.append(f"{key} ({version} acknowledged, {found[0]} found)")
        elif kind == REFUSED and found is not None:
            risen.append(key)
        if found is not None:
            newest = max(newest, sequence)
    problems: list[Problem] = []
    if lost:
        problems.append(
            Problem(f"{len(lost)} acknowledged commits are lost, {lost[0]} among them").losing(len(lost))
        )
    if risen:
        problems.append(Problem(f"{len(risen)} refused commits are there, {risen[0]} among them"))
    if moved:
        problems.append(Problem(f"{len(moved)} commits changed their version, {moved[0]} among them"))
    head = heads.get(worker)
    if newest != (head.value if head else 0):
        problems.append(Problem(f"worker {worker}: the head is {head}, the newest entry {newest}"))
    elif head is not None and head.version != entries[f"{worker}/{newest:08d}"][0]:
        problems.append(Problem(f"worker {worker}: the head has version {head.version}, its entry another"))
    return problems


def _note(context: Context, kind: int, sequence: int, version: int) -> None:
    file = context.state.get("notes")
    if file is None:
        path = context.place.directory / f"{context.worker:04d}.notes"
        file = context.state["notes"] = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
    os.write(file, NOTE.pack(kind, sequence, version))


def forget(db: occamdb.Database, directory: Path) -> None:
    """Begin an empty ledger, after `verify` and while nobody writes.

    In a long campaign one ledger would outgrow the store.
    """

    def body(txn: occamdb.Transaction) -> None:
        txn.delete_run_range()

    db.transaction(RUN, body)
    for path in directory.glob("*.notes"):
        path.unlink()


def read_notes(path: Path) -> Iterator[tuple[int, int, int]]:
    """(kind, sequence, version) of every whole note in a worker's file."""
    data = path.read_bytes()
    yield from NOTE.iter_unpack(data[: len(data) - len(data) % NOTE.size])


def _note_files(context: Context) -> list[tuple[str, Path]]:
    return [(path.stem, path) for path in sorted(context.place.directory.glob("*.notes"))]
