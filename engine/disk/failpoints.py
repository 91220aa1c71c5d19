"""Failpoints for Python code, and the words in which they are set.

`OCCAMDB_FAILPOINTS="wal.after_write=kill@3;wal.before_sync=errno:EIO"` is read when this module is first
imported (every process that opens a database imports it); `set` changes them at run time. An action is

    kill            SIGKILL to the own process       stop      SIGSTOP to the own process
    sleep:MS        sleep                            errno:E   the system call that follows fails with E
    short:N         a write transfers only N bytes   torn:N    a write transfers N bytes, then SIGKILL
    shift:MS        a clock is MS ahead; shift:-MS behind

followed by `@n` (only the n-th time the place is passed), `*k` (k times), or `@n*k` (k times from the n-th).
Without them it acts every time. Present in release builds: see `_failpoints.pyx` for what an unused one
costs.
"""

from __future__ import annotations

import errno
import os
import re

from . import _failpoints

__all__ = ["NAMES", "active", "armed", "clear", "configure", "hit", "hits", "set"]

NAMES = _failpoints.NAMES
_INDEX = {name: index for index, name in enumerate(NAMES)}
_ACTIONS = {"off": 0, "kill": 1, "stop": 2, "sleep": 3, "errno": 4, "short": 5, "torn": 6, "shift": 7}
_WITH_NUMBER = frozenset({"sleep", "short", "torn", "shift"})
_SPECIFICATION = re.compile(
    r"(?P<action>[a-z]+)(?::(?P<argument>-?\w+))?(?:@(?P<first>\d+))?(?:\*(?P<times>\d+))?"
)
_active: dict[str, str] = {}


def _index(name: str) -> int:
    if name not in _INDEX:
        raise ValueError(f"no failpoint named {name!r}; known: {', '.join(NAMES)}")
    return _INDEX[name]


def _argument(action: str, text: str | None) -> int:
    if action == "errno":
        number = getattr(errno, text or "", None)
        if not isinstance(number, int):
            raise ValueError(f"failpoint action errno needs a name such as errno:ENOSPC, not {text!r}")
        return number
    if action == "shift" and text is not None and text.removeprefix("-").isdigit():
        return int(text)
    if action in _WITH_NUMBER:
        if text is None or not text.isdigit():
            raise ValueError(f"failpoint action {action} needs a number, not {text!r}")
        return int(text)
    if text is not None:
        raise ValueError(f"failpoint action {action} takes no argument, got {text!r}")
    return 0


def set(name: str, specification: str) -> None:
    """Arm one failpoint, or disarm it with "off". Counting starts anew.

    Raises:
      ValueError: unknown name or a specification that does not parse.
    """
    index = _index(name)
    match = _SPECIFICATION.fullmatch(specification.strip())
    if match is None or match["action"] not in _ACTIONS:
        raise ValueError(
            f"failpoint {name}: cannot read {specification!r}; see occamdb.engine.disk.failpoints"
        )
    first = int(match["first"] or 1)
    # "@3" alone means the third time only; without "@" and "*" it acts every time (0 = no bound).
    times = int(match["times"] or (1 if match["first"] else 0))
    action = match["action"]
    _failpoints.set_row(index, _ACTIONS[action], _argument(action, match["argument"]), first, times)
    if action == "off":
        _active.pop(name, None)
    else:
        _active[name] = specification.strip()


def configure(text: str) -> None:
    """Set several, as in the environment variable: `name=action;name=action`."""
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, separator, specification = part.partition("=")
        if not separator:
            raise ValueError(f"failpoint {part!r} lacks '=action'")
        set(name.strip(), specification)


def clear() -> None:
    """Disarm every failpoint."""
    for name in list(_active):
        set(name, "off")


def active() -> dict[str, str]:
    """The armed failpoints and what they do."""
    return dict(_active)


def armed() -> bool:
    """Whether any failpoint is set: guard `hit` with it where every nanosecond counts."""
    return _failpoints.armed()


def hits(name: str) -> int:
    """How often an armed failpoint was passed since it was set."""
    return _failpoints.hits(_index(name))


def hit(name: str) -> None:
    """Pass a failpoint in Python code.

    Raises:
      OSError: the failpoint says that what follows fails with this errno.
    """
    error = _failpoints.hit_row(_index(name))
    if error:
        raise OSError(error, f"{os.strerror(error)} (failpoint {name})")


configure(os.environ.get("OCCAMDB_FAILPOINTS", ""))
