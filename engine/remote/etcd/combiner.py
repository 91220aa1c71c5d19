"""One thread that serves what many hand in, as much at a time as has gathered.

While a batch is on its way to the server the next one gathers. So many callers share a round trip, and a single one
does not wait for others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["Combiner"]

T = TypeVar("T")
_IDLE: Final = 10.0  # seconds after which the thread ends; the next item starts another one


class Combiner(Generic[T]):
    """Any thread may put.

    Args:
      name: of the thread.
      serve: gets a batch, oldest first. It answers each item itself, and raises nothing.
      most: items of a batch.
    """

    def __init__(self, name: str, serve: Callable[[list[T]], None], most: int) -> None:
        self._name = name
        self._serve = serve
        self._most = most
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, item: T) -> bool:
        """Hand in an item; False: it is closed."""
        with self._changed:
            if self._closed:
                return False
            self._items.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            else:
                self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._items:
                    if (self._closed or not self._changed.wait(_IDLE)) and not self._items:
                        self._thread = None
                        return
                batch = [self._items.popleft() for _ in range(min(len(self._items), self._most))]
            self._serve(batch)

    def close(self, timeout: float) -> None:
        """Serve what was handed in, and end the thread."""
        with self._changed:
            self._closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
