"""`strict_runs` where commits are awaited: the same rule, and blind writes that look again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import occamdb.aio
from occamdb import RunNotActive
from tests.support.aio import LoopFactory, run_in


@pytest.mark.by_default("shared")
def test_writes_to_a_run_that_is_not_active_are_refused(opened: Any, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened(strict_runs=True) as db:
            run = (await db.runs.create_run("r")).run_id
            await db.put(run, "k", 1)
            await db.runs.complete_run(run)
            with pytest.raises(RunNotActive):
                await db.put(run, "k", 2)
            with pytest.raises(RunNotActive):
                await db.transaction(run, lambda txn: txn.put("k", 3))
            with pytest.raises(RunNotActive):
                await db.events.append(run, "e", {})
            assert db.get(run, "k") == 1

    run_in(factory, main())


@pytest.mark.by_default("shared")
def test_blind_writes_look_again_when_the_record_changed(opened: Any, factory: LoopFactory) -> None:
    """Changes of the run's record run into the writes all the time, and no write conflicts."""

    async def main() -> None:
        async with opened(strict_runs=True) as db:
            run = (await db.runs.create_run("r")).run_id
            for _ in range(20):
                changes = [db.runs.add_tags(run, [f"t{number}"]) for number in range(4)]
                writes = [db.increment(run, "n") for _ in range(16)]
                await asyncio.gather(*writes[:8], *changes, *writes[8:])
            assert db.get(run, "n") == 320

    run_in(factory, main())


def test_in_memory(factory: LoopFactory) -> None:
    async def main() -> None:
        async with occamdb.aio.open_in_memory(strict_runs=True) as db:
            run = (await db.runs.create_run("r")).run_id
            await db.put(run, "k", 1)
            await db.runs.fail_run(run, "so")
            with pytest.raises(RunNotActive):
                await db.increment(run, "n")

    run_in(factory, main())
