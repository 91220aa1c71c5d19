"""What mypy strict and pyright say of a user's program: nothing of a right one, and something of every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """\
import occamdb
from occamdb import Database, RunId, Transaction

def program(db: Database, txn: Transaction, run: RunId) -> None:
"""

# Each line is one mistake, with the codes that mypy and pyright give it.
MISTAKES = {
    'txn.putt("k", 1)': ("attr-defined", "reportAttributeAccessIssue"),
    'txn.add_typo("x")': ("attr-defined", "reportAttributeAccessIssue"),
    'db.putt(run, "k", 1)': ("attr-defined", "reportAttributeAccessIssue"),
    'db.kv.putt(run, "k", 1)': ("attr-defined", "reportAttributeAccessIssue"),
    'txn.event.append("t", {})': ("attr-defined", "reportAttributeAccessIssue"),
    'occamdb.open("x", durabilty="always")': ("call-arg", "reportCallIssue"),
    'occamdb.open("x", durability="alwayz")': ("arg-type", "reportArgumentType"),
    'occamdb.open("x", isolation="serialisable")': ("arg-type", "reportArgumentType"),
    'occamdb.open("x", start="maybe")': ("arg-type", "reportArgumentType"),
    'occamdb.open("x", sync_interval="soon")': ("arg-type", "reportArgumentType"),
    'occamdb.open("x", max_store_size=1.5)': ("arg-type", "reportArgumentType"),
    'occamdb.open_in_memory(isolation="none")': ("arg-type", "reportArgumentType"),
    'db.begin(run, isolation="serialisable")': ("arg-type", "reportArgumentType"),
    'db.transaction(run, print, isolation="serialisable")': ("arg-type", "reportArgumentType"),
    'db.attempts(run, isolation="serialisable")': ("arg-type", "reportArgumentType"),
    'db.transactional(isolation="serialisable")': ("call-overload", "reportArgumentType"),
    'db.kv.transaction(run, print, isolation="serialisable")': ("arg-type", "reportArgumentType"),
    'db.kv.put("k", 1)': ("call-arg", "reportCallIssue"),
    'txn.kv.put(run, "k", 1)': ("call-arg", "reportCallIssue"),
    'db.kv.put(run, "k", 1, tll=5)': ("call-arg", "reportCallIssue"),
    'db.increment(run, "k", by="1")': ("arg-type", "reportArgumentType"),
    "db.scan(run, limit='3')": ("arg-type", "reportArgumentType"),
    'db.events.append(run, "t", [1])': ("arg-type", "reportArgumentType"),
    'db.events.read_range(run, limit="3")': ("arg-type", "reportArgumentType"),
    'txn.cells.cas("c", "0", 1)': ("arg-type", "reportArgumentType"),
    'db.cells.transition(run, "c", 5)': ("arg-type", "reportArgumentType"),
    'txn.cells.transition(run, "c", lambda state: (1, 2))': ("call-arg", "reportCallIssue"),
    'db.traces.record(run, "thought")': ("arg-type", "reportArgumentType"),
    "text: str = db.kv.count(run)": ("assignment", "reportAssignmentType"),
    'number: int = txn.kv.exists("k").bit_length': ("assignment", "reportAssignmentType"),
}

RIGHT = """\
from collections.abc import Iterator
from datetime import datetime, timedelta

import occamdb
from occamdb import Database, Event, RunId, RunMetadata, State, Transaction, VersionedValue


def outside(path: str) -> None:
    with occamdb.open(path, durability="always", isolation="snapshot", max_store_size="64MiB") as db:
        where: str | None = db.path
        run: RunMetadata = db.runs.create_run("agent")
        run_id: RunId = run.run_id
        version: int = db.put(run_id, "k", 1, ttl=timedelta(hours=1))
        total: int = db.increment(run_id, "n", by=2)
        there: bool = db.exists(run_id, "k")
        found: VersionedValue | None = db.kv.get_versioned(run_id, "k")
        removed: int = db.kv.delete_many(run_id, ["a", "b"])
        several: int = db.kv.count(run_id, start="a", end="b")
        event: Event = db.events.append(run_id, "started")
        events: list[Event] = db.events.read_range(run_id, limit=3, reverse=True)
        stream: Iterator[Event] = db.events.iterate(run_id)
        since: datetime = event.timestamp
        between: list[Event] = db.events.read_between(run_id, since, since + timedelta(hours=1))
        cell: State | None = db.cells.read(run_id, "c")
        seconds: float = db.cells.transition(run_id, "c", lambda state: (state.value, 1.5))
        for _, row in db.scan(run_id, "a", limit=3):
            print(row.version)
        print(where, version, total, there, found, removed, several, events, stream, between, cell, seconds)
        print(db.transaction(run_id, work).upper())


def work(txn: Transaction) -> str:
    txn.kv.put("k", 1)
    names: list[str] = [name for name, state in txn.cells.list_with_values() if state.version]
    last: list[Event] = txn.events.last(3)
    txn.cells.set("c", 1, ttl=5)
    return txn.cells.transition("c", lambda state: (state.value, f"{len(last)} {names}"))


def faces(db: Database, txn: Transaction) -> None:
    print(db.kv, txn.kv, repr(db))
"""


def _said(directory: Path, checker: str) -> set[tuple[str, int, str]]:
    """(file name, line from 1, code) of every error that a checker finds in the two programs of a directory."""
    programs = ["mistakes.py", "right.py"]
    if checker == "mypy":
        # The package's own errors are the business of the check of the whole tree.
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--output=json",
            "--cache-dir",
            ".cache",
            *programs,
        ]
    else:
        config = {"typeCheckingMode": "strict", "pythonPlatform": "Linux", "include": programs}
        (directory / "pyrightconfig.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    if checker == "mypy":
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {(row["file"], row["line"], row["code"]) for row in rows if row["severity"] == "error"}
    return {
        (Path(row["file"]).name, row["range"]["start"]["line"] + 1, row.get("rule", ""))
        for row in json.loads(done.stdout)["generalDiagnostics"]
        if row["severity"] == "error"
    }


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_type_checkers_find_every_mistake_and_no_other(tmp_path: Path, checker: str) -> None:
    (tmp_path / "mistakes.py").write_text(PREAMBLE + "".join(f"    {line}\n" for line in MISTAKES))
    (tmp_path / "right.py").write_text(RIGHT)
    said = _said(tmp_path, checker)
    before = PREAMBLE.count("\n")
    wanted = {
        ("mistakes.py", before + number, codes[checker != "mypy"]): line
        for number, (line, codes) in enumerate(MISTAKES.items(), 1)
    }
    missed = [(line, key[2]) for key, line in wanted.items() if key not in said]
    assert not missed, (missed, sorted(said))
    lines = {number for _, number, _ in wanted}
    others = [row for row in said if row[0] != "mistakes.py" or row[1] not in lines]
    assert not others
