"""The eventfds of workers' event loops, as the coordinator keeps them: each once, however many links send it.

1. A descriptor in here is an eventfd, does not block, and stays open until the last channel that uses it is CLOSED, so
   the commit thread never writes a number that has been closed or given out again.
2. A worker shares the flags of its eventfd with us. One that makes it blocking again and fills its counter holds the
   commit thread up: that is malice of a process of the same user, which could kill the coordinator as well.
"""

from __future__ import annotations

import contextlib
import os

from ..model.errors import InvalidArgumentError

__all__ = ["EventFds"]

_KIND = "anon_inode:[eventfd]"


class EventFds:
    """Descriptors by the kernel's number of their eventfd, with the count of the channels that use them."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._users: dict[int, int] = {}

    def adopt(self, descriptor: int) -> int:
        """Take over a descriptor that a worker sent; returns the one to write. Release it once.

        Raises:
          InvalidArgumentError: there is none, or it is not an eventfd; it is closed.
        """
        if descriptor < 0:
            raise InvalidArgumentError(
                "no eventfd came with the message", hint="send its descriptor along (SCM_RIGHTS)"
            )
        try:
            number = _number_of(descriptor)
            os.set_blocking(descriptor, False)
        except BaseException:
            os.close(descriptor)
            raise
        known = self._known.get(number)
        if known is not None:
            os.close(descriptor)
            self._users[known] += 1
            return known
        self._known[number] = descriptor
        self._users[descriptor] = 1
        return descriptor

    def release(self, descriptor: int) -> None:
        """One user less; the last one closes it. -1 is nobody's."""
        if descriptor < 0:
            return
        self._users[descriptor] -= 1
        if self._users[descriptor]:
            return
        del self._users[descriptor]
        self._known = {number: fd for number, fd in self._known.items() if fd != descriptor}
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _number_of(descriptor: int) -> str:
    """What the kernel calls an eventfd. One that it does not number gets a name of its own."""
    found = os.readlink(f"/proc/self/fd/{descriptor}")
    if found != _KIND:
        raise InvalidArgumentError(
            f"the descriptor that came with the message is {found!r}, not an eventfd",
            hint="os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)",
            details={"found": found, "expected": _KIND},
        )
    with open(f"/proc/self/fdinfo/{descriptor}") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "eventfd-id":
                return value.strip()
    return f"descriptor {descriptor}"
