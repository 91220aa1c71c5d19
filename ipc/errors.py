"""The base error of the project and the errors of the ipc layer.

Every error carries a stable dotted `code`, a `message` with the numbers on both sides of the comparison, a
`hint` (what to do, naming the setting to change), `retryable` and `details`. Raised in one process, they are
pickled to another.

Invariants:
  1. Pickling restores type, args and every instance attribute without calling `__init__`, so a subclass may
     have any constructor signature and any further fields.
  2. Codes never change once released; texts may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


def _restore(cls: type[OccamError], args: tuple[Any, ...], fields: dict[str, Any]) -> OccamError:
    """Rebuild a pickled error: `__new__` sets `args`, the fields follow; `__init__` is not called."""
    error = cls.__new__(cls, *args)
    error.__dict__.update(fields)
    return error


class OccamError(Exception):
    """Base of every error occamdb raises on purpose.

    Args:
      message: what happened, with the numbers that were compared.
      hint: what the caller can do about it; the class's `default_hint` when empty.
      details: the same facts for programs; must pickle.
    """

    code: ClassVar[str] = "occam.error"
    retryable: bool = False
    default_hint: ClassVar[str] = ""

    message: str
    hint: str
    details: dict[str, Any]

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.details = dict(details) if details else {}

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, dict(self.__dict__))


class IpcError(OccamError):
    """Something between two processes failed."""

    code = "ipc.error"


# ---- shared memory segments -----------------------------------------------------------------------


class SegmentError(IpcError):
    """A shared memory segment cannot be created, attached or trusted."""

    code = "ipc.segment"


class SegmentExistsError(SegmentError):
    """A segment of that name exists; segments are only ever created exclusively."""

    code = "ipc.segment.exists"
    default_hint = "run `occamdb doctor --clean` if no coordinator is running"


class SegmentMissingError(SegmentError):
    """No segment of that name: its coordinator stopped or never started."""

    code = "ipc.segment.missing"
    retryable = True


class SegmentForeignError(SegmentError):
    """The segment belongs to another user, is open to others, or is not a plain segment."""

    code = "ipc.segment.foreign"
    default_hint = "somebody else made this name; see `occamdb doctor`"


class ShmFullError(SegmentError):
    """Shared memory (or a size limit of this process) has no room for the bytes asked for."""

    code = "ipc.shm_full"
    default_hint = (
        "free /dev/shm or enlarge it (mount -o remount,size=...; docker run --shm-size=...), "
        "or lower `max_store_size`"
    )


class AddressSpaceError(SegmentError):
    """The segment cannot be mapped: this process's address space or mapping count is exhausted."""

    code = "ipc.address_space"
    default_hint = "raise `ulimit -v` (RLIMIT_AS) or lower `max_store_size`"


class LayoutError(SegmentError):
    """A segment's header does not describe what this build expects."""

    code = "ipc.layout"
    default_hint = "all processes on one database must run the same occamdb version"


# ---- ownership ------------------------------------------------------------------------------------


class LockHeldError(IpcError):
    """Another process owns the lock; `pid` is its process id, 0 when it could not be read."""

    code = "ipc.lock_held"
    retryable = True
    default_hint = "attach to the running coordinator, or stop it with `occamdb stop`"

    def __init__(self, message: str, *, pid: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint, details={"pid": pid})
        self.pid = pid


# ---- control socket -------------------------------------------------------------------------------


class ControlError(IpcError):
    """Base of the control socket's errors."""

    code = "ipc.control"


class ControlUnavailableError(ControlError):
    """Nobody listens at the socket path, or the peer went away."""

    code = "ipc.control.unavailable"
    retryable = True


class ControlForeignError(ControlError):
    """The listener belongs to another user: it would not serve us."""

    code = "ipc.control.foreign"


class ControlTimeoutError(ControlError):
    """The peer did not answer in time. The connection is closed, so that no late answer is taken for another."""

    code = "ipc.control.timeout"
    retryable = True
    default_hint = (
        "raise `timeout`, or see with `occamdb status` whether the coordinator is stopped or overloaded"
    )


class ControlProtocolError(ControlError):
    """A frame breaks the protocol: too large, not msgpack, not a dict. The connection must be closed."""

    code = "ipc.control.protocol"


# ---- channels -------------------------------------------------------------------------------------


class ChannelError(IpcError):
    """Base of the errors of a request channel."""

    code = "ipc.channel"


class ChannelBroken(ChannelError):
    """The channel can no longer be used (a half-sent request, an impossible counter): attach a new one."""

    code = "ipc.channel.broken"
    retryable = True
    default_hint = "close this channel and attach a new one"


class ChannelBusy(ChannelError):
    """Two threads (or a signal handler) used one channel at the same time: a bug of the caller."""

    code = "ipc.channel.busy"


class ChannelTimeout(ChannelError):
    """No reply, or no ring space, within the timeout.

    `sent` tells whether the request was wholly published: if so the peer may still act on it, and
    `ClientChannel.receive` can go on waiting; if not, it never will.
    """

    code = "ipc.channel.timeout"
    retryable = True
    default_hint = (
        "raise `timeout`, or see with `occamdb status` whether the coordinator is stopped or overloaded"
    )

    def __init__(self, message: str, *, sent: bool, hint: str = "") -> None:
        super().__init__(message, hint=hint, details={"sent": sent})
        self.sent = sent


class MessageTooLarge(ChannelError):
    """A message is larger than a frame can be."""

    code = "ipc.channel.message_too_large"
