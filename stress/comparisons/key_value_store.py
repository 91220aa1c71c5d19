"""Our py-key-value store beside the framework's own: calls a second, and what a second process sees.

    python stress/comparisons/key_value_store.py [COUNT]

The last figure is a ratio of one run on one machine: above 1 means that ours is faster.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

VALUE = {"token": "a" * 200, "scopes": ["read", "write"]}


def made(kind: str, directory: str) -> Any:
    """A store of a kind; imports its framework only now."""
    if kind == "occamdb":
        from occamdb.plugins.key_value import OccamKeyValueStore

        return OccamKeyValueStore(Path(directory) / "db")
    if kind == "file tree":
        from key_value.aio.stores.filetree import FileTreeStore

        (Path(directory) / "tree").mkdir(exist_ok=True)
        return FileTreeStore(data_directory=Path(directory) / "tree")
    from key_value.aio.stores.memory import MemoryStore

    return MemoryStore()


async def measure(kind: str, directory: str, count: int) -> tuple[float, float]:
    """Puts and gets a second, one after the other."""
    store = made(kind, directory)
    await store.put("warm", VALUE)
    begin = time.perf_counter()
    for n in range(count):
        await store.put(f"key {n}", VALUE)
    middle = time.perf_counter()
    for n in range(count):
        assert await store.get(f"key {n}") == VALUE
    end = time.perf_counter()
    if kind == "occamdb":
        await store.close()
    return count / (middle - begin), count / (end - middle)


def seen_by_another_process(kind: str, directory: str) -> bool:
    """Whether this process sees what another one put."""

    async def look() -> bool:
        store = made(kind, directory)
        found = await store.get("warm")
        if kind == "occamdb":
            await store.close()
        return found is not None

    return asyncio.run(look())


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rates = {}
    with tempfile.TemporaryDirectory() as directory:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for kind in ("memory", "file tree", "occamdb"):
                puts, gets = rates[kind] = asyncio.run(measure(kind, directory, count))
                seen = pool.submit(seen_by_another_process, kind, directory).result()
                print(f"{kind:10} {puts:9,.0f} puts/s {gets:9,.0f} gets/s   seen by a second process: {seen}")
    ours, theirs = rates["occamdb"], rates["file tree"]
    print(f"occamdb / file tree: put x {ours[0] / theirs[0]:.1f}, get x {ours[1] / theirs[1]:.1f}")


if __name__ == "__main__":
    main()
