"""Finds and classifies cycles of a dependency graph, with a smallest example of each class.

A cycle's class is the weakest set of edges that closes it: ww alone is G0, ww and wr is G1c, exactly one rw
is G-single, several rw is G2; the same with `-realtime` when only real-time order closes it.
Sources: Adya, "Weak Consistency" (MIT 1999); the search order follows Elle.
"""

from __future__ import annotations

from dataclasses import dataclass

from occamdb.stress.checker.graph import EDGE_NAMES, RT, RW, WR, WW, Graph
from occamdb.stress.checker.report import Report
from occamdb.stress.checker.table import Table

EDGE_BUDGET = (
    3_000_000  # edges looked at per class and component; an example then need not be the very smallest
)
STARTS_MAX = 2_000
PROBES_MAX = (
    200  # components searched in full; the rest are only counted under the class of their first cycle
)

Cycle = list[tuple[int, int]]  # (edge kind, node) steps; the last node is where it starts


@dataclass(frozen=True, slots=True)
class _Class:
    """How to look for one class: an edge of `first`, then a way back over `back`, using one of `need`."""

    name: str
    first: int
    back: int
    need: int


_PLAIN = (
    _Class("G0", WW, WW, 0),
    _Class("G1c", WR, WW | WR, 0),
    _Class("G-single", RW, WW | WR, 0),
    _Class("G2", RW, WW | WR | RW, RW),
)
_REAL_TIME = (
    _Class("G0-realtime", WW, WW | RT, RT),
    _Class("G1c-realtime", WR, WW | WR | RT, RT),
    _Class("G-single-realtime", RW, WW | WR | RT, RT),
    _Class("G2-realtime", RW, WW | WR | RW | RT, RT),
)


def find_cycles(graph: Graph, table: Table, report: Report) -> None:
    """Add every class of cycle that the graph holds to the report. The graph must be frozen."""
    components = sorted(graph.components(), key=len)
    for place, members in enumerate(components):
        inside = set(members)
        found = _classify(graph, inside, first_only=place >= PROBES_MAX)
        if not found:
            found = [("realtime", [])]
        for name, cycle in found:
            _report(table, report, name, cycle)


def _classify(graph: Graph, inside: set[int], *, first_only: bool) -> list[tuple[str, Cycle]]:
    """The classes one component holds. Real-time classes count only where no plain class explains it."""
    found = []
    for group in (_PLAIN, _REAL_TIME):
        for one in group:
            cycle = _smallest(graph, inside, one)
            if cycle is not None:
                found.append((one.name, cycle))
                if first_only:
                    return found
        if found:
            return found
    return found


def _smallest(graph: Graph, inside: set[int], wanted: _Class) -> Cycle | None:
    best: Cycle | None = None
    limit = len(inside) * 2 + 2
    budget = [EDGE_BUDGET]
    starts = 0
    for source in inside:
        for target, kind in graph.edges(source, wanted.first):
            if target not in inside:
                continue
            starts += 1
            back = graph.shortest_path(
                target, source, wanted.back, inside, need=wanted.need, limit=limit, budget=budget
            )
            if back is None:
                continue
            cycle = [(kind, target), *back]
            if len({node for _, node in cycle}) == len(cycle):
                best, limit = cycle, len(cycle) - 1
        if budget[0] <= 0 or (best is not None and (starts > STARTS_MAX or len(best) <= 2)):
            break
    return best


def _report(table: Table, report: Report, name: str, cycle: Cycle) -> None:
    steps = _collapse(cycle, len(table))
    size = len(steps)
    known = report.anomalies.get(name)
    if known is not None and known.example_size <= size:
        known.count += 1
        return
    report.add(name, _explain(table, steps), size)


def _collapse(cycle: Cycle, transactions: int) -> Cycle:
    """Replace each run of real-time instants by one rt edge between transactions."""
    if not cycle:
        return []
    steps: Cycle = []
    through = False
    start = next(place for place, (_, node) in enumerate(cycle) if node < transactions)
    for kind, node in cycle[start + 1 :] + cycle[: start + 1]:
        if node >= transactions:
            through = True
            continue
        steps.append((RT if through else kind, node))
        through = False
    return steps


def _explain(table: Table, steps: Cycle) -> str:
    nodes = [node for _, node in steps]
    if not nodes:
        return "a transaction returned before it was invoked, or its times overlap impossibly"
    path = table.name(nodes[-1])
    for kind, node in steps:
        path += f" -{EDGE_NAMES[kind]}-> {table.name(node)}"
    return path + "\n" + table.describe_all(*nodes)
