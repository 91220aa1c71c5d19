"""How errors travel over the control socket: by class name and fields, never as pickles.

A pickle from the other end of a socket could run code; a name can only pick one of the errors listed in errors.py.
"""

from __future__ import annotations

from typing import Any

from ..ipc.errors import OccamError
from . import errors

__all__ = ["raise_refusal", "refusal"]

_PLAIN = (str, bytes, int, float, bool, type(None))


def refusal(error: OccamError) -> dict[str, Any]:
    """The frame that reports `error`."""
    details = {k: v if isinstance(v, _PLAIN) else repr(v) for k, v in error.details.items()}
    return {
        "ok": False,
        "error": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": details,
    }


def raise_refusal(reply: dict[str, Any]) -> None:
    """Raise what a frame reports; returns when it reports success."""
    if reply.get("ok"):
        return
    cls = getattr(errors, str(reply.get("error", "")), None)
    if not (isinstance(cls, type) and issubclass(cls, OccamError)):
        cls = OccamError
    # Constructors differ from class to class; the fields common to all of them are set directly.
    error = cls.__new__(cls)
    Exception.__init__(error, str(reply.get("message", "the coordinator refused without saying why")))
    error.message = str(reply.get("message", "the coordinator refused without saying why"))
    error.hint = str(reply.get("hint", ""))
    error.details = dict(reply.get("details") or {})
    for name, value in error.details.items():
        if name not in ("message", "hint", "details", "code") and not hasattr(error, name):
            setattr(error, name, value)
    raise error
