"""How errors travel over the control socket: by class name and fields, never as pickles.

A pickle from the other end of a socket could run code; a name can only pick one of the errors listed in
errors.py.
"""

from __future__ import annotations

from typing import Any

from ...ipc import errors as ipc_errors
from ...ipc.errors import OccamError
from . import errors

__all__ = ["raise_refusal", "refusal"]

_COMMON = ("message", "hint", "details")
_PLAIN = (str, bytes, int, float, bool, type(None))


def refusal(error: OccamError) -> dict[str, Any]:
    """The control frame that reports an error."""
    details = {key: _plain(value) for key, value in error.details.items()}
    return {
        "ok": False,
        "error": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": details,
        "attributes": {k: _plain(v) for k, v in vars(error).items() if k not in _COMMON},
    }


def _plain(value: Any) -> Any:
    """A value as a frame can carry it: plain data as it is, in dicts and lists too; the text of anything
    else."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) else repr(value)


def raise_refusal(reply: dict[str, Any]) -> None:
    """Raise the error that a frame reports; return if it reports success."""
    if reply.get("ok"):
        return
    name = str(reply.get("error", ""))
    cls = getattr(errors, name, None) or getattr(ipc_errors, name, None)
    if not (isinstance(cls, type) and issubclass(cls, OccamError)):
        cls = OccamError
    # Constructors differ from class to class; the fields common to all of them are set directly.
    error = cls.__new__(cls)
    Exception.__init__(error, str(reply.get("message", "the coordinator refused without saying why")))
    error.message = str(reply.get("message", "the coordinator refused without saying why"))
    error.hint = str(reply.get("hint", ""))
    error.details = dict(reply.get("details") or {})
    for field, value in dict(reply.get("attributes") or {}).items():
        setattr(error, str(field), tuple(value) if isinstance(value, list) else value)
    raise error
