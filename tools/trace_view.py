"""Traces for people: one line each, and trees that stay readable however large they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from occamdb.tools.console import to_json
from occamdb.tools.printable import markup

if TYPE_CHECKING:
    from rich.console import Console

    from occamdb.primitives import Trace, TraceTree

TEXT_LENGTH_MAX = 100
# Under the last child, under another; in front of a child that others follow, in front of the last.
GUIDES = ("    ", "│   ", "├── ", "└── ")
ASCII_GUIDES = ("    ", "|   ", "+-- ", "`-- ")


def shorten(text: str, length_max: int = TEXT_LENGTH_MAX) -> str:
    """The text on one line, cut to a length."""
    line = _one_line(text)
    return line if len(line) <= length_max else line[: length_max - 1] + "…"


def headline(trace: Trace) -> str:
    """What a trace says, on one line."""
    content = trace.trace_type
    fields: dict[str, Any] = {name: getattr(content, name) for name in content.__dataclass_fields__}
    match type(content).__name__:
        case "ToolCall":
            took = f" in {fields['duration_ms']:.1f} ms" if fields["duration_ms"] is not None else ""
            text = f"{fields['tool']}({_argument(fields['args'])}) → {to_json(fields['result'])}{took}"
        case "Decision":
            why = f" ({fields['reasoning']})" if fields["reasoning"] else ""
            text = f"{fields['question']} {to_json(fields['chosen'])}{why}"
        case "Query":
            text = f"{fields['type']}: {to_json(fields['query'])} → {to_json(fields['results'])}"
        case "Thought":
            text = fields["content"]
        case "Error":
            text = f"{fields['type']}: {fields['message']}{'' if fields['recoverable'] else ' (fatal)'}"
        case _:
            text = to_json(fields["data"])
    return shorten(text)


def label(trace: Trace) -> str:
    """`headline` with type and tags, in rich's markup."""
    tags = f" [dim]#{markup(' #'.join(map(_one_line, trace.tags)))}[/]" if trace.tags else ""
    return f"[cyan]{markup(_one_line(trace.type_name))}[/] {markup(headline(trace))}{tags}"


def show(
    tree: TraceTree, out: Console, *, children_max: int | None = None, depth_max: int | None = None
) -> None:
    """Print a tree, every line whole however long it is: arguments as for `render`."""
    ascii_only = out.options.ascii_only
    for line in render(tree, children_max=children_max, depth_max=depth_max, ascii_only=ascii_only):
        out.print(line, soft_wrap=True)


def render(
    tree: TraceTree,
    *,
    children_max: int | None = None,
    depth_max: int | None = None,
    ascii_only: bool = False,
) -> Iterator[Text]:
    """The lines of a tree, top first. Drawn here, since rich's `Tree` cuts what is wider than the console.

    A line at depth d has 4 d characters of guides in front. The tree may be deeper than the recursion limit.

    Args:
      tree: what to show.
      children_max: at most so many children of a trace; one line tells how many more there are.
      depth_max: levels below the top to show.
      ascii_only: draw the guides with characters that every encoding has.
    """
    space, bar, fork, end = ASCII_GUIDES if ascii_only else GUIDES
    yield Text.from_markup(label(tree.trace))
    open_rows = deque(_below(tree, "", 1, children_max, depth_max))
    while open_rows:
        row = open_rows.popleft()
        yield Text.assemble((row.guides + (end if row.is_last else fork), "dim"), _text(row.what))
        if not isinstance(row.what, str):
            guides = row.guides + (space if row.is_last else bar)
            below = _below(row.what, guides, row.depth + 1, children_max, depth_max)
            open_rows.extendleft(reversed(below))


class _Row(NamedTuple):
    """A line to come.

    Attributes:
      what: a trace with what is under it, or a remark in rich's markup.
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
            rows.append(f"[dim]… {left_out:,} more[/]")
    elif node.children:
        rows.append(f"[dim]… {node.size - 1:,} below[/]")
    return [_Row(what, guides, at == len(rows) - 1, depth) for at, what in enumerate(rows)]


def _text(what: TraceTree | str) -> Text:
    return Text.from_markup(what if isinstance(what, str) else label(what.trace))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _argument(args: Any) -> str:
    if isinstance(args, dict):
        return ", ".join(f"{name}={to_json(value)}" for name, value in args.items())
    return "" if args is None else to_json(args)
