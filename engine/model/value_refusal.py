"""Why a value cannot be stored: the error that names the path to the first part of it that is refused.

Called when the writer has refused a value. It walks the value a second time, slowly, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID

from ._codec_hooks import CodecHooks
from .errors import ValueEncodingError, ValueTooLarge
from .public_types import RunId
from .unrestored import Unrestored

__all__ = ["DEPTH_MAX", "explain", "too_large"]

DEPTH_MAX = 128  # levels of lists and dicts; `_value_format.NESTING_MAX` is the same for compiled code
INT_MIN = -(2**63)
INT_MAX = 2**64 - 1

_Default: TypeAlias = Callable[[Any], tuple[str, Any] | None] | None


def too_large(size: int, size_max: int) -> ValueTooLarge:
    """The error for a value whose encoding was given up at `size` bytes."""
    limit = f"the limit of {size_max:,} (value_size_max)"
    text = f"the encoded value takes at least {size:,} bytes, more than {limit}"
    return ValueTooLarge(text, size=size, limit=size_max)


_HINTS: dict[type, str] = {
    tuple: "use a list",
    set: "use a list, such as sorted(...)",
    frozenset: "use a list, such as sorted(...)",
    bytearray: "use bytes(...)",
    memoryview: "use bytes(...)",
    complex: "use a list of two floats",
}


def explain(value: object, codec: CodecHooks | None = None) -> ValueEncodingError:
    """The error that names the first thing in `value` that `codec` cannot store.

    Called when the encoder refused; an explanation is found unless the value was changed meanwhile.
    """
    found = _find(value, "value", 0, set(), None if codec is None else codec.default)
    if found is None:
        return ValueEncodingError(
            "the value changed while it was encoded",
            hint="another thread, or a tzinfo, changes it: pass a copy",
        )
    path, problem, hint = found
    return ValueEncodingError(f"{path}: {problem}", path=path, hint=hint)


_Found = tuple[str, str, str]


_RARE = frozenset({UUID, RunId, Decimal, date, timedelta})


def _find(value: object, path: str, depth: int, above: set[int], default: _Default) -> _Found | None:
    """Where, what and what to do; None when `value` can be stored."""
    kind = type(value)
    if kind in (dict, list):
        return _find_in_container(value, path, depth, above, default)
    if value is None or kind in (bool, float, bytes) or kind in _RARE:
        return None
    if kind is int:
        return _check_int(value, path)
    if kind is str:
        return _check_text(value, path)
    if kind is datetime:
        return _check_datetime(value, path)
    if isinstance(value, time) and kind is time:
        return _check_time(value, path)
    if isinstance(value, Unrestored) and type(value.name) is str:
        return _find_named(value.data, path, depth, above, default)
    return _find_by_hook(value, path, depth, above, default)


def _find_by_hook(value: object, path: str, depth: int, above: set[int], default: _Default) -> _Found | None:
    """What is wrong with a value of a type that only the codec's `default` can know."""
    named = None if default is None else default(value)
    if named is None:
        return path, f"{_name(type(value))} is not storable", _hint(value)
    if type(named) is not tuple or len(named) != 2 or type(named[0]) is not str:
        problem = f"default({_name(type(value))}) returned {named!r:.80}"
        return path, problem, "return (name, storable value), or None for a type it does not know"
    return _find_named(named[1], path, depth, above, default)


def _find_named(data: object, path: str, depth: int, above: set[int], default: _Default) -> _Found | None:
    # Its name and its data are a list of their own, one level further down.
    if depth + 1 >= DEPTH_MAX:
        return _too_deep(path)
    return _find(data, path, depth + 2, above, default)


def _find_in_container(
    value: Any, path: str, depth: int, above: set[int], default: _Default
) -> _Found | None:
    if id(value) in above:
        return path, f"this {type(value).__name__} contains itself", "store a tree, and refer by keys instead"
    if depth >= DEPTH_MAX:
        return _too_deep(path)
    above.add(id(value))
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, item in items:
        found = _check_key(key, path) if isinstance(value, dict) else None
        found = found or _find(item, f"{path}[{_shown(key)}]", depth + 1, above, default)
        if found:
            return found
    above.discard(id(value))
    return None


def _too_deep(path: str) -> _Found:
    hint = "store deeper parts under keys of their own"
    return _short(path), f"nested deeper than {DEPTH_MAX} levels", hint


def _check_key(key: object, path: str) -> _Found | None:
    if type(key) is not str:
        place = f"{path}[{_shown(key)}]"
        return place, f"a dict key must be str, got {_name(type(key))}", "use str(key)"
    return _check_text(key, f"{path}[{_shown(key)}]")


def _check_int(value: Any, path: str) -> _Found | None:
    if INT_MIN <= value <= INT_MAX:
        return None
    return path, f"an int of {value.bit_length()} bits does not fit -2**63 .. 2**64 - 1", "use str or bytes"


def _check_text(value: Any, path: str) -> _Found | None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"text with a lone surrogate at position {error.start} is not valid Unicode"
        return path, problem, "use bytes for what is not text"
    return None


def _check_datetime(value: Any, path: str) -> _Found | None:
    if value.utcoffset() is None:
        hint = "use an aware one: datetime.now(timezone.utc), or value.astimezone() for local time"
        return path, "a naive datetime is not storable, since it names no instant", hint
    try:
        value.astimezone(UTC)
    except OverflowError:
        return path, f"{value!r} is outside the years 1 to 9999 in UTC", "use a moment within them"
    return None


def _check_time(value: time, path: str) -> _Found | None:
    if value.tzinfo is None:
        return None
    return path, "a time with a time zone is not storable", "store a datetime, or value.replace(tzinfo=None)"


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _hint(value: object) -> str:
    if isinstance(value, Enum):
        return "store its .value or .name"
    for kind, hint in _HINTS.items():
        if isinstance(value, kind):
            return hint
    for kind in (dict, list, str, bytes, int, float, datetime):
        if isinstance(value, kind):
            return f"subclasses are not stored; convert it: {kind.__name__}(...)"
    for name in ("tolist", "model_dump", "to_dict", "_asdict"):
        if callable(getattr(value, name, None)):
            return f"convert it first: .{name}()"
    return "convert it, or open the database with **occamdb.value_hooks(ItsClass)"


def _shown(key: object) -> str:
    if type(key) is str:
        text = ascii(key).replace('"', '\\"')[1:-1] if "'" not in key else ascii(key)[1:-1]
        return f'"{text[:40]}..."' if len(text) > 40 else f'"{text}"'
    text = repr(key)
    return f"{text[:40]}..." if len(text) > 40 else text


def _short(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:90]} ... {path[-90:]}"
