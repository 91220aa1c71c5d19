"""Commits of an event loop and a coordinator that dies, stops, stands still, or has no room."""

import asyncio
import os
import resource
import signal
from pathlib import Path

import pytest

import occamdb
from occamdb import CommitOutcomeUnknown, CoordinatorUnavailable, RunId, TransactionTimeout
from tests.aio.test_cancellation import stopped
from tests.support.aio import LoopFactory, links_of, open_async, run_in, until
from tests.support.processes import (
    coordinator_pid,
    kill_coordinator,
    open_database,
    set_coordinator_failpoint,
    stop_coordinator,
    wait_until,
)

TASKS = 100


@pytest.mark.parametrize(
    "place", ["commit.before_reply", "commit.before_publish", "wal.after_write", "wal.before_write"]
)
def test_it_is_killed_with_many_commits_in_flight(
    place: str, database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    """Each increment happens once, and each task is told its own sum."""

    async def main() -> None:
        async with open_async(database_path) as db:
            await asyncio.gather(*[db.increment(run, "n") for _ in range(TASKS)])
            set_coordinator_failpoint(database_path, place, "kill@3")
            pid = coordinator_pid(database_path)
            sums = await asyncio.gather(*[db.increment(run, "n") for _ in range(TASKS)])
            await until(lambda: coordinator_pid(database_path) != pid)
            assert sorted(sums) == list(range(TASKS + 1, 2 * TASKS + 1))
            assert db.get(run, "n") == 2 * TASKS
            # The links carry on.
            assert await db.increment(run, "n") == 2 * TASKS + 1

    run_in(factory, main())


def test_it_is_killed_again_and_again(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path, timeout=60.0) as db:
            done = asyncio.Event()

            async def write(number: int) -> int:
                count = 0
                while not done.is_set():
                    await db.transaction(run, lambda txn: txn.put(f"k{number}", txn.get(f"k{number}", 0) + 1))
                    count += 1
                return count

            tasks = [asyncio.create_task(write(number)) for number in range(8)]
            for _ in range(3):
                before = db.get(run, "k0", 0)
                await until(lambda: db.get(run, "k0", 0) > before + 5, what="some commits")  # noqa: B023
                await asyncio.to_thread(kill_coordinator, database_path)
            before = db.get(run, "k0", 0)
            await until(lambda: db.get(run, "k0", 0) > before + 5, what="some commits")
            done.set()
            counts = await asyncio.gather(*tasks)
            assert counts == [db.get(run, f"k{number}") for number in range(8)]

    run_in(factory, main())


def test_a_clean_stop_with_commits_in_flight(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path) as db:

            async def increments() -> None:
                for _ in range(20):
                    await db.increment(run, "n")

            tasks = [asyncio.create_task(increments()) for _ in range(16)]
            await until(lambda: db.get(run, "n", 0) > 20)
            await asyncio.to_thread(stop_coordinator, database_path)
            await asyncio.gather(*tasks)
            assert db.get(run, "n") == 320

    run_in(factory, main())


def test_no_answer_in_time(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    """As in the plain API: sent is unknown, not sent is a timeout; the loop goes on meanwhile."""

    async def main() -> None:
        # Started before, by somebody who has the time.
        keeper = await open_async(database_path)
        async with keeper, open_async(database_path, timeout=0.5, async_links=2) as db:
            await asyncio.gather(db.put(run, "a", 1), db.put(run, "b", 1))
            await until(lambda: links_of(db).link_count == 2)
            with stopped(database_path):
                txn = await db.begin(run)
                txn.put("sent", 1)
                sent = asyncio.create_task(txn.commit())
                await until(lambda: links_of(db).in_flight == 1)
                streamed = asyncio.create_task(db.put(run, "streamed", "x" * 200_000))
                waiting = asyncio.create_task(db.put(run, "waiting", 1))
                with pytest.raises(CommitOutcomeUnknown) as unknown:
                    await sent
                assert unknown.value.txn_id == txn.txn_id
                with pytest.raises(TransactionTimeout):
                    await streamed
                with pytest.raises((TransactionTimeout, CoordinatorUnavailable)):
                    await waiting
                assert db.get(run, "a") == 1
            # Final, although nobody was told: the coordinator serves what lies complete in a ring.
            receipt = await txn.outcome()
            assert receipt is not None and txn.receipt == receipt
            found = db.get_versioned(run, "sent")
            assert found is not None and found.version == receipt.version
            assert db.get(run, "streamed") is None and db.get(run, "waiting") is None
            assert await db.put(run, "next", 1) > receipt.version

    run_in(factory, main())


def test_the_deadline_of_a_transaction(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with open_async(database_path, async_links=1) as db:
            await db.put(run, "k", 1)
            with stopped(database_path):
                first = asyncio.create_task(db.put(run, "k", 2))
                await until(lambda: links_of(db).in_flight == 1)
                with pytest.raises(TransactionTimeout):
                    await db.transaction(run, lambda txn: txn.put("late", 1), timeout=0.1)
                with pytest.raises(TransactionTimeout):
                    async with db.begin(run, timeout=0.1) as txn:
                        txn.put("late", 1)
            await first
            assert db.get(run, "late") is None

    run_in(factory, main())


def test_nobody_starts_a_coordinator(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        with open_database(database_path):
            async with open_async(database_path, start="never", timeout=0.3) as db:
                await db.put(run, "k", 1)
                pid = coordinator_pid(database_path)
                os.kill(pid, signal.SIGKILL)
                await until(lambda: not links_of(db).link_count, what="the end of the links")
                with pytest.raises(CoordinatorUnavailable, match="no coordinator"):
                    await db.put(run, "k", 2)
                assert db.get(run, "k") == 1  # reads need none
        # The next one removes what it left.
        with open_database(database_path) as after:
            assert after.get(run, "k") == 1

    run_in(factory, main())


def test_more_tasks_than_channels(database_path: Path, run: RunId, factory: LoopFactory) -> None:
    """The coordinator has three channels for us in all: the loop makes do with what it gets."""

    async def main() -> None:
        async with open_async(database_path, channel_count_max=3) as db:
            await asyncio.gather(*[db.increment(run, "n") for _ in range(50)])
            # The second may still be on its way when the first has carried all of them.
            await until(lambda: links_of(db).link_count == 2)
            assert db.get(run, "n") == 50

    run_in(factory, main())


@pytest.mark.parametrize("warm", [False, True], ids=["for the first link", "for a further one"])
def test_no_descriptors_left(warm: bool, database_path: Path, run: RunId, factory: LoopFactory) -> None:
    """Nothing is committed and the error says so; with links left, commits go on through those."""

    async def main() -> None:
        async with open_async(database_path) as db:
            db.get(run, "k")
            if warm:
                await db.put(run, "k", 0)
            txn = await db.begin(run)
            txn.put("k", 1)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.open(os.devnull, os.O_RDONLY)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                if warm:
                    await asyncio.gather(txn.commit(), *[db.increment(run, "n") for _ in range(20)])
                else:
                    with pytest.raises(CoordinatorUnavailable, match="descriptors"):
                        await txn.commit()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert (await txn.outcome() is not None) == warm
            assert await db.increment(run, "n") == (21 if warm else 1)

    run_in(factory, main())


def test_a_descriptor_that_is_no_eventfd_is_refused(database_path: Path) -> None:
    from occamdb.engine.client.link import Link
    from occamdb.engine.disk.directory import socket_path
    from occamdb.ipc.control import ControlClient

    with open_database(database_path) as db:
        descriptors = Path(f"/proc/{coordinator_pid(database_path)}/fd")
        before = len(list(descriptors.iterdir()))
        with open(os.devnull) as file:
            client = ControlClient.connect(socket_path(str(database_path)), 10.0)
            with pytest.raises(occamdb.InvalidArgumentError, match="not an eventfd"):
                Link(
                    client,
                    str(database_path),
                    session=0,
                    owner=1,
                    asked={},
                    durability="standard",
                    timeout=10.0,
                    event_fd=file.fileno(),
                )
        client = ControlClient.connect(socket_path(str(database_path)), 10.0)
        message = {"op": "attach", "session": 0, "owner": 1, "event": True, "asked": {}}
        reply = client.call(message | {"durability": "standard", "process": {}}, 10.0)
        assert not reply["ok"] and "no eventfd came" in reply["message"]
        client.close()
        assert db.put(RunId.new(), "k", 1)
        # The coordinator closes its side when it meets the end of ours.
        wait_until(lambda: len(list(descriptors.iterdir())) <= before, what="the end of both connections")
