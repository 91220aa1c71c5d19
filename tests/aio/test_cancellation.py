"""A task is cancelled at each stage of a commit: there is one outcome, and `outcome` tells it."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from occamdb import RunId, TransactionStateError, TransactionStatus
from occamdb.aio import AsyncDatabase, AsyncTransaction
from tests.support.aio import LoopFactory, links_of, open_async, run_in, until
from tests.support.processes import coordinator_pid, set_coordinator_failpoint, stop_process


@contextmanager
def stopped(path: Path) -> Iterator[None]:
    """The coordinator stands still inside the block."""
    pid = coordinator_pid(path)
    stop_process(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def begun(db: AsyncDatabase, run: RunId, key: str, value: object = 1) -> AsyncTransaction:
    txn = await db.begin(run)
    txn.put(key, value)
    return txn


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_while_it_waits_for_a_link(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path, async_links=1) as db:
            await db.put(run, "warm", 1)
            first, second = await begun(db, run, "first"), await begun(db, run, "second")
            with stopped(database_path):
                sent = asyncio.create_task(first.commit())
                waiting = asyncio.create_task(second.commit())
                await until(lambda: len(links_of(db)._waiting) == 1)
                await cancelled(waiting)
                assert second.status is TransactionStatus.ABORTED
                assert await second.outcome() is None
            receipt = await sent
            assert await first.outcome() == receipt
            assert db.get(run, "first") == 1 and db.get(run, "second") is None
            assert not links_of(db).in_flight

    run_in(factory, main())


@pytest.mark.parametrize("size", [1, 300_000], ids=["whole", "streamed"])
def test_while_it_waits_for_its_answer(
    size: int, database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    value = "v" * size

    async def main() -> None:
        async with open_async(database_path) as db:
            await db.put(run, "warm", 1)
            txn = await begun(db, run, "k", value)
            with stopped(database_path):
                task = asyncio.create_task(txn.commit())
                await until(lambda: links_of(db).in_flight == 1)
                await cancelled(task)
                assert txn.status.value == "validating"
                asked = asyncio.create_task(txn.outcome())
                await asyncio.sleep(0)
                assert not asked.done()
            receipt = await asked
            assert receipt is not None
            found = db.get_versioned(run, "k")
            assert found is not None and (found.value, found.version) == (value, receipt.version)
            assert txn.status is TransactionStatus.COMMITTED
            # The link carries the next commit.
            assert await db.put(run, "next", 1) > receipt.version

    run_in(factory, main())


def test_a_refused_commit_that_nobody_waited_for(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    async def main() -> None:
        async with open_async(database_path, async_links=1) as db:
            await db.put(run, "k", 0)
            txn = await db.begin(run)
            txn.put("k", txn.get("k") + 1)
            with stopped(database_path):
                winner = asyncio.create_task(db.put(run, "k", 10))
                await until(lambda: links_of(db).in_flight == 1)
                task = asyncio.create_task(txn.commit())
                await until(lambda: links_of(db).in_flight == 2)
            await winner
            await until(lambda: not links_of(db)._waiting)
            task.cancel()
            with pytest.raises((asyncio.CancelledError, Exception)):
                await task
            assert await txn.outcome() is None
            assert db.get(run, "k") == 10

    run_in(factory, main())


def test_while_the_coordinator_is_dead(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path) as db:
            await db.put(run, "warm", 1)
            txn = await begun(db, run, "k")
            set_coordinator_failpoint(database_path, "commit.before_reply", "kill")
            task = asyncio.create_task(txn.commit())
            await until(lambda: len(links_of(db)._settling) == 1)
            await cancelled(task)
            receipt = await txn.outcome()
            assert receipt is not None
            found = db.get_versioned(run, "k")
            assert found is not None and found.version == receipt.version

    run_in(factory, main())


@pytest.mark.by_default("shared")
def test_in_the_block_and_before_any_commit(opened: Any, run: RunId, factory: LoopFactory) -> None:
    seen: list[AsyncTransaction] = []

    async def block(db: AsyncDatabase) -> None:
        async with db.begin(run) as txn:
            txn.put("k", 1)
            seen.append(txn)
            await asyncio.Event().wait()

    async def main() -> None:
        async with opened() as db:
            task = asyncio.create_task(block(db))
            await until(lambda: seen)
            with pytest.raises(TransactionStateError, match="no commit was begun"):
                await seen[0].outcome()
            await cancelled(task)
            assert seen[0].status is TransactionStatus.ABORTED
            assert await seen[0].outcome() is None
            assert db.get(run, "k") is None

    run_in(factory, main())


@pytest.mark.by_default("shared")
def test_between_the_answer_and_the_task(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            await db.put(run, "warm", 1)
            txn = await begun(db, run, "k")
            task = asyncio.create_task(txn.commit())

            def cancel_when_answered() -> None:
                if txn.status is TransactionStatus.COMMITTED:
                    task.cancel()
                else:
                    asyncio.get_running_loop().call_soon(cancel_when_answered)

            asyncio.get_running_loop().call_soon(cancel_when_answered)
            with pytest.raises(asyncio.CancelledError):
                await task
            receipt = await txn.outcome()
            assert receipt is not None and db.get(run, "k") == 1

    run_in(factory, main())


def test_a_time_limit_around_a_transaction(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    """`asyncio.timeout` cancels: what was sent ends all the same."""
    seen: list[AsyncTransaction] = []

    def work(txn: AsyncTransaction) -> None:
        seen.append(txn)
        txn.put("k", 1)

    async def main() -> None:
        async with open_async(database_path) as db:
            await db.put(run, "warm", 1)
            with stopped(database_path):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await db.transaction(run, work)
            assert len(seen) == 1
            assert await seen[0].outcome() is not None
            assert db.get(run, "k") == 1

    run_in(factory, main())


def test_while_the_database_is_being_opened(database_path: Path, factory: LoopFactory) -> None:
    """The database that nobody wants any more is closed again: the guard around tests finds what is left."""

    async def main() -> None:
        async def opening() -> AsyncDatabase:
            return await open_async(database_path)

        task = asyncio.create_task(opening())
        await asyncio.sleep(0)
        await cancelled(task)
        # It is opened all the same by then, and a second handle finds its coordinator.
        async with open_async(database_path) as db:
            assert await db.put(RunId.new(), "k", 1)

    run_in(factory, main())
