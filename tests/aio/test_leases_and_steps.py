"""Leases and steps of an asynchronous database: the same as of the plain one, awaited."""

import asyncio
from typing import Any

import pytest

from occamdb import BoundReached, InvalidArgumentError, LeaseLost, RetryPolicy, RunId, TransactionTimeout
from occamdb.aio import AsyncDatabase
from occamdb.engine.model.errors import TransactionStateError
from tests.support.aio import LoopFactory, run_in, until


async def in_line(db: AsyncDatabase, run: RunId, count: int) -> None:
    """Wait until so many wait."""
    await until(lambda: db.leases.waiting(run, "leader") == count)


def test_tasks_are_served_in_order_of_arrival(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            served: list[int] = []

            async def hold(number: int) -> None:
                async with db.leases.hold(run, "leader", timeout=30) as lease:
                    served.append(number)
                    async with db.begin(run) as txn:
                        txn.leases.require(lease)
                        txn.put("by", number)

            async with db.leases.hold(run, "leader") as mine:
                tasks = []
                for number in range(5):
                    tasks.append(asyncio.create_task(hold(number)))
                    await in_line(db, run, number + 1)
                with pytest.raises(TransactionTimeout):
                    await asyncio.create_task(db.leases.acquire(run, "leader", timeout=0.05))
                with pytest.raises(TransactionStateError, match="itself"):
                    await db.leases.acquire(run, "leader")
                assert served == [] and db.leases.is_held(run, mine)
            await asyncio.gather(*tasks)
            assert served == [0, 1, 2, 3, 4] and db.leases.list(run) == []

    run_in(factory, main())


def test_a_cancelled_waiter_leaves_the_line(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            lease = await asyncio.create_task(db.leases.acquire(run, "leader"))
            waiting = asyncio.create_task(db.leases.acquire(run, "leader"))
            await until(lambda: db.leases.waiting(run, "leader") == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert db.leases.waiting(run, "leader") == 0
            await db.leases.extend(run, lease, 60)
            await db.leases.release(run, lease)
            with pytest.raises(LeaseLost):
                await db.leases.release(run, lease)

    run_in(factory, main())


def test_the_wrong_kind_of_block(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            with pytest.raises(InvalidArgumentError, match="with"), db.leases.hold(run, "leader"):
                pass
            assert db.leases.list(run) == []

    run_in(factory, main())


def test_steps_of_plain_and_async_functions(opened: Any, run: RunId, factory: LoopFactory) -> None:
    calls: list[str] = []

    async def fetch(url: str) -> str:
        calls.append(url)
        await asyncio.sleep(0)
        if len(calls) < 3:
            raise OSError("busy")
        return f"page of {url}"

    def pay(txn: Any, amount: int) -> int:
        txn.kv.increment("paid", amount)
        return amount

    async def main() -> None:
        async with opened() as db:
            pages = await asyncio.gather(
                *(db.steps.run(run, "fetch", fetch, "u", retry=RetryPolicy(max_attempts=5)) for _ in range(4))
            )
            assert pages == ["page of u"] * 4 and len(calls) == 3
            assert db.steps.get(run, "fetch").attempts == 3
            paid = await asyncio.gather(*(db.steps.run(run, "pay", pay, 5) for _ in range(4)))
            assert paid == [5] * 4 and db.kv.get(run, "paid") == 5
            assert await db.steps.run(run, "plain", len, "abc") == 3
            assert await db.steps.forget(run, "plain") is True
            assert [step.name for step in db.steps.list(run)] == ["fetch", "pay"]

    run_in(factory, main())


def test_budgets(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:

            async def spend() -> int:
                try:
                    await db.kv.increment(run, "spent", 3, at_most=20)
                except BoundReached:
                    return 0
                return 3

            assert sum(await asyncio.gather(*(spend() for _ in range(20)))) == db.kv.get(run, "spent") == 18

    run_in(factory, main())
