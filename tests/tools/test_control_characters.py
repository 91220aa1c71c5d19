"""Stored text cannot move the cursor, break a line or reverse the writing of a terminal, whatever command prints it."""

import ast
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Custom, Decision, Error, Query, RunId, Thought, ToolCall
from occamdb.engine.model.errors import OccamError
from occamdb.tools import console
from occamdb.tools.printable import escape_json, markup, printable, without_controls
from tests.support.shell import ROOT, RUN, Shell, command, run, started

BAD = {
    "esc": "\x1b[31mred",
    "newline": "one\nfake line",
    "cr": "over\rwritten",
    "nul": "a\0b",
    "tab": "a\tb",
    "bell": "\a\b\v\f",
    "del": "x\x7fy",
    "c1": "\x9b31m\x85\x90",
    "bidi": "abc\u202egnp.exe\u2066\u200f",
    "separators": "a\u2028b\u2029c",
    "mark": "\ufeffx",
    "tags": "x\U000e0041\U000e007f",
    "markup": "[red]not red[/]",
}
ALL = "".join(BAD.values())
ID = "0198c0de-0000-7000-8000-00000000abcd"
FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def assert_clean(text: str, *, what: str = "") -> None:
    """No control character but the newlines and tabs that the command itself writes."""
    found = {
        char
        for char in text
        if char not in "\n\t"
        and (unicodedata.category(char) in FORBIDDEN or char in BIDI or "\U000e0000" <= char <= "\U000e007f")
    }
    assert not found, (what, found)
    assert "fake line" not in [line.strip() for line in text.splitlines()], what
    for line in text.splitlines():
        assert not line.startswith("fake line"), (what, line)


@pytest.fixture
def filled(db: occamdb.Database) -> Any:
    """Every text field of every primitive holds all of it."""
    db.runs.create_run_with_options(
        ALL, run_id=RUN, tags=list(BAD.values()), metadata={ALL: ALL, "list": [ALL]}
    )
    for number, text in enumerate(BAD.values()):
        other = db.runs.create_run_with_options(text, tags=[text], parent=RUN).run_id
        if number % 2:
            db.runs.fail_run(other, ALL)
        db.kv.put(RUN, text, {text: text})
        db.events.append(RUN, text, {text: text})
        db.cells.init(RUN, text, {text: [text]})
        db.traces.record(RUN, Custom(text, {text: text}), tags=[text], metadata={text: text})
    db.kv.put(RUN, ALL.encode() + b"\xff", ALL)
    top = db.traces.record_with_options(RUN, Thought(ALL), id=ID, tags=[ALL], metadata={ALL: ALL})
    for each in (
        ToolCall(ALL, {ALL: ALL}, ALL),
        ToolCall(ALL, [ALL]),
        Decision(ALL, [ALL], ALL, ALL),
        Query(ALL, ALL, ALL),
        Thought(ALL),
        Error(ALL, ALL),
        Custom(ALL, ALL),
    ):
        db.traces.record_child(RUN, top, each, tags=[ALL], metadata={ALL: ALL})
    first = db.begin(RUN)
    first.kv.put(ALL, first.kv.get(ALL))
    db.kv.put(RUN, ALL, 1)
    with pytest.raises(OccamError):
        first.commit()
    return db


FOR_PEOPLE = [
    ["list", "DB", RUN],
    ["scan", "DB", RUN],
    ["get", "DB", RUN, BAD["esc"]],
    ["runs", "DB"],
    ["runs", "DB", "--status", "failed"],
    ["runs", "DB", "--parent", RUN],
    ["runs", "DB", RUN],
    ["events", "DB", RUN],
    ["events", "DB", RUN, "--type", BAD["newline"]],
    ["events", "DB", RUN, "--verify"],
    ["cells", "DB", RUN],
    ["traces", "DB", RUN],
    ["traces", "DB", RUN, "--type", BAD["esc"]],
    ["traces", "DB", RUN, ID],
    ["traces", "DB", RUN, "--tree"],
    ["traces", "DB", RUN, ID, "--tree", "--children", "2"],
    ["stats", "DB"],
    ["top", "DB", "--count", "1", "--interval", "0.1"],
    ["status", "DB"],
    ["wal", "dump", "DB"],
    ["wal", "verify", "DB"],
    ["check", "DB"],
]
FOR_PROGRAMS = [
    ["scan", "DB", RUN, "--json"],
    ["get", "DB", RUN, BAD["bidi"], "--json"],
    ["get", "DB", RUN, BAD["c1"]],
    ["runs", "DB", "--json"],
    ["runs", "DB", RUN],
    ["events", "DB", RUN, "--json"],
    ["cells", "DB", RUN, "--json"],
    ["traces", "DB", RUN, "--json"],
    ["traces", "DB", RUN, "--tree", "--json"],
    ["stats", "DB", "--json"],
    ["wal", "dump", "DB", "--json"],
    ["check", "DB", "--json"],
]
ERRORS = [
    ["get", "DB", ALL.replace("\0", ""), "k"],
    ["get", "DB", RUN, "no such " + ALL.replace("\0", "")],
    ["delete", "DB", RUN, "no such " + ALL.replace("\0", "")],
    ["runs", "DB", "no such " + ALL.replace("\0", "")],
    ["runs", "DB", "--status", ALL.replace("\0", "")],
    ["put", "DB", RUN, "k", ALL.replace("\0", "")],
    ["put", "DB", RUN, ALL.replace("\0", ""), "1", "--expect", "7"],
    ["traces", "DB", RUN, ALL.replace("\0", "")],
    ["stats", "/tmp/no such" + ALL.replace("\0", "")],
]


def test_no_command_prints_them_raw(shell: Shell, filled: Any) -> None:
    for words in FOR_PEOPLE:
        out = shell(*words)
        assert_clean(out, what=str(words))
        assert_clean(shell.error, what=str(words))
    assert "\\x1b[31mred" in shell("runs", "DB")
    assert "\\x1b[31mred" in shell("events", "DB", RUN)
    assert "\\u202e" in shell("traces", "DB", RUN)
    assert "[red]not red[/]" in shell("runs", "DB")
    assert "\\x1b[31mred" in shell("stats", "DB"), "a hot key"


def test_one_row_stays_one_line(shell: Shell, filled: Any) -> None:
    assert len(shell("events", "DB", RUN).splitlines()) == len(BAD)
    assert len(shell("cells", "DB", RUN).splitlines()) == len(BAD)
    assert len(shell("traces", "DB", RUN).splitlines()) == filled.traces.count(RUN)
    assert len(shell("traces", "DB", RUN, "--tree").splitlines()) == filled.traces.count(RUN)
    assert len(shell("list", "DB", RUN).splitlines()) == filled.kv.count(RUN)


def test_json_stays_json_and_says_the_same(shell: Shell, filled: Any) -> None:
    for words in FOR_PROGRAMS:
        out = shell(*words)
        assert_clean(out, what=str(words))
        try:
            json.loads(out)
        except ValueError:
            for line in out.splitlines():
                json.loads(line)
    assert [row["type"] for row in shell.lines("events", "DB", RUN, "--json")] == list(BAD.values())
    assert {row["name"] for row in shell.lines("runs", "DB", "--json")} == {ALL, *BAD.values()}
    assert shell.json("get", "DB", RUN, BAD["bidi"]) == {BAD["bidi"]: BAD["bidi"]}
    stored = {row["name"]: row["value"] for row in shell.lines("cells", "DB", RUN, "--json")}
    assert stored == {text: {text: [text]} for text in BAD.values()}


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors_are_clean(shell: Shell, filled: Any, number: int) -> None:
    out = shell(*ERRORS[number], code=1)
    assert_clean(out + shell.error, what=str(ERRORS[number]))
    assert shell.error


def test_what_a_broken_chain_says_is_clean(shell: Shell, filled: Any) -> None:
    from occamdb.engine.model.public_types import TypeTag
    from occamdb.primitives import layout

    filled.space(RUN, TypeTag.EVENT, raw=True).put(layout.event(2), b"x" * 32 + ALL.encode())
    assert_clean(shell("events", "DB", RUN, "--verify", code=1))


def test_following_is_clean(filled: Any, database_path: Path) -> None:
    follower = started(command("events", database_path, RUN, "--follow", "-n", str(len(BAD))))
    out, error = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert_clean(out + error)
    assert len(out.splitlines()) == len(BAD)


def test_commands_are_clean_as_processes_too(filled: Any, database_path: Path) -> None:
    """Through real pipes: nothing of it depends on how a test captures output."""
    done = run(command("runs", database_path))
    assert done.returncode == 0
    assert_clean(done.stdout)


def test_a_terminal_gets_styles_and_nothing_else() -> None:
    import io

    from occamdb.tools.safe_console import make_console

    file = io.StringIO()
    shown = make_console(file=file, force_terminal=True, color_system="standard")
    shown.print(f"[red]{markup(BAD['esc'])}[/]", BAD["c1"])
    text = file.getvalue()
    assert text.count("\x1b[31m") == 1 and "\\x1b[31mred" in text
    assert "\x9b" not in text and "\\x9b" in text


@pytest.mark.parametrize("text", [*BAD.values(), ALL, "\ud800", "plain", "é 中 😀"])
def test_the_functions_themselves(text: str) -> None:
    assert_clean(printable(text))
    assert "\n" not in printable(text) and "\t" not in printable(text)
    assert_clean(without_controls(text).replace("fake line", ""))
    assert printable(printable(text)) == printable(text)
    raw = json.dumps({"k": text}, ensure_ascii=False)
    assert json.loads(escape_json(raw)) == {"k": text}
    assert json.loads(console.to_json({"k": text}, indent=2)) == {"k": text}
    assert printable("é 中 😀") == "é 中 😀"


def test_every_control_character_there_is() -> None:
    for number in range(0x110000):
        char = chr(number)
        category = unicodedata.category(char)
        assert (printable(char) != char) >= (category in FORBIDDEN or char in BIDI), hex(number)
        if category[0] in "LNPS" and number < 0xE0000:
            assert printable(char) == char, hex(number)


def test_no_command_prints_but_through_the_console() -> None:
    """`typer.echo`, `print` and rich's own `escape` are for `console` and `printable` alone."""
    # `entry` runs where the packages of the console may be missing.
    allowed = {"console.py", "entry.py", "printable.py", "safe_console.py"}
    for path in sorted((ROOT / "tools").glob("*.py")):
        if path.name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module != "rich.markup", path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("typer.echo", "print", "sys.stdout.write", "Console", "typer.secho"), (
                    path,
                    called,
                )


def test_a_run_named_by_its_reserved_id_is_refused(shell: Shell, tmp_path: Path) -> None:
    for zero in ("0" * 32, str(RunId(int=0))):
        shell("put", "DB", zero, "k", "1", code=1)
        assert "reserved" in shell.error
        assert not shell.path.exists()
