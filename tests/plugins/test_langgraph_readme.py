"""The README's lines about LangGraph lead to a graph that is killed and goes on."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import stop_coordinator
from tests.support.processes import environment

README = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_graph_of_the_readme_is_killed_and_goes_on(tmp_path: Path) -> None:
    section = README[README.index("## With LangGraph") :]
    program = re.search(r"```python\n# (\S+)\n(.*?)```", section, re.DOTALL)
    assert program is not None
    (tmp_path / program[1]).write_text(program[2], encoding="utf-8")
    lines = re.findall(rf"^python ({re.escape(program[1])}.*?)\s+# (.*)$", section, re.MULTILINE)
    assert [shlex.split(line) for line, _ in lines] == [["graph.py", "--die"], ["graph.py"]]
    try:
        for line, comment in lines:
            done = subprocess.run(
                [sys.executable, *shlex.split(line)],
                cwd=tmp_path,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=120,
            )
            if "killed" in comment:
                assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
            else:
                promised = ast.literal_eval(comment.partition(": ")[2])
                assert ast.literal_eval(done.stdout) == promised, done.stderr
    finally:
        for path in tmp_path.glob("*.db"):
            stop_coordinator(path)
