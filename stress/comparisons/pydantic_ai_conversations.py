"""Pydantic AI conversations among processes: ours, a file of JSON as its documentation suggests, and time in memory.

    python stress/comparisons/pydantic_ai_conversations.py [TURNS]

Two processes add turns to one conversation. A file loses the turns that it was overwritten with. The framework's own
store keeps everything in the memory of one process, so the other one would not see it at all.
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

Turn = tuple[str, str, int]


def message(text: str) -> Any:
    """A user's message; imports its framework only now."""
    from pydantic_ai.messages import ModelRequest, UserPromptPart

    return ModelRequest(parts=[UserPromptPart(text)])


def turns_in_a_file(turn: Turn) -> None:
    """Load, add a message, and put a new file in the place of the old one."""
    from pydantic_ai.conversation import Conversation, ConversationTypeAdapter

    directory, who, count = turn
    path, new = Path(directory) / "ada.json", Path(directory) / f"{who}.new"
    for number in range(count):
        conversation = Conversation(conversation_id="ada")
        if path.exists():
            conversation = ConversationTypeAdapter.validate_json(path.read_bytes())
        conversation.messages.append(message(f"{who} {number}"))
        new.write_bytes(ConversationTypeAdapter.dump_json(conversation))
        new.replace(path)


def turns_in_ours(turn: Turn) -> int:
    """Load, add a message, and save; load again after a conflict."""
    from pydantic_ai.conversation import Conversation
    from pydantic_ai.conversation_store import ConversationConflict

    from occamdb.plugins.pydantic_ai import OccamConversationStore

    directory, who, count = turn

    async def add() -> int:
        store, conflicts = OccamConversationStore(Path(directory) / "db"), 0
        for number in range(count):
            while True:
                conversation = await store.load("ada") or Conversation(conversation_id="ada")
                conversation.messages.append(message(f"{who} {number}"))
                try:
                    await store.save(conversation)
                    break
                except ConversationConflict:
                    conflicts += 1
        await store.aclose()
        return conflicts

    return asyncio.run(add())


def kept_in_a_file(directory: str) -> int:
    """How many messages the file has."""
    from pydantic_ai.conversation import ConversationTypeAdapter

    return len(ConversationTypeAdapter.validate_json((Path(directory) / "ada.json").read_bytes()).messages)


def kept_in_ours(directory: str) -> int:
    """How many messages our store has."""
    from occamdb.plugins.pydantic_ai import OccamConversationStore

    async def count() -> int:
        store = OccamConversationStore(Path(directory) / "db")
        found = await store.load("ada")
        await store.aclose()
        return len(found.messages) if found else 0

    return asyncio.run(count())


async def seconds_a_save(store: Any, count: int) -> float:
    """A conversation that grows by a message with each save."""
    from pydantic_ai.conversation import Conversation

    conversation = Conversation(conversation_id="ada")
    begin = time.perf_counter()
    for number in range(count):
        conversation.messages.append(message(f"message {number}"))
        await store.save(conversation)
    return (time.perf_counter() - begin) / count


async def compare_saves(directory: str, count: int) -> None:
    """Saves of one process: ours on disk and shared, theirs in its own memory."""
    from pydantic_ai.conversation_store import InMemoryConversationStore

    from occamdb.plugins.pydantic_ai import OccamConversationStore

    store = OccamConversationStore(Path(directory) / "db-of-one")
    ours, theirs = (
        await seconds_a_save(store, count),
        await seconds_a_save(InMemoryConversationStore(), count),
    )
    await store.aclose()
    print(f"a save: {ours * 1e6:.0f} us on disk, {theirs * 1e6:.0f} us in memory: ratio {theirs / ours:.2f}")


def main() -> None:
    """Run the comparison and print it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        turns = [(directory, who, count) for who in ("ada", "bob")]
        list(pool.map(turns_in_a_file, turns))
        print(f"file of JSON: {kept_in_a_file(directory)} of {2 * count} turns kept")
        conflicts = sum(pool.map(turns_in_ours, turns))
        print(f"occamdb: {kept_in_ours(directory)} of {2 * count} turns kept, {conflicts} conflicts raised")
        asyncio.run(compare_saves(directory, count))


if __name__ == "__main__":
    main()
