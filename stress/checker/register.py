"""Register histories: every write is a unique value, a read returns the newest value or None.

The order of the versions of a key is inferred from what is certain: None comes first; a transaction
that read one value and wrote another puts the second after the first; blind writes are ordered by real
time where one was acknowledged before the other began (only when the level promises real-time order).

Source: Kingsbury and Alvaro, "Elle" (VLDB 2020), section on registers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from occamdb.stress.checker.graph import RW, WR, WW, Graph
from occamdb.stress.checker.list_append import note
from occamdb.stress.checker.report import Report
from occamdb.stress.checker.table import Table
from occamdb.stress.history import CONFLICT, OK, Recorded


@dataclass(slots=True)
class _Key:
    """What the history says about one key. A value stands for the version that it is."""

    writers: dict[Any, int] = field(default_factory=dict)
    intermediate: dict[Any, Any] = field(
        default_factory=dict
    )  # value -> the one its transaction wrote after it
    readers: dict[Any, list[int]] = field(default_factory=dict)
    after: dict[Any, list[Any]] = field(default_factory=dict)  # version -> versions known to come next
    follows: dict[Any, Any] = field(default_factory=dict)  # version -> the one its writer had read
    updaters: dict[Any, int] = field(
        default_factory=dict
    )  # version read -> a committed transaction that replaced it


class Register:
    """Digests transactions one by one, then reports direct anomalies and builds the graph."""

    def __init__(self, table: Table, report: Report, *, real_time: bool):
        self._table = table
        self._report = report
        self._real_time = real_time
        self._keys: dict[Any, _Key] = {}

    def _key(self, name: Any) -> _Key:
        state = self._keys.get(name)
        if state is None:
            state = self._keys[name] = _Key()
        return state

    def digest(self, index: int, found: Recorded) -> None:
        """Take one transaction in. Reads count only when it committed; writes count always."""
        current: dict[Any, Any] = {}
        read: dict[Any, Any] = {}
        wrote: dict[Any, Any] = {}
        results = iter(found.reads) if found.outcome == OK else None
        for op in found.ops:
            if op[0] == "w":
                self._digest_write(index, op[1], op[2], wrote)
                current[op[1]] = wrote[op[1]] = op[2]
            elif results is not None:
                value = next(results)
                if op[1] in current:
                    if current[op[1]] != value:
                        text = f"{op[1]}: read {value} where its own view was {current[op[1]]}"
                        self._note("internal", text, index)
                    continue
                current[op[1]] = read[op[1]] = value
        for key, value in read.items():
            self._key(key).readers.setdefault(value, []).append(index)
        if found.outcome != CONFLICT:
            self._digest_updates(index, found.outcome, read, wrote)

    def _digest_write(self, index: int, key: Any, value: Any, wrote: dict[Any, Any]) -> None:
        state = self._key(key)
        if value in state.writers:
            self._note("duplicate-value", f"{key}: {value} written twice", state.writers[value], index)
        state.writers[value] = index
        if key in wrote:
            state.intermediate[wrote[key]] = value

    def _digest_updates(self, index: int, outcome: int, read: dict[Any, Any], wrote: dict[Any, Any]) -> None:
        for key, value in wrote.items():
            if key not in read:
                continue
            state, before = self._key(key), read[key]
            state.after.setdefault(before, []).append(value)
            state.follows[value] = before
            other = state.updaters.setdefault(before, index)
            if other != index and outcome == OK:
                self._note("lost-update", f"{key}: both read {before} and both wrote it", other, index)

    def finish(self, graph: Graph) -> None:
        """Report what needs no cycle and add every dependency to the graph."""
        for name, state in self._keys.items():
            self._direct(name, state)
            self._vanished(name, state)
            self._order_blind_writes(state)
            self._edges(state, graph)

    def _direct(self, name: Any, state: _Key) -> None:
        for value, readers in state.readers.items():
            if value is None:
                continue
            writer = state.writers.get(value, -1)
            if writer < 0:
                self._note("garbage-read", f"{name}: {value} was never written", readers[0])
            elif self._table.outcome[writer] == CONFLICT:
                text = f"{name}: {value} of the refused {self._table.name(writer)} was read"
                self._note("G1a", text, writer, readers[0])
            elif value in state.intermediate and any(reader != writer for reader in readers):
                text = f"{name}: {value} was read, which its writer replaced by {state.intermediate[value]}"
                self._note("G1b", text, writer, *readers[:1])

    def _vanished(self, name: Any, state: _Key) -> None:
        """A committed update nobody read, although its predecessor was read again later."""
        table = self._table
        for value, before in state.follows.items():
            writer = state.writers[value]
            if value in state.readers or table.outcome[writer] != OK:
                continue
            for reader in state.readers.get(before, ()):
                if reader != writer and table.invoked[reader] > table.returned[writer]:
                    text = f"{name}: {value} was acknowledged, then {before} was read again"
                    self._note("vanished-write", text, writer, reader)
                    break

    def _order_blind_writes(self, state: _Key) -> None:
        """Order pairs of versions of which at least one is a blind write, by None-first and by real time."""
        table = self._table
        blind = {
            value
            for value, writer in state.writers.items()
            if value not in state.follows
            and value not in state.intermediate
            and table.outcome[writer] != CONFLICT
        }
        if self._real_time and blind:
            self._order_by_time(state, blind)
        followed = {value for values in state.after.values() for value in values}
        for value in blind - followed:
            state.after.setdefault(None, []).append(value)

    def _order_by_time(self, state: _Key, blind: set[Any]) -> None:
        table = self._table
        versions = sorted(
            (
                (table.invoked[writer], table.returned[writer], value)
                for value, writer in state.writers.items()
                if table.outcome[writer] == OK and value not in state.intermediate
            ),
            key=lambda entry: entry[0],
        )
        frontier: list[tuple[int, int, Any]] = []  # versions no later version is known to follow on all sides
        for entry in versions:
            passed = [one for one in frontier if one[1] < entry[0]]
            for one in passed:
                if one[2] in blind or entry[2] in blind:
                    state.after.setdefault(one[2], []).append(entry[2])
            newest = max((one[0] for one in passed), default=0)
            frontier = [one for one in frontier if one[1] >= newest]
            frontier.append(entry)

    def _edges(self, state: _Key, graph: Graph) -> None:
        for value, readers in state.readers.items():
            writer = self._writer(state, value)
            if writer >= 0:
                for reader in readers:
                    graph.add(writer, reader, WR)
        for before, values in state.after.items():
            first = self._writer(state, before)
            for value in values:
                second = self._writer(state, value)
                if second < 0:
                    continue
                if first >= 0:
                    graph.add(first, second, WW)
                for reader in state.readers.get(before, ()):
                    graph.add(reader, second, RW)

    def _writer(self, state: _Key, value: Any) -> int:
        """The transaction that wrote `value`, or -1 for None and what takes no part in the graph."""
        writer = state.writers.get(value, -1)
        return -1 if writer < 0 or self._table.outcome[writer] == CONFLICT else writer

    def _note(self, name: str, text: str, *transactions: int) -> None:
        note(self._report, self._table, name, text, *transactions)
