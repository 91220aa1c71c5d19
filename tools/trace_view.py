"""Traces for people: one line each, and trees that stay readable however large they are."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.tree import Tree

from occamdb.tools.console import to_json

if TYPE_CHECKING:
    from occamdb.primitives import Trace, TraceTree

TEXT_LENGTH_MAX = 100


def shorten(text: str, length_max: int = TEXT_LENGTH_MAX) -> str:
    """The text on one line, cut to a length."""
    line = " ".join(text.split())
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
    tags = f" [dim]#{' #'.join(map(escape, trace.tags))}[/]" if trace.tags else ""
    return f"[cyan]{escape(trace.type_name)}[/] {escape(headline(trace))}{tags}"


def render(tree: TraceTree, *, children_max: int | None = None, depth_max: int | None = None) -> Tree:
    """A tree to print.

    Args:
      tree: what to show.
      children_max: at most so many children of a trace; one line tells how many more there are.
      depth_max: levels below the top to show.
    """
    top = Tree(label(tree.trace), guide_style="dim")
    open_nodes = deque([(tree, top, 0)])
    while open_nodes:
        node, shown, depth = open_nodes.popleft()
        if depth == depth_max and node.children:
            shown.add(f"[dim]… {node.size - 1:,} below[/]")
            continue
        for child in node.children[:children_max]:
            open_nodes.append((child, shown.add(label(child.trace)), depth + 1))
        if children_max is not None and len(node.children) > children_max:
            shown.add(f"[dim]… {len(node.children) - children_max:,} more[/]")
    return top


def _argument(args: Any) -> str:
    if isinstance(args, dict):
        return ", ".join(f"{name}={to_json(value)}" for name, value in args.items())
    return "" if args is None else to_json(args)
