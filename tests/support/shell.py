"""Running commands in tests: in this process, or as processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from occamdb.tools.cli import main

ROOT = Path(__file__).parent.parent.parent
RUN = "00000000-0000-7000-8000-000000000001"


class Shell:
    """Runs commands in this process and keeps what they printed."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capture = capture
        self.error = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run `occamdb WORDS`, where "DB" stands for the database; returns its output."""
        self._capture.readouterr()
        found = main([str(self.path) if word == "DB" else word for word in words])
        out, self.error = self._capture.readouterr()
        assert found == code, f"exit code {found}: {out}{self.error}"
        return out

    def json(self, *words: str, code: int = 0) -> Any:
        """The same with its output read as JSON."""
        return json.loads(self(*words, code=code))

    def lines(self, *words: str) -> list[Any]:
        """The same for one JSON object a line."""
        return [json.loads(line) for line in self(*words).splitlines()]


def command(*words: str | Path) -> list[str]:
    """The command line of `occamdb WORDS` as a process of its own."""
    return [sys.executable, "-m", "occamdb.tools", *map(str, words)]


def started(command: list[str]) -> subprocess.Popen[str]:
    """A process that goes on while the test does."""
    return subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(
    command: list[str], *, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A process run to its end."""
    done = subprocess.run(
        command, env=_environment(), input=stdin, capture_output=True, cwd=cwd, timeout=60, check=False
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path}
