"""What did my increment result in? Asked by workers whose coordinator died before it answered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from occamdb import OccamError, RunId
from occamdb.engine.client.shared_handle import SharedHandle
from tests.support.processes import (
    ask_coordinator,
    coordinator_pid,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
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


def test_the_question_keeps_to_the_deadline_of_the_commit(
    database_path: Path, run: RunId, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = database_path
    with open_database(path, timeout=60.0) as db:
        db.put(run, "k", 1)
        handle = db.handle
        assert isinstance(handle, SharedHandle)
        ask = handle._ask
        left: list[float] = []

        def note(message: dict[str, Any]) -> dict[str, Any]:
            if message["kind"] == "logged_commit":
                left.append(message.get("timeout", handle._timeout))
            return ask(message)

        monkeypatch.setattr(handle, "_ask", note)
        set_coordinator_failpoint(path, "commit.before_reply", "kill")
        begun = time.monotonic()
        assert db.kv.increment(run, "k") == 2
        assert len(left) == 1
        # Another coordinator was started before the question.
        assert 60.0 - (time.monotonic() - begun) <= left[0] < 60.0
