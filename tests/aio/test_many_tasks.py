"""Many tasks at once: what they share, what a shortage costs them, and what the loop is spared."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from occamdb import CommitOutcomeUnknown, OccamError, RunId, TransactionStatus
from occamdb.aio import AsyncDatabase, AsyncTransaction
from occamdb.engine.client.link import Link
from occamdb.engine.model.errors import TooManyChannelsError
from tests.aio.test_cancellation import stopped
from tests.support.aio import LoopFactory, links_of, open_async, run_in, until
from tests.support.processes import kill_coordinator


def inner_of(db: AsyncDatabase) -> Any:
    handle: Any = db.handle
    return handle.inner


def test_tasks_that_wait_for_the_store_share_one_thread(
    database_path: Path, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_async(database_path) as db:
            inner, calls, go_on = inner_of(db), [0], threading.Event()
            attachment = inner.attachment

            def counted() -> Any:
                calls[0] += 1
                assert go_on.wait(10)
                return attachment()

            monkeypatch.setattr(inner, "attachment", counted)
            monkeypatch.setattr(inner.pool, "primary", None)
            tasks = [asyncio.create_task(db.handle.ready()) for _ in range(50)]
            await until(lambda: calls[0])
            tasks[0].cancel()  # the others do not depend on it
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            go_on.set()
            await asyncio.gather(*tasks[1:])
            assert calls[0] == 1

    run_in(factory, main())


def test_tasks_that_bind_keys_first_share_one_thread(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_async(database_path) as db:
            inner, calls, go_on = inner_of(db), [0], threading.Event()
            keep = inner.keep_session

            def counted() -> None:
                calls[0] += 1
                assert go_on.wait(10)
                keep()

            monkeypatch.setattr(inner, "keep_session", counted)
            tasks = [asyncio.create_task(db.put(run, f"k{i}", i, ephemeral=True)) for i in range(50)]
            await until(lambda: calls[0])
            go_on.set()
            await asyncio.gather(*tasks)
            assert calls[0] == 1
            assert len(db.list(run)) == 50

    run_in(factory, main())


def test_cancelling_takes_as_long_as_there_are_tasks(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    """And not as long as the square of their number: all of them may be cancelled at once."""

    async def seconds(db: AsyncDatabase, count: int) -> float:
        with stopped(database_path):
            tasks = [asyncio.create_task(db.put(run, "k", i)) for i in range(count)]
            await until(lambda: links_of(db).in_flight == count)
            began = time.perf_counter()
            for task in reversed(tasks):
                task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            took = time.perf_counter() - began
        await asyncio.gather(*tasks, return_exceptions=True)
        return took

    async def main() -> None:
        async with open_async(database_path, async_links=1) as db:
            await db.put(run, "warm", 1)
            few = min([await seconds(db, 1000) for _ in range(3)])
            many = min([await seconds(db, 8000) for _ in range(2)])
            assert many < 30 * few

    run_in(factory, main())


def test_a_shortage_that_ends_is_forgotten(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No channels at one moment: the loop makes do with the links that it has, and later has more again."""

    async def main() -> None:
        async with open_async(database_path) as db:
            await db.put(run, "warm", 1)
            links, pool = links_of(db), inner_of(db).pool
            failed = [0]

            def full(*args: Any, **keywords: Any) -> Link:
                failed[0] += 1
                raise TooManyChannelsError("no room", limit=1)

            with monkeypatch.context() as patch, stopped(database_path):
                patch.setattr(pool, "attach", full)
                tasks = [asyncio.create_task(db.put(run, f"k{i}", i)) for i in range(20)]
                await until(lambda: failed[0])
                await until(lambda: not links._attaching)
                seen = failed[0]
                assert links.link_count == 1 and seen < 10
            await asyncio.gather(*tasks)
            links._room_until = 0.0  # a second later
            await asyncio.gather(*[db.put(run, f"k{i}", i) for i in range(100)])
            await until(lambda: not links._attaching)
            assert links.link_count > 1

    run_in(factory, main())


def test_no_thread_can_be_started(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with open_async(database_path) as db:
            await db.put(run, "warm", 1)
            links = links_of(db)
            for carrier in tuple(links._idle):
                links._idle.remove(carrier)
                links._drop(carrier)
            txn = await db.begin(run)
            txn.put("k", 1)
            with monkeypatch.context() as patch:
                patch.setattr(links._threads.executor, "submit", none)
                with pytest.raises(OccamError, match="thread"):
                    await txn.commit()
                assert not links.in_flight and not links._attaching
            assert txn.status is TransactionStatus.ABORTED and await txn.outcome() is None
            await db.put(run, "after", 1)
            assert db.get(run, "k") is None

    run_in(factory, main())


def test_no_thread_can_be_started_when_a_link_is_lost(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was sent: nobody can say here what became of it, and `outcome` asks."""

    def none(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with open_async(database_path, async_links=1) as db:
            await db.put(run, "warm", 1)
            links = links_of(db)
            txn = await db.begin(run)
            txn.put("k", 1)
            with monkeypatch.context() as patch:
                with stopped(database_path):
                    task = asyncio.create_task(txn.commit())
                    await until(lambda: links._busy)
                    patch.setattr(links._threads.executor, "submit", none)
                    kill_coordinator(database_path)
                    with pytest.raises(CommitOutcomeUnknown, match="thread"):
                        await task
            receipt = await txn.outcome()
            assert (receipt is not None) == (db.get(run, "k") == 1)

    run_in(factory, main())


def test_closing_while_the_coordinator_stands_still(
    database_path: Path, run: RunId, factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One link waits in vain for an answer to its goodbye, not one after the other."""
    waited: list[float] = []
    detach = Link.detach

    def timed(link: Link, *, over: bool = False) -> None:
        began = time.monotonic()
        detach(link, over=over)
        if time.monotonic() - began > 0.5:
            waited.append(began)

    monkeypatch.setattr(Link, "detach", timed)

    async def main() -> None:
        db = await open_async(database_path)
        await asyncio.gather(*[db.put(run, f"k{i}", i) for i in range(100)])
        await until(lambda: not links_of(db)._attaching)
        assert links_of(db).link_count > 3
        with stopped(database_path):
            await db.close()
        assert len(waited) <= 2  # the loop's, and the one of the pins

    run_in(factory, main())


def test_the_outcome_is_asked_for_in_another_loop_while_the_first_one_ends(
    database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    warm, may_send, sent, may_end = [threading.Event() for _ in range(4)]
    seen: list[AsyncTransaction] = []

    async def first(db: AsyncDatabase) -> None:
        await db.put(run, "warm", 1)
        warm.set()
        await until(may_send.is_set)
        txn = await db.begin(run)
        txn.put("k", 1)
        seen.append(txn)
        task = asyncio.create_task(txn.commit())
        await until(lambda: links_of(db).in_flight == 1)
        sent.set()
        await until(may_end.is_set)
        assert not task.done()

    async def main() -> None:
        async with open_async(database_path) as db:
            thread = threading.Thread(target=lambda: run_in(factory, first(db)))
            thread.start()
            await until(warm.is_set)
            with stopped(database_path):
                may_send.set()
                await until(sent.is_set)
                asking = asyncio.create_task(seen[0].outcome())
                await asyncio.sleep(0.01)
                may_end.set()
                # Its tasks are cancelled, and it waits for the commit.
                await until(lambda: asking.done() or not _running(db, thread))
                assert not asking.done()
            receipt = await asking
            assert receipt is not None and db.get(run, "k") == 1
            await until(lambda: not thread.is_alive())

    run_in(factory, main())


def _running(db: AsyncDatabase, thread: threading.Thread) -> bool:
    """Whether a loop besides the running one takes commits still."""
    handle: Any = db.handle
    here = asyncio.get_running_loop()
    return any(loop is not here and not links.closed for loop, links in list(handle._of_loops.items()))
