"""LangGraph checkpointers: ours beside LangGraph's AsyncSqliteSaver, in one process and in eight.

    python stress/comparisons/langgraph_checkpoints.py [COUNT]

A round is an `aput` of a checkpoint with a conversation of 20 messages and an `aget_tuple` of the latest one. Ratios
are of one run on one machine: above 1 means that ours is faster. Each of the eight processes works on a thread of its
own in one database. Then two processes continue one thread from the same checkpoint, and the program shows what becomes
of the first one's work.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PROCESSES = 8
ROUNDS = 3
KINDS = ("occamdb", "AsyncSqliteSaver")


@asynccontextmanager
async def made(kind: str, directory: Path) -> Any:
    """A checkpointer; imports its framework only now."""
    if kind == "occamdb":
        import occamdb.aio
        from occamdb.plugins.langgraph import OccamSaver

        async with occamdb.aio.open(directory / "db") as db:
            yield OccamSaver(db)
    else:
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with AsyncSqliteSaver.from_conn_string(str(directory / "checkpoints.sqlite")) as saver:
            yield saver


def thread(thread_id: str) -> Any:
    """The configuration of a thread."""
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def checkpoint(number: int) -> Any:
    """A checkpoint of a conversation."""
    from langgraph.checkpoint.base.id import uuid6

    messages = [{"role": "user", "content": f"message {each}, {'x' * 150}"} for each in range(20)]
    return {
        "v": 4,
        "id": str(uuid6(clock_seq=number)),
        "ts": datetime.now(UTC).isoformat(),
        "channel_values": {"messages": messages, "step": number},
        "channel_versions": {"messages": number + 1, "step": number + 1},
        "versions_seen": {"node": {"messages": number}},
        "updated_channels": ["messages", "step"],
    }


def metadata(number: int) -> Any:
    """The metadata of a step."""
    return {"source": "loop", "step": number, "parents": {}}


async def worked(saver: Any, thread_id: str, count: int) -> float:
    """Do so many rounds; seconds a round."""
    config, begin = thread(thread_id), time.perf_counter()
    for number in range(count):
        new = checkpoint(number)
        config = await saver.aput(config, new, metadata(number), new["channel_versions"])
        found = await saver.aget_tuple(thread(thread_id))
        assert found.checkpoint["id"] == new["id"]
    return (time.perf_counter() - begin) / count


def worker(kind: str, directory: Path, who: int, count: int, barrier: Any, results: Any) -> None:
    """One process: wait for the others, and work."""

    async def work() -> None:
        async with made(kind, directory) as saver:
            await worked(saver, f"warm {who}", 5)
            barrier.wait()
            results.put(await worked(saver, f"thread {who}", count))

    try:
        asyncio.run(work())
    except Exception as error:
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")


def measured(kind: str, processes: int, count: int) -> float | str:
    """Rounds a second of so many processes together; what one failed with, if one did."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        barrier, results = context.Barrier(processes), context.Queue()
        workers = [
            context.Process(target=worker, args=(kind, Path(name), who, count, barrier, results))
            for who in range(processes)
        ]
        for each in workers:
            each.start()
        found = [results.get() for _ in workers]
        for each in workers:
            each.join()
    failed = [each for each in found if isinstance(each, str)]
    return failed[0] if failed else sum(1 / each for each in found)


def compared(processes: int, count: int) -> None:
    """Print the rates of both, and their ratio, of rounds that are interleaved."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS):
        for kind in KINDS:
            rate = measured(kind, processes, count)
            if isinstance(rate, str):
                print(f"{processes} processes, {kind}: {rate}")
            else:
                rates[kind].append(rate)
    if all(rates.values()):
        ours, theirs = (max(rates[kind]) for kind in KINDS)
        print(
            f"{processes} {'process' if processes == 1 else 'processes'}: occamdb {ours:,.0f}, "
            f"AsyncSqliteSaver {theirs:,.0f} put + get_tuple a second, ratio {ours / theirs:.1f}"
        )


def continue_thread(kind: str, directory: Path, name: str, loaded: Any, results: Any) -> None:
    """One worker: load the thread, wait until the other one has loaded it too, and store a step."""

    async def work() -> str:
        async with made(kind, directory) as saver:
            here = await saver.aget_tuple(thread("shared"))
            loaded.wait()
            new = checkpoint(1)
            new["channel_values"]["step"] = name
            await saver.aput(here.config, new, metadata(1), new["channel_versions"])
            return "stored"

    try:
        results.put((name, asyncio.run(work())))
    except Exception as error:
        results.put((name, f"refused with {type(error).__name__}"))


def fork(kind: str) -> None:
    """Two processes continue one thread from the checkpoint that both have loaded."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)

        async def begin() -> None:
            async with made(kind, directory) as saver:
                new = checkpoint(0)
                await saver.aput(thread("shared"), new, metadata(0), new["channel_versions"])

        async def end() -> tuple[int, Any]:
            async with made(kind, directory) as saver:
                latest = await saver.aget_tuple(thread("shared"))
                steps = [each async for each in saver.alist(thread("shared")) if each.metadata["step"] == 1]
                return len(steps), latest.checkpoint["channel_values"]["step"]

        asyncio.run(begin())
        loaded, results = context.Barrier(2), context.Queue()
        workers = [
            context.Process(target=continue_thread, args=(kind, directory, who, loaded, results))
            for who in ("ann", "bob")
        ]
        for each in workers:
            each.start()
        outcomes = dict(results.get() for _ in workers)
        for each in workers:
            each.join()
        children, latest = asyncio.run(end())
    lost = sorted(who for who, outcome in outcomes.items() if outcome == "stored" and who != latest)
    print(
        f"{kind}: {outcomes}; the checkpoint has {children} children, and the thread goes on from {latest}'s",
        end="",
    )
    print(f"; {lost[0]} was told that it is stored, and nobody will read it" if lost else "")


def main() -> None:
    """Measure, and show the fork."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, {count} rounds a process")
    for processes in (1, PROCESSES):
        compared(processes, count)
    print("\nTwo processes continue one thread from one checkpoint:")
    for kind in KINDS:
        fork(kind)


if __name__ == "__main__":
    main()
