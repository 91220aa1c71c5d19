"""Claude Agent SDK transcripts among processes: our session store beside the SDK's own and a store in a file.

    python stress/comparisons/claude_sessions.py [BATCHES]

Two processes append to one session. The SDK's own store lives in one process. The store in a file reads, changes and
writes a document with the entries and the summary, as adapters for document databases do. The ratio is one of one run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

KEY: Any = {"project_key": "p", "session_id": "s"}
SIZE = 5  # entries a batch


class FileStore:
    """A transcript and its summary in one JSON document, which each append reads and replaces."""

    def __init__(self, path: Path, who: str) -> None:
        self._path, self._new = path, path.with_suffix(f".{who}")

    async def append(self, key: Any, entries: list[Any]) -> None:
        """Read, change, replace."""
        from claude_agent_sdk import fold_session_summary

        old = json.loads(self._path.read_text()) if self._path.exists() else {"entries": [], "summary": None}
        summary = fold_session_summary(old["summary"], key, entries)
        self._new.write_text(json.dumps({"entries": [*old["entries"], *entries], "summary": summary}))
        self._new.replace(self._path)

    async def load(self, key: Any) -> list[Any]:
        """All entries."""
        return list(json.loads(self._path.read_text())["entries"])


def made(kind: str, directory: str, who: str) -> Any:
    """A store of a kind; imports its framework only now."""
    if kind == "file":
        return FileStore(Path(directory) / "session.json", who)
    if kind == "in memory":
        from claude_agent_sdk import InMemorySessionStore

        return InMemorySessionStore()
    from occamdb.plugins.claude_sdk import OccamSessionStore

    return OccamSessionStore(Path(directory) / "db")


def appended(job: tuple[str, str, str, int]) -> float:
    """Batches of entries, one after the other; seconds they took."""
    kind, directory, who, count = job

    async def append() -> float:
        store = made(kind, directory, who)
        begin = time.perf_counter()
        for batch in range(count):
            entries = [{"type": "user", "uuid": f"{who} {batch} {n}", "n": n} for n in range(SIZE)]
            await store.append(KEY, entries)
        took = time.perf_counter() - begin
        if kind == "occamdb":
            await store.aclose()
        return took

    return asyncio.run(append())


def kept(kind: str, directory: str) -> int:
    """How many entries this process finds."""

    async def count() -> int:
        store = made(kind, directory, "reader")
        found = await store.load(KEY)
        if kind == "occamdb":
            await store.aclose()
        return len(found or [])

    return asyncio.run(count())


def main() -> None:
    """Run the comparison and print it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        for kind in ("in memory", "file", "occamdb"):
            jobs = [(kind, directory, who, count) for who in ("ada", "bob")]
            list(pool.map(appended, jobs))
            print(f"{kind}: {kept(kind, directory)} of {2 * count * SIZE} entries kept by two processes")
    seconds = {}
    for kind in ("file", "occamdb"):
        with tempfile.TemporaryDirectory() as directory:
            seconds[kind] = appended((kind, directory, "ada", count))
    ours, theirs = seconds["occamdb"] / count * 1e6, seconds["file"] / count * 1e6
    print(f"an append of {SIZE} entries: {ours:.0f} us, in a file {theirs:.0f} us: ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
