"""Turns of asynchronous transactions."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

import occamdb.aio
from occamdb import RetryPolicy, RunId
from occamdb.aio import AsyncDatabase, AsyncTransaction


def test_an_async_transaction_gets_a_turn(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        run = RunId.new()
        attempts = 0
        async with occamdb.aio.open(tmp_path / "db", idle_timeout=0.2) as db:

            async def read_and_write(txn: occamdb.aio.AsyncTransaction) -> None:
                nonlocal attempts
                attempts += 1
                value = txn.get("key")
                if attempts <= 3:
                    await db.put(run, "key", attempts)
                txn.put("key", value)

            await db.transaction(run, read_and_write)
            figures = await db.stats()
        return attempts, figures["turns"]["granted"]

    assert asyncio.run(main()) == (4, 1)


PATIENT = RetryPolicy(max_attempts=10_000, max_backoff=0.002)
TASKS = 30


def opened(kind: str, directory: Path) -> AsyncDatabase:
    if kind == "memory":
        return occamdb.aio.open_in_memory()  # type: ignore[return-value]
    links = int(kind.partition(" ")[0])
    return occamdb.aio.open(directory / "db", idle_timeout=0.2, async_links=links)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["memory", "1 link", "4 links", "32 links"])
def test_tasks_of_one_loop_do_not_keep_one_another_from_using_their_turns(kind: str, tmp_path: Path) -> None:
    """The commits that wait for a turn leave a way for the one that has it. Otherwise nearly all turns expire."""

    async def main() -> dict[str, int]:
        run = RunId.new()
        async with opened(kind, tmp_path) as db:

            async def count(txn: AsyncTransaction) -> None:
                seen = txn.get("n", 0)
                await asyncio.sleep(0)  # let the others begin too
                txn.put("n", seen + 1)

            await asyncio.gather(*[db.transaction(run, count, retry=PATIENT) for _ in range(TASKS)])
            assert db.get(run, "n") == TASKS
            figures: dict[str, int] = (await db.stats())["turns"]
        return figures

    turns = asyncio.run(main())
    assert turns["granted"] >= 1
    assert turns["expired"] <= 3 + turns["granted"] // 2


@pytest.mark.parametrize("kind", ["memory", "1 link"])
def test_a_turn_that_is_not_used_ends_and_others_go_on(kind: str, tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        run = RunId.new()
        attempts = 0
        async with opened(kind, tmp_path) as db:

            async def give_up_with_a_turn(txn: AsyncTransaction) -> None:
                nonlocal attempts
                attempts += 1
                if attempts == 4:
                    raise ZeroDivisionError
                seen = txn.get("n", 0)
                await db.put(run, "n", attempts)
                txn.put("n", seen)

            with contextlib.suppress(ZeroDivisionError):
                await db.transaction(run, give_up_with_a_turn)
            await db.put(run, "n", 7)
            assert db.get(run, "n") == 7
            figures = await db.stats()
        return attempts, figures["turns"]["granted"]

    assert asyncio.run(main()) == (4, 1)


def test_a_task_that_is_cancelled_while_its_commit_waits_in_memory() -> None:
    """Its commit goes on to its end, and its outcome can be asked for."""

    async def main() -> None:
        run = RunId.new()
        async with occamdb.aio.open_in_memory() as db:
            handle: Any = db.handle
            handle.inner._core.set_turn_times(60, -1)
            attempts = 0
            granted, enough = asyncio.Event(), asyncio.Event()

            async def keep_a_turn(txn: AsyncTransaction) -> None:
                nonlocal attempts
                attempts += 1
                seen = txn.get("n", 0)
                if attempts == 4:
                    granted.set()
                    await enough.wait()
                else:
                    await db.put(run, "n", attempts)
                txn.put("n", seen)

            keeper = asyncio.create_task(db.transaction(run, keep_a_turn))
            await granted.wait()
            waiting = await db.begin(run)
            waiting.put("n", 9)
            commit = asyncio.create_task(waiting.commit())
            while (await db.stats())["turns"]["waited"] == 0:
                await asyncio.sleep(0)
            commit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await commit
            outcome = asyncio.create_task(waiting.outcome())
            await asyncio.sleep(0)
            assert not outcome.done()
            enough.set()
            await keeper
            # It was judged behind the transaction with the turn, and lost.
            assert await outcome is None
            assert db.get(run, "n") == 3

    asyncio.run(main())
