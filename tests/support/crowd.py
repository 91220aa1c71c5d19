"""Many processes of one worker, which begin at the same moment: what a worker has imported is not imported again.

Frameworks take seconds to import. A worker that was started afresh, and has no threads and no database yet, imports
one once and then forks.
"""

import os
import traceback
from collections.abc import Callable


def crowd(count: int, work: Callable[[int], object]) -> None:
    """Run `work(0)`, `work(1)`, ... each in a process of its own, all from the same moment on, until all have ended.

    Raises:
      AssertionError: some of them failed; their tracebacks are on stderr.
    """
    starting, start = os.pipe()
    children = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(start)
                os.read(starting, 1)  # returns when the parent has closed its end, and so have all children
                work(number)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    os.close(starting)
    os.close(start)
    failed = [number for number, pid in enumerate(children) if os.waitpid(pid, 0)[1] != 0]
    assert not failed, f"processes {failed} of {count} failed"
