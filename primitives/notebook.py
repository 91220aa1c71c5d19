"""How runs and trace trees look in a notebook: small tables. Everything stored is shown as text, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run_types import RunMetadata
    from .trace_types import Trace, TraceTree

__all__ = ["duration_text", "run_html", "trace_text", "tree_html"]

TEXT_LENGTH_MAX = 200
ROWS_MAX = 1_000
DEPTH_MAX = 40  # deeper rows are not indented further

_CELL = "text-align:left;vertical-align:top"


def run_html(run: RunMetadata) -> str:
    """A run as a table of two columns; what it does not have is left out."""
    facts = {
        "run": str(run.run_id),
        "status": str(run.status),
        "error": run.error,
        "parent": run.parent_run_id,
        "tags": ", ".join(run.tags),
        "metadata": run.metadata or None,
        "created": _moment(run.created_at),
        "ended": None if run.completed_at is None else _moment(run.completed_at),
        "duration": _run_duration(run),
    }
    rows = "".join(
        f'<tr><th style="{_CELL}">{name}</th><td style="{_CELL}">{_text(fact)}</td></tr>'
        for name, fact in facts.items()
        if fact not in (None, "")
    )
    return f"<table><caption>{_text(run.name or 'run')}</caption>{rows}</table>"


def tree_html(tree: TraceTree) -> str:
    """A tree as a table, one trace a row, indented by depth; a large one is cut, and says so."""
    titles = "".join(
        f'<th style="{_CELL}">{title}</th>' for title in ("trace", "status", "duration", "start", "error")
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(_rows(tree))}</tbody></table>"


def trace_text(trace: Trace) -> str:
    """What a trace records, on one line: its type, and its fields that are not None."""
    content = trace.trace_type
    fields = [(name, getattr(content, name)) for name in content.__dataclass_fields__]
    shown = ", ".join(f"{name}={value!r}" for name, value in fields if value is not None)
    return f"{type(content).__name__}({_shortened(shown)})"


def duration_text(milliseconds: float | None) -> str:
    """A duration for people; nothing for None."""
    if milliseconds is None:
        return ""
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:,.2f} s"


def _rows(tree: TraceTree) -> Iterator[str]:
    for at, (depth, trace) in enumerate(tree.walk()):
        if at == ROWS_MAX:
            yield f'<tr><td colspan="5">… {tree.size - ROWS_MAX:,} more</td></tr>'
            return
        indent = f"{_CELL};padding-left:{0.5 + 1.5 * min(depth, DEPTH_MAX):g}em"
        yield _row(
            indent,
            [
                trace_text(trace),
                trace.status,
                duration_text(trace.duration_ms),
                _moment(trace.started_at),
                trace.error,
            ],
        )


def _row(first: str, cells: Iterable[Any]) -> str:
    styles = iter([first])
    columns = (f'<td style="{next(styles, _CELL)}">{_text(cell)}</td>' for cell in cells)
    return f"<tr>{''.join(columns)}</tr>"


def _text(fact: Any) -> str:
    return "" if fact is None else escape(_shortened(str(fact)))


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH_MAX else f"{text[: TEXT_LENGTH_MAX - 1]}…"


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def _run_duration(run: RunMetadata) -> str | None:
    if run.completed_at is None:
        return None
    return duration_text((run.completed_at - run.created_at).total_seconds() * 1000)
