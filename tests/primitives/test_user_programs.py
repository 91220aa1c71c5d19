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

ASYNC_PREAMBLE = """\
import occamdb.aio
from occamdb import RunId
from occamdb.aio import AsyncDatabase, AsyncTransaction

async def program(db: AsyncDatabase, txn: AsyncTransaction, run: RunId) -> None:
"""

ASYNC_MISTAKES = {
    'txn.putt("k", 1)': ("attr-defined", "reportAttributeAccessIssue"),
    'await db.putt(run, "k", 1)': ("attr-defined", "reportAttributeAccessIssue"),
    'await db.kv.putt(run, "k", 1)': ("attr-defined", "reportAttributeAccessIssue"),
    'db.put(run, "k", 1)': ("unused-coroutine", "reportUnusedCoroutine"),
    'db.kv.put(run, "k", 1)': ("unused-coroutine", "reportUnusedCoroutine"),
    'db.kv.delete(run, "k")': ("unused-coroutine", "reportUnusedCoroutine"),
    'db.events.append(run, "t", {})': ("unused-coroutine", "reportUnusedCoroutine"),
    'db.cells.transition(run, "c", lambda state: (1, 2))': ("unused-coroutine", "reportUnusedCoroutine"),
    'db.runs.create_run("agent")': ("unused-coroutine", "reportUnusedCoroutine"),
    'db.transaction(run, lambda txn: txn.put("k", 1))': ("unused-coroutine", "reportUnusedCoroutine"),
    "txn.commit()": ("unused-coroutine", "reportUnusedCoroutine"),
    "db.close()": ("unused-coroutine", "reportUnusedCoroutine"),
    'number: int = db.increment(run, "n")': ("assignment", "reportAssignmentType"),
    'events: int = await db.events.append(run, "t", {})': ("assignment", "reportAssignmentType"),
    'await db.kv.exists(run, "k")': ("misc", "reportGeneralTypeIssues"),
    "await db.events.len(run)": ("misc", "reportGeneralTypeIssues"),
    'await db.kv.put("k", 1)': ("call-arg", "reportCallIssue"),
    'txn.kv.put(run, "k", 1)': ("call-arg", "reportCallIssue"),
    "with db.begin(run): pass": ("attr-defined", "reportGeneralTypeIssues"),
    'with db.runs.start("x"): pass': ("attr-defined", "reportGeneralTypeIssues"),
    'occamdb.aio.open("x").kv': ("attr-defined", "reportAttributeAccessIssue"),
    'await occamdb.aio.open("x", durabilty="always")': ("call-arg", "reportCallIssue"),
    "db.kv.mapping(run)": ("misc", "reportAttributeAccessIssue"),
}

ASYNC_RIGHT = """\
import occamdb.aio
from occamdb import CommitReceipt, Event, RunId, RunMetadata, State, Thought, VersionedValue
from occamdb.aio import AsyncDatabase, AsyncTransaction


async def outside(path: str) -> None:
    async with occamdb.aio.open(path, durability="always", max_store_size="64MiB", async_links=8) as db:
        made: RunMetadata = await db.runs.create_run("agent")
        run: RunId = made.run_id
        version: int = await db.put(run, "k", 1, ttl=5)
        total: int = await db.kv.increment(run, "n", 2)
        gone: bool = await db.kv.delete(run, "k")
        found: VersionedValue | None = db.kv.get_versioned(run, "k")
        names: list[str] = db.kv.list(run)
        raw: list[bytes] = db.kv.list(run, raw=True)
        event: Event = await db.events.append(run, "t", {})
        length: int = db.events.len(run)
        cell: State | None = db.cells.read(run, "c")
        seconds: float = await db.cells.transition(run, "c", lambda state: (state.value, 1.5))
        text: str = await db.transaction(run, plain)
        number: int = await db.transaction(run, slowly)
        again: RunMetadata | None = db.runs.get_run(run)
        async with db.begin(run) as txn:
            txn.kv.put("k", text)
            last: list[Event] = txn.events.last(3)
        outcome: CommitReceipt | None = await txn.outcome()
        with db.begin(run, read_only=True) as reading:
            print(reading.get("k"))
        async for attempt in db.attempts(run):
            async with attempt as other:
                other.put("k", attempt.number)
        async with db.runs.start("block") as block, db.traces.span(run, Thought("hm")) as span:
            span.set_result(block.name)
        print(version, total, gone, found, names, raw, event, length, cell, seconds, number, again, last, outcome)


def plain(txn: AsyncTransaction) -> str:
    txn.kv.put("k", 1)
    return "done"


async def slowly(txn: AsyncTransaction) -> int:
    return 1


async def by_await(run: RunId) -> None:
    db = await occamdb.aio.open_in_memory()

    @db.transactional
    async def step(txn: AsyncTransaction, by: int) -> int:
        txn.put("n", by)
        return by

    steps: int = await step(run, 2)
    txn = await db.begin(run)
    receipt: CommitReceipt = await txn.commit()
    print(steps, receipt.version)
    await db.close()


def faces(db: AsyncDatabase, txn: AsyncTransaction) -> None:
    print(db.kv, txn.kv, repr(db))
"""

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


PROGRAMS = {
    "plain": (PREAMBLE, MISTAKES, RIGHT),
    "async": (ASYNC_PREAMBLE, ASYNC_MISTAKES, ASYNC_RIGHT),
}


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
@pytest.mark.parametrize("kind", PROGRAMS)
def test_type_checkers_find_every_mistake_and_no_other(tmp_path: Path, kind: str, checker: str) -> None:
    preamble, mistakes, right = PROGRAMS[kind]
    (tmp_path / "mistakes.py").write_text(preamble + "".join(f"    {line}\n" for line in mistakes))
    (tmp_path / "right.py").write_text(right)
    said = _said(tmp_path, checker)
    before = preamble.count("\n")
    wanted = {
        ("mistakes.py", before + number, codes[checker != "mypy"]): line
        for number, (line, codes) in enumerate(mistakes.items(), 1)
    }
    missed = [(line, key[2]) for key, line in wanted.items() if key not in said]
    assert not missed, (missed, sorted(said))
    lines = {number for _, number, _ in wanted}
    others = [row for row in said if row[0] != "mistakes.py" or row[1] not in lines]
    assert not others
