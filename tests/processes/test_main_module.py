"""Programs that start processes by spawn: without a guard they are told, with one they run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import occamdb
from tests.support.processes import environment, python

PROGRAM = """
import sys
from multiprocessing import get_context

import occamdb

db = {open}
run = occamdb.RunId.named("r")

def work(path):
    pass

{guard}
    db.increment(run, "starts")
    process = get_context({method!r}).Process(target=work, args=("x",))
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def run_program(tmp_path: Path, opening: str, guard: str, method: str) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(open=opening, guard=guard, method=method))
    return subprocess.run(
        [python(), str(program)], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_program_without_a_guard_is_told_where_it_is_missing(database_path: Path, method: str) -> None:
    opening = f"occamdb.open({str(database_path)!r}, idle_timeout=0.2)"
    outcome = run_program(database_path.parent, opening, "if True:", method)
    assert outcome.returncode == 1
    assert "MainModuleError" in outcome.stderr and "program.py opens the database once more" in outcome.stderr
    assert 'if __name__ == "__main__":' in outcome.stderr
    with occamdb.open(database_path, idle_timeout=0.2) as db:
        assert db.get(occamdb.RunId.named("r"), "starts") == 1  # the second run wrote nothing


@pytest.mark.parametrize(
    "guard",
    [
        'if __name__ == "__main__":',
        'import multiprocessing as m\nif m.current_process().name == "MainProcess":',
    ],
)
def test_a_program_with_a_guard_may_open_at_its_top(database_path: Path, guard: str) -> None:
    opening = f"occamdb.open({str(database_path)!r}, idle_timeout=0.2)"
    outcome = run_program(database_path.parent, opening, guard, "spawn")
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_a_database_in_memory_is_refused_as_well(tmp_path: Path) -> None:
    opening = "occamdb.open_in_memory(max_store_size='16MiB')"
    outcome = run_program(tmp_path, opening, "if True:", "spawn")
    assert "MainModuleError" in outcome.stderr
