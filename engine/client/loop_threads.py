"""Calls that block, made in threads for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["LoopThreads", "NoThread"]


class NoThread(Exception):
    """No thread could be started."""


class LoopThreads:
    """The threads of one loop.

    Args:
      count: the most of them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self._loop = loop
        self.executor = ThreadPoolExecutor(count, thread_name_prefix="occamdb-links")

    def call(
        self, done: Callable[[Any, Any], None], call: Callable[..., Any], *args: Any, always: bool = False
    ) -> None:
        """Call in a thread what blocks; then `done(result, error)` in the loop.

        Args:
          always: call `done` in the thread if the loop was closed meanwhile.
        """
        to_do = [None]

        def run() -> None:
            try:
                to_do.pop()
            except IndexError:
                return
            result, error = None, None
            try:
                result = call(*args)
            except BaseException as caught:
                error = caught
            # A loop that was closed meanwhile asks for nothing any more. Its links close themselves when they go.
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                if always:
                    done(result, error)

        try:
            self.executor.submit(run)
        except RuntimeError as error:
            # It may be in the queue all the same, and another thread may have it already.
            if to_do:
                to_do.pop()
                self._loop.call_soon(done, None, NoThread(str(error)))
