"""The programs of docs/plugins run: each python block that begins with `# runs`, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import stop_coordinator

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs" / "plugins").glob("*.md"))
PROGRAM = re.compile(r"^```python\n(# runs.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = [
    pytest.param(program, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, program in enumerate(PROGRAM.findall(page.read_text(encoding="utf-8")), 1)
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program(program: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    try:
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        for settings in tmp_path.glob("*.db"):
            stop_coordinator(settings)
    assert done.returncode == 0, done.stderr


# The comparison of all of them is not a page about one plug-in; its programs are those in stress/comparisons/.
OF_PLUG_INS = [page for page in PAGES if page.stem != "elsewhere"]


@pytest.mark.parametrize("page", OF_PLUG_INS, ids=lambda page: page.stem)
def test_a_page_begins_with_a_program(page: Path) -> None:
    first = re.search(r"^```(\w*)\n(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert first is not None and first[1] == "python" and first[2].startswith("# runs")
