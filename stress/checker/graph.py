"""A dependency graph over transactions, kept in flat arrays, with the two searches the checker needs.

Nodes are integers. Edges carry one bit of what they stand for (WW, WR, RW, RT), so a subgraph is a mask.
The graph is filled with `add`, then `freeze`d into compressed rows; searches need a frozen graph.

Sources: Tarjan's strongly connected components (1972), made iterative because histories are deeper
than Python's stack; breadth-first search for shortest cycles.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

WW, WR, RW, RT = 1, 2, 4, 8
EDGE_NAMES = {WW: "ww", WR: "wr", RW: "rw", RT: "rt"}


class Graph:
    """A directed multigraph with typed edges."""

    def __init__(self, node_count: int):
        """Make a graph of `node_count` nodes and no edges; `add_nodes` may extend it until it is frozen."""
        self.node_count = node_count
        self._from = array("i")
        self._to = array("i")
        self._kind = array("b")
        self._first: array[int] = array("i")

    @property
    def edge_count(self) -> int:
        """The number of edges added."""
        return len(self._from)

    def add(self, source: int, target: int, kind: int) -> None:
        """Add an edge; an edge from a node to itself says nothing and is dropped."""
        if source != target:
            self._from.append(source)
            self._to.append(target)
            self._kind.append(kind)

    def add_nodes(self, count: int) -> int:
        """Add nodes; returns the first of them."""
        first = self.node_count
        self.node_count += count
        return first

    def freeze(self) -> None:
        """Sort the edges by source (a counting sort), so that the searches work. O(nodes + edges)."""
        first = array("i", bytes(4 * (self.node_count + 1)))
        for source in self._from:
            first[source + 1] += 1
        total = 0
        for node in range(self.node_count + 1):
            total += first[node]
            first[node] = total
        place = array("i", first)
        to = array("i", bytes(4 * len(self._to)))
        kind = array("b", bytes(len(self._kind)))
        for source, target, label in zip(self._from, self._to, self._kind, strict=True):
            at = place[source]
            place[source] = at + 1
            to[at] = target
            kind[at] = label
        self._first, self._to, self._kind = first, to, kind

    def edges(self, node: int, mask: int) -> list[tuple[int, int]]:
        """(target, kind) of the edges out of `node` whose kind is in `mask`."""
        start, end = self._first[node], self._first[node + 1]
        return [(self._to[at], self._kind[at]) for at in range(start, end) if self._kind[at] & mask]

    def components(self) -> list[list[int]]:
        """The strongly connected components of more than one node: every cycle lies inside one of them.

        Tarjan's algorithm with an explicit stack. O(nodes + edges) time; three flat arrays of memory.
        """
        first, to = self._first, self._to
        order = array("i", bytes(4 * self.node_count))  # 0: not yet visited
        low = array("i", bytes(4 * self.node_count))
        cursor = array("i", first)
        waiting = bytearray(self.node_count)
        stack: list[int] = []
        found: list[list[int]] = []
        clock = 0
        for root in range(self.node_count):
            if order[root]:
                continue
            path = [root]
            while path:
                node = path[-1]
                if not order[node]:
                    clock += 1
                    order[node] = low[node] = clock
                    stack.append(node)
                    waiting[node] = 1
                at, end, best = cursor[node], first[node + 1], low[node]
                descend = -1
                while at < end:
                    target = to[at]
                    at += 1
                    if not order[target]:
                        descend = target
                        break
                    if waiting[target] and order[target] < best:
                        best = order[target]
                cursor[node], low[node] = at, best
                if descend >= 0:
                    path.append(descend)
                    continue
                path.pop()
                if path and best < low[path[-1]]:
                    low[path[-1]] = best
                if best == order[node]:
                    self._pop_component(node, stack, waiting, found)
        return found

    @staticmethod
    def _pop_component(node: int, stack: list[int], waiting: bytearray, found: list[list[int]]) -> None:
        members = []
        while True:
            member = stack.pop()
            waiting[member] = 0
            members.append(member)
            if member == node:
                break
        if len(members) > 1:
            found.append(members)

    def shortest_path(
        self,
        source: int,
        target: int,
        mask: int,
        inside: set[int],
        *,
        need: int,
        limit: int,
        budget: list[int],
    ) -> list[tuple[int, int]] | None:
        """The shortest path from `source` to `target`, as (edge kind, node) steps, or None.

        Args:
          source: where the path starts.
          target: where it ends; a path has at least one edge.
          mask: the edge kinds the path may use.
          inside: the nodes it may visit.
          need: 0, or edge kinds of which the path must use at least one.
          limit: give up on paths of this many edges or more.
          budget: one number, lowered by every edge looked at; the search gives up at zero.

        The state searched is (node, has the needed kind been used), so a path with `need` may pass a node
        twice; callers that want a simple cycle check for that.
        """
        start = (source, 0 if need else 1)
        parents: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        seen = {start}
        level = deque([(start, 0)])
        while level and budget[0] > 0:
            state, depth = level.popleft()
            if depth + 1 >= limit:
                return None
            for node, kind in self.edges(state[0], mask):
                budget[0] -= 1
                reached = (node, 1 if state[1] or kind & need else 0)
                if node not in inside or reached in seen:
                    continue
                seen.add(reached)
                parents[reached] = (state, kind)
                if node == target and reached[1]:
                    return _walk_back(parents, start, reached)
                level.append((reached, depth + 1))
        return None


def _walk_back(
    parents: dict[tuple[int, int], tuple[tuple[int, int], int]], start: tuple[int, int], end: tuple[int, int]
) -> list[tuple[int, int]]:
    steps = []
    state = end
    while state != start:
        before, kind = parents[state]
        steps.append((kind, state[0]))
        state = before
    steps.reverse()
    return steps


def add_real_time(
    graph: Graph, nodes: Sequence[int], invoked: Sequence[int], returned: Sequence[int]
) -> None:
    """Add RT edges from every transaction to all those invoked after it returned; O(n log n) time.

    Instead of an edge for each pair, one instant is added per return: a transaction leads to the instant of
    its return, each instant to the next, and the last instant before an invocation to that transaction.

    Args:
      graph: an unfrozen graph.
      nodes: the transactions that take part.
      invoked: invocation times, by node.
      returned: return times, by node; one that never returned precedes nobody.
    """
    never = (1 << 63) - 1
    done = sorted((node for node in nodes if returned[node] < never), key=returned.__getitem__)
    instant = graph.add_nodes(len(done))
    for place, node in enumerate(done):
        graph.add(node, instant + place, RT)
        if place:
            graph.add(instant + place - 1, instant + place, RT)
    passed = 0
    for node in sorted(nodes, key=invoked.__getitem__):
        while passed < len(done) and returned[done[passed]] < invoked[node]:
            passed += 1
        if passed:
            graph.add(instant + passed - 1, node, RT)
