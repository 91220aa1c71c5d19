"""Check one recorded history: load, infer dependencies, find cycles, report.

Needs about 100 bytes of memory a transaction and an operation, and a second for 20,000 transactions.
"""

from __future__ import annotations

import os
import time

from occamdb.stress.checker.cycles import find_cycles
from occamdb.stress.checker.graph import Graph, add_real_time
from occamdb.stress.checker.list_append import ListAppend, note
from occamdb.stress.checker.register import Register
from occamdb.stress.checker.report import TOLERATED, Report
from occamdb.stress.checker.table import Table
from occamdb.stress.history import (
    CONFLICT,
    LIST_APPEND,
    OK,
    REGISTER,
    HistoryFormatError,
    history_files,
    read_header,
)

LEVELS = tuple(TOLERATED)


def check_history(path: str | os.PathLike[str], level: str = "strict-serializable") -> Report:
    """Check a history against an isolation level.

    Args:
      path: a history file, or a directory of the files of one history.
      level: `strict-serializable`, `serializable` (no real-time order) or `snapshot` (write skew allowed).

    Returns:
      A report; `report.valid` is the verdict and `report.text()` the account of it.

    Raises:
      HistoryFormatError: the files are not a history, or not all of one kind.
      ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"isolation level {level!r} is not one of {', '.join(LEVELS)}")
    began = time.perf_counter()
    files = history_files(path)
    kinds = {read_header(file).kind for file in files}
    if len(kinds) != 1 or not kinds <= {LIST_APPEND, REGISTER}:
        raise HistoryFormatError(
            f"{path}: holds {sorted(kinds) or 'no history files'}; one kind at a time is checked"
        )
    report = Report(kind=kinds.pop(), level=level)
    table = Table(files, report)
    real_time = level != "serializable"
    models: dict[str, type[ListAppend] | type[Register]] = {LIST_APPEND: ListAppend, REGISTER: Register}
    model = models[report.kind](table, report, real_time=real_time)
    for index, found in table.load():
        model.digest(index, found)
    graph = Graph(len(table))
    model.finish(graph)
    _check_versions(table, report)
    if real_time:
        alive = [node for node in range(len(table)) if table.outcome[node] != CONFLICT]
        add_real_time(graph, alive, table.invoked, table.returned)
    report.edges = graph.edge_count
    graph.freeze()
    find_cycles(graph, table, report)
    report.seconds = time.perf_counter() - began
    return report


def _check_versions(table: Table, report: Report) -> None:
    """Commit versions, where they were recorded, are unique and agree with real time."""
    numbered = [node for node in range(len(table)) if table.outcome[node] == OK and table.version[node]]
    numbered.sort(key=table.version.__getitem__)
    before = latest = -1
    for node in numbered:
        if before >= 0 and table.version[before] == table.version[node]:
            note(report, table, "duplicate-version", f"version {table.version[node]} twice", before, node)
        if latest >= 0 and table.invoked[latest] > table.returned[node]:
            text = (
                f"{table.name(latest)} began after {table.name(node)} was acknowledged with version "
                f"{table.version[node]}, and yet committed as {table.version[latest]}"
            )
            note(report, table, "version-order", text, node, latest)
        if latest < 0 or table.invoked[node] > table.invoked[latest]:
            latest = node
        before = node
