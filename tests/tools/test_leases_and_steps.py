"""`occamdb leases` and `occamdb steps`, for people's scripts and as JSON, and `check` of a database with both."""

import json
from pathlib import Path

import pytest

import occamdb
from occamdb import RunId
from occamdb.tools.coordinator import stop_coordinator
from tests.support.shell import Shell

RUN = RunId.named("the command line")


def test_holders_are_listed(shell: Shell, db: occamdb.Database) -> None:
    assert shell("leases", "DB", str(RUN)) == ""
    with db.leases.hold(RUN, "gpu", slots=2, lease=60) as lease, db.leases.hold(RUN, "leader"):
        rows = [line.split("\t") for line in shell("leases", "DB", str(RUN)).splitlines()]
        assert [row[:3] for row in rows] == [
            ["gpu", "slot 0 of 2", f"token {lease.token}"],
            ["leader", "slot 0 of 1", rows[1][2]],
        ]
        assert rows[0][5].startswith("until ") and rows[1][5:] == ["no limit", "0 waiting"]
        decoder = json.JSONDecoder()
        first, _ = decoder.raw_decode(shell("leases", "DB", str(RUN), "--json"))
        assert (first["name"], first["token"], first["slots"], first["waiting"]) == ("gpu", lease.token, 2, 0)


def fail() -> None:
    raise OSError("no\tnet")


def test_steps_are_listed(shell: Shell, db: occamdb.Database) -> None:
    db.steps.run(RUN, "count", len, "abc")
    with pytest.raises(OSError):
        db.steps.run(RUN, "fetch", fail)
    rows = [line.split("\t") for line in shell("steps", "DB", str(RUN)).splitlines()]
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        ("count", "done", "1 attempt", "3"),
        ("fetch", "failed", "1 attempt", rows[1][4]),
    ]
    assert "no" in rows[1][4] and len(rows[1]) == 5
    first, _ = json.JSONDecoder().raw_decode(shell("steps", "DB", str(RUN), "--json"))
    assert (first["name"], first["state"], first["result"], first["error"]) == ("count", "done", 3, None)


def test_a_database_with_holders_and_steps_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "db"
    with occamdb.open(path) as db:
        lease = db.leases.acquire(RUN, "leader")
        db.steps.run(RUN, "count", len, "abc")
        with pytest.raises(OSError):
            db.steps.run(RUN, "fetch", fail)
        stop_coordinator(path)
        shell = Shell(path, capsys)
        shell("check", "DB")
        db.space(RUN, 0x12, raw=True).put(b"\x09", 1)
        stop_coordinator(path)
        assert "does not know" in shell("check", "DB", code=1)
        assert db.leases.is_held(RUN, lease)
    stop_coordinator(path)
