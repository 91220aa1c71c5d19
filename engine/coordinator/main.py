"""The process that `Launcher` starts, by way of bootstrap.py.

`python -m occamdb.engine.coordinator.main <options as JSON>` runs the same in the foreground.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from ...ipc.errors import OccamError
from ..model.control_messages import refusal
from ..model.errors import CoordinatorUnavailable
from .complaints import complain, complain_of
from .coordinator import Coordinator, StoppedWhileStarting


def main() -> int:
    options = json.loads(sys.argv[1])
    report_fd = options["report_fd"]
    _close_inherited(report_fd)
    path = os.path.abspath(options["path"])
    # Do not keep the caller's directory busy: it may be removed or unmounted while we run.
    os.chdir("/")
    coordinator = Coordinator(
        path,
        options["durability"],
        options["settings"],
        auto=True,
        inherited=options.get("inherited"),
    )
    try:
        coordinator.start()
    except StoppedWhileStarting:
        # No report: the process that waits for one sees the end of the pipe, and looks for the next
        # coordinator.
        return 0
    except BaseException as error:
        if isinstance(error, OccamError):
            complain(f"could not start: {type(error).__name__}: {error}")
        else:
            complain_of(error)
            error = CoordinatorUnavailable(f"the coordinator could not start: {error!r}")
        _report(report_fd, refusal(error))
        return 1
    _report(report_fd, {"ok": True, "recovery": coordinator.durable.figures()["recovery"]})
    return coordinator.serve()


def _close_inherited(kept: int) -> None:
    """Close what the starter left inheritable: its pipes and sockets must not stay open while we run."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    os.closerange(3, kept)
    os.closerange(kept + 1, highest + 1)


def _report(fd: int, message: dict[str, Any]) -> None:
    # The process that started us may have died. Other workers still need this coordinator.
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(message, default=repr).encode() + b"\n")
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
