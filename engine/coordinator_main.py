"""The process that `Launcher` starts: `python -m occamdb.engine.coordinator_main <options as JSON>`."""

from __future__ import annotations

import json
import os
import sys
import traceback

from ..ipc.errors import OccamError
from .control_messages import refusal
from .coordinator import Coordinator
from .errors import CoordinatorUnavailable


def main() -> int:
    options = json.loads(sys.argv[1])
    report_fd = options["report_fd"]
    coordinator = Coordinator(options["path"], options["durability"], options["settings"], auto=True)
    try:
        coordinator.start()
    except BaseException as error:
        traceback.print_exc()
        if not isinstance(error, OccamError):
            error = CoordinatorUnavailable(f"the coordinator could not start: {error!r}")
        os.write(report_fd, json.dumps(refusal(error), default=repr).encode())
        return 1
    os.write(report_fd, b'{"ok": true}')
    os.close(report_fd)
    return coordinator.serve()


if __name__ == "__main__":
    sys.exit(main())
