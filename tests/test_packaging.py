"""What a release contains: everything a wheel is built from, and nothing that was built."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import occamdb

ROOT = Path(__file__).parent.parent
LAYERS = ("ipc", "engine", "primitives", "stress", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in an sdist of the working tree, built in a copy."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    for folder in (*LAYERS, "docs", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "src" / "occamdb", copy / "src" / "occamdb", symlinks=True)
    program = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(copy / "dist")],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    with tarfile.open(copy / "dist" / built.stdout.split()[-1]) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def sources(*suffixes: str) -> set[str]:
    found = set()
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*"):
            if path.suffix in suffixes and "__pycache__" not in path.parts:
                found.add(f"src/occamdb/{path.relative_to(ROOT).as_posix()}")
    return found


def test_the_sdist_holds_every_source(sdist: set[str]) -> None:
    assert sources(".py", ".pyi", ".pyx", ".pxd", ".json", ".html", ".css", ".js", ".svg") - sdist == set()
    assert {"src/occamdb/__init__.py", "src/occamdb/py.typed", "setup.py", "README.md", "LICENSE"} <= sdist


def test_the_sdist_holds_documents_and_tests(sdist: set[str]) -> None:
    for folder, suffix in (("docs", ".md"), ("tests", ".py")):
        wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(f"*{suffix}")}
        assert wanted
        assert wanted - sdist == set()


def test_the_sdist_holds_nothing_that_was_built(sdist: set[str]) -> None:
    assert {name for name in sdist if name.endswith((".so", ".c", ".pyc")) or "__pycache__" in name} == set()


def test_the_folders_are_linked_below_one_namespace() -> None:
    for layer in LAYERS:
        link = ROOT / "src" / "occamdb" / layer
        assert link.is_symlink()
        assert link.resolve() == ROOT / layer


def test_what_is_read_at_run_time_goes_into_the_wheel() -> None:
    """Files beside the code are installed by suffix."""
    installed = {pattern.removeprefix("*") for pattern in PROJECT["tool"]["setuptools"]["package-data"]["*"]}
    present = {
        Path(name).suffix
        for name in sources(".json", ".pyi", ".pxd", ".toml", ".txt", ".html", ".css", ".js", ".svg")
    }
    assert present - {".txt"} <= installed
    assert "py.typed" in installed


def test_drivers_of_the_tests_stay_out_of_the_wheel() -> None:
    assert "occamdb._testing*" in PROJECT["tool"]["setuptools"]["packages"]["find"]["exclude"]
    uses = re.compile(r"\b_testing\b")
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py*"):
            if path.suffix in (".py", ".pyi", ".pyx", ".pxd"):
                assert not uses.search(path.read_text(encoding="utf-8")), (
                    f"{path} needs a driver of the tests"
                )


def test_the_console_script_exists() -> None:
    module, function = PROJECT["project"]["scripts"]["occamdb"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_requirements_of_the_build_match_those_of_development() -> None:
    build, dev = PROJECT["build-system"]["requires"], PROJECT["project"]["optional-dependencies"]["dev"]
    assert set(build) <= set(dev), "make builds without isolation: what the build needs must be installed"


def test_the_command_says_what_to_install_when_its_packages_are_missing(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError('No module named typer', name='typer')")
    for command in (["-m", "occamdb"], ["-m", "occamdb.tools"]):
        found = subprocess.run(
            [sys.executable, *command, "--help"],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.returncode == 2
        assert (
            found.stderr
            == "occamdb: the command line needs the package 'typer': pip install 'occamdb[cli]'\n"
        )


def test_importing_the_package_needs_its_own_requirements_only() -> None:
    """None of the extras' packages, so that a worker needs no more than the core."""
    extras = (
        "typer rich click psutil sortedcontainers lmdb matplotlib redis diskcache starlette uvicorn jinja2"
    )
    program = f"import sys, occamdb; print(*({{*sys.modules}} & {{*{extras.split()!r}}}))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout.strip()) == (0, ""), found.stderr


def test_the_version_stands_in_one_place_and_is_that_of_the_changelog() -> None:
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "occamdb.__version__"}
    newest = re.search(r"^## (\S+)(.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    unreleased = ".dev0" if "unreleased" in newest[2] else ""
    assert occamdb.__version__ == newest[1] + unreleased
