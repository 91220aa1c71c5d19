"""Plug-ins whose framework is missing, or newer than what was tested, say so; and occamdb imports none of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Module, package that it imports, its name on PyPI, extra.
MODULES = [
    ("pydantic_ai", "pydantic_ai", "pydantic-ai-slim", "pydantic-ai"),
    ("claude_sdk", "claude_agent_sdk", "claude-agent-sdk", "claude-agent-sdk"),
    ("openai_agents", "agents", "openai-agents", "openai-agents"),
]


def run(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("module", "package", "name", "extra"), MODULES)
def test_a_missing_framework_names_its_extra(module: str, package: str, name: str, extra: str) -> None:
    done = run(f"import sys; sys.modules[{package!r}] = None; import occamdb.plugins.{module}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(f"pip install 'occamdb[{extra}]'")


@pytest.mark.parametrize(("module", "package", "name", "extra"), MODULES)
def test_a_newer_framework_is_told(module: str, package: str, name: str, extra: str) -> None:
    done = run(
        "import importlib.metadata as m; found = m.version\n"
        f"m.version = lambda name: '99.1' if name == {name!r} else found(name)\n"
        f"import occamdb.plugins.{module}"
    )
    assert done.returncode == 0, done.stderr
    assert f"tested with {name} " in done.stderr and "99.1 is installed" in done.stderr


def test_occamdb_imports_no_framework() -> None:
    packages = [package for _, package, _, _ in MODULES]
    done = run(f"import sys, occamdb, occamdb.aio; print([p for p in {packages} if p in sys.modules])")
    assert done.stdout.strip() == "[]"
