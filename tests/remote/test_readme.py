"""The program of the README that works anywhere, on a server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import occamdb
from tests.support.servers import needs_servers

pytestmark = pytest.mark.usefixtures("clustered")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", params=["postgres", "etcd"])
def url(request: pytest.FixtureRequest) -> str:
    needs_servers()
    return str(request.getfixturevalue(str(request.param)).url())


def test_the_program_for_anywhere_works_on_a_server(url: str, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(# anywhere\.py\n.*?)```", text, re.DOTALL)
    assert found is not None
    (tmp_path / "anywhere.py").write_text(found[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "DATABASE": url}
    done = subprocess.run(
        [sys.executable, "anywhere.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == re.findall(r"print\(.*\)\s+# (.*)", found[1])[0]
    with occamdb.open(url) as db:
        assert db.events.verify_chain(occamdb.RunId.named("anywhere")).length == 1
    assert not (tmp_path / "anywhere.db").exists()
