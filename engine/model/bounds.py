"""The bounds of an increment: what the sum may be at most and at least.

The commit core decides, when the increment is applied. A transaction carries the bounds of an increment as the
bytes that travel in the request (docs/wire-format.md).
"""

from __future__ import annotations

import struct
from typing import Final

from .errors import BoundReached, InvalidArgumentError

__all__ = ["BOUNDS_SIZE", "check_bounds", "decode_bounds", "encode_bounds", "join_bounds", "well_formed"]

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1
_U64 = 2**64 - 1
_BOUNDS = struct.Struct("<B7xQQ")
BOUNDS_SIZE: Final = _BOUNDS.size
_MOST, _LEAST, _MOST_NEGATIVE, _LEAST_NEGATIVE = 1, 2, 4, 8


def encode_bounds(at_most: int | None, at_least: int | None) -> bytes | None:
    """Two bounds, of which None means "none", as they travel; None when there are none.

    Raises:
      InvalidArgumentError: a bound is not a stored integer, or nothing lies between the two.
    """
    if at_most is None and at_least is None:
        return None
    for name, bound in (("at_most", at_most), ("at_least", at_least)):
        if bound is not None and (type(bound) is not int or not INTEGER_MIN <= bound <= INTEGER_MAX):
            raise InvalidArgumentError(
                f"{name} must be a whole number from -2**63 to 2**64 - 1, got {bound!r}",
                hint="leave it out for no bound",
            )
    if at_most is not None and at_least is not None and at_least > at_most:
        raise InvalidArgumentError(
            f"at_least = {at_least} is above at_most = {at_most}: no number is within both",
            hint="increment(key, by, at_least=0, at_most=100)",
        )
    return _packed(at_most, at_least)


def _packed(at_most: int | None, at_least: int | None) -> bytes:
    flags = 0
    if at_most is not None:
        flags |= _MOST | (_MOST_NEGATIVE if at_most < 0 else 0)
    if at_least is not None:
        flags |= _LEAST | (_LEAST_NEGATIVE if at_least < 0 else 0)
    return _BOUNDS.pack(flags, (at_most or 0) & _U64, (at_least or 0) & _U64)


def decode_bounds(encoded: bytes) -> tuple[int | None, int | None]:
    """(at_most, at_least) of what `encode_bounds` gave."""
    flags, most, least = _BOUNDS.unpack(encoded)
    at_most = most - (2**64 if flags & _MOST_NEGATIVE else 0) if flags & _MOST else None
    at_least = least - (2**64 if flags & _LEAST_NEGATIVE else 0) if flags & _LEAST else None
    return at_most, at_least


def join_bounds(first: bytes | None, second: bytes | None, delta: int) -> bytes | None:
    """The bounds on the sum of two increments of one key: `first` is kept before `second`, which adds `delta`.

    If the sum of the first is at most m, the sum of both is at most m + delta. A bound that leaves the range of stored
    integers on its far side decides nothing. One that leaves it on its near side cannot be kept by any sum.
    """
    if first is None:
        return second
    most, least = decode_bounds(first)
    if (most is not None and most + delta < INTEGER_MIN) or (
        least is not None and least + delta > INTEGER_MAX
    ):
        return _packed(INTEGER_MIN, INTEGER_MAX)
    most = None if most is None or most + delta > INTEGER_MAX else most + delta
    least = None if least is None or least + delta < INTEGER_MIN else least + delta
    if second is not None:
        other_most, other_least = decode_bounds(second)
        if other_most is not None:
            most = other_most if most is None else min(most, other_most)
        if other_least is not None:
            least = other_least if least is None else max(least, other_least)
    return None if most is None and least is None else _packed(most, least)


def well_formed(encoded: bytes) -> bool:
    """Whether these are bounds, of which there is at least one."""
    return (
        len(encoded) == BOUNDS_SIZE
        and encoded[0] <= 15
        and bool(encoded[0] & (_MOST | _LEAST))
        and not any(encoded[1:8])
    )


def check_bounds(key: str | None, value: int, delta: int, bounds: bytes | None) -> None:
    """Refuse value + delta if it is out of bounds, as the commit core does.

    Raises:
      BoundReached: it is.
    """
    if bounds is None:
        return
    at_most, at_least = decode_bounds(bounds)
    total = value + delta
    if (at_most is not None and total > at_most) or (at_least is not None and total < at_least):
        raise BoundReached(key=key, value=value, by=delta, at_most=at_most, at_least=at_least)
