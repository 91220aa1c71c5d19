"""Conversations of Pydantic AI among processes: real agents, races, and what cannot be stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import ConversationConflict, ConversationEntry, ConversationRecord
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import DeferredToolRequests

import occamdb
import occamdb.aio
from occamdb.plugins.pydantic_ai import OccamConversationStore
from tests.support.processes import Peer, Worker

SAVERS = 4
TURNS = 10


def an_agent(**options: Any) -> Agent[None, Any]:
    """An agent with one tool and the framework's model for tests, which calls each tool once and then answers."""
    agent: Agent[None, Any] = Agent(TestModel(), **options)

    @agent.tool_plain
    def weather(city: str) -> str:
        return f"rain in {city}"

    return agent


# --- A conversation that goes on in another process ---


async def one_turn(path: str, prompt: str) -> tuple[int, int]:
    store = OccamConversationStore(path)
    conversation = await store.load("ada") or Conversation(conversation_id="ada")
    result = await an_agent().run(prompt, conversation=conversation)
    await store.save(result)
    assert result.conversation.messages[: len(conversation.messages)] == conversation.messages
    await store.aclose()
    return len(conversation.messages), result.conversation.usage.requests


def take_a_turn(peer: Peer, path: str, prompt: str) -> tuple[int, int]:
    return asyncio.run(one_turn(path, prompt))


def test_an_agent_goes_on_in_another_process(database_path: Path, start: Callable[..., Worker]) -> None:
    found = [
        start(take_a_turn, str(database_path), f"turn {number}", method="spawn").result()
        for number in range(3)
    ]
    # The messages that a process found, and the requests to the model so far. The model calls the tool in the first
    # turn, which has four messages therefore, and only answers in the others.
    assert found == [(0, 2), (4, 3), (6, 4)]
    with occamdb.open(database_path) as db:
        conversation = asyncio.run(OccamConversationStore(db).load("ada"))
        assert conversation is not None
        requests = [each for each in conversation.messages if isinstance(each, ModelRequest)]
        prompts = [p.content for each in requests for p in each.parts if isinstance(p, UserPromptPart)]
        assert prompts == ["turn 0", "turn 1", "turn 2"]
        returned = [p.content for each in requests for p in each.parts if isinstance(p, ToolReturnPart)]
        assert returned == ["rain in a"]
        (run,) = db.runs.query_runs(name="pydantic-ai/ada", tag="pydantic-ai")
        assert run.run_id == OccamConversationStore(db).run_of("ada")


async def pause_for_approval(path: str) -> None:
    store = OccamConversationStore(path)
    agent: Agent[None, Any] = Agent(TestModel(), output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def pay(amount: int) -> str:
        raise AssertionError("nobody approved it")

    result = await agent.run("pay", conversation=Conversation(conversation_id="bob"))
    await store.save(result)
    await store.aclose()


def pause(peer: Peer, path: str) -> None:
    asyncio.run(pause_for_approval(path))


async def test_a_run_that_waits_for_approval_goes_on_here(
    database_path: Path, start: Callable[..., Worker]
) -> None:
    start(pause, str(database_path), method="spawn").result()
    async with occamdb.aio.open(database_path) as db:
        store = OccamConversationStore(db)
        conversation = await store.load("bob")
        assert conversation is not None and conversation.deferred_tool_requests is not None
        (call,) = conversation.deferred_tool_requests.approvals
        assert call.tool_name == "pay"
        paid: list[int] = []
        agent: Agent[None, Any] = Agent(TestModel(), output_type=[str, DeferredToolRequests])

        @agent.tool_plain(requires_approval=True)
        def pay(amount: int) -> str:
            paid.append(amount)
            return "paid"

        answers = conversation.deferred_tool_requests.build_results(approvals={call.tool_call_id: True})
        result = await agent.run(conversation=conversation, deferred_tool_results=answers)
        await store.save(result)
        assert len(paid) == 1
        again = await store.load("bob")
        assert again is not None and again.deferred_tool_requests is None


# --- Races ---


async def load_wait_save(peer: Peer, path: str, text: str) -> str:
    store = OccamConversationStore(path)
    conversation = await store.load("ada")
    assert conversation is not None
    peer.say("loaded")
    assert peer.hear() == "save"
    conversation.messages.append(ModelRequest(parts=[UserPromptPart(text)]))
    try:
        await store.save(conversation)
        return "saved"
    except ConversationConflict:
        return "conflict"
    finally:
        await store.aclose()


def save_once(peer: Peer, path: str, text: str) -> str:
    return asyncio.run(load_wait_save(peer, path, text))


def test_of_two_processes_that_save_one_conflicts(database_path: Path, start: Callable[..., Worker]) -> None:
    with occamdb.open(database_path) as db:
        store = OccamConversationStore(db)
        asyncio.run(store.save(Conversation(conversation_id="ada")))
        savers = [start(save_once, str(database_path), text, method="spawn") for text in ("one", "two")]
        assert [saver.hear() for saver in savers] == ["loaded", "loaded"]
        for saver in savers:
            saver.say("save")
        outcomes = [saver.result() for saver in savers]
        assert sorted(outcomes) == ["conflict", "saved"]
        conversation = asyncio.run(store.load("ada"))
        assert conversation is not None
        (message,) = conversation.messages
        assert message.parts[0].content == ("one", "two")[outcomes.index("saved")]  # type: ignore[union-attr]


async def save_turns(path: str, name: str) -> int:
    """Add turns, each loaded and saved again until it is the one that is not refused."""
    store, conflicts = OccamConversationStore(path), 0
    for turn in range(TURNS):
        while True:
            conversation = await store.load("ada") or Conversation(conversation_id="ada")
            conversation.messages.append(ModelRequest(parts=[UserPromptPart(f"{name} {turn}")]))
            try:
                await store.save(conversation)
                break
            except ConversationConflict:
                conflicts += 1
    await store.aclose()
    return conflicts


def save_many(peer: Peer, path: str, name: str) -> int:
    return asyncio.run(save_turns(path, name))


def test_processes_that_try_again_lose_no_turn(database_path: Path, start: Callable[..., Worker]) -> None:
    with occamdb.open(database_path) as db:
        savers = [start(save_many, str(database_path), f"saver {number}") for number in range(SAVERS)]
        for saver in savers:
            saver.result()
        conversation = asyncio.run(OccamConversationStore(db).load("ada"))
        assert conversation is not None
        said = [str(message.parts[0].content) for message in conversation.messages]  # type: ignore[union-attr]
        for number in range(SAVERS):
            own = [text for text in said if text.startswith(f"saver {number} ")]
            assert own == [f"saver {number} {turn}" for turn in range(TURNS)]
        assert len(said) == SAVERS * TURNS


async def test_a_fork_and_a_delete_at_once_leave_a_whole_history() -> None:
    """Whichever comes first: the fork has all of its messages, or it is refused."""
    async with occamdb.aio.open_in_memory() as db:
        store = OccamConversationStore(db)
        for number in range(20):
            messages: list[Any] = [ModelRequest(parts=[UserPromptPart(str(each))]) for each in range(3)]
            await store.save(Conversation(conversation_id="a", messages=messages))
            fork, _ = await asyncio.gather(
                store.fork("a", new_conversation_id=f"f{number}"), store.delete("a"), return_exceptions=True
            )
            found = await store.load(f"f{number}")
            if isinstance(fork, BaseException):
                assert isinstance(fork, ConversationConflict) and found is None
            else:
                assert found is not None and found.messages == messages
            assert await store.load("a") is None


# --- Databases and arguments ---


async def test_a_store_of_a_database_with_weaker_isolation(database_path: Path) -> None:
    """What a save reads is checked although the database was opened for snapshot isolation."""
    async with occamdb.aio.open(database_path, isolation="snapshot", strict_runs=True) as db:
        store = OccamConversationStore(db)
        await store.save(Conversation(conversation_id="a"))
        first, second = await store.load("a"), await store.load("a")
        assert first is not None and second is not None
        outcomes = await asyncio.gather(store.save(first), store.save(second), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if outcome != []] == [ConversationConflict]


class Odd:
    """Something that JSON does not know."""


async def test_what_cannot_be_stored_is_refused_and_nothing_is_stored() -> None:
    async with occamdb.aio.open_in_memory() as db:
        store = OccamConversationStore(db)
        message = ModelResponse(parts=[ToolCallPart("f", {"odd": Odd()})])
        entry = ConversationEntry(id="e1", parent_id=None, message=message)
        record = ConversationRecord(conversation_id="a", head_id="e1")
        with pytest.raises(occamdb.ValueEncodingError, match="the message of entry 'e1' cannot be stored"):
            await store.write_record(record, new_entries=[entry], expected_revision=None)
        record.deferred_tool_requests = DeferredToolRequests(metadata={"c1": {"odd": Odd()}})
        with pytest.raises(occamdb.ValueEncodingError, match="the record of conversation 'a'"):
            await store.write_record(record, expected_revision=None)
        assert await store.read_record("a") is None
        assert db.runs.list_runs() == []


@pytest.mark.parametrize("name", [7, None, b"a"])
async def test_a_name_that_is_not_text_is_refused(name: Any) -> None:
    async with occamdb.aio.open_in_memory() as db:
        store = OccamConversationStore(db)
        with pytest.raises(TypeError, match="must be a str"):
            await store.load(name)
        with pytest.raises(TypeError, match="must be a str"):
            await store.save(Conversation(conversation_id=name))


async def test_a_conversation_whose_run_was_deleted_is_not_listed() -> None:
    async with occamdb.aio.open_in_memory() as db:
        store = OccamConversationStore(db)
        messages: list[Any] = [ModelRequest(parts=[UserPromptPart("hello")])]
        for name in ("a", "b"):
            await store.save(Conversation(conversation_id=name, messages=messages))
        old = await store.read_record("a")
        assert old is not None
        await db.runs.delete_run(store.run_of("a"))
        assert await store.load("a") is None
        assert [each.conversation_id for each in await store.list_conversations(limit=1)] == ["b"]
        with pytest.raises(ConversationConflict):
            await store.write_record(
                ConversationRecord(conversation_id="c", head_id=old.head_id), expected_revision=None
            )
        await store.save(Conversation(conversation_id="a", messages=messages))
        assert [each.conversation_id for each in await store.list_conversations()] == ["a", "b"]
