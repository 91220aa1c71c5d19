"""Small tables and texts for a notebook. Everything stored is shown as text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

__all__ = ["duration_text", "facts_html", "moment_text", "record_text", "tree_html"]

TEXT_LENGTH_MAX = 200
ROWS_MAX = 1_000
DEPTH_MAX = 40  # deeper rows are not indented further

_CELL = "text-align:left;vertical-align:top"


def facts_html(caption: str, facts: Mapping[str, Any]) -> str:
    """Named facts as a table of two columns. Facts that are None or empty text are left out."""
    rows = "".join(
        f'<tr><th style="{_CELL}">{name}</th><td style="{_CELL}">{_text(fact)}</td></tr>'
        for name, fact in facts.items()
        if fact not in (None, "")
    )
    return f"<table><caption>{_text(caption)}</caption>{rows}</table>"


def tree_html(titles: Iterable[str], rows: Iterable[tuple[int, Sequence[Any]]], size: int) -> str:
    """A tree as a table. A row is a depth, which indents its first cell, and the cells. A large table is cut.

    Args:
      size: how many rows there are, to say how many were left out.
    """
    head = "".join(f'<th style="{_CELL}">{title}</th>' for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(_rows(rows, size))}</tbody></table>"


def record_text(record: Any) -> str:
    """A dataclass on one line: its type, and its fields that are not None."""
    fields = [(name, getattr(record, name)) for name in record.__dataclass_fields__]
    shown = ", ".join(f"{name}={value!r}" for name, value in fields if value is not None)
    return f"{type(record).__name__}({_shortened(shown)})"


def duration_text(milliseconds: float | None) -> str:
    """A duration for people; nothing for None."""
    if milliseconds is None:
        return ""
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:,.2f} s"


def moment_text(when: datetime) -> str:
    """A time for people, in UTC and to the millisecond."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def _rows(rows: Iterable[tuple[int, Sequence[Any]]], size: int) -> Iterator[str]:
    for at, (depth, cells) in enumerate(rows):
        if at == ROWS_MAX:
            yield f'<tr><td colspan="{len(cells)}">… {size - ROWS_MAX:,} more</td></tr>'
            return
        yield _row(f"{_CELL};padding-left:{0.5 + 1.5 * min(depth, DEPTH_MAX):g}em", cells)


def _row(first: str, cells: Iterable[Any]) -> str:
    styles = iter([first])
    columns = (f'<td style="{next(styles, _CELL)}">{_text(cell)}</td>' for cell in cells)
    return f"<tr>{''.join(columns)}</tr>"


def _text(fact: Any) -> str:
    return "" if fact is None else escape(_shortened(str(fact)))


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH_MAX else f"{text[: TEXT_LENGTH_MAX - 1]}…"
