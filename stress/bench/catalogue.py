"""All benchmark rows, by name."""

from __future__ import annotations

from collections.abc import Sequence

from occamdb.stress.bench.memory import memory_rows
from occamdb.stress.bench.model import Row
from occamdb.stress.bench.rows_async import async_rows
from occamdb.stress.bench.rows_contention import contention_rows, growth_rows
from occamdb.stress.bench.rows_engine import durability_rows, engine_rows
from occamdb.stress.bench.rows_hot_key import hot_key_rows
from occamdb.stress.bench.rows_primitives import primitive_rows
from occamdb.stress.bench.rows_recovery import recovery_rows
from occamdb.stress.bench.rows_tasks import task_rows
from occamdb.stress.bench.rows_waiting import waiting_rows


def all_rows() -> list[Row]:
    """Every row, in the order of the report."""
    return [
        *engine_rows(),
        *growth_rows(),
        *contention_rows(),
        *hot_key_rows(),
        *durability_rows(),
        *async_rows(),
        *recovery_rows(),
        *primitive_rows(),
        *task_rows(),
        *waiting_rows(),
        *memory_rows(),
    ]


def select_rows(names: Sequence[str]) -> list[Row]:
    """The rows whose name is, or else begins with, one of `names`; all without names.

    Raises:
      KeyError: a name matches no row.
    """
    rows = all_rows()
    if not names:
        return rows
    chosen: set[str] = set()
    for name in names:
        exact = {row.name for row in rows if row.name == name}
        found = exact or {row.name for row in rows if row.name.startswith(name)}
        if not found:
            raise KeyError(name)
        chosen |= found
    return [row for row in rows if row.name in chosen]
