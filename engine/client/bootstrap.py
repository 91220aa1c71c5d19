"""The first code of an auto-started coordinator: `python -s -S -P bootstrap.py <options as JSON>`.

`interpreter.command` makes that command line. It works from any working directory, even one that no longer
exists.

1. `sys.path` has only the standard library. occamdb and the packages it needs are imported from the folders
   in which the starter has them, by a finder that knows only these names and is asked last. So no module of
   the caller can take the place of another one. `occamdb/__init__.py` does not run: it imports what a worker
   needs, most of which a coordinator does not, and that takes as long as everything else of the start.
2. The process is detached. The starter gave it a session of its own. It forks, and the first process ends
   with the status STARTED, which no other program returns. Neither Ctrl-C nor the end of the starter reaches
   it.
3. It keeps no directory busy: it works in "/".
4. A failure here is reported through the pipe, like every other failed start.
5. It ends without taking the interpreter apart, which takes longer than the rest of a stop: `main` has closed
   and removed what outlives a process, and its threads are daemons that may still hold something.
"""

from __future__ import annotations

import gc
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
        found = None if place is None else PathFinder.find_spec(name, [place])
        if found is None or name != "occamdb":
            return found
        # A package without a loader: it has the folder of its modules and nothing in it.
        package = ModuleSpec(name, None, is_package=True)
        package.submodule_search_locations = found.submodule_search_locations
        return package


def main() -> int:
    options = json.loads(sys.argv[1])
    # Nothing that is made during the imports is garbage, and looking for some would take a tenth of their time.
    gc.disable()
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
    gc.freeze()
    gc.enable()
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
    os._exit(main())
