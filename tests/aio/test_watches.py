"""Tasks that wait and watch: nothing of them is left, none waits for ever, and none holds the loop up."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import occamdb.aio
from occamdb import RunId
from occamdb.engine.transaction.logged_changes import logged_changes
from tests.support.aio import LoopFactory, open_async, run_in, until
from tests.support.processes import kill_coordinator


def test_a_database_that_was_waited_on_can_be_collected(run: RunId, factory: LoopFactory) -> None:
    async def main() -> weakref.ref[Any]:
        async with occamdb.aio.open_in_memory() as db:
            waiting = asyncio.create_task(db.kv.wait(run, "k", after_version=0))
            await asyncio.sleep(0)
            await db.put(run, "k", 1)
            await waiting
            return weakref.ref(db.handle.waits)

    hub = run_in(factory, main())

    async def gone() -> None:
        def collected() -> bool:
            gc.collect()
            return hub() is None

        await until(collected, "the end of the hub")

    run_in(factory, gone())


def test_a_watch_that_another_task_closes(run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with occamdb.aio.open_in_memory() as db:
            watch = db.watch(run)

            async def follow() -> list[Any]:
                return [change async for change in watch]

            task = asyncio.create_task(follow())
            await until(lambda: db.handle.waits._waiters)
            watch.close()
            async with asyncio.timeout(10):
                assert await task == []

    run_in(factory, main())


def test_a_watch_reads_the_log_in_a_thread(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return logged_changes(*args)

    monkeypatch.setattr("occamdb.engine.transaction.watch.logged_changes", noted)

    async def main() -> None:
        async with open_async(database_path) as db:
            for number in range(3):
                await db.put(run, f"k{number}", number)
            kill_coordinator(database_path)
            await db.put(run, "k3", 3)
            async with db.watch(run, since=0, timeout=5) as watch:
                seen = [await anext(watch) for _ in range(4)]
            assert [change.value for change in seen] == [0, 1, 2, 3]
            assert threads and threading.current_thread() not in threads

    run_in(factory, main())
