"""List-append: the workload whose histories tell most about isolation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from occamdb.stress.history import LIST_APPEND, Op, unique_value
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

LENGTH_MAX = (
    48  # a longer list is left alone and its key replaced: reads of long lists cost more than they tell
)


class ListAppendWorkload(Workload):
    """Transactions of one to four reads and appends on a moving set of keys."""

    name = "list-append"
    summary = "reads of and appends to lists, recorded and checked for every class of anomaly"
    history_kind = LIST_APPEND
    keys = 8

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Lists start absent."""

    def step(self, context: Context) -> None:
        """One transaction; a key is `<slot>.<generation>`, and full lists move their slot on."""
        dice = context.dice
        generations: dict[int, int] = context.state.setdefault("generations", {})
        ops: list[Op] = []
        read_only = dice.random() < context.settings.reads
        for _ in range(dice.randint(1, 4)):
            slot = dice.randrange(context.settings.keys)
            key = f"{slot}.{generations.get(slot, 0)}"
            if read_only or dice.random() < 0.4:
                ops.append(["r", key])
            else:
                ops.append(["a", key, unique_value(context.worker, context.next_count())])
        lengths: dict[str, int] = {}

        def body(txn: occamdb.Transaction) -> list[Any]:
            results = []
            for op in ops:
                found = txn.get(f"list/{op[1]}", [])
                if op[0] == "r":
                    results.append(found)
                else:
                    found.append(op[2])
                    txn.put(f"list/{op[1]}", found)
                lengths[op[1]] = len(found)
            return results

        context.recorded(ops, body)
        for key, length in lengths.items():
            slot, generation = map(int, key.split("."))
            if length >= LENGTH_MAX:
                generations[slot] = max(generations.get(slot, 0), generation + 1)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Read every list once more, for the checker; it is the judge."""
        with context.db.begin(RUN, read_only=True) as txn:
            names = [key for key, _ in txn.scan("list/")]
        for start in range(0, len(names), 64):
            part = names[start : start + 64]
            ops: list[Op] = [["r", name.removeprefix("list/")] for name in part]
            context.recorded(ops, lambda txn, part=part: [txn.get(name, []) for name in part])  # type: ignore[misc]
        return []
