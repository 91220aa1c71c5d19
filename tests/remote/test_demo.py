"""The demo on a server: agents in processes of their own, one of them killed, and an exact recount."""

import re
from pathlib import Path

import pytest

import occamdb
from occamdb.tools.cli import main

pytestmark = pytest.mark.usefixtures("clustered")


@pytest.fixture(scope="module", params=["postgres", "etcd"])
def url(request: pytest.FixtureRequest) -> str:
    from tests.support.servers import needs_servers

    needs_servers()
    return str(request.getfixturevalue(str(request.param)).url())


def test_agents_in_several_processes_index_a_tree_exactly(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(24):
        words = "every agent wants these words " * (number % 5 + 1)
        (tmp_path / f"{number:02}.txt").write_text(f"{words} w{number}")
    assert main(["demo", str(tmp_path), "--agents", "3", "--batch", "2", "--db", url]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 event logs" in out and "all valid" in out and "exactly equal" in out
    assert re.search(r"indexer-\d had it [\d,]+ ms later and indexed the rest", out)
    assert "WRONG" not in out
    secret = re.search(r"//[^:/]+:([^@/]+)@", url)
    assert secret is None or secret[1] not in out
    with occamdb.open(url, tenant="demo") as db:
        (index,) = [run for run in db.runs.list_runs() if run.name == f"index of {tmp_path}"]
        assert db.tasks.stats(index.run_id, "batches").done == 12


def test_a_demo_on_a_server_keeps_no_directory(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path), "--db", url, "--keep", str(tmp_path / "db")]) == 2
    assert "no effect" in " ".join(capsys.readouterr().err.replace("│", " ").split())
