"""Starting a coordinator from wherever the caller stands, and with whatever interpreter it is.

Each caller is a process of its own that opens a database and says who serves it. The coordinator must import the
caller's occamdb and nothing else of the caller's: neither from its working directory nor from the folders on its path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import msgpack
import posix_ipc
import pytest
import sortedcontainers

import occamdb
from tests.support import processes

ROOT = str(Path(occamdb.__file__).parent.parent)
SITE = str(Path(msgpack.__file__).parent.parent)
SHADOWED = ("selectors", "secrets", "struct", "json", "resource", "typing", "dataclasses", "uuid", "socket")

OPEN = """
import json, sys, time
sys.path += {paths!r}
{before}
import occamdb
{after}
began = time.monotonic()
try:
    with occamdb.open({path!r}, timeout=20, max_store_size="4MiB", idle_timeout=20.0) as db:
        db.put("0" * 31 + "1", "k", 1)
        answer = {{"value": db.get("0" * 31 + "1", "k"), "pid": db.stats()["pid"]}}
except occamdb.OccamError as error:
    answer = {{"error": type(error).__name__, "text": str(error)}}
print(json.dumps(answer | {{"seconds": time.monotonic() - began}}))
"""


def shadows(folder: Path) -> Path:
    """A folder of modules named like the standard library's, none of which can be imported."""
    folder.mkdir(exist_ok=True)
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} of {folder} was imported')\n")
    return folder


def program(path: Any, *, paths: tuple[str, ...] = (ROOT, SITE), before: str = "", after: str = "") -> str:
    """A program that opens the database at `path` and prints what came of it."""
    return OPEN.format(path=str(path), paths=list(paths), before=before, after=after)


def call(*command: str, cwd: Path, **environment: str) -> dict[str, Any]:
    """Run a caller; what it printed."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def check_served(answer: dict[str, Any], path: Path, away_from: Path) -> None:
    """The database was served, by a process that keeps nothing of the caller's directory."""
    assert answer.get("value") == 1, answer
    pid = processes.coordinator_pid(path)
    assert answer["pid"] == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    held = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    assert not [name for name in held if name.startswith(str(away_from))]
    processes.stop_coordinator(path)


@pytest.mark.parametrize("flags", [["-I"], ["-P"], ["-I", "-S"]], ids=" ".join)
def test_a_directory_of_modules_named_like_the_standard_librarys(
    flags: list[str], tmp_path: Path, database_path: Path
) -> None:
    here = shadows(tmp_path / "here")
    answer = call(sys.executable, *flags, "-c", program(database_path), cwd=here)
    check_served(answer, database_path, here)


def test_safe_path_by_environment(tmp_path: Path, database_path: Path) -> None:
    here = shadows(tmp_path / "here")
    answer = call(sys.executable, "-c", program(database_path), cwd=here, PYTHONSAFEPATH="1")
    check_served(answer, database_path, here)


def test_modules_named_like_the_standard_librarys_beside_occamdb(tmp_path: Path, database_path: Path) -> None:
    """As with `pip install --target`, and with back-ports in site-packages. Nothing else of the path is needed."""
    target = shadows(tmp_path / "target")
    (target / "occamdb").symlink_to(Path(ROOT) / "occamdb")
    for module in (msgpack, posix_ipc, sortedcontainers):
        origin = Path(module.__file__ or "")
        place = origin.parent if origin.name == "__init__.py" else origin
        (target / place.name).symlink_to(place)
    before = "import secrets, selectors, struct, resource, typing, dataclasses, uuid, socket"
    command = program(database_path, paths=(str(target),), before=before)
    answer = call(sys.executable, "-I", "-S", "-c", command, cwd=tmp_path, PYTHONPATH=str(target))
    check_served(answer, database_path, tmp_path / "nothing")


def test_a_relative_path_of_import_and_of_the_database(tmp_path: Path, database_path: Path) -> None:
    """`PYTHONPATH=src python`, and a caller that changes its directory once it has imported."""
    (tmp_path / "src").symlink_to(ROOT)
    (tmp_path / "elsewhere").mkdir()
    command = program("../db", paths=(SITE,), after="import os; os.chdir('elsewhere')")
    answer = call(sys.executable, "-c", command, cwd=tmp_path, PYTHONPATH="src")
    check_served(answer, database_path, tmp_path / "elsewhere")


def test_a_working_directory_that_was_deleted(tmp_path: Path, database_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    before = "import os; os.rmdir(os.getcwd())"
    answer = call(sys.executable, "-c", program(database_path, before=before), cwd=here)
    check_served(answer, database_path, here)


def test_a_relative_path_where_there_is_no_working_directory(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    before = "import os; os.rmdir(os.getcwd())"
    answer = call(sys.executable, "-c", program("db", before=before), cwd=here)
    assert answer["error"] == "InvalidArgumentError" and "working directory" in answer["text"]


def test_a_working_directory_that_cannot_be_read(tmp_path: Path, database_path: Path) -> None:
    here = shadows(tmp_path / "here")
    limits = "-dac_override,-dac_read_search"
    may_not = ["setpriv", f"--inh-caps={limits}", f"--bounding-set={limits}"] if os.geteuid() == 0 else []
    before = "import os; os.chmod(os.getcwd(), 0)"
    try:
        answer = call(*may_not, sys.executable, "-I", "-c", program(database_path, before=before), cwd=here)
        check_served(answer, database_path, here)
    finally:
        here.chmod(0o700)


def test_an_inherited_descriptor_of_the_directory(tmp_path: Path, database_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    before = "import os; os.set_inheritable(os.open('.', os.O_RDONLY), True)"
    answer = call(sys.executable, "-c", program(database_path, before=before), cwd=here)
    check_served(answer, database_path, here)


@pytest.mark.parametrize(
    ("flags", "home", "before"),
    [
        ([], sys.base_prefix, ""),
        (["-E"], "/nowhere", ""),
        ([], "", "import os; os.environ['PYTHONHOME'] = '/nowhere'"),
    ],
    ids=["honoured", "ignored", "set-later"],
)
def test_python_home(flags: list[str], home: str, before: str, tmp_path: Path, database_path: Path) -> None:
    environment = {"PYTHONHOME": home} if home else {}
    answer = call(
        sys.executable, *flags, "-c", program(database_path, before=before), cwd=tmp_path, **environment
    )
    check_served(answer, database_path, tmp_path / "nothing")


def test_a_zipapp(tmp_path: Path, database_path: Path) -> None:
    source = shadows(tmp_path / "app")
    (source / "__main__.py").write_text("import runpy, sys; sys.path.pop(0)\n" + program(database_path))
    zipapp.create_archive(source, tmp_path / "app.pyz")
    answer = call(sys.executable, "-I", str(tmp_path / "app.pyz"), cwd=source)
    check_served(answer, database_path, source)


def a_host(folder: Path) -> Path:
    """A program that is not a Python, and notes that it was run."""
    host = folder / "uwsgi"
    host.write_text(f"#!/bin/sh\necho run >> {folder}/was-run\n")
    host.chmod(0o700)
    return host


@pytest.mark.parametrize("executable", ["''", "None", "{host!r}"])
def test_a_host_program_that_embeds_python(executable: str, tmp_path: Path, database_path: Path) -> None:
    host = a_host(tmp_path)
    after = f"sys.executable = {executable.format(host=str(host))}"
    answer = call(sys.executable, "-c", program(database_path, after=after), cwd=tmp_path)
    check_served(answer, database_path, tmp_path / "nothing")
    assert not (tmp_path / "was-run").exists()


NO_PYTHON = (
    "sys.executable = sys._base_executable = {host!r}; sys.exec_prefix = sys.base_exec_prefix = '/nowhere'"
)


def test_no_interpreter_to_be_found(tmp_path: Path, database_path: Path) -> None:
    """An error that names the setting, at once; with the setting it works; a setting that is no Python is named."""
    host = a_host(tmp_path)
    command = program(database_path, after=NO_PYTHON.format(host=str(host)))
    answer = call(sys.executable, "-c", command, cwd=tmp_path)
    assert answer["error"] == "CoordinatorUnavailable" and answer["seconds"] < 10
    assert "OCCAMDB_PYTHON" in answer["text"] and str(host) in answer["text"]
    assert not (tmp_path / "was-run").exists()
    answer = call(sys.executable, "-c", command, cwd=tmp_path, OCCAMDB_PYTHON=sys.executable)
    check_served(answer, database_path, tmp_path / "nothing")
    for wrong in ("/bin/false", "/nowhere/python3", str(host)):
        answer = call(sys.executable, "-c", command, cwd=tmp_path, OCCAMDB_PYTHON=wrong)
        assert answer["error"] == "CoordinatorUnavailable" and wrong in answer["text"], answer
        assert answer["seconds"] < 10


def test_an_interpreter_of_another_version_is_named(tmp_path: Path, database_path: Path) -> None:
    """The compiled modules are for one version: what the two are is said at once."""
    after = "sys.implementation.cache_tag = 'cpython-39'"
    answer = call(sys.executable, "-c", program(database_path, after=after), cwd=tmp_path)
    assert answer["error"] == "CoordinatorUnavailable" and answer["seconds"] < 10
    assert "cpython-39" in answer["text"] and sys.implementation.cache_tag in answer["text"]


def test_a_coordinator_that_cannot_be_imported_says_why(tmp_path: Path, database_path: Path) -> None:
    after = "import msgpack; msgpack.__spec__.submodule_search_locations[:] = ['/nowhere/msgpack']"
    answer = call(sys.executable, "-c", program(database_path, after=after), cwd=tmp_path)
    assert answer["error"] == "CoordinatorUnavailable" and answer["seconds"] < 10
    assert "msgpack" in answer["text"]


def _mounts(target: str) -> bool:
    done = subprocess.run(
        ["unshare", "-m", "mount", "--bind", "/dev/null", target], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.skipif(not _mounts("/bin/sh"), reason="needs the right to mount")
def test_a_machine_without_a_shell(tmp_path: Path, database_path: Path) -> None:
    before = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'/dev/null', b'/bin/sh', None, 4096, None) == 0"
    )
    answer = call("unshare", "-m", sys.executable, "-c", program(database_path, before=before), cwd=tmp_path)
    check_served(answer, database_path, tmp_path / "nothing")


def test_a_caller_with_many_open_files(tmp_path: Path, database_path: Path) -> None:
    """Descriptors above 1024 are more than select() can wait for."""
    before = (
        "import os, resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "taken = [os.open('/dev/null', os.O_RDONLY) for _ in range(1100)]"
    )
    answer = call(sys.executable, "-c", program(database_path, before=before), cwd=tmp_path)
    check_served(answer, database_path, tmp_path / "nothing")


def test_the_coordinator_belongs_to_nobody(tmp_path: Path, database_path: Path) -> None:
    """Its own session and no child of ours; the caller's signal mask is not its own: SIGTERM ends it."""
    before = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})"
    answer = call(sys.executable, "-c", program(database_path, before=before), cwd=tmp_path)
    pid = answer["pid"]
    assert os.getsid(pid) not in (os.getsid(0), pid)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    ignored = int(status["SigIgn"], 16)
    assert ignored & (1 << 1) and ignored & (1 << 2), "Ctrl-C and Ctrl-\\ mean the caller alone"
    processes.stop_coordinator(database_path)


def test_a_coordinator_imports_only_what_it_needs(database_path: Path) -> None:
    """Neither the worker's side of occamdb nor OpenSSL: a start would take twice as long with them."""
    with processes.open_database(database_path) as db:
        mapped = Path(f"/proc/{db.stats()['pid']}/maps").read_text()
    packages = set(re.findall(r"/engine/(\w+)/_\w+\S*\.so$", mapped, re.MULTILINE))
    assert packages == {"commit", "disk", "log", "model", "store"}
    assert "_hashlib" not in mapped
