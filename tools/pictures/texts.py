"""Stored text and values, made fit for XML and cut to a length.

`brief` costs as much as the text that it returns, however large the value is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

from occamdb.tools.printable import printable

__all__ = ["brief", "cut", "one_line", "pretty", "xml_lines", "xml_text"]

# Beside what `printable` escapes, XML 1.0 cannot hold these two at all.
_NOT_XML = re.compile("[\ufffe\uffff]")
BYTES_SHOWN = 64
LINE_LENGTH_MAX = 80
KEY_LENGTH_MAX = 1_000
INDENTS_MAX = 20
_OPENING, _CLOSING, _BETWEEN = ("{", "["), ("}", "]"), ", "


def xml_text(text: str, length_max: int | None = None) -> str:
    """Text for the content or an attribute of an XML or HTML element, on one line.

    Args:
      text: anything, with control characters, markup or halves of surrogate pairs in it.
      length_max: at most so many characters of it, before they are escaped; None: all.
    """
    shown = printable(text if length_max is None else cut(text, length_max))
    return escape(_NOT_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", shown))


def xml_lines(text: str, length_max: int | None = None) -> str:
    """The same for text of several lines."""
    shown = text if length_max is None else cut(text, length_max)
    return "\n".join(xml_text(line) for line in shown.replace("\r\n", "\n").split("\n"))


def cut(text: str, length_max: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def one_line(text: str, length_max: int) -> str:
    """The beginning of a text with every white space as one blank."""
    return cut(" ".join(text[: 4 * length_max].split()), length_max)


def brief(value: Any, length_max: int) -> str:
    """The beginning of a value as text like JSON; text itself without quotes.

    Args:
      value: anything that can be stored.
      length_max: at most so many characters.
    """
    if isinstance(value, str):
        return one_line(value, length_max)
    parts: list[str] = []
    size = 0
    for part in _parts(value, length_max):
        parts.append(part)
        size += len(part)
        if size > length_max:
            break
    return cut("".join(parts), length_max)


def pretty(value: Any, length_max: int) -> str:
    """The beginning of a value over several lines, an item a line; on one line if it is short. Text as it is.

    Args:
      value: anything that can be stored.
      length_max: at most so many characters.
    """
    if isinstance(value, str):
        return cut(value, length_max)
    line = brief(value, min(length_max, LINE_LENGTH_MAX + 1))
    if len(line) <= LINE_LENGTH_MAX:
        return line
    parts: list[str] = []
    size = depth = 0
    for part in _parts(value, length_max):
        if part in _OPENING:
            depth += 1
            part += _indented(depth)
        elif part in _CLOSING:
            depth -= 1
            part = _indented(depth) + part
        elif part == _BETWEEN:
            part = "," + _indented(depth)
        parts.append(part)
        size += len(part)
        if size > length_max:
            break
    return cut("".join(parts), length_max)


def _indented(depth: int) -> str:
    return "\n" + "  " * min(depth, INDENTS_MAX)


def _parts(value: Any, length_max: int) -> Iterator[str]:
    """The pieces of a value's text, in order. Without recursion: values nest deeper than Python calls may."""
    stack: list[Iterator[str | tuple[Any]]] = [iter([(value,)])]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
        elif isinstance(item, str):
            yield item
        elif (inside := _inside(item[0])) is not None:
            stack.append(inside)
        else:
            yield _scalar(item[0], length_max)


def _inside(value: Any) -> Iterator[str | tuple[Any]] | None:
    """What a container's text consists of: pieces, and values as tuples of one; None for a scalar."""
    if isinstance(value, dict):
        return _mapping(value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return _sequence(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _mapping((field.name, getattr(value, field.name)) for field in fields(value))
    return None


def _mapping(items: Any) -> Iterator[str | tuple[Any]]:
    yield "{"
    for at, (key, value) in enumerate(items):
        if at:
            yield _BETWEEN
        yield f"{_scalar(key, KEY_LENGTH_MAX)[1:-1] if isinstance(key, str) else key}: "
        yield (value,)
    yield "}"


def _sequence(values: Any) -> Iterator[str | tuple[Any]]:
    yield "["
    for at, value in enumerate(values):
        if at:
            yield _BETWEEN
        yield (value,)
    yield "]"


def _scalar(value: Any, length_max: int) -> str:
    if isinstance(value, str):
        return json.dumps(value[: length_max + 1], ensure_ascii=False)
    if isinstance(value, bytes):
        more = "…" if len(value) > BYTES_SHOWN else ""
        return f"0x{value[:BYTES_SHOWN].hex()}{more}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
