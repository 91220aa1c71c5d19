"""The demo as a user runs it: a coordinator, agent processes, a verdict."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import occamdb
from occamdb.tools.cli import main
from tests.conftest import stop_coordinator

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(24):
        (directory / f"{number:02}.txt").write_text(
            "every agent wants these words " * (number % 5 + 1) + f"w{number}"
        )
    return directory


def test_several_processes_index_a_tree_exactly(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(source), "--agents", "3", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "24 text files" in out
    assert "did (" in out
    assert "4 event logs" in out
    assert "all valid" in out
    assert "exactly equal" in out
    assert "WRONG" not in out


@pytest.mark.parametrize(("agents", "batch", "files"), [(2, 4, 24), (3, 1, 24), (4, 8, 2)])
def test_one_agent_is_killed_half_way_and_another_takes_over(
    source: Path, database_path: Path, capsys: pytest.CaptureFixture[str], agents: int, batch: int, files: int
) -> None:
    for path in sorted(source.iterdir())[files:]:
        path.unlink()
    arguments = [str(source), "--agents", str(agents), "--batch", str(batch), "--keep", str(database_path)]
    assert main(["demo", *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"indexer-\d \(pid \d+\) was killed on purpose", out)
    told = re.search(r"Takeover indexer-(\d) was killed with (\d) of the (\d) files of batch (\d+) done", out)
    assert told
    successor = re.search(r"done; indexer-(\d) had it", out)
    assert successor and successor[1] != told[1]
    assert "exactly equal" in out
    with occamdb.open(database_path) as db:
        index = db.runs.find("index of " + str(source))
        assert index is not None
        children = {run.name: run for run in db.runs.get_child_runs(index)}
        assert children.pop(f"indexer-{told[1]}").status.value == "failed"
        assert {run.status.value for run in children.values()} == {"completed"}
        stats = db.tasks.stats(index, "batches")
        assert (stats.done, stats.ready, stats.claimed, stats.dead) == (-(-files // batch), 0, 0, 0)
        half = db.kv.get(index, "victim")
        assert half["done"] == int(told[2]) and half["batch"] == int(told[4])
    stop_coordinator(database_path)


def test_an_agent_alone_is_not_killed(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(source), "--agents", "1"]) == 0
    out = capsys.readouterr().out
    assert "killed" not in out and "Takeover" not in out and "exactly equal" in out


def test_the_database_can_be_kept(
    source: Path, database_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(source), "--agents", "2", "--keep", str(database_path)]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f" inspect {database_path}")
    with occamdb.open(database_path) as db:
        names = [run.name for run in db.runs.list_runs()]
        (index,) = [run for run in db.runs.list_runs() if run.name.startswith("index of")]
        assert sorted(names)[1:] == ["indexer-1", "indexer-2"]
        statuses = sorted(run.status.value for run in db.runs.list_runs())
        assert statuses == ["completed", "completed", "failed"]
        assert db.kv.get(index.run_id, "word/every") == sum(number % 5 + 1 for number in range(24))
    stop_coordinator(database_path)


def test_a_wrong_index_is_exit_code_1(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from occamdb.tools import demo_report

    real = demo_report.recounted
    monkeypatch.setattr(demo_report, "recounted", lambda plan: real(plan) + real(plan))
    assert main(["demo", str(source), "--agents", "1"]) == 1
    assert "WRONG the index differs from the recount" in capsys.readouterr().out


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "occamdb.tools", "demo", "--agents", "2"]
    demo = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "commits" in line:  # the agents are at work
            break
    os.killpg(demo.pid, signal.SIGINT)
    _, error = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_no_agent_and_empty_batches_are_wrong_usage(source: Path) -> None:
    assert main(["demo", str(source), "--agents", "0"]) == 2
    assert main(["demo", str(source), "--batch", "0"]) == 2


def test_a_directory_without_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(b"\0")
    assert main(["demo", str(tmp_path)]) == 1
    assert "no text files" in capsys.readouterr().err
