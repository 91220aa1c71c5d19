"""Traces for people: one line each, and trees that stay readable however large they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from occamdb.tools.console import duration, to_json
from occamdb.tools.printable import markup, printable

if TYPE_CHECKING:
    from rich.console import Console

    from occamdb.primitives import Trace, TraceTree

TEXT_LENGTH_MAX = 100
# Under the last child, under another; in front of a child that others follow, in front of the last.
GUIDES = ("    ", "│   ", "├── ", "└── ")
ASCII_GUIDES = ("    ", "|   ", "+-- ", "`-- ")


def shorten(text: str, length_max: int | None = TEXT_LENGTH_MAX) -> str:
    """The text on one line, cut to a length; None: whole."""
    line = _one_line(text)
    return line if length_max is None or len(line) <= length_max else line[: length_max - 1] + "…"


def state(trace: Trace) -> str:
    """`open` for a step that has not ended, `error` for one that failed, else `ok`."""
    if trace.is_open:
        return "open"
    failed = type(trace.trace_type).__name__ == "Error" or trace.error is not None
    return "error" if failed else "ok"


def headline(trace: Trace, length_max: int | None = TEXT_LENGTH_MAX) -> str:
    """What a trace says, and what it failed with, on one line; cut to a length, or whole with None."""
    content = shorten(_content(trace), length_max)
    return content if trace.error is None else f"{content} failed: {shorten(trace.error, length_max)}"


def _content(trace: Trace) -> str:
    content = trace.trace_type
    fields: dict[str, Any] = {name: getattr(content, name) for name in content.__dataclass_fields__}
    match type(content).__name__:
        case "ToolCall":
            back = f" → {to_json(fields['result'])}" if trace.error is None and not trace.is_open else ""
            return f"{fields['tool']}({_argument(fields['args'])}){back}"
        case "Decision":
            why = f" ({fields['reasoning']})" if fields["reasoning"] else ""
            return f"{fields['question']} {to_json(fields['chosen'])}{why}"
        case "Query":
            return f"{fields['type']}: {to_json(fields['query'])} → {to_json(fields['results'])}"
        case "Thought":
            return str(fields["content"])
        case "Error":
            return f"{fields['type']}: {fields['message']}{'' if fields['recoverable'] else ' (fatal)'}"
        case _:
            return to_json(fields["data"])


def label(trace: Trace, full: bool = False) -> str:
    """`headline` with type and tags, in rich's markup. The type's colour tells an error and an open trace."""
    colour = {"ok": "cyan", "error": "bold red", "open": "bold yellow"}[state(trace)]
    tags = f" [dim]#{markup(' #'.join(map(_one_line, trace.tags)))}[/]" if trace.tags else ""
    text = headline(trace, None if full else TEXT_LENGTH_MAX)
    return f"[{colour}]{markup(_one_line(trace.type_name))}[/] {markup(text)}{tags}"


class Detail(NamedTuple):
    """What stands behind a trace's label on a terminal.

    Attributes:
      ids: the id to show of each trace; None: whole ids.
      full: whole texts and dates.
    """

    ids: Mapping[str, str] | None
    full: bool

    def of(self, trace: Trace) -> str:
        """State, duration, start and id, in rich's markup."""
        colours = {"error": "[bold red]error[/] ", "open": "[bold yellow]open[/] "}
        took = trace.duration_ms
        start = trace.timestamp.astimezone()
        when = start.isoformat(timespec="milliseconds") if self.full else f"{start:%H:%M:%S.%f}"[:-3]
        parts = [duration(took / 1000)] if took is not None else []
        parts += [when, trace.id if self.ids is None else self.ids[trace.id]]
        return f"{colours.get(state(trace), '')}[dim]{'  '.join(parts)}[/]"


def fields(trace: Trace) -> list[str]:
    """One trace for programs: id, start, milliseconds, state, type, whole text, tags."""
    tags = " ".join(f"#{_one_line(tag)}" for tag in trace.tags)
    return [trace.id, *_when(trace), trace.type_name, headline(trace, None), tags]


def _when(trace: Trace) -> list[str]:
    took = trace.duration_ms
    start = trace.timestamp.isoformat(timespec="milliseconds")
    return [start, "" if took is None else f"{took:.3f}", state(trace)]


def plain_lines(
    tree: TraceTree, *, children_max: int | None = None, depth_max: int | None = None
) -> Iterator[str]:
    """A tree for programs: guides and whole text, then start, milliseconds, state and id between tabs."""
    for guides, what in _drawn(tree, children_max, depth_max, GUIDES):
        if isinstance(what, str):
            yield guides + what
        else:
            trace = what.trace
            tags = "".join(f" #{_one_line(tag)}" for tag in trace.tags)
            text = f"{guides}{_one_line(trace.type_name)} {headline(trace, None)}{tags}"
            yield "\t".join(printable(field) for field in [text, *_when(trace), trace.id])


def show(
    tree: TraceTree,
    out: Console,
    *,
    children_max: int | None = None,
    depth_max: int | None = None,
    detail: Detail | None = None,
) -> None:
    """Print a tree, every line whole however long it is: arguments as for `render`."""
    ascii_only = out.options.ascii_only
    for line in render(
        tree, children_max=children_max, depth_max=depth_max, ascii_only=ascii_only, detail=detail
    ):
        out.print(line, soft_wrap=True)


def render(
    tree: TraceTree,
    *,
    children_max: int | None = None,
    depth_max: int | None = None,
    ascii_only: bool = False,
    detail: Detail | None = None,
) -> Iterator[Text]:
    """The lines of a tree, top first. Drawn here, since rich's `Tree` cuts what is wider than the console.

    A line at depth d has 4 d characters of guides in front. The tree may be deeper than the recursion limit.

    Args:
      tree: what to show.
      children_max: at most so many children of a trace; one line tells how many more there are.
      depth_max: levels below the top to show.
      ascii_only: draw the guides with characters that every encoding has.
      detail: what to show behind each label; None: nothing.
    """
    for guides, what in _drawn(tree, children_max, depth_max, ASCII_GUIDES if ascii_only else GUIDES):
        yield Text.assemble((guides, "dim"), _text(what, detail))


def _drawn(
    tree: TraceTree, children_max: int | None, depth_max: int | None, drawing: Sequence[str]
) -> Iterator[tuple[str, TraceTree | str]]:
    """Each line of a tree: its guides, and a trace or a remark."""
    space, bar, fork, end = drawing
    yield "", tree
    open_rows = deque(_below(tree, "", 1, children_max, depth_max))
    while open_rows:
        row = open_rows.popleft()
        yield row.guides + (end if row.is_last else fork), row.what
        if not isinstance(row.what, str):
            guides = row.guides + (space if row.is_last else bar)
            below = _below(row.what, guides, row.depth + 1, children_max, depth_max)
            open_rows.extendleft(reversed(below))


class _Row(NamedTuple):
    """A line to come.

    Attributes:
      what: a trace with what is under it, or a remark.
      guides: those of the traces above it.
      is_last: nothing follows under the same trace.
      depth: levels below the top.
    """

    what: TraceTree | str
    guides: str
    is_last: bool
    depth: int


def _below(
    node: TraceTree, guides: str, depth: int, children_max: int | None, depth_max: int | None
) -> list[_Row]:
    """What comes directly under a trace, at a depth: its children, and a remark on what is left out."""
    rows: list[TraceTree | str] = []
    if depth_max is None or depth <= depth_max:
        rows += node.children[:children_max]
        left_out = len(node.children) - len(rows)
        if left_out:
            rows.append(f"… {left_out:,} more")
    elif node.children:
        rows.append(f"… {node.size - 1:,} below")
    return [_Row(what, guides, at == len(rows) - 1, depth) for at, what in enumerate(rows)]


def _text(what: TraceTree | str, detail: Detail | None) -> Text:
    if isinstance(what, str):
        return Text(what, "dim")
    if detail is None:
        return Text.from_markup(label(what.trace))
    return Text.from_markup(f"{label(what.trace, detail.full)}  {detail.of(what.trace)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _argument(args: Any) -> str:
    if isinstance(args, dict):
        return ", ".join(f"{name}={to_json(value)}" for name, value in args.items())
    return "" if args is None else to_json(args)
