"""What a timeline shows of a run: each trace as an item, or the less important ones in groups.

1. The items of a run are at most `bars_max`, whatever its trees look like.
2. An item whose trace has a parent lies under the item of that parent.
3. Each trace is one item, or is counted in exactly one group.
4. Long traces and failed and open ones are shown themselves before others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from occamdb.tools.pictures.forest import Forest, Node

__all__ = ["Item", "items_of"]

# In groups, deeper traces are only counted: nobody scrolls through more levels.
DEPTH_MAX = 100
# A trace that takes less than this part of the run is hardly seen as a bar: it goes into a group unless it is notable.
LENGTHS = 500
# How many pieces of time a group may lie in, at first.
PIECES = 32


class Item:
    """A bar to be: a trace, or a group of trees that lie under one trace.

    Attributes:
      node: the trace; None for a group.
      nodes: the trace, or the tops of the trees in the group.
      start, end: of the bar, in microseconds.
      count: how many traces it stands for.
      state: "ok", "error" or "open".
      children: the items under it.
      row, height: set by `packing`.
    """

    __slots__ = ("children", "count", "end", "height", "node", "nodes", "row", "start", "state")

    def __init__(self, nodes: Sequence[Node], *, group: bool = False) -> None:
        self.node = None if group else nodes[0]
        self.nodes = nodes
        self.children: list[Item] = []
        self.row = 0
        self.height = 1
        if group:
            self.start = min(node.first for node in nodes)
            self.end = max(node.last for node in nodes)
            self.count = sum(node.size for node in nodes)
            self.state = "error" if any(node.notable for node in nodes) else "ok"
        else:
            self.start, self.end = nodes[0].start, nodes[0].end
            self.count = 1
            self.state = nodes[0].state

    @property
    def kind(self) -> str:
        """The type of the trace, or the one that most traces at the top of the group have."""
        kinds = Counter(type(node.trace.trace_type).__name__ for node in self.nodes)
        return kinds.most_common(1)[0][0]


def items_of(forest: Forest, bars_max: int) -> tuple[list[Item], dict[int, Item]]:
    """The items at the top, and for each node (by `id`) the item that shows it or holds it."""
    shown = forest.nodes if len(forest.nodes) <= bars_max else _important(forest.nodes, bars_max * 2 // 5)
    at: dict[int, Item] = {id(node): Item([node]) for node in shown}
    tops: list[Item] = []
    hidden: dict[int, list[Node]] = {}
    for node in forest.nodes:  # parents first
        above = None if node.parent is None else at.get(id(node.parent))
        if (item := at.get(id(node))) is not None:
            (tops if above is None else above.children).append(item)
        elif node.parent is None or above is not None:
            hidden.setdefault(0 if node.parent is None else id(node.parent), []).append(node)
    for owner, group in _groups(hidden, bars_max // 2):
        item = Item(group, group=True)
        (at[owner].children if owner else tops).append(item)
        at.update((id(node), item) for node in group)
    for node in forest.nodes:  # what lies below the tops of groups
        if id(node) not in at and node.parent is not None:
            at[id(node)] = at[id(node.parent)]
    return tops, at


def _important(nodes: Sequence[Node], count: int) -> Iterable[Node]:
    """At most so many nodes, each with its parent. A parent takes at least as long as what is below it, and is
    notable if that is; the sorts are stable and have parents first."""
    whole = max(node.last for node in nodes) - min(node.first for node in nodes)
    near = [node for node in nodes if node.depth < DEPTH_MAX]
    by_length = sorted(near, key=lambda node: node.first - node.last)
    notable = [node for node in by_length if node.notable]
    chosen = {id(node): node for node in notable[: count // 2]}
    for node in by_length:
        if len(chosen) >= count or (node.last - node.first) * LENGTHS < whole:
            break
        # Its parent comes before it in this order, or is among the notable ones.
        chosen[id(node)] = node
    return chosen.values()


def _groups(hidden: dict[int, list[Node]], count_max: int) -> list[tuple[int, list[Node]]]:
    """The hidden trees under each item, divided by time into at most about so many groups.

    Returns:
      The owner (`id` of a node, 0 for the top) and the trees of each group. Every owner has at least one.
    """
    if not hidden:
        return []
    every = [node for nodes in hidden.values() for node in nodes]
    begin = min(node.first for node in every)
    whole = max(node.last for node in every) - begin + 1
    piece = max(1, whole // PIECES)
    while True:
        found: dict[tuple[int, int], list[Node]] = {}
        for owner, nodes in hidden.items():
            for node in nodes:
                found.setdefault((owner, (node.first - begin) // piece), []).append(node)
        if len(found) <= count_max or piece >= whole:
            return [(owner, nodes) for (owner, _), nodes in found.items()]
        piece *= 2
