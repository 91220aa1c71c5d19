"""What did my increment result in? Asked by workers whose coordinator died before it answered."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from occamdb import CommitOutcomeUnknown, OccamError, RunId
from occamdb.engine.session import SharedHandle
from tests.support.processes import (
    ask_coordinator,
    coordinator_pid,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
)

VALUE = b"v" * 100_000
COUNT = 100  # transactions with such a value: the segment has 10 MB
READ_MAX = 1 << 20


def bytes_read(pid: int) -> int:
    """By read calls of a process so far."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["rchar"])


def test_a_question_reads_one_transaction_and_no_segment(database_path: Path, run: RunId) -> None:
    path = database_path
    with open_database(path, max_store_size="256MiB") as db:
        for n in range(COUNT):
            db.put(run, f"key {n}", VALUE)
        with db.begin(run) as txn:
            txn.kv.increment("counter", 7)
        version = db.stats()["version"]
        for n in range(COUNT // 2):
            db.put(run, f"key {n}", VALUE)
        kill_coordinator(path)
        assert db.put(run, "after", 1) > version
        pid = coordinator_pid(path)
        before = bytes_read(pid)
        logged = ask_coordinator(path, "logged_commit", version=version)
        assert bytes_read(pid) - before < READ_MAX
        assert [value for _, value in logged["writes"]] == [7]
        assert logged["committed_at"] > 0


def test_older_ones_are_found_too(database_path: Path, run: RunId) -> None:
    """And those committed since the coordinator started."""
    path = database_path
    with open_database(path) as db:
        versions = []
        for n in range(1, 1501):
            with db.begin(run) as txn:
                txn.kv.increment("counter")
            versions.append(db.stats()["version"] if n in (1, 1500) else 0)
        kill_coordinator(path)
        with db.begin(run) as txn:
            txn.kv.increment("counter")
        versions.append(db.stats()["version"])
        found = [
            ask_coordinator(path, "logged_commit", version=version)["writes"][0][1]
            for version in versions
            if version
        ]
        assert found == [1, 1500, 1501]
        with pytest.raises(OccamError):
            ask_coordinator(path, "logged_commit", version=versions[-1] + 5)


def test_the_question_keeps_to_the_deadline_of_the_transaction(
    tmp_path: Path, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    with open_database(path, timeout=60.0) as db:
        db.put(run, "k", 0)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        ask = handle._ask
        asked: list[float] = []

        def stand_still(message: dict[str, Any]) -> dict[str, Any]:
            if message["kind"] == "logged_commit":
                asked.append(message.get("timeout", handle._timeout))
                set_coordinator_failpoint(path, "file.read", "sleep:8000")
            return ask(message)

        monkeypatch.setattr(handle, "_ask", stand_still)
        set_coordinator_failpoint(path, "commit.before_reply", "kill")
        begun = time.monotonic()
        with pytest.raises(CommitOutcomeUnknown, match="committed as version"):
            with db.begin(run, timeout=4.0) as txn:
                txn.kv.increment("k")
        assert asked and asked[0] <= 4.0
        assert time.monotonic() - begun < 7.0
        os.kill(coordinator_pid(path), 9)
    with open_database(path) as db:
        assert db.get(run, "k") == 1
    stop_coordinator(path)
