"""The limits on keys, values and transactions, and how sizes are read from text.

1. A `Limits` that exists is valid: every limit is within the range the formats can carry.
2. The size of a key counts only the user's bytes; `stored_key_size_max` includes the prefix.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from .errors import SettingsError

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "PREFIX_SIZE_MAX",
    "TIMEOUT_MAX",
    "Limits",
    "check_number",
    "check_size",
    "parse_size",
    "sized",
]

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

TIMEOUT_MAX = 1e9  # seconds, 31 years: small enough that adding it to a clock never overflows

# Three namespace parts of up to 64 bytes with their NULs, 16 bytes of run id, one of tag (`keys.py`).
PREFIX_SIZE_MAX = 3 * 65 + 16 + 1

_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "m": MIB,
    "mib": MIB,
    "g": GIB,
    "gib": GIB,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}
_SIZE_TEXT = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest key, value and transaction, in bytes; each may be given as text such as "64MiB".

    Attributes:
      key_size_max: of a user key (`KeyTooLarge`).
      value_size_max: of an encoded value (`ValueTooLarge`).
      transaction_size_max: of a commit request, keys, values and their headers (`TransactionTooLarge`).
    """

    key_size_max: int = 8 * KIB
    value_size_max: int = 64 * MIB
    transaction_size_max: int = 256 * MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = _RANGES[field.name]
            size = check_size(field.name, getattr(self, field.name), low, high)
            object.__setattr__(self, field.name, size)

    @property
    def stored_key_size_max(self) -> int:
        """The most bytes a key takes with its namespace, run id and tag."""
        return PREFIX_SIZE_MAX + self.key_size_max


# In the store and on the wire the size of a key has 16 bits and that of a value 32. Both leave room for
# headers.
_RANGES = {
    "key_size_max": (64, 60 * KIB),
    "value_size_max": (1 * KIB, 1 * GIB),
    "transaction_size_max": (64 * KIB, 2 * GIB),
}


def sized(size: int) -> str:
    """A size for people, exact: `sized(65536)` is "64 KiB", `sized(1000)` is "1,000 bytes"."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit:,} {name}"
    return f"{size:,} bytes"


def parse_size(name: str, value: object) -> int:
    """Read a size: an int in bytes, or text such as "64MiB", "64 M", "1.5 GiB", "100kB".

    Args:
      name: the setting, for the error.
      value: what was given.

    Raises:
      SettingsError: neither an int nor such a text.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    match = _SIZE_TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is not None and match[2].lower() in _UNITS:
        unit = _UNITS[match[2].lower()]
        number = match[1].replace("_", "")
        exact = float(number) * unit if "." in number else int(number) * unit
        if exact == int(exact):
            return int(exact)
    raise SettingsError(
        f"{name} = {value!r} is not a size",
        setting=name,
        hint='give a whole number of bytes, or text such as "64MiB" (KiB, MiB, GiB, kB, MB, GB)',
        details={"value": repr(value)},
    )


def check_size(name: str, value: object, low: int, high: int, *, power_of_two: bool = False) -> int:
    """Read a size and check its range.

    Raises:
      SettingsError: not a size, out of range, or no power of two where one is needed.
    """
    size = parse_size(name, value)
    if not low <= size <= high:
        raise _out_of_range(name, size, sized(size), sized(low), sized(high), low, high)
    if power_of_two and size & (size - 1):
        down = 1 << (size.bit_length() - 1)
        hint = f"the nearest are {sized(down)} and {sized(down * 2)}"
        raise SettingsError(f"{name} = {sized(size)} is not a power of two", setting=name, hint=hint)
    return size


def check_number(name: str, value: Any, low: float, high: float, *, whole: bool) -> float:
    """Check a plain number: a count (`whole`) or a duration in seconds.

    Raises:
      SettingsError: wrong type or out of range.
    """
    wanted = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        kind = "a whole number" if whole else "a number of seconds"
        raise SettingsError(
            f"{name} must be {kind}, got {value!r}", setting=name, hint=f"allowed: {low} to {high}"
        )
    if not low <= value <= high:  # also refuses NaN
        unit = "" if whole else " s"
        raise _out_of_range(name, value, f"{value}{unit}", f"{low}{unit}", f"{high}{unit}", low, high)
    return value if whole else float(value)


def _out_of_range(
    name: str, value: float, shown: str, low_shown: str, high_shown: str, low: float, high: float
) -> SettingsError:
    return SettingsError(
        f"{name} = {shown} is out of range: {low_shown} to {high_shown}",
        setting=name,
        hint=f"choose {name} between {low_shown} and {high_shown}",
        details={"value": value, "min": low, "max": high},
    )
