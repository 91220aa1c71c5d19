"""Tasks from event loops: the calls are awaited, the loop is asynchronous, and a claim waits without a thread."""

import asyncio
from typing import Any

import pytest

from occamdb import LeaseLost, RunId
from tests.support.aio import LoopFactory, run_in


def test_tasks_are_put_claimed_and_completed(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            await db.tasks.put_many(run, "q", range(3))
            seen = []
            async with db.tasks.worker(run, "q", timeout=0) as tasks:
                async for task in tasks:
                    seen.append(task.payload)
            assert seen == [0, 1, 2] and db.tasks.stats(run, "q").done == 3
            assert await db.tasks.claim(run, "q") is None

            waiting = asyncio.ensure_future(db.tasks.claim(run, "q", timeout=60))
            await asyncio.sleep(0)
            await db.tasks.put(run, "q", "came", delay=0.05)
            claimed = await waiting
            assert claimed is not None and claimed.payload == "came"
            await db.tasks.release(run, claimed)
            with pytest.raises(LeaseLost):
                await db.tasks.complete(run, claimed)
            assert await db.tasks.claim(run, "none", timeout=0.01) is None

            with pytest.raises(ValueError):
                async with db.tasks.worker(run, "q", timeout=0) as tasks:
                    async for _ in tasks:
                        raise ValueError("broken")
            assert [task.error for task in db.tasks.list(run, "q", state="ready")] == ["ValueError: broken"]
            async with db.begin(run) as txn:
                again = txn.tasks.claim("q")
                assert again is not None
                txn.tasks.complete(again, "inside")
            assert db.tasks.stats(run, "q").done == 4

    run_in(factory, main())
