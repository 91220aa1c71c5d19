"""The guard of conftest itself: it sees what it must see, and blames nobody else."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import posix_ipc
import pytest

from occamdb.engine.disk.directory import Meta
from tests.support import leaks

MARKER = os.environ[leaks.MARKER]


def started(environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment)


def ended(process: subprocess.Popen[bytes]) -> None:
    process.communicate(b"\n", timeout=30)


def test_a_child_is_seen_until_it_ends() -> None:
    child = started()
    assert child.pid in leaks.own_processes(MARKER)
    ended(child)
    assert child.pid not in leaks.own_processes(MARKER)


def test_a_detached_daemon_is_known_by_its_environment() -> None:
    program = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import os; print(os.getpid(), flush=True); input()"])
    os._exit(0)
os.wait()
"""
    launcher = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None and launcher.stdin is not None
    pid = int(launcher.stdout.readline())
    try:
        launcher.wait(timeout=30)
        assert pid in leaks.own_processes(MARKER), "no longer a descendant, but still ours"
        assert pid not in leaks.own_processes("somebody else's marker")
    finally:
        launcher.stdin.write(b"\n")
        launcher.stdin.close()
        launcher.stdout.close()
    assert (
        leaks.wait_until_gone(lambda: {p: q for p, q in leaks.own_processes(MARKER).items() if p == pid})
        == []
    )


def test_a_segment_is_attributed_by_creation_or_by_the_databases_id(tmp_path: Path) -> None:
    database_id = uuid.uuid4()
    ours, by_id, foreign = (f"occam-{uuid.uuid4().hex[:16]}-1-store" for _ in range(3))
    by_id = f"occam-{database_id.hex[:16]}-1-store"
    posix_ipc.SharedMemory(f"/{ours}", posix_ipc.O_CREX, size=4096).close_fd()
    for name in (by_id, foreign):
        (leaks.SHARED_MEMORY / name).write_bytes(b"x")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "meta").write_bytes(Meta(database_id=database_id.bytes).encode())
    try:
        assert leaks.own_segments(tmp_path) == {ours, by_id}
        assert leaks.own_segments(None) == {ours}
    finally:
        leaks.unlink([ours, by_id, foreign])
    assert leaks.own_segments(tmp_path) == set()


def test_the_guard_fails_a_test_that_leaves_a_process(pytester_like: Path) -> None:
    (pytester_like / "test_leaky.py").write_text(
        "import subprocess, sys\n"
        "def test_leaves():\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    )
    output = run_pytest(pytester_like)
    assert "the test left processes behind" in output
    assert "1 passed, 1 error" in output


def test_the_guard_fails_a_test_that_leaves_a_segment(pytester_like: Path) -> None:
    name = f"/occam-{uuid.uuid4().hex[:16]}-1-store"
    (pytester_like / "test_leaky.py").write_text(
        "import posix_ipc\n"
        "def test_leaves():\n"
        f"    posix_ipc.SharedMemory({name!r}, posix_ipc.O_CREX, size=4096).close_fd()\n"
    )
    output = run_pytest(pytester_like)
    assert "the test left shared memory behind" in output
    assert "1 passed, 1 error" in output
    assert not (leaks.SHARED_MEMORY / name[1:]).exists()


@pytest.fixture
def pytester_like(tmp_path: Path) -> Path:
    """A directory whose conftest is ours, with a short grace period."""
    (tmp_path / "conftest.py").write_text(
        "from tests.support import leaks\nleaks.GRACE_S = 0.2\nfrom tests.conftest import *  # noqa: F403\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run_pytest(directory: Path) -> str:
    root = Path(__file__).parent.parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PYTHONPATH"] = f"{root}:{root / 'src'}"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(directory)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return finished.stdout + finished.stderr
