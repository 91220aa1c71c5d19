"""Tasks that wait: `txn.wait`, waits of the primitives, watches and followed logs, in both kinds of databases."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import occamdb.aio
from occamdb import RunId, TransactionStateError, TransactionTimeout
from occamdb.aio import AsyncDatabase, AsyncTransaction
from tests.aio.test_loops import _reaped
from tests.support.aio import LoopFactory, open_async, run_in, until
from tests.support.engines import Engine
from tests.support.processes import kill_coordinator, open_database

# Calls to a server may use those; a task that waits has none.
THREADS_OF_A_LOOP = 32


def waiting(db: AsyncDatabase) -> int:
    """How many tasks wait for changes."""
    pump = db.handle.waits.pump
    return 0 if pump is None else len(pump._tasks)


def take(txn: AsyncTransaction) -> Any:
    """The first message of a queue; waits for one."""
    for key, item in txn.scan("inbox/", limit=1):
        txn.delete(key)
        return item.value
    txn.wait()


def test_a_queue(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            takers = [asyncio.create_task(db.transaction(run, take)) for _ in range(20)]
            await until(lambda: waiting(db) == 20)
            for number in range(20):
                await db.put(run, f"inbox/{number:02}", number)
            assert sorted(await asyncio.gather(*takers)) == list(range(20))
            assert db.list(run) == [] and waiting(db) == 0

    run_in(factory, main())


def test_async_functions_attempts_and_decorators_wait(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            typed: AsyncDatabase = db

            async def slowly(txn: AsyncTransaction) -> Any:
                await asyncio.sleep(0)
                return txn.get("a") or txn.wait()

            @typed.transactional
            def decorated(txn: AsyncTransaction) -> Any:
                return txn.get("b") or txn.wait()

            async def attempting() -> Any:
                async for attempt in typed.attempts(run):
                    async with attempt as txn:
                        found = txn.get("c")
                        if found is None:
                            txn.wait()
                return found

            tasks = [
                asyncio.create_task(waits)
                for waits in (db.transaction(run, slowly), decorated(run), attempting())
            ]
            await until(lambda: waiting(db) == 3)
            await db.kv.put_many(run, {"a": 1, "b": 2, "c": 3})
            assert await asyncio.gather(*tasks) == [1, 2, 3]
            with pytest.raises(TransactionTimeout):
                await db.transaction(run, take, timeout=0.05)
            async with db.begin(run) as txn:
                txn.get("a")
                with pytest.raises(TransactionStateError, match="begin"):
                    txn.wait()

    run_in(factory, main())


def test_waits_of_the_primitives(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            made = await db.runs.create_run("agent")
            tasks = [
                asyncio.create_task(db.kv.wait(run, "k")),
                asyncio.create_task(db.cells.wait(run, "c", until=lambda state: state.value == "done")),
                asyncio.create_task(db.runs.wait(made.run_id, status="completed")),
            ]
            await until(lambda: waiting(db) == 3)
            await db.kv.put(run, "k", 5)
            await db.cells.set(run, "c", "busy")
            await db.cells.set(run, "c", "done")
            await db.runs.complete_run(made.run_id)
            found, state, ended = await asyncio.gather(*tasks)
            assert (found.value, state.value, ended.status) == (5, "done", "completed")
            with pytest.raises(TransactionTimeout):
                await db.kv.wait(run, "k", after_version=found.version, timeout=0.05)

    run_in(factory, main())


def test_watching(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            begun = await db.put(run, "a/0", 0)
            seen: list[Any] = []

            async def follow() -> int:
                async with db.watch(run, "a/", since=begun - 1) as watch:
                    async for change in watch:
                        seen.append((change.key, change.value, change.kind))
                        if change.value == "end":
                            return int(watch.version)
                raise AssertionError

            task = asyncio.create_task(follow())
            await until(lambda: len(seen) == 1)
            for number in range(1, 50):
                await db.put(run, f"a/{number}", number)
                await db.put(run, f"b/{number}", number)
            await db.delete(run, "a/0")
            last = await db.put(run, "a/50", "end")
            assert await task == last
            wanted = [(f"a/{number}", number, "put") for number in range(50)]
            assert seen == [*wanted, ("a/0", None, "delete"), ("a/50", "end", "put")]
            watch = db.watch(run, timeout=0.05)
            assert [change async for change in watch] == []
            await db.kv.put_many(run, {"x": 1, "y": 2})
            commits = [[change.key for change in commit] async for commit in watch.commits()]
            assert commits == [["x", "y"]]
            assert watch.ready() == []
            watch.close()
            assert [change async for change in watch] == []

    run_in(factory, main())


def test_a_watch_belongs_to_one_task(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            watch = db.watch(run)
            first = asyncio.create_task(anext(watch))
            await until(lambda: waiting(db) == 1)
            with pytest.raises(TransactionStateError, match="task"):
                await anext(watch)
            await db.put(run, "k", 1)
            assert (await first).key == "k"

    run_in(factory, main())


def test_following_events(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            await db.events.append(run, "first")
            seen: list[str] = []

            async def follow() -> None:
                async for event in db.events.follow(run):
                    seen.append(event.event_type)
                    if event.event_type == "last":
                        return

            task = asyncio.create_task(follow())
            await until(lambda: seen == ["first"])
            await db.events.append_many(run, [("second", {}), ("last", {})])
            await task
            assert seen == ["first", "second", "last"]
            quiet = [event.sequence async for event in db.events.follow(run, after=1, timeout=0.05)]
            assert quiet == [2]

    run_in(factory, main())


def test_cancelled_waits_leave_nothing(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            task = asyncio.create_task(db.transaction(run, take))
            await until(lambda: waiting(db) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert waiting(db) == 0 and not db.handle.waits._by_key
            assert await db.put(run, "inbox/1", "m") and await db.transaction(run, take) == "m"

    run_in(factory, main())


@pytest.mark.by_default("shared")
def test_a_thousand_tasks_wait_for_keys_of_their_own(
    engine: Engine, opened: Any, run: RunId, factory: LoopFactory
) -> None:
    async def main() -> None:
        async with opened() as db:
            tasks = [asyncio.create_task(db.kv.wait(run, f"k{number}")) for number in range(1000)]
            await until(lambda: waiting(db) == 1000)
            threads = threading.active_count()
            await db.put(run, "k7", 7)
            assert (await tasks[7]).value == 7
            assert sum(task.done() for task in tasks) == 1
            assert threading.active_count() <= threads + (1 if engine.local else THREADS_OF_A_LOOP)
            await db.kv.put_many(run, {f"k{number}": number for number in range(1000)})
            found = await asyncio.gather(*tasks)
            assert [each.value for each in found] == list(range(1000))

    run_in(factory, main())


def test_threads_and_tasks_of_one_process_wait_side_by_side(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    """Another process, and another handle of this one, write; a plain thread waits beside."""

    async def main() -> None:
        with open_database(database_path) as plain:
            async with open_async(database_path) as db:
                task = asyncio.create_task(db.kv.wait(run, "k"))
                thread = asyncio.create_task(asyncio.to_thread(plain.kv.wait, run, "k"))
                await until(lambda: waiting(db) == 1 and plain.handle.waits._waiters)
                await asyncio.to_thread(plain.put, run, "k", 1)
                assert (await task).value == (await thread).value == 1

    run_in(factory, main())


def test_the_coordinator_dies_while_tasks_wait(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path, timeout=60.0) as db:
            begun = await db.put(run, "w/0", 0)
            seen: list[Any] = []

            async def follow() -> None:
                async for change in db.watch(run, "w/", since=begun):
                    seen.append(change.value)
                    if change.value == 9:
                        return

            watching = asyncio.create_task(follow())
            taker = asyncio.create_task(db.transaction(run, take))
            await until(lambda: waiting(db) == 2)
            for number in range(1, 10):
                if number % 4 == 0:
                    await asyncio.to_thread(kill_coordinator, database_path)
                await db.put(run, f"w/{number}", number)
            await db.put(run, "inbox/1", "m")
            assert await taker == "m"
            await watching
            assert seen == list(range(1, 10))

    run_in(factory, main())


def test_a_fork_while_tasks_wait(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def child_main(db: AsyncDatabase) -> None:
        task = asyncio.create_task(db.kv.wait(run, "child"))
        await until(lambda: waiting(db) == 1)
        await db.put(run, "child", 1)
        await task

    def child(db: AsyncDatabase, codes: list[int]) -> None:
        try:
            run_in(factory, child_main(db))
            codes.append(0)
        except BaseException:
            codes.append(1)

    async def main() -> None:
        async with open_async(database_path) as db:
            task = asyncio.create_task(db.kv.wait(run, "parent"))
            await until(lambda: waiting(db) == 1)
            pid = os.fork()
            if pid == 0:
                codes: list[int] = []
                thread = threading.Thread(target=child, args=(db, codes))
                thread.start()
                thread.join()
                os._exit(codes[0])
            ended: list[int] = []
            await until(lambda: ended or _reaped(pid, ended))
            assert ended == [0]
            await db.put(run, "parent", 1)
            assert (await task).value == 1

    run_in(factory, main())


def test_closing_while_a_task_waits(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            task = asyncio.create_task(db.kv.wait(run, "k"))
            await until(lambda: waiting(db) == 1)
        with pytest.raises(occamdb.DatabaseClosedError):
            await task

    run_in(factory, main())
