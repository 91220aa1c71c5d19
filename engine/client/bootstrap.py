"""The first code of an auto-started coordinator: `python -s -S -P bootstrap.py <options as JSON>`.

`interpreter.command` makes that command line. It works from any working directory, even one that no longer
exists.

1. `sys.path` has only the standard library. occamdb and the packages it needs are imported from the folders
   in which the starter has them, by a finder that knows only these names and is asked last. So no module of
   the caller can take the place of another one.
2. The process is detached. The starter gave it a session of its own. It forks, and the first process ends
   with the status STARTED, which no other program returns. Neither Ctrl-C nor the end of the starter reaches
   it.
3. It keeps no directory busy: it works in "/".
4. A failure here is reported through the pipe, like every other failed start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

STARTED = 79


class GivenPlaces:
    """Finds the top-level packages it was told of, each in its folder (or zip file)."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Called by the import system."""
        place = self._places.get(name)
        return None if place is None else PathFinder.find_spec(name, [place])


def main() -> int:
    options = json.loads(sys.argv[1])
    try:
        os.chdir("/")
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork():
            os._exit(STARTED)
        mine, theirs = sys.implementation.cache_tag, options["cache_tag"]
        if mine != theirs:
            raise ImportError(f"{sys.executable} is {mine}, the process that starts it is {theirs}")
        sys.meta_path.append(GivenPlaces(options["places"]))
        # Run as a file, this module belongs to no package: a relative import has nothing to start from.
        main_module = import_module("occamdb.engine.coordinator.main")
    except BaseException as error:
        _report(options, error)
        raise
    status: int = main_module.main()
    return status


def _report(options: dict[str, Any], error: BaseException) -> None:
    refusal = {
        "ok": False,
        "error": "CoordinatorUnavailable",
        "message": f"the coordinator of {options['path']} could not start: {type(error).__name__}: {error}",
        "hint": "set OCCAMDB_PYTHON to the interpreter to start it with, or start one with `occamdb serve`",
    }
    os.write(options["report_fd"], json.dumps(refusal).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
