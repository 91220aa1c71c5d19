"""List-append histories: every append adds a unique value, every read returns the whole list.

A read shows the order of all appends before it, so the order of writes is known and not guessed:
the longest read of a key is its version order and every other read must be a prefix of it. After the
longest read of a database that keeps its word come only appends it could not see yet.

Source: Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations",
VLDB 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from occamdb.stress.checker.graph import RW, WR, WW, Graph
from occamdb.stress.checker.report import Report
from occamdb.stress.checker.table import Table
from occamdb.stress.history import CONFLICT, OK, Recorded

UNSEEN_EDGES_MAX = (
    16  # appends that nobody read: edges from the last reader to more of them find no further anomaly
)


@dataclass(slots=True)
class _Key:
    """What the history says about one key."""

    order: list[Any] = field(default_factory=list)  # the longest list read
    order_reader: int = -1
    appends: dict[Any, int] = field(default_factory=dict)  # value -> transaction
    finals: dict[int, Any] = field(
        default_factory=dict
    )  # transaction -> its last value, where it appended several
    reads: list[tuple[int, int, bool]] = field(default_factory=list)  # transaction, length, did it append too
    last_read_invoked: int = -1


class ListAppend:
    """Digests transactions one by one, then reports direct anomalies and builds the graph."""

    def __init__(self, table: Table, report: Report, *, real_time: bool):
        self._table = table
        self._report = report
        self._keys: dict[Any, _Key] = {}

    def digest(self, index: int, found: Recorded) -> None:
        """Take one transaction in. Reads count only when it committed; appends count always."""
        if found.outcome == OK:
            self._digest_reads(index, found)
        own: dict[Any, int] = {}
        for op in found.ops:
            if op[0] != "a":
                continue
            state = self._key(op[1])
            if op[2] in state.appends:
                self._note("duplicate-value", f"{op[1]}: {op[2]} appended twice", state.appends[op[2]], index)
            state.appends[op[2]] = index
            own[op[1]] = own.get(op[1], 0) + 1
            if own[op[1]] > 1:
                state.finals[index] = op[2]

    def _key(self, name: Any) -> _Key:
        state = self._keys.get(name)
        if state is None:
            state = self._keys[name] = _Key()
        return state

    def _digest_reads(self, index: int, found: Recorded) -> None:
        appended: dict[Any, list[Any]] = {}
        read: dict[Any, list[Any]] = {}
        results = iter(found.reads)
        for op in found.ops:
            if op[0] == "a":
                appended.setdefault(op[1], []).append(op[2])
                continue
            own = appended.get(op[1], [])
            value = next(results) or []
            before = value[: len(value) - len(own)]
            if own and value[len(before) :] != own:
                self._note(
                    "internal", f"{op[1]}: own appends {own} are not at the end of {_short(value)}", index
                )
                continue
            if op[1] in read:
                if read[op[1]] != before:
                    text = f"{op[1]}: read {_short(read[op[1]])} first and {_short(before)} later"
                    self._note("internal", text, index)
                continue
            read[op[1]] = before
        for key, value in read.items():
            writes = key in appended or any(op[0] == "a" and op[1] == key for op in found.ops)
            self._external_read(index, found, key, value, writes)

    def _external_read(self, index: int, found: Recorded, key: Any, value: list[Any], writes: bool) -> None:
        state = self._key(key)
        state.last_read_invoked = max(state.last_read_invoked, found.invoked)
        count, known = len(value), state.order
        if count <= len(known):
            agrees = known[:count] == value
        else:
            agrees = value[: len(known)] == known
            if agrees:
                state.order, state.order_reader = value, index
        if not agrees:
            text = f"{key}: {_short(value)} and {_short(known)} have no common order"
            self._note("incompatible-order", text, index, state.order_reader)
            if len(set(value)) != len(value):
                self._note(
                    "duplicated-write", f"{key}: {_repeated(value)} appears twice in {_short(value)}", index
                )
            self._foreign_values(state, key, value, index)
            return
        state.reads.append((index, count, writes))

    def finish(self, graph: Graph) -> None:
        """Report what needs no cycle and add every dependency to the graph."""
        for name, state in self._keys.items():
            if len(set(state.order)) != len(state.order):
                text = f"{name}: {_repeated(state.order)} appears twice in {_short(state.order)}"
                self._note("duplicated-write", text, state.order_reader)
            self._foreign_values(state, name, state.order, state.order_reader)
            self._vanished(name, state)
            self._lost_updates(name, state)
            self._edges(name, state, graph)

    def _foreign_values(self, state: _Key, name: Any, values: list[Any], reader: int) -> None:
        """Aborted and garbage reads among the values of one list."""
        for value in values:
            writer = state.appends.get(value, -1)
            if writer < 0:
                self._note("garbage-read", f"{name}: {value} was never appended", reader)
            elif self._table.outcome[writer] == CONFLICT:
                text = f"{name}: {value} of the refused {self._table.name(writer)} was read"
                self._note("G1a", text, writer, reader)

    def _vanished(self, name: Any, state: _Key) -> None:
        table, seen = self._table, set(state.order)
        for value, writer in state.appends.items():
            if (
                value in seen
                or table.outcome[writer] != OK
                or table.returned[writer] >= state.last_read_invoked
            ):
                continue
            text = f"{name}: the acknowledged append of {value} is in no read, the last of which began later"
            self._note("vanished-write", text, writer)

    def _lost_updates(self, name: Any, state: _Key) -> None:
        first: dict[int, int] = {}
        for reader, count, writes in state.reads:
            if not writes:
                continue
            other = first.setdefault(count, reader)
            if other != reader:
                text = f"{name}: both read {_short(state.order[:count])} and both appended"
                self._note("lost-update", text, other, reader)

    def _edges(self, name: Any, state: _Key, graph: Graph) -> None:
        writers = [self._writer(state, value) for value in state.order]
        for before, after in pairwise(writers):
            if before >= 0 and after >= 0:
                graph.add(before, after, WW)
        seen = set(state.order)
        unseen = [
            writer
            for value, writer in state.appends.items()
            if value not in seen and self._table.outcome[writer] == OK
        ][:UNSEEN_EDGES_MAX]
        if writers and writers[-1] >= 0:
            for writer in unseen:
                graph.add(writers[-1], writer, WW)
        for reader, count, _ in state.reads:
            if count:
                self._read_edge(name, state, graph, reader, writers[count - 1], state.order[count - 1])
            for writer in writers[count : count + 1] or unseen:
                if writer >= 0:
                    graph.add(reader, writer, RW)

    def _read_edge(self, name: Any, state: _Key, graph: Graph, reader: int, writer: int, value: Any) -> None:
        if writer < 0:
            return
        graph.add(writer, reader, WR)
        final = state.finals.get(writer)
        if final is not None and final != value and writer != reader:
            text = f"{name}: {value} was read, which its own transaction follows up with {final}"
            self._note("G1b", text, writer, reader)

    def _writer(self, state: _Key, value: Any) -> int:
        """The transaction that appended `value`, or -1 for a value that takes no part in the graph."""
        writer = state.appends.get(value, -1)
        return -1 if writer < 0 or self._table.outcome[writer] == CONFLICT else writer

    def _note(self, name: str, text: str, *transactions: int) -> None:
        note(self._report, self._table, name, text, *transactions)


def note(report: Report, table: Table, name: str, text: str, *transactions: int) -> None:
    """Add an anomaly with the transactions that make it; the text is built only for a smaller example."""
    shown = [one for one in dict.fromkeys(transactions) if one >= 0]
    known = report.anomalies.get(name)
    if known is not None and known.example_size <= len(shown):
        known.count += 1
        return
    report.add(name, "\n".join([text, *(table.describe(one) for one in shown)]), len(shown))


def _short(values: list[Any]) -> str:
    if len(values) <= 12:
        return str(values)
    first, last = (", ".join(map(str, part)) for part in (values[:4], values[-4:]))
    return f"[{first}, ... {len(values) - 8} more ..., {last}]"


def _repeated(values: list[Any]) -> Any:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
