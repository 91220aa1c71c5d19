"""The trees of a run's traces, with the time that each trace and each tree takes.

Times are whole microseconds, so that sums are exact. What is stored may be damaged: a parent may be missing, parents
may form a circle and an id may come twice. Every trace still is in exactly one tree.

1. `first` and `last` of a node span its own bar and those of all nodes below it.
2. `nodes` has every node after its parent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from occamdb.primitives import Trace

__all__ = ["BARS_MAX", "Forest", "Node", "moment_us", "state_of"]

# More bars than a browser shows at once without delay, and than a person can tell apart.
BARS_MAX = 2_000
DURATION_US_MAX = 10 * 366 * 86_400 * 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Node:
    """A trace in its tree.

    Attributes:
      start, end: of the trace itself; equal for a moment.
      first, last: of the trace and everything below it.
      depth: 0 for a root.
      size: how many traces it and everything below it are.
      state: "ok", "error" or "open".
      notable: whether a trace in it failed or is open.
    """

    __slots__ = (
        "children",
        "depth",
        "end",
        "first",
        "last",
        "notable",
        "parent",
        "size",
        "start",
        "state",
        "trace",
    )

    def __init__(self, trace: Trace, start: int, end: int) -> None:
        self.trace = trace
        self.start = self.first = start
        self.end = self.last = end
        self.state = state_of(trace)
        self.notable = self.state != "ok"
        self.parent: Node | None = None
        self.children: list[Node] = []
        self.depth = 0
        self.size = 1


class Forest:
    """All traces of one run.

    Attributes:
      roots: in order of their start.
      nodes: all of them, parents first.
    """

    __slots__ = ("nodes", "roots")

    def __init__(self, traces: Iterable[Trace], now: datetime | None = None) -> None:
        """Build the trees.

        Args:
          traces: of one run, in any order.
          now: until when open spans are drawn; None: until the latest moment of any trace.
        """
        every = list({trace.id: trace for trace in traces}.values())
        known = [_known_times(trace) for trace in every]
        until = max((end for _, end in known), default=0) if now is None else moment_us(now)
        by_id = {
            trace.id: Node(trace, start, max(end, until) if trace.is_open else end)
            for trace, (start, end) in zip(every, known, strict=True)
        }
        ordered = sorted(by_id.values(), key=lambda node: (node.start, node.trace.id))
        self.roots: list[Node] = []
        for node in ordered:
            node.parent = by_id.get(node.trace.parent_id or "")
            (self.roots if node.parent is None else node.parent.children).append(node)
        self.nodes: list[Node] = []
        self._number(ordered)
        self._measure()

    def _number(self, ordered: Sequence[Node]) -> None:
        """Put every node behind its parent. What no root leads to is a circle, which is cut open."""
        reached: set[str] = set()
        for top in [*self.roots, *ordered]:
            if top.trace.id in reached:
                continue
            if top.parent is not None:
                top.parent.children.remove(top)
                top.parent = None
                self.roots.append(top)
            stack = [top]
            while stack:
                node = stack.pop()
                reached.add(node.trace.id)
                self.nodes.append(node)
                for child in node.children:
                    child.depth = node.depth + 1
                stack.extend(reversed(node.children))

    def _measure(self) -> None:
        for node in reversed(self.nodes):
            above = node.parent
            if above is not None:
                above.first = min(above.first, node.first)
                above.last = max(above.last, node.last)
                above.size += node.size
                above.notable = above.notable or node.notable

    def keep(self, first: int, last: int) -> None:
        """Leave out what lies wholly outside a piece of time. A parent spans its children, so it stays with them."""
        self.roots = [node for node in self.roots if node.last >= first and node.first <= last]
        self.nodes = [node for node in self.nodes if node.last >= first and node.first <= last]
        for node in self.nodes:
            node.children = [child for child in node.children if child.last >= first and child.first <= last]


def state_of(trace: Trace) -> str:
    """`open` for a span that has not ended, `error` for one that failed and for an Error, else `ok`."""
    if trace.is_open:
        return "open"
    failed = type(trace.trace_type).__name__ == "Error" or trace.error is not None
    return "error" if failed else "ok"


def moment_us(when: datetime) -> int:
    """Microseconds since 1970."""
    return (when - _EPOCH) // _MICROSECOND


def _known_times(trace: Trace) -> tuple[int, int]:
    """When a trace began and ended, as far as it is known.

    A span is recorded when it begins. Any other trace is recorded when it is over, so its duration lies before.
    """
    moment, took = moment_us(trace.timestamp), _duration_us(trace.duration_ms)
    return (moment, moment + took) if trace.is_span else (moment - took, moment)


def _duration_us(milliseconds: Any) -> int:
    """The duration that a trace tells, which may be anything that can be stored."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return 0
    if isinstance(milliseconds, float) and not math.isfinite(milliseconds):
        return 0
    return round(min(max(milliseconds, 0), DURATION_US_MAX / 1000) * 1000)
