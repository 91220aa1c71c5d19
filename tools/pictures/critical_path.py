"""The critical path of a run: what it was doing, or waiting for, at each moment from its beginning to its end.

It is found from the end backwards. At each moment the trace on the path is the deepest one that the end was waiting
for: of the traces below the present one, the last that ended before the path's next piece began. A trace that was
still running when that piece began did not delay it. This is how Jaeger and others define it for trees of spans.

1. The segments follow one another without a gap or an overlap, from the first start to the last end.
2. So their durations add up to the duration of the run, whatever shape the trees have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from occamdb.tools.pictures.forest import Node

__all__ = ["Segment", "critical_path"]


class Segment(NamedTuple):
    """A piece of the path.

    Attributes:
      node: whose time it is; None: between the trees of the run.
      start, end: microseconds.
      busy: the trace itself was going on. If not, the path goes through it since it waits for what is below it.
    """

    node: Node | None
    start: int
    end: int
    busy: bool


def critical_path(roots: Sequence[Node]) -> list[Segment]:
    """The path through the trees below `roots`, in order of time. O(n log n)."""
    if not roots:
        return []
    found: list[Segment] = []  # the latest first
    cursor = max(root.last for root in roots)
    begin = min(root.first for root in roots)
    frames: list[tuple[Node | None, int, Iterator[Node]]] = [(None, begin, _latest_first(roots))]
    while frames:
        node, begin, below = frames[-1]
        # What ends behind the cursor now does so for good, since the cursor only goes back.
        child = next((each for each in below if each.first < each.last <= cursor), None)
        until = begin if child is None else child.last
        found += _own(node, until, cursor)
        cursor = until
        if child is None:
            frames.pop()
        else:
            frames.append((child, child.first, _latest_first(child.children)))
    return found[::-1]


def _latest_first(nodes: Sequence[Node]) -> Iterator[Node]:
    return iter(sorted(nodes, key=lambda node: (-node.last, node.first)))


def _own(node: Node | None, start: int, end: int) -> Iterator[Segment]:
    """A node's own time, the latest first: what lies in its bar, and what lies before and behind it."""
    if node is None:
        if start < end:
            yield Segment(None, start, end, False)
        return
    left, right = max(start, min(node.start, end)), min(end, max(node.end, start))
    if left >= right:  # nothing of it lies in the bar
        if start < end:
            yield Segment(node, start, end, False)
        return
    if right < end:
        yield Segment(node, right, end, False)
    yield Segment(node, left, right, True)
    if start < left:
        yield Segment(node, start, left, False)
