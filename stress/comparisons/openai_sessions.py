"""OpenAI Agents sessions: ours beside the SDK's SQLiteSession, in one process and in several.

    python stress/comparisons/openai_sessions.py [COUNT]

Each call adds two items, a question and an answer. Ratios are of one run on one machine: above 1 means that ours is
faster. Then processes add to one conversation, all of which open it at the same moment, as workers do that are started
together.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PROCESSES = 8
ROUNDS = 3


def made(kind: str, directory: str) -> Any:
    """A session of a kind; imports its framework only now."""
    if kind == "occamdb":
        from occamdb.plugins.openai_agents import OccamSession

        return OccamSession(Path(directory) / "db", "conversation")
    from agents import SQLiteSession

    return SQLiteSession("conversation", Path(directory) / "sessions.sqlite")


def exchange(who: int, number: int) -> list[Any]:
    """A question and an answer."""
    return [
        {"role": "user", "content": f"{who} asks {number}"},
        {"role": "assistant", "content": f"{who} gets {number}"},
    ]


async def added(session: Any, who: int, count: int) -> float:
    """Add exchanges one after the other; seconds a call."""
    begin = time.perf_counter()
    for number in range(count):
        await session.add_items(exchange(who, number))
    return (time.perf_counter() - begin) / count


def measured(kind: str, count: int) -> float:
    """Seconds a call of one process, on a session that is warm."""
    with tempfile.TemporaryDirectory() as directory:

        async def measure() -> float:
            session = made(kind, directory)
            await added(session, 0, 20)
            took = await added(session, 0, count)
            session.close()
            return took

        return asyncio.run(measure())


def worker(kind: str, directory: str, who: int, count: int, barrier: Any, results: Any) -> None:
    """Open the session when all others do, and add to it."""
    made(kind, tempfile.mkdtemp(dir=directory)).close()  # everything is imported
    barrier.wait()
    try:
        session = made(kind, directory)
        took = asyncio.run(added(session, who, count)) * count
        session.close()
        results.put((took, None))
    except Exception as error:
        results.put((0.0, f"{type(error).__name__}: {error}"))


def race(kind: str, count: int) -> tuple[float, int, Counter[str]]:
    """Seconds of the slowest process, items kept, and what processes failed with."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        barrier, results = context.Barrier(PROCESSES), context.Queue()
        workers = [
            context.Process(target=worker, args=(kind, directory, who, count, barrier, results))
            for who in range(PROCESSES)
        ]
        for each in workers:
            each.start()
        ended = [results.get() for _ in workers]
        for each in workers:
            each.join()
        session = made(kind, directory)
        kept = len(asyncio.run(session.get_items()))
        session.close()
        return max(took for took, _ in ended), kept, Counter(error for _, error in ended if error)


def main() -> None:
    """Run the comparison and print it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    pairs = [(measured("occamdb", count), measured("sqlite", count)) for _ in range(ROUNDS)]
    ours, theirs = (sorted(column)[ROUNDS // 2] for column in zip(*pairs, strict=True))
    print(f"add_items: {ours * 1e6:.0f} us, SQLiteSession {theirs * 1e6:.0f} us: ratio {theirs / ours:.1f}")
    each = count // PROCESSES
    for kind in ("occamdb", "sqlite"):
        took, kept, errors = race(kind, each)
        print(
            f"{PROCESSES} processes, {kind}: {took:.2f} s, {kept} of {2 * each * PROCESSES} items kept"
            + "".join(f"; {number} failed with {error}" for error, number in errors.items())
        )


if __name__ == "__main__":
    main()
