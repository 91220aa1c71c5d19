"""`occamdb watch`, as a process beside the one that writes."""

import json
import signal
from pathlib import Path

import occamdb
from tests.support.shell import Shell, command, started


def test_changes_are_printed_as_they_come(database_path: Path, db: occamdb.Database) -> None:
    run = occamdb.RunId.new()
    since = db.put(run, "a/0", 0)
    process = started(command("watch", database_path, str(run), "a/", "--since", str(since), "--json"))
    try:
        assert process.stdout is not None and process.stderr is not None
        db.put(run, "b/1", "not shown")
        db.put(run, "a/1", {"x": [1]})
        db.delete(run, "a/0")
        rows = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [(row["key"], row["kind"], row["value"]) for row in rows] == [
            ("a/1", "put", {"x": [1]}),
            ("a/0", "delete", None),
        ]
        assert rows[0]["version"] < rows[1]["version"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


def test_a_limit_ends_it(shell: Shell, db: occamdb.Database) -> None:
    run = occamdb.RunId.new()
    for number in range(3):
        db.put(run, "k", number)
    rows = shell.lines("watch", "DB", str(run), "--since", "0", "-n", "2", "--json")
    assert [row["value"] for row in rows] == [0, 1]
