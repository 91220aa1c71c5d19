"""What `runs` and `traces` print into a pipe and on a terminal, and how runs and traces are named."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

import occamdb
from occamdb import RunId, Thought, ToolCall
from occamdb.primitives import Error
from occamdb.tools.naming import short_ids
from tests.support.shell import RUN, Shell, command

LONG = "word " * 60 + "end"
TRACE = "abcd1234-0000-7000-8000-00000000000"


def on_a_terminal(*words: str | Path) -> str:
    """What a command prints on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "COLUMNS": "80", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command(*words), stdin=follower, stdout=follower, stderr=subprocess.PIPE, env=environment
    )
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 65536):
            shown += block
    except OSError:
        pass  # Linux reports the end of a terminal so
    os.close(leader)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return shown.decode().replace("\r\n", "\n")


# --- Runs ----------------------------------------------------------------------------------------


def test_a_run_is_one_whole_line_in_a_pipe(shell: Shell, db: occamdb.Database) -> None:
    parent = db.runs.create_run(LONG)
    child = db.runs.create_run_with_options("child\nof it", parent=parent.run_id, tags=["a", "b"])
    db.runs.fail_run(child.run_id, LONG)
    first, second = (line.split("\t") for line in shell("runs", "DB").splitlines())
    assert (first[0], first[1], first[2], first[3]) == (str(parent.run_id), LONG, "active", "")
    assert second[:4] == [str(child.run_id), "child\\nof it", "failed", str(parent.run_id)]
    ended = db.runs.get_run(child.run_id)
    assert ended and ended.completed_at
    assert float(second[4]) == pytest.approx(
        (ended.completed_at - ended.created_at).total_seconds(), abs=0.001
    )
    assert second[6:] == ["a, b", LONG]


def test_runs_are_shown_as_trees_with_durations(shell: Shell, db: occamdb.Database) -> None:
    top = db.runs.create_run("top").run_id
    other = db.runs.create_run("other").run_id
    child = db.runs.create_run_with_options("child", parent=top).run_id
    below = db.runs.create_run_with_options("below", parent=child).run_id
    rows = [line.split("\t") for line in shell("runs", "DB", "--tree").splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("0", "top"),
        ("1", "child"),
        ("2", "below"),
        ("0", "other"),
    ]
    assert all(float(row[5]) >= 0 for row in rows)
    assert [row["name"] for row in shell.lines("runs", "DB", "child", "--tree", "--json")] == [
        "child",
        "below",
    ]
    assert shell.lines("runs", "DB", "--tree", "-n", "1", "--json")[0]["run_id"] == str(top)
    assert str(other) not in shell("runs", "DB", "--tree", "-n", "1")
    assert str(below) in shell("runs", "DB", "--tree", "-n", "1")


def test_a_terminal_gets_short_ids_and_with_full_whole_rows(
    database_path: Path, db: occamdb.Database
) -> None:
    run = db.runs.create_run(LONG)
    shown = on_a_terminal("runs", database_path)
    assert str(run.run_id) not in shown and str(run.run_id)[:8] in shown and LONG not in shown
    full = on_a_terminal("runs", database_path, "--full")
    assert str(run.run_id) in full and LONG in full


# --- Traces --------------------------------------------------------------------------------------


@pytest.fixture
def traced(db: occamdb.Database) -> occamdb.Database:
    """A root and, below it, a timed tool call with a long result, an error and a thought."""
    record = db.traces.record_with_options
    record(RUN, Thought("root"), id=TRACE + "1")
    record(
        RUN, ToolCall("grep", {"for": "x"}, LONG, 12.5), id=TRACE + "2", parent_id=TRACE + "1", tags=["t u"]
    )
    record(RUN, Error("IOError", "gone"), id=TRACE + "3", parent_id=TRACE + "1")
    record(RUN, Thought("another"), id="ef" + TRACE[2:] + "4", metadata={"a": 1})
    return db


def test_a_trace_is_one_whole_line_in_a_pipe(shell: Shell, traced: occamdb.Database) -> None:
    rows = {row[0]: row for row in (line.split("\t") for line in shell("traces", "DB", RUN).splitlines())}
    call = traced.traces.get(RUN, TRACE + "2")
    assert call is not None
    assert rows[call.id][1] == call.timestamp.isoformat(timespec="milliseconds")
    assert rows[call.id][2:5] == ["12.500", "ok", "ToolCall"]
    assert LONG in rows[call.id][5]
    assert rows[call.id][6] == "#t u"
    assert rows[TRACE + "3"][3] == "error"
    assert len(rows) == 4


def test_a_tree_shows_start_duration_state_and_id(shell: Shell, traced: occamdb.Database) -> None:
    lines = shell("traces", "DB", RUN, TRACE + "1", "--tree").splitlines()
    root, *below = (line.split("\t") for line in lines)
    assert root[0] == "Thought root" and root[3:] == ["ok", TRACE + "1"]
    found = {row[4]: row for row in below}
    assert found[TRACE + "2"][2] == "12.500" and LONG in found[TRACE + "2"][0]
    assert found[TRACE + "3"][3] == "error"


def test_a_terminal_gets_short_lines_and_with_full_whole_ones(
    database_path: Path, traced: occamdb.Database
) -> None:
    shown = on_a_terminal("traces", database_path, RUN, "--tree")
    assert LONG not in shown
    assert "efcd1234\n" in shown and "efcd1234-" not in shown
    assert "12.5 ms" in shown and "error" in shown
    full = on_a_terminal("traces", database_path, RUN, "--tree", "--full")
    assert LONG in full and "efcd1234-0000-7000-8000-000000000004" in full
    assert LONG in on_a_terminal("traces", database_path, RUN, "--full")


def test_one_trace_is_shown_with_everything(shell: Shell, traced: occamdb.Database) -> None:
    shown = dict(line.split("\t", 1) for line in shell("traces", "DB", RUN, TRACE + "2").splitlines())
    assert shown["id"] == TRACE + "2" and shown["parent_id"] == shown["root_id"] == TRACE + "1"
    assert shown["content.result"] == LONG and shown["content.args"] == '{"for": "x"}'
    assert (shown["duration_ms"], shown["state"], shown["tags"]) == ("12.5", "ok", '["t u"]')
    assert "children\t2\n" in shell("traces", "DB", RUN, TRACE + "1")
    assert 'metadata\t{"a": 1}\n' in shell("traces", "DB", RUN, "ef")


# --- Names ---------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_or_a_name_is_enough(shell: Shell, db: occamdb.Database) -> None:
    run = RunId("abcdef01-0000-7000-8000-000000000001")
    db.runs.create_run_with_options("thread-42", run_id=run)
    shell("put", "DB", "abcdef01-00", "k", "1")
    assert db.kv.get(run, "k") == 1
    for text in ("abc", "ABCDEF010000", "thread-4"):
        assert shell("get", "DB", text, "k") == "1\n"


def test_an_ambiguous_beginning_is_refused_with_the_candidates(shell: Shell, db: occamdb.Database) -> None:
    for number in (1, 2):
        run = RunId(f"abcdef01-0000-7000-8000-00000000000{number}")
        db.runs.create_run_with_options(f"thread-{number}", run_id=run)
    for text in ("abc", "thread"):
        shell("get", "DB", text, "k", code=1)
        assert f"2 runs begin with '{text}'" in shell.error
        assert "000000000001 (thread-1)" in shell.error and "000000000002 (thread-2)" in shell.error


def test_a_whole_name_goes_before_a_beginning(shell: Shell, db: occamdb.Database) -> None:
    one = db.runs.create_run("thread").run_id
    db.runs.create_run("thread-2")
    shell("put", "DB", "thread", "k", "1")
    assert db.kv.get(one, "k") == 1


def test_a_run_that_is_to_be_created_is_never_an_older_one(shell: Shell, db: occamdb.Database) -> None:
    db.runs.create_run("thread-42")
    shell("put", "DB", "thread", "k", "1", "--create-run")
    assert sorted(run.name for run in db.runs.list_runs()) == ["thread", "thread-42"]


def test_the_beginning_of_a_traces_id(shell: Shell, traced: occamdb.Database) -> None:
    assert shell.json("traces", "DB", RUN, "EF", "--json")["content"]["content"] == "another"
    shell("traces", "DB", RUN, "abcd1", code=1)
    assert "3 traces begin with 'abcd1'" in shell.error and TRACE + "3" in shell.error
    shell("traces", "DB", RUN, "fff", code=1)
    assert "there is no trace fff" in shell.error


def test_short_ids_differ() -> None:
    assert short_ids(["abcdefgh-1", "abcdefgh-2"]) == {"abcdefgh-1": "abcdefgh-1", "abcdefgh-2": "abcdefgh-2"}
    assert short_ids(["abcdefgh-1", "b234567-2"])["abcdefgh-1"] == "abcdefgh"
    assert short_ids([]) == {}


# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["traces", "DB", RUN, "--tree", "--type", "ToolCall"],
        ["traces", "DB", RUN, "--tree", "--tag", "x"],
        ["traces", "DB", RUN, "--depth", "1"],
        ["traces", "DB", RUN, "--children", "1"],
        ["traces", "DB", RUN, TRACE + "1", "--type", "Thought"],
        ["traces", "DB", RUN, TRACE + "1", "--tree", "-n", "1"],
        ["traces", "DB", RUN, "--json", "--full"],
        ["runs", "DB", RUN, "--status", "failed"],
        ["runs", "DB", RUN, "-n", "1"],
        ["runs", "DB", "--tree", "--tag", "x"],
        ["events", "DB", RUN, "--verify", "--type", "x"],
        ["events", "DB", RUN, "--verify", "--follow"],
    ],
)
def test_options_without_effect_are_refused(shell: Shell, words: list[str]) -> None:
    shell(*words, code=2)
    assert "has no effect" in " ".join(shell.error.split())
