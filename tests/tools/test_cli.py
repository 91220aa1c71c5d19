"""The commands, each on a real database with a real coordinator, and how errors reach the user."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import occamdb
from occamdb.primitives import Thought, ToolCall
from tests.support.shell import RUN, Shell, run, started

# --- Data ----------------------------------------------------------------------------------------


def test_put_and_get_a_json_value(shell: Shell) -> None:
    assert shell("put", "DB", RUN, "k", '{"a": [1, null, "ü"]}').startswith("version ")
    assert shell("get", "DB", RUN, "k") == '{"a": [1, null, "ü"]}\n'
    found = shell.json("get", "DB", RUN, "k", "--json")
    assert found["value"] == {"a": [1, None, "ü"]}
    assert found["version"] > 0
    assert found["expires_at"] is None


def test_an_absent_key_is_exit_code_1_without_output(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1")
    assert shell("get", "DB", RUN, "other", code=1) == ""
    assert "no key 'other'" in shell.error
    shell("delete", "DB", RUN, "other", code=1)


def test_delete_removes(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1")
    shell("delete", "DB", RUN, "k")
    shell("get", "DB", RUN, "k", code=1)


def test_put_expects_a_version(shell: Shell) -> None:
    version = shell("put", "DB", RUN, "k", "1", "--expect", "0").split()[1]
    shell("put", "DB", RUN, "k", "2", "--expect", "0", code=1)
    assert f"expected it to be absent, found version {version}" in shell.error
    assert "hint" in shell.error
    shell("put", "DB", RUN, "k", "2", "--expect", version)
    assert shell("get", "DB", RUN, "k") == "2\n"


def test_a_ttl_is_stored(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1", "--ttl", "3600")
    assert shell.json("get", "DB", RUN, "k", "--json")["expires_at"] is not None


def test_list_and_scan(shell: Shell) -> None:
    for key in ("a/1", "a/2", "b/1"):
        shell("put", "DB", RUN, key, f'"{key}"')
    assert shell("list", "DB", RUN).split() == ["a/1", "a/2", "b/1"]
    assert shell("list", "DB", RUN, "a/", "--reverse").split() == ["a/2", "a/1"]
    assert shell("list", "DB", RUN, "--start", "a/2", "--limit", "1").split() == ["a/2"]
    rows = shell.lines("scan", "DB", RUN, "a/", "--json")
    assert [(row["key"], row["value"]) for row in rows] == [("a/1", "a/1"), ("a/2", "a/2")]
    assert shell("scan", "DB", RUN, "b/").split("\t")[2] == '"b/1"\n'


def test_namespaces_are_apart(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1", "--namespace", "acme/app")
    shell("get", "DB", RUN, "k", code=1)
    assert shell("get", "DB", RUN, "k", "--namespace", "acme/app/default") == "1\n"


def test_a_run_may_be_named(shell: Shell) -> None:
    shell("put", "DB", "notes", "k", "1", code=1)
    assert "no run is named 'notes'" in shell.error
    shell("put", "DB", "notes", "k", "1", "--create-run")
    shell("put", "DB", "notes", "k", "2", "--create-run")
    assert shell("get", "DB", "notes", "k") == "2\n"
    (row,) = shell.lines("runs", "DB", "--json")
    assert row["name"] == "notes"


def test_a_name_that_only_resembles_an_id_is_a_name(shell: Shell, db: occamdb.Database) -> None:
    for name in ("    " + RUN.replace("-", "")[4:], "0x" + RUN.replace("-", "")[2:], RUN.replace("-", "_")):
        run = db.runs.create_run(name).run_id
        shell("put", "DB", name, "k", "1")
        assert db.kv.get(run, "k") == 1


def test_an_ambiguous_name_is_refused(shell: Shell, db: occamdb.Database) -> None:
    db.runs.create_run("twin")
    db.runs.create_run("twin")
    shell("get", "DB", "twin", "k", code=1)
    assert "2 runs are named 'twin'" in shell.error


@pytest.mark.parametrize("text", ["hello", "NaN", "{'a': 1}", "", "[1"])
def test_what_is_no_json_is_refused_with_a_hint(shell: Shell, text: str) -> None:
    shell("put", "DB", RUN, "k", text, code=1)
    assert "is not a JSON value" in shell.error
    assert "hint" in shell.error


def test_binary_keys_and_values_are_shown(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, b"\xff\x00", b"\x01\x02")
    assert shell("list", "DB", RUN) == "0xff00\n"
    assert shell.lines("scan", "DB", RUN, "--json")[0]["value"] == {"$bytes": "AQI="}


# --- Agents --------------------------------------------------------------------------------------


def test_runs_are_listed_and_shown(shell: Shell, db: occamdb.Database) -> None:
    parent = db.runs.create_run("parent")
    child = db.runs.create_run_with_options("child", parent=parent.run_id, tags=["t"], metadata={"a": 1})
    db.runs.fail_run(child.run_id, "it broke")
    table = shell("runs", "DB")
    assert "parent" in table
    assert "it broke" in table
    assert [row["name"] for row in shell.lines("runs", "DB", "--status", "failed", "--json")] == ["child"]
    assert [row["name"] for row in shell.lines("runs", "DB", "--tag", "t", "--json")] == ["child"]
    assert [row["name"] for row in shell.lines("runs", "DB", "--parent", "parent", "--json")] == ["child"]
    assert shell.json("runs", "DB", "child")["metadata"] == {"a": 1}
    shell("runs", "DB", RUN, code=1)
    assert "not in the index" in shell.error


def test_events_are_printed_and_verified(shell: Shell, db: occamdb.Database) -> None:
    db.events.append_many(RUN, [("a", {"n": 0}), ("b", {"n": 1}), ("a", {"n": 2})])
    rows = shell.lines("events", "DB", RUN, "--json")
    assert [(row["sequence"], row["type"], row["payload"]) for row in rows] == [
        (0, "a", {"n": 0}),
        (1, "b", {"n": 1}),
        (2, "a", {"n": 2}),
    ]
    assert rows[1]["prev_hash"] == rows[0]["hash"]
    assert [row["sequence"] for row in shell.lines("events", "DB", RUN, "--type", "a", "--json")] == [0, 2]
    assert [
        row["sequence"] for row in shell.lines("events", "DB", RUN, "--start", "1", "-n", "1", "--json")
    ] == [1]
    assert len(shell("events", "DB", RUN).splitlines()) == 3
    assert "3 events" in shell("events", "DB", RUN, "--verify")


def test_a_broken_chain_is_exit_code_1(shell: Shell, db: occamdb.Database) -> None:
    from occamdb.primitives import layout

    db.events.append_many(RUN, [("a", {"n": n}) for n in range(3)])
    db.space(RUN, 0x02, raw=True).delete(layout.event(1))
    assert "broken at event 1" in shell("events", "DB", RUN, "--verify", code=1)
    found = shell.json("events", "DB", RUN, "--verify", "--json", code=1)
    assert (found["is_valid"], found["length"], found["first_invalid"]) == (False, 1, 1)


def test_events_can_be_followed(database_path: Path, db: occamdb.Database) -> None:
    db.events.append(RUN, "first", {})
    command = [sys.executable, "-m", "occamdb.tools", "events", str(database_path), RUN, "--follow", "--json"]
    follower = started(command)
    try:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["type"] == "first"
        db.events.append(RUN, "second", {})
        assert json.loads(follower.stdout.readline())["type"] == "second"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(timeout=30) == 130
    finally:
        follower.kill()
        follower.communicate()


def test_cells_are_printed(shell: Shell, db: occamdb.Database) -> None:
    db.cells.init(RUN, "task/1", {"status": "open"})
    version = db.cells.set(RUN, "task/2", 5)
    rows = shell.lines("cells", "DB", RUN, "--json")
    assert [(row["name"], row["value"]) for row in rows] == [("task/1", {"status": "open"}), ("task/2", 5)]
    assert shell("cells", "DB", RUN, "task/2") == f"task/2\t{version}\t5\n"


def test_traces_are_listed_and_drawn(shell: Shell, db: occamdb.Database) -> None:
    root = db.traces.record(RUN, Thought("top"), tags=["x"])
    child = db.traces.record_child(RUN, root, ToolCall("grep", {"for": "y"}, 3))
    assert [row["id"] for row in shell.lines("traces", "DB", RUN, "--json")] == [root, child]
    assert [row["id"] for row in shell.lines("traces", "DB", RUN, "--tag", "x", "--json")] == [root]
    assert [row["id"] for row in shell.lines("traces", "DB", RUN, "--type", "ToolCall", "--json")] == [child]
    assert "grep(" in shell("traces", "DB", RUN)
    tree = shell("traces", "DB", RUN, "--tree").splitlines()
    assert tree[0].startswith("Thought top")
    assert "└── ToolCall grep" in tree[1]
    assert [row["depth"] for row in shell.lines("traces", "DB", RUN, root, "--tree", "--json")] == [0, 1]
    shell("traces", "DB", RUN, RUN, code=1)
    assert "there is no trace" in shell.error


def test_a_tree_of_any_depth_is_printed_whole(shell: Shell, db: occamdb.Database) -> None:
    depth = sys.getrecursionlimit() + 200

    def record(txn: occamdb.Transaction) -> None:
        last = txn.traces.record(Thought("0"))
        for level in range(1, depth):
            last = txn.traces.record_child(last, Thought(str(level)))

    db.transaction(RUN, record)
    lines = shell("traces", "DB", RUN, "--tree").splitlines()
    assert [line.partition("\t")[0].rpartition("Thought ")[2] for line in lines] == [
        str(level) for level in range(depth)
    ]
    assert len(shell.lines("traces", "DB", RUN, "--tree", "--json")) == depth


# --- Coordinator ---------------------------------------------------------------------------------


def test_status_and_stop(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1")
    found = shell.json("status", "DB", "--json")
    assert found["coordinator"] is not None
    assert found["shared_memory_bytes"] > 0
    assert "running" in shell("status", "DB")
    assert f"pid {found['coordinator']}" in shell("stop", "DB")
    stopped = shell.json("status", "DB", "--json", code=3)
    assert stopped["coordinator"] is None
    assert stopped["segments"] == []
    assert "no coordinator" in shell("stop", "DB")


def test_a_killed_coordinator_is_recovered_from(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1")
    shell("stop", "DB", "--kill")
    assert "the next open recovers" in shell("status", "DB", code=3)
    assert shell("get", "DB", RUN, "k") == "1\n"
    shell("put", "DB", RUN, "other", "2")
    assert shell.json("status", "DB", "--json")["coordinator"] is not None
    assert shell("get", "DB", RUN, "k") == "1\n"


def test_stats_are_shown(shell: Shell, db: occamdb.Database) -> None:
    for number in range(5):
        db.kv.put(RUN, f"k{number}", number)
    figures = shell.json("stats", "DB", "--json")
    assert figures["commits"] >= 5
    assert figures["keys"] >= 5
    assert [worker["pid"] for worker in figures["workers"]].count(os.getpid()) >= 1
    assert "commits" in shell("stats", "DB")
    assert "/s)" in shell("top", "DB", "--interval", "0.1", "--count", "1")


def test_stats_start_no_coordinator(shell: Shell) -> None:
    shell("put", "DB", RUN, "k", "1")
    shell("stop", "DB")
    shell("stats", "DB", code=1)
    assert "no coordinator runs" in shell.error


def test_serve_stays_until_it_is_stopped(shell: Shell, database_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "occamdb.tools",
        "serve",
        str(database_path),
        "--set",
        "max_store_size=64MiB",
    ]
    server = started(command)
    try:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("serving")
        shell("put", "DB", RUN, "k", "1")
        assert shell.json("status", "DB", "--json")["coordinator"] == server.pid
        shell("stop", "DB")
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()
        server.communicate()


def test_serve_refuses_a_second_coordinator(shell: Shell, db: occamdb.Database) -> None:
    shell("serve", "DB", code=1)
    assert "is held by process" in shell.error
    assert db.get(RUN, "k") is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("ring_size", "not NAME=VALUE"),
        ("ring_sise=1MiB", "did you mean ring_size"),
        ("ring_size=5", "out of range"),
    ],
)
def test_serve_refuses_wrong_settings(shell: Shell, setting: str, message: str) -> None:
    shell("serve", "DB", "--set", setting, code=1)
    assert message in shell.error
    assert not shell.path.exists()


# --- Care ----------------------------------------------------------------------------------------


def test_the_log_is_dumped_and_verified(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put(RUN, "k", {"a": 1})
    db.kv.delete(RUN, "k")
    rows = shell.lines("wal", "dump", "DB", "--json")
    writes = [row for row in rows if row["type"] == "Write"]
    assert [(row["run"], row["tag"], row["key"], row["value"]) for row in writes] == [
        (RUN, "KV", "k", {"a": 1})
    ]
    assert [row["type"] for row in rows] == [
        "BeginTxn",
        "Write",
        "CommitTxn",
        "BeginTxn",
        "Delete",
        "CommitTxn",
    ]
    assert len(shell("wal", "dump", "DB", "-n", "1").splitlines()) == 3
    found = shell.json("wal", "verify", "DB", "--json")
    assert (found["transactions"], found["writes"], found["deletes"]) == (2, 1, 1)
    assert "sound" in shell("wal", "verify", "DB")


# --- Errors --------------------------------------------------------------------------------------


def test_a_directory_without_a_database_is_named(shell: Shell, tmp_path: Path) -> None:
    for words in (
        ("get", "DB", RUN, "k"),
        ("runs", "DB"),
        ("status", "DB"),
        ("stop", "DB"),
        ("wal", "verify", "DB"),
    ):
        shell(*words, code=1)
        assert "does not exist" in shell.error
    shell("runs", str(tmp_path), code=1)
    assert "is not an occamdb database" in shell.error


def test_what_the_system_refuses_is_a_message_too(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shell("backup", "DB", str(tmp_path / "file" / "below"), code=1)
    shell("put", "DB", RUN, "k", "1")
    shell("backup", "DB", str(tmp_path / "file" / "below"), code=1)
    assert shell.error.startswith("error ")
    assert "Not a directory" in shell.error


def test_wrong_usage_is_exit_code_2(shell: Shell) -> None:
    shell("get", code=2)
    shell("nonsense", code=2)


def test_every_command_explains_itself(shell: Shell) -> None:
    from typer.main import get_command

    from occamdb.tools.cli import app

    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert "Usage: occamdb" in shell(name, "--help")


def test_an_error_is_a_message_and_no_traceback(database_path: Path) -> None:
    finished = run([sys.executable, "-m", "occamdb.tools", "get", str(database_path), RUN, "k"])
    assert finished.returncode == 1
    assert "error" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_reader_that_goes_away_is_no_error(shell: Shell, db: occamdb.Database) -> None:
    db.kv.put_many(RUN, {f"key {number:05}": "x" * 200 for number in range(2000)})
    command = [sys.executable, "-m", "occamdb.tools", "scan", str(shell.path), RUN]
    scanner = started(command)
    assert scanner.stdout is not None and scanner.stderr is not None
    scanner.stdout.readline()
    scanner.stdout.close()
    error = scanner.stderr.read()
    scanner.wait(timeout=30)
    scanner.stderr.close()
    assert "Traceback" not in error
    assert "BrokenPipe" not in error


def test_the_version_is_printed(shell: Shell) -> None:
    assert shell("--version").strip() == f"occamdb {occamdb.__version__}"
