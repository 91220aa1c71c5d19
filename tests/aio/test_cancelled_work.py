"""Cancelling what works together: no task, no lease and no step is left in the hands of a task that is gone."""

import asyncio
from typing import Any

from occamdb import RunId, TypeTag
from occamdb.primitives import layout
from tests.support.aio import LoopFactory, run_in, until

STEPS = 12  # of the event loop; a claim takes fewer


async def cancel_after(work: Any, steps: int, *, again: int = -1) -> bool:
    """Start work, and cancel it some steps of the loop later, and once more; whether it was cancelled."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    if steps % 3 == 0:
        await asyncio.sleep(0.0005)
    task.cancel()
    if again >= 0:
        for _ in range(again):
            await asyncio.sleep(0)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def test_a_claim_that_is_cancelled_is_given_back(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            for number in range(STEPS * 4):
                task = await db.tasks.put(run, "q", number)
                claim = db.tasks.claim(run, "q", lease=600, timeout=number % 2)
                cancelled = await cancel_after(claim, number % STEPS, again=number // STEPS - 2)
                if cancelled:
                    # Long before its lease would have ended, and it was no attempt.
                    mine = await db.tasks.claim(run, "q", timeout=60)
                    assert mine is not None and mine.id == task.id and mine.attempts == 1
                    await db.tasks.complete(run, mine)

    run_in(factory, main())


def test_a_claim_of_another_task_of_the_loop_is_left_alone(
    opened: Any, run: RunId, factory: LoopFactory
) -> None:
    """All are after the same task, through one database; those that lost are cancelled."""

    async def main() -> None:
        async with opened() as db:
            for number in range(30):
                await db.tasks.put(run, "q", number)
                claims = [
                    asyncio.create_task(db.tasks.claim(run, "q", lease=600, timeout=60)) for _ in range(4)
                ]
                done, left = await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
                for other in left:
                    other.cancel()
                await asyncio.gather(*left, return_exceptions=True)
                won = [claim.result() for claim in (*done, *left) if not claim.cancelled()]
                assert len(won) == 1
                await db.tasks.complete(run, won[0])

    run_in(factory, main())


def test_a_loop_that_is_cancelled_keeps_no_task(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            await db.tasks.put_many(run, "q", range(60))

            async def work() -> None:
                async with db.tasks.worker(run, "q", lease=600, timeout=0) as tasks:
                    async for _ in tasks:
                        await asyncio.sleep(0)

            for number in range(40):
                await cancel_after(work(), number)
                await until(lambda: db.tasks.stats(run, "q").claimed == 0)
            assert db.tasks.stats(run, "q").dead == 0

    run_in(factory, main())


def test_cancelled_twice_a_step_and_a_wait_leave_nothing(
    opened: Any, run: RunId, factory: LoopFactory
) -> None:
    async def main() -> None:
        async with opened() as db:
            steps = db.space(run, TypeTag.STEP, raw=True)

            async def hang() -> None:
                await asyncio.sleep(600)

            async def lead() -> None:
                async with db.leases.hold(run, "leader"):
                    pass

            async with db.leases.hold(run, "leader"):
                for number in range(8):
                    name = f"step {number}"
                    step = asyncio.create_task(db.steps.run(run, name, hang))
                    await until(lambda: steps.get(layout.step_claim(name)) is not None)  # noqa: B023
                    wait = asyncio.create_task(lead())
                    await until(lambda: db.leases.waiting(run, "leader") == 1)
                    for task in (step, wait):
                        await cancel_after(task, 0, again=number % 4)
                    await until(lambda: steps.get(layout.step_claim(name)) is None, "the step let go")  # noqa: B023
                    await until(lambda: db.leases.waiting(run, "leader") == 0, "the line left")

    run_in(factory, main())
