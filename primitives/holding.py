"""What threads of this process hold now, so that one that waits for itself is told so instead of waiting for ever.

Nothing rests on it: it only turns a certain deadlock into an error.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Hashable
from typing import Any

__all__ = ["forget", "held", "holds", "remember", "whoever_calls"]

_KEPT = 1024
_held: dict[Hashable, Any] = {}


def whoever_calls() -> Hashable:
    """The task, or outside event loops the thread, that this is called in. No later one is equal to it."""
    events = sys.modules.get("asyncio")
    task = None
    if events is not None and events._get_running_loop() is not None:
        task = events.current_task()
    return weakref.ref(threading.current_thread() if task is None else task)


def held(key: Hashable) -> Any:
    """What is held under this key; None: nothing."""
    return _held.get(key)


def holds(what: object) -> bool:
    """Whether the caller holds this; the last part of each key says who holds it."""
    caller = whoever_calls()
    return any(
        found == what and type(key) is tuple and key[-1] == caller for key, found in list(_held.items())
    )


def remember(key: Hashable, what: Any) -> None:
    """It is held from now on. The oldest of very many are forgotten."""
    _held.pop(key, None)
    while len(_held) >= _KEPT:
        _held.pop(next(iter(_held)), None)
    _held[key] = what


def forget(what: Any) -> None:
    """It is held no longer, whichever thread says so."""
    for key, found in list(_held.items()):
        if found == what:
            _held.pop(key, None)


os.register_at_fork(after_in_child=_held.clear)  # the child's threads hold nothing
