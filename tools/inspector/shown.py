"""Stored values as text for a page.

1. Everything here gives plain text. It is escaped when a template puts it on the page, never before.
2. Every text has an upper bound, whatever is stored. What was left out is said.
3. Control characters, and those that reverse the writing, become escapes: a page must not show them as something else.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from occamdb.tools.console import ago, binary_key, duration, plain, size
from occamdb.tools.printable import printable, without_controls

__all__ = [
    "ago",
    "block",
    "clock",
    "duration",
    "key",
    "line",
    "moment",
    "number",
    "size",
    "span",
    "value_line",
]

LINE_MAX = 200
BLOCK_MAX = 20_000
BYTES_MAX = 512
_DEPTH_MAX = 100


def line(text: object, most: int = LINE_MAX) -> str:
    """Text on one line, cut to a length."""
    found = " ".join(str(text)[: 4 * most].split())
    cut = found[:most]
    return printable(cut) + ("…" if len(cut) < len(found) or len(str(text)) > 4 * most else "")


def value_line(value: Any, most: int = LINE_MAX) -> str:
    """A stored value on one line."""
    return line(value if isinstance(value, str) else _json(value, None, 4 * most), most)


def block(value: Any, most: int = BLOCK_MAX) -> str:
    """A stored value over several lines: JSON with indentation, bytes as hexadecimal."""
    text = value if isinstance(value, str) else _json(value, 2, most)
    if len(text) > most:
        return f"{without_controls(text[:most])}\n… {len(text) - most:,} more characters"
    return without_controls(text)


def key(text: str, most: int = LINE_MAX) -> str:
    """A key: text, or `0x` and the bytes that are not UTF-8."""
    raw = binary_key(text)
    if raw is None:
        return line(text, most) if text.split() == [text] else _exact(text, most)
    shown = raw[:BYTES_MAX].hex()
    return f"0x{shown}" + (f"… ({len(raw):,} bytes)" if len(raw) > BYTES_MAX else "")


def _exact(text: str, most: int) -> str:
    """With every space, since two keys may differ by one."""
    return printable(text[:most]) + ("…" if len(text) > most else "")


def number(value: float) -> str:
    """A count with thousands apart."""
    return f"{value:,.0f}"


def span(seconds: float) -> str:
    """A time span, of less than a millisecond too."""
    return f"{seconds * 1e6:,.0f} µs" if 0 < seconds < 0.001 else duration(seconds)


def moment(when: datetime | float | int | None) -> str:
    """A time, as ISO 8601 in UTC with milliseconds; of a float or an int, seconds since 1970."""
    if when is None:
        return ""
    if isinstance(when, float | int):
        try:
            when = datetime.fromtimestamp(when, UTC)
        except (OverflowError, OSError, ValueError):
            return f"{when:g} s after 1970"
    return when.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def clock(when: datetime | None) -> str:
    """The time of a day."""
    return "" if when is None else f"{when.astimezone(UTC):%H:%M:%S.%f}"[:-3]


def _json(value: Any, indent: int | None, most: int) -> str:
    """JSON of a stored value; cut short, and marked as that, long before a huge value is written out."""
    budget = [most]
    try:
        kept = _bounded(value, budget, 0)
        return json.dumps(plain(kept), ensure_ascii=False, allow_nan=False, indent=indent)
    except (RecursionError, ValueError, TypeError) as error:
        return f"({type(value).__name__} that cannot be shown: {error})"


def _bounded(value: Any, budget: list[int], depth: int) -> Any:
    """The same value with what is beyond the budget left out, and bytes as hexadecimal."""
    if depth > _DEPTH_MAX:
        return "… nested deeper"
    budget[0] -= 8
    if isinstance(value, bytes):
        shown = value[:BYTES_MAX].hex()
        budget[0] -= len(shown)
        rest = f"… ({len(value):,} bytes)" if len(value) > BYTES_MAX else ""
        return f"0x{shown}{rest}"
    if isinstance(value, str):
        room = max(budget[0], 0)
        budget[0] -= len(value)
        return value if len(value) <= room else f"{value[:room]}… ({len(value):,} characters)"
    if isinstance(value, dict):
        kept: dict[str, Any] = {}
        for name, item in value.items():
            if budget[0] <= 0:
                kept["…"] = f"{len(value) - len(kept):,} more"
                break
            kept[str(_bounded(str(name), budget, depth))] = _bounded(item, budget, depth + 1)
        return kept
    if isinstance(value, list | tuple | set | frozenset):
        items: list[Any] = []
        for item in value:
            if budget[0] <= 0:
                items.append(f"… {len(value) - len(items):,} more")
                break
            items.append(_bounded(item, budget, depth + 1))
        return items
    return value
