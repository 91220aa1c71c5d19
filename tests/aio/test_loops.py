"""Event loops that end, are closed with work in flight, come one after the other, run in threads, or are forked."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from occamdb import CommitOutcomeUnknown, DatabaseClosedError, ForkedHandleError, RunId, TransactionStatus
from occamdb.aio import AsyncDatabase, AsyncTransaction
from occamdb.engine.client import opening
from occamdb.engine.client.lost_commit import LostCommit
from tests.aio.test_cancellation import stopped
from tests.support.aio import LoopFactory, links_of, open_async, run_in, until
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_pid,
    kill_coordinator,
    open_database,
    segments_of,
    stop_process,
    wait_until,
)


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def channels(path: Path) -> list[str]:
    return [name for name in segments_of(path) if name.rpartition("-")[2].startswith("c")]


def test_nothing_is_left_of_a_database_that_was_closed(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    async def main() -> None:
        async with open_async(database_path) as db:
            await asyncio.gather(*[db.put(run, f"k{i}", i) for i in range(100)])
            assert links_of(db).link_count > 1

    with open_database(database_path):
        run_in(factory, main())
        before, kept = descriptors(), channels(database_path)
        run_in(factory, main())
        # A link that was still being attached goes when its thread has it.
        wait_until(lambda: descriptors() <= before, what="the end of the descriptors")
        wait_until(lambda: len(channels(database_path)) <= len(kept), what="the end of the channels")


def test_a_loop_that_ends_gives_its_links_back(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    """One database outlives several loops, and none of them leaves a descriptor or a channel."""
    opened: list[AsyncDatabase] = []

    async def main() -> None:
        if not opened:
            opened.append(await open_async(database_path))
        await asyncio.gather(*[opened[0].increment(run, "n") for _ in range(50)])

    run_in(factory, main())
    before = descriptors()
    wait_until(lambda: len(channels(database_path)) == 1, what="one channel, of the pins")
    run_in(factory, main())
    wait_until(lambda: descriptors() <= before, what="the end of the descriptors")
    wait_until(lambda: len(channels(database_path)) == 1, what="one channel, of the pins")
    assert opened[0].get(run, "n") == 100

    async def end() -> None:
        await opened[0].close()

    run_in(factory, end())


def test_a_loop_that_ends_waits_for_commits_whose_tasks_it_cancelled(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    seen: list[AsyncTransaction] = []
    opened: list[AsyncDatabase] = []

    async def main() -> None:
        db = await open_async(database_path)
        opened.append(db)
        await db.put(run, "warm", 1)
        pid = coordinator_pid(database_path)
        stop_process(pid)
        txn = await db.begin(run)
        txn.put("k", 1)
        seen.append(txn)
        task = asyncio.create_task(txn.commit())
        await until(lambda: links_of(db).in_flight == 1)
        threading.Timer(0.1, os.kill, (pid, signal.SIGCONT)).start()
        assert not task.done()

    run_in(factory, main())
    assert seen[0].status is TransactionStatus.COMMITTED
    assert opened[0].get(run, "k") == 1
    opened[0].handle.close()


def test_a_loop_closed_with_commits_in_flight(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    """Nobody shuts the loop down, and still each commit has one outcome, which another loop can ask for."""
    with open_database(database_path) as keeper:
        loop = factory()
        db = loop.run_until_complete(open_async(database_path)._opened())
        loop.run_until_complete(db.put(run, "warm", 1))
        before = descriptors()
        txns = [loop.run_until_complete(_begun(db, run, f"k{i}")) for i in range(3)]
        with stopped(database_path):
            tasks = [loop.create_task(txn.commit()) for txn in txns]
            loop.run_until_complete(_sent(db, 3))
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

        async def ask(asked: list[AsyncTransaction]) -> list[object]:
            return [await txn.outcome() for txn in asked]

        outcomes = run_in(factory, ask(txns))
        for number, outcome in enumerate(outcomes):
            assert (outcome is not None) == (keeper.get(run, f"k{number}") == 1)
        assert outcomes[0] is not None  # it was in its ring
        run_in(factory, _closed(db))
        del tasks, txns, loop
        wait_until(lambda: descriptors() <= before, what="the end of the descriptors")
        wait_until(lambda: len(channels(database_path)) == 1, what="the keeper's channel alone")


def test_a_loop_closed_while_a_thread_sends_a_commit_again(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next coordinator has not got the commit yet, and `outcome` does not say that it never will."""
    begun, go_on = threading.Event(), threading.Event()
    settle = LostCommit.settle

    def gated(lost: LostCommit, *args: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return settle(lost, *args)

    monkeypatch.setattr(LostCommit, "settle", gated)
    loop = factory()
    db = loop.run_until_complete(open_async(database_path)._opened())
    loop.run_until_complete(db.put(run, "warm", 1))
    txn = loop.run_until_complete(_begun(db, run, "k"))
    with stopped(database_path):
        task = loop.create_task(txn.commit())
        loop.run_until_complete(_sent(db, 1))
        kill_coordinator(database_path)
        loop.run_until_complete(until(begun.is_set))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()

    async def ask() -> object:
        asked = asyncio.create_task(txn.outcome())
        with open_database(database_path):  # another process starts the next coordinator
            await asyncio.wait([asked], timeout=0.2)
        go_on.set()
        return await asked

    try:
        outcome = run_in(factory, ask())
    finally:
        go_on.set()
    assert outcome is not None and db.get(run, "k") == 1
    run_in(factory, _closed(db))


async def _begun(db: AsyncDatabase, run: RunId, key: str) -> AsyncTransaction:
    txn = await db.begin(run)
    txn.put(key, 1)
    return txn


async def _sent(db: AsyncDatabase, count: int) -> None:
    await until(lambda: links_of(db).in_flight == count)


async def _closed(db: AsyncDatabase) -> None:
    await db.close()


def test_a_closed_database(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path, async_links=1) as db:
            await db.put(run, "warm", 1)
            with stopped(database_path):
                sent, waiting = [asyncio.create_task(db.put(run, key, 1)) for key in ("sent", "waiting")]
                await until(lambda: links_of(db).in_flight == 2)
                closing = asyncio.create_task(db.close())
                with pytest.raises(DatabaseClosedError):
                    await waiting
                assert not closing.done()
            assert await sent > 0
            await closing
            await db.close()
            with pytest.raises(DatabaseClosedError):
                await db.put(run, "k", 1)
            with pytest.raises(DatabaseClosedError):
                db.get(run, "k")
            assert "closed" in repr(db)

    run_in(factory, main())


def test_closing_is_cancelled_and_tried_again(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        db = await open_async(database_path)
        await db.put(run, "warm", 1)
        before = links_of(db)
        with stopped(database_path):
            sent = asyncio.create_task(db.put(run, "k", 1))
            await until(lambda: before.in_flight == 1)
            closing = asyncio.create_task(db.close())
            beside = asyncio.create_task(db.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        assert await sent > 0
        await beside
        assert before.gone and not before.link_count
        await db.close()

    run_in(factory, main())


def test_loops_in_several_threads(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    opened: list[AsyncDatabase] = []
    failed: list[BaseException] = []

    async def work() -> None:
        await asyncio.gather(*[opened[0].increment(run, "n") for _ in range(100)])

    def thread() -> None:
        try:
            run_in(factory, work())
        except BaseException as error:
            failed.append(error)

    async def main() -> None:
        async with open_async(database_path) as db:
            opened.append(db)
            threads = [threading.Thread(target=thread) for _ in range(3)]
            for each in threads:
                each.start()
            await work()
            await until(lambda: not any(each.is_alive() for each in threads))
            assert db.get(run, "n") == 400 and not failed

    run_in(factory, main())


def test_a_fork_inside_a_program_with_an_event_loop(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    async def child_main(db: AsyncDatabase) -> None:
        assert await db.put(run, "child", 1) > 0
        assert db.get(run, "child") == 1

    def child(db: AsyncDatabase, txn: AsyncTransaction) -> int:
        try:
            run_in(factory, child_main(db))
        except BaseException:
            return 1
        try:
            asyncio.Runner(loop_factory=factory).run(txn.commit())
        except ForkedHandleError:
            return 0
        return 2

    async def main() -> None:
        async with open_async(database_path) as db:
            await asyncio.gather(*[db.put(run, f"k{i}", i) for i in range(40)])
            txn = await db.begin(run)
            txn.put("parent", 1)
            pid = os.fork()
            if pid == 0:
                # Out of the parent's loop: a thread has none.
                codes: list[int] = []
                thread = threading.Thread(target=lambda: codes.append(child(db, txn)))
                thread.start()
                thread.join()
                os._exit(codes[0])
            ended: list[int] = []
            await until(lambda: ended or _reaped(pid, ended))
            assert ended == [0]
            await txn.commit()
            # The parent's links still work, one and all.
            await asyncio.gather(*[db.increment(run, "n") for _ in range(100)])
            assert (db.get(run, "child"), db.get(run, "parent"), db.get(run, "n")) == (1, 1, 100)

    run_in(factory, main())


def _reaped(pid: int, ended: list[int]) -> bool:
    found, status = os.waitpid(pid, os.WNOHANG)
    if found:
        ended.append(os.waitstatus_to_exitcode(status))
    return bool(found)


def pickled(peer: Peer, db: AsyncDatabase, run: RunId) -> int:
    """In another process, which it was passed to."""
    return asyncio.run(_increment(db, run))


async def _increment(db: AsyncDatabase, run: RunId) -> int:
    async with db:
        return await db.increment(run, "n")


def test_it_pickles_as_a_way_to_attach(
    database_path: Path, run: RunId, factory: LoopFactory, start: Callable[..., Worker]
) -> None:
    async def main() -> None:
        async with open_async(database_path) as db:
            worker = start(pickled, db, run)
            assert await asyncio.to_thread(worker.result) == 1
            assert db.get(run, "n") == 1

    run_in(factory, main())


def test_closed_by_a_plain_call_with_a_commit_in_flight(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    """`handle.close()`, as a finalizer or a signal handler may call it: the task is told that nobody knows."""

    async def main() -> None:
        db = await open_async(database_path)
        await db.put(run, "warm", 1)
        with stopped(database_path):
            task = asyncio.create_task(db.put(run, "k", 1))
            await until(lambda: links_of(db).in_flight == 1)
            db.handle.close()
            with pytest.raises((CommitOutcomeUnknown, DatabaseClosedError)):
                await task

    run_in(factory, main())


def test_the_loop_ends_while_the_database_is_being_opened(
    database_path: Path, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread closes it."""
    go_on, closed = threading.Event(), threading.Event()
    begun = threading.Event()
    opened = opening.open_database

    def slow(*args: Any, **keywords: Any) -> Any:
        db = opened(*args, **keywords)
        close = db.handle.close

        def noted() -> None:
            close()
            closed.set()

        monkeypatch.setattr(db.handle, "close", noted)
        begun.set()
        assert go_on.wait(10)
        return db

    monkeypatch.setattr(opening, "open_database", slow)

    async def wanted() -> AsyncDatabase:
        return await open_async(database_path)

    async def main() -> None:
        task = asyncio.create_task(wanted())
        await until(begun.is_set)
        assert not task.done()

    run_in(factory, main())
    go_on.set()
    assert closed.wait(10)
