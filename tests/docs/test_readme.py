"""What README.md, the guide, the recipes and the page on asyncio show works as typed: code runs, commands succeed.

Python blocks run in order in one namespace and one directory; a block that begins with a file name is a script of
its own. Lines of `sh` blocks that call `occamdb` run in order in one directory, those with `&` in the background.
"""

import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from occamdb.tools.cli import main
from tests.conftest import stop_coordinator

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(kind, body) for kind, body in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)]
DOCUMENTS = [
    "README.md",
    "docs/guide.md",
    "docs/recipes.md",
    "docs/async.md",
    "docs/tasks.md",
    "docs/leases.md",
    "docs/steps.md",
    "docs/budgets.md",
]
SCRIPT_NAME = re.compile(r"# (\w+\.py)\n")


def commands() -> list[list[str]]:
    """Every `occamdb ...` line of the README, without its comment."""
    lines = [line for kind, body in BLOCKS if kind == "sh" for line in body.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("occamdb ")]


def test_the_two_commands_stand_at_the_top() -> None:
    kind, body = BLOCKS[0]
    assert kind == "sh"
    assert [line.split("#")[0].strip() for line in body.splitlines()] == ["make demo", "make test"]
    # On the first screen: after what it is and the picture, before anything else.
    assert README[: README.index("make demo")].count("\n") < 25


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "document"}
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = [
        body for body in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if not SCRIPT_NAME.match(body)
    ]
    assert len(blocks) >= 3
    try:
        for body in blocks:
            exec(compile(body, document, "exec"), namespace)
    finally:
        db = namespace.get("db")
        if db is not None:
            db.close()  # type: ignore[attr-defined]
        for path in tmp_path.glob("*.db"):
            stop_coordinator(path)


def test_the_scripts_run(tmp_path: Path) -> None:
    scripts = [
        (match[1], body)
        for kind, body in BLOCKS
        if kind == "python" and (match := SCRIPT_NAME.match(body)) and "occamdb.plugins" not in body
    ]  # those that need a framework are run by the tests of plug-ins
    assert scripts
    for name, body in scripts:
        (tmp_path / name).write_text(body)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        try:
            finished = subprocess.run(
                [sys.executable, name],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            for path in tmp_path.glob("*.db"):
                stop_coordinator(path)
        assert finished.returncode == 0, finished.stderr
        expected = re.findall(r"print\(.*\)\s+# (.*)", body)
        assert finished.stdout.split() == expected


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 5
    try:
        for words in commands():
            if words[-1] == "&":
                in_background(words[:-1])
            else:
                once = ["--count", "1", "--interval", "0.1"] if words[0] == "top" else []
                assert main(words + once) == 0, f"occamdb {shlex.join(words)}: {capsys.readouterr()}"
    finally:
        stop_coordinator(tmp_path / "agents.db")
    output = capsys.readouterr().out
    assert '{"mood": "good"}' in output


def in_background(words: list[str]) -> None:
    """Start `occamdb serve PATH` and wait until it serves."""
    assert words[0] == "serve"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "occamdb.tools", *words]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    assert server.stderr.readline().startswith("serving")
    # It outlives this function; `occamdb stop` ends it.
    threading.Thread(target=server.communicate, daemon=True).start()


def test_every_command_it_names_exists() -> None:
    from typer.main import get_command

    from occamdb.tools.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`occamdb (\w+)", README)) | {words[0] for words in commands()}
    assert named - {"open"} <= known
