"""Ephemeral keys on the command line: `get`, `scan`, `stats`, the dump of the log, and checks of the directory."""

from __future__ import annotations

import json
from pathlib import Path

import occamdb
from occamdb import RunId
from occamdb.engine.log.check import check
from tests.conftest import stop_coordinator
from tests.support.shell import Shell

RUN = RunId.named("the command line")


def test_who_owns_a_key_is_shown(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "lock", 1, ephemeral=True)
    db.kv.put(RUN, "plain", 2)
    assert shell.json("get", "DB", str(RUN), "lock", "--json")["session"] == db.session
    assert shell.json("get", "DB", str(RUN), "plain", "--json")["session"] is None
    rows = [json.loads(line) for line in shell("scan", "DB", str(RUN), "--json").splitlines()]
    assert [(row["key"], row["session"]) for row in rows] == [("lock", db.session), ("plain", None)]
    figures = shell.json("stats", "DB", "--json")
    assert figures["session_keys"] == 1
    assert db.session in [each["session"] for each in figures["sessions"]]
    assert "bound to sessions 1" in shell("stats", "DB")


def test_the_dump_of_the_log_names_the_session(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "lock", 1, ephemeral=True)
    dumped = [json.loads(line) for line in shell("wal", "dump", "DB", "--json").splitlines()]
    (bound,) = [entry for entry in dumped if entry["type"] == "BoundWrite"]
    assert bound["session"] == db.session


def test_a_directory_with_ephemeral_keys_checks_and_repairs(tmp_path: Path) -> None:
    """In checkpoint and log. A clean stop keeps the keys: their owner may come back."""
    from occamdb.engine.log.salvage import repair

    path = tmp_path / "db"
    with occamdb.open(path) as db:
        db.kv.put(RUN, "checkpointed", 1, ephemeral=True)
        db.checkpoint()
        db.kv.put(RUN, "logged", 1, ephemeral=True)
        stop_coordinator(path)
        report = check(path, rebuild=True)
        assert report.findings == [] and report.sound
        repair(path)
        assert check(path, rebuild=True).sound
        found = {key: row.session for key, row in db.kv.scan(RUN)}
        assert found == dict.fromkeys(("checkpointed", "logged"), db.session)
    stop_coordinator(path)
