"""The logger "occamdb": what a program is told of its coordinator's life."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

import occamdb
from occamdb import RunId
from tests.support.processes import (
    coordinator_pid,
    environment,
    kill_coordinator,
    python,
    stop_process,
    wait_until,
)

RUN = RunId.named("r")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "occamdb"]


def test_a_start_a_recovery_and_a_successor_are_told(
    database_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="occamdb")
    with occamdb.open(database_path, idle_timeout=0.2) as db:
        assert any("started a coordinator" in text for text in messages(caplog))
        assert not any("recovered" in text for text in messages(caplog))
        version = db.put(RUN, "k", 1)
        caplog.clear()
        kill_coordinator(database_path)
        assert db.put(RUN, "k", 2) > version
        told = {record.getMessage().split(str(database_path))[0]: record for record in caplog.records}
        assert told["recovered "].occamdb_version >= version  # type: ignore[attr-defined]
        assert told["recovered "].occamdb_path == str(database_path)  # type: ignore[attr-defined]
        successor = told["the coordinator of "]
        assert successor.levelno == logging.WARNING
        before = successor.occamdb_incarnation_before  # type: ignore[attr-defined]
        assert successor.occamdb_incarnation > before  # type: ignore[attr-defined]


def test_a_coordinator_that_lags_is_told_of_once_a_wait(
    database_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with occamdb.open(database_path, idle_timeout=0.2, timeout=60) as db:
        db.put(RUN, "k", 1)
        pid = coordinator_pid(database_path)
        stop_process(pid)
        try:
            thread = threading.Thread(target=db.put, args=(RUN, "k", 2))
            thread.start()
            wait_until(lambda: any("has not answered" in text for text in messages(caplog)), what="a record")
        finally:
            os.kill(pid, signal.SIGCONT)
        thread.join()
        assert db.get(RUN, "k") == 2
    lags = [record for record in caplog.records if "has not answered" in record.getMessage()]
    assert len(lags) == 1 and lags[0].occamdb_seconds > 1  # type: ignore[attr-defined]


PROGRAM = """
import sys, os, signal
import occamdb
assert "logging" not in sys.modules
if {imports}:
    import logging
path = {path!r}
with occamdb.open(path, idle_timeout=0.2) as db:
    db.put(occamdb.RunId.named("r"), "k", 1)
    os.kill(db.stats()["pid"], signal.SIGKILL)
    db.put(occamdb.RunId.named("r"), "k", 1)
print("logging" in sys.modules)
"""


@pytest.mark.parametrize("imports", [False, True])
def test_a_program_that_does_not_set_up_logging_hears_nothing(database_path: Path, imports: bool) -> None:
    program = PROGRAM.format(path=str(database_path), imports=imports)
    outcome = subprocess.run(
        [python(), "-c", program], env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert (outcome.stdout, outcome.stderr) == (f"{imports}\n", "")
