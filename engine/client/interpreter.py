"""Which Python runs an auto-started coordinator, with which command line and environment.

1. A program is run only if its name says that it is a Python. `sys.executable` may be empty, an application
   that was frozen into one file, or a server that embeds Python: running one of those would start the
   application again.
2. The coordinator imports what this process imports. The folders of occamdb and of the packages it needs are
   taken from the loaded modules, not from `sys.path`. See bootstrap.py.
3. PYTHONPATH is not passed on, and PYTHONHOME only if this process itself was started with it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import posix_ipc

from ..model.errors import CoordinatorUnavailable

__all__ = ["PYTHON_VARIABLE", "command", "environment", "interpreter", "places"]

PYTHON_VARIABLE = "OCCAMDB_PYTHON"
_NAME = re.compile(r"\.?python(\d+(\.\d+)?)?[a-z]*(-wrapped|-dbg)?", re.ASCII)
_NEEDED = (msgpack, posix_ipc)
_ROOT = Path(__file__).parent.parent.parent.parent


def interpreter() -> str:
    """The path of a Python like the one that runs this process.

    Raises:
      CoordinatorUnavailable: none was found.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    for candidate in _candidates():
        if _is_python(candidate):
            return candidate
    raise CoordinatorUnavailable(
        f"no Python interpreter to start a coordinator with: sys.executable is {sys.executable!r}",
        hint=f"set {PYTHON_VARIABLE} to the path of a Python {sys.version_info[0]}.{sys.version_info[1]}, or start "
        "a coordinator with `occamdb serve`",
        details={"executable": sys.executable, "exec_prefix": sys.exec_prefix},
    )


def _candidates() -> Iterator[str]:
    if not getattr(sys, "frozen", False):
        yield sys.executable or ""
        yield getattr(sys, "_base_executable", None) or ""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        yield os.path.join(prefix, "bin", name)


def _is_python(path: str) -> bool:
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path)))
    return (
        os.path.isabs(path)
        and any(_NAME.fullmatch(name) for name in names)
        and os.path.isfile(path)
        and os.access(path, os.X_OK)
    )


def command(python: str, options: str) -> list[str]:
    """The command line that starts a coordinator: no site-packages, no user site, no further directory."""
    flags = ["-s", "-S", "-P"]
    if sys.flags.ignore_environment:
        flags.append("-E")
    return [python, *flags, str(Path(__file__).with_name("bootstrap.py")), options]


def environment() -> dict[str, str]:
    """This process's environment, without the variables that would make the coordinator import something
    else.
    """
    dropped = {"PYTHONPATH", "PYTHONINSPECT"}
    home = os.environ.get("PYTHONHOME", "").partition(os.pathsep)[0]
    # This process may have ignored it (-E, -I), or set it later.
    if home and (sys.flags.ignore_environment or not _same_folder(home, sys.base_prefix)):
        dropped.add("PYTHONHOME")
    return {name: text for name, text in os.environ.items() if name not in dropped}


def _same_folder(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def places() -> dict[str, str]:
    """{top-level package: the folder this process has it from}."""
    found = {"occamdb": str(_ROOT)}
    for module in _NEEDED:
        path = getattr(module, "__path__", None)
        found[module.__name__] = os.path.dirname(path[0] if path else module.__file__ or "")
    return found
