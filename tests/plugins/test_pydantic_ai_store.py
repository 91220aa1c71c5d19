"""OccamConversationStore does what Pydantic AI's store in memory does: each test runs with both of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    ConversationStore,
    InMemoryConversationStore,
)
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RequestUsage, RunUsage

import occamdb
from occamdb import RunId
from occamdb.plugins.pydantic_ai import OccamConversationStore

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture(params=["theirs", "ours"])
def store(request: pytest.FixtureRequest) -> Iterator[ConversationStore]:
    if request.param == "theirs":
        yield InMemoryConversationStore()
        return
    with occamdb.open_in_memory() as db:
        yield OccamConversationStore(db)


def said(text: str) -> ModelMessage:
    return ModelRequest(parts=[UserPromptPart(text, timestamp=NOW)])


def chain(*ids: str, after: str | None = None) -> list[ConversationEntry]:
    """Entries with these ids, each after the one before."""
    entries = []
    for entry_id in ids:
        entries.append(ConversationEntry(id=entry_id, parent_id=after, message=said(f"message {entry_id}")))
        after = entry_id
    return entries


def record(name: str, head: str | None = None, revision: str = "r1", **fields: Any) -> ConversationRecord:
    return ConversationRecord(conversation_id=name, head_id=head, revision=revision, **fields)


async def ids_of(store: ConversationStore, head: str | None, limit: int | None = None) -> list[str]:
    return [entry.id for entry in await store.read_history(head, limit=limit)]


# --- Records ---


async def test_an_unknown_record_is_none(store: ConversationStore) -> None:
    assert await store.read_record("nobody") is None


async def test_a_record_comes_back_as_it_was_given(store: ConversationStore) -> None:
    call = ToolCallPart("pay", {"amount": 3}, tool_call_id="c1")
    given = record(
        "a",
        usage=RunUsage(requests=2, input_tokens=3, output_tokens=4, tool_calls=1, details={"cached": 9}),
        deferred_tool_requests=DeferredToolRequests(
            approvals=[call], metadata={"c1": {"reason": "much", "n": 1 << 70}}
        ),
        scope="user/1",
        forked_from="b",
        forked_at="e9",
        branches=["e1"],
        updated_at=NOW + timedelta(microseconds=1),
    )
    await store.write_record(given, expected_revision=None)
    assert await store.read_record("a") == given


async def test_what_was_stored_is_a_copy(store: ConversationStore) -> None:
    given = record("a", branches=[])
    await store.write_record(given, expected_revision=None)
    given.branches.append("later")
    found = await store.read_record("a")
    assert found is not None and found.branches == []
    found.usage.requests = 99
    again = await store.read_record("a")
    assert again is not None and again.usage.requests == 0


@pytest.mark.parametrize(
    ("stored", "expected"), [(None, "r1"), ("r1", None), ("r1", "r0"), ("r1", "r1 "), ("r1", "")]
)
async def test_another_revision_than_the_expected_one_is_refused(
    store: ConversationStore, stored: str | None, expected: str | None
) -> None:
    if stored is not None:
        await store.write_record(record("a", revision=stored), expected_revision=None)
    with pytest.raises(ConversationConflict, match="'a'") as refused:
        await store.write_record(
            record("a", "e1", revision="r2"), new_entries=chain("e1"), expected_revision=expected
        )
    assert refused.value.conversation_id == "a"
    found = await store.read_record("a")
    assert (None if found is None else found.revision) == stored
    with pytest.raises(KeyError):
        await store.read_entry("e1")  # it left nothing behind


async def test_a_head_that_nobody_has_is_refused(store: ConversationStore) -> None:
    with pytest.raises(ConversationConflict):
        await store.write_record(record("a", "e3"), new_entries=chain("e1", "e2"), expected_revision=None)
    assert await store.read_record("a") is None
    with pytest.raises(KeyError):
        await store.read_entry("e1")


async def test_a_head_may_be_an_entry_of_another_conversation(store: ConversationStore) -> None:
    await store.write_record(record("a", "e2"), new_entries=chain("e1", "e2"), expected_revision=None)
    await store.write_record(record("b", "e1"), expected_revision=None)
    assert await ids_of(store, "e1") == ["e1"]


async def test_a_record_is_replaced(store: ConversationStore) -> None:
    await store.write_record(record("a", "e1"), new_entries=chain("e1"), expected_revision=None)
    second = record("a", "e2", "r2", scope="s")
    await store.write_record(second, new_entries=chain("e2", after="e1"), expected_revision="r1")
    assert await store.read_record("a") == second
    assert await ids_of(store, "e2") == ["e1", "e2"]


# --- Entries ---


async def test_an_unknown_entry_is_a_key_error(store: ConversationStore) -> None:
    with pytest.raises(KeyError):
        await store.read_entry("e1")
    with pytest.raises(KeyError):
        await store.read_history("e1")


async def test_a_history_is_in_order_and_can_be_limited(store: ConversationStore) -> None:
    given = chain("e1", "e2", "e3")
    await store.write_record(record("a", "e3"), new_entries=given, expected_revision=None)
    assert await store.read_history("e3") == given
    assert await ids_of(store, "e2") == ["e1", "e2"]
    assert [await ids_of(store, "e3", limit) for limit in (0, 1, 2, 9)] == [
        [],
        ["e3"],
        ["e2", "e3"],
        ["e1", "e2", "e3"],
    ]
    assert await store.read_history(None) == []
    assert await store.read_entry("e2") == given[1]


async def test_a_history_with_a_gap_is_a_key_error(store: ConversationStore) -> None:
    await store.write_record(record("a", "e2"), new_entries=chain("e2", after="gone"), expected_revision=None)
    assert await ids_of(store, "e2", 1) == ["e2"]
    with pytest.raises(KeyError):
        await store.read_history("e2")


async def test_an_entry_that_comes_again_is_replaced(store: ConversationStore) -> None:
    await store.write_record(record("a", "e1"), new_entries=chain("e1"), expected_revision=None)
    changed = ConversationEntry(id="e1", parent_id=None, message=said("changed"))
    await store.write_record(record("b", "e1"), new_entries=[changed], expected_revision=None)
    assert await store.read_history("e1") == [changed]


MESSAGES: list[ModelMessage] = [
    ModelRequest(parts=[SystemPromptPart("Be brief.", timestamp=NOW)], instructions="Do."),
    ModelRequest(
        parts=[UserPromptPart(["ü \0 \U0001f600", BinaryContent(b"\x00\xff", media_type="application/pdf")])]
    ),
    ModelResponse(
        parts=[
            ThinkingPart("hm", signature="s"),
            TextPart("So."),
            ToolCallPart("find", {"n": 1 << 80, "x": [1.5, None, True]}, tool_call_id="c1"),
            ToolCallPart("find", '{"text": "as it came"}', tool_call_id="c2"),
        ],
        usage=RequestUsage(input_tokens=3, details={"cached": 2}),
        model_name="m1",
        timestamp=NOW,
        provider_details={"k": "v"},
    ),
    ModelRequest(
        parts=[
            ToolReturnPart("find", {"hits": [1, 2]}, tool_call_id="c1", metadata={"m": 1}, timestamp=NOW),
            ToolReturnPart("find", "again", tool_call_id="c2", outcome="retried", timestamp=NOW),
        ]
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=["system", "binary", "response", "tool return"])
async def test_messages_come_back_as_they_were(store: ConversationStore, message: ModelMessage) -> None:
    entry = ConversationEntry(id="e1", parent_id=None, message=message)
    await store.write_record(record("a", "e1"), new_entries=[entry], expected_revision=None)
    assert await store.read_entry("e1") == entry


# --- Lists ---


async def test_records_are_listed_newest_first(store: ConversationStore) -> None:
    for name, minutes, scope in [("a", 1, "s"), ("b", 3, None), ("c", 2, "s"), ("d", 0, "t")]:
        moment = NOW + timedelta(minutes=minutes)
        await store.write_record(record(name, scope=scope, updated_at=moment), expected_revision=None)

    async def listed(**filters: Any) -> str:
        return "".join([found.conversation_id for found in await store.read_records(**filters)])

    assert await listed() == "bcad"
    assert [await listed(limit=limit) for limit in (0, 1, 3, 9)] == ["", "b", "bca", "bcad"]
    assert [await listed(scope=scope) for scope in ("s", "t", "u", "")] == ["ca", "d", "", ""]
    assert await listed(scope="s", limit=1) == "c"

    moved = record("a", revision="r2", scope="t", updated_at=NOW + timedelta(minutes=4))
    await store.write_record(moved, expected_revision="r1")
    assert await listed() == "abcd"
    assert [await listed(scope=scope) for scope in ("s", "t")] == ["c", "ad"]
    await store.delete_record("a", expected_revision="r2")
    assert await listed() == "bcd"
    assert await listed(scope="t") == "d"


# --- Deleting ---


@pytest.mark.parametrize("expected", ["r0", ""])
async def test_a_delete_of_another_revision_is_refused(store: ConversationStore, expected: str) -> None:
    with pytest.raises(ConversationConflict):
        await store.delete_record("a", expected_revision=expected)
    await store.write_record(record("a"), expected_revision=None)
    with pytest.raises(ConversationConflict):
        await store.delete_record("a", expected_revision=expected)
    assert await store.read_record("a") is not None


async def test_a_delete_takes_the_entries_with_it(store: ConversationStore) -> None:
    await store.write_record(record("a", "e2"), new_entries=chain("e1", "e2"), expected_revision=None)
    await store.delete_record("a", expected_revision="r1")
    assert await store.read_record("a") is None
    for entry_id in ("e1", "e2"):
        with pytest.raises(KeyError):
            await store.read_entry(entry_id)
    with pytest.raises(ConversationConflict):  # a fork that was about to be made of it
        await store.write_record(record("b", "e1"), expected_revision=None)
    await store.write_record(record("a", revision="r9"), expected_revision=None)  # its name is free again


async def test_a_delete_leaves_what_forks_and_branches_need(store: ConversationStore) -> None:
    await store.write_record(
        record("a", "e4"), new_entries=chain("e1", "e2", "e3", "e4"), expected_revision=None
    )
    await store.write_record(record("b", "e2"), expected_revision=None)
    await store.write_record(
        record("c", "c1", branches=["e3"]), new_entries=chain("c1", after="e1"), expected_revision=None
    )
    await store.write_record(record("d", "d1"), new_entries=chain("d1", after="c1"), expected_revision=None)
    await store.delete_record("a", expected_revision="r1")
    with pytest.raises(KeyError):
        await store.read_entry("e4")
    assert await ids_of(store, "e2") == ["e1", "e2"]
    assert await ids_of(store, "e3") == ["e1", "e2", "e3"]
    await store.delete_record("c", expected_revision="r1")
    assert await ids_of(store, "d1") == ["e1", "c1", "d1"]
    assert await ids_of(store, "e2") == ["e1", "e2"]
    with pytest.raises(KeyError):
        await store.read_entry("e3")
    await store.delete_record("b", expected_revision="r1")
    assert await ids_of(store, "d1") == ["e1", "c1", "d1"]
    await store.delete_record("d", expected_revision="r1")
    for entry_id in ("e1", "e2", "c1", "d1"):
        with pytest.raises(KeyError):
            await store.read_entry(entry_id)


# --- What the store makes of its five primitives ---


async def saved(store: ConversationStore, name: str, *texts: str, **options: Any) -> Conversation:
    conversation = Conversation(conversation_id=name, messages=[said(text) for text in texts])
    await store.save(conversation, **options)
    return conversation


async def loaded(store: ConversationStore, name: str, **options: Any) -> Conversation:
    found = await store.load(name, **options)
    assert found is not None
    return found


async def test_load(store: ConversationStore) -> None:
    assert await store.load("a") is None
    await saved(store, "a", "1", "2", "3", scope="s")
    found = await loaded(store, "a")
    assert found.messages == [said("1"), said("2"), said("3")]
    assert (await loaded(store, "a", limit=1)).messages == [said("3")]
    assert (await loaded(store, "a", limit=0)).messages == []
    assert await store.load("a", scope="other") is None
    assert (await loaded(store, "a", scope="s")).revision == found.revision
    with pytest.raises(UserError, match="limit"):
        await store.load("a", limit=-1)
    entries = await store.load_entries("a", limit=2)
    assert entries is not None and [entry.message for entry in entries] == [said("2"), said("3")]


async def test_save_stores_only_what_is_new(store: ConversationStore) -> None:
    await saved(store, "a", "1", "2")
    for source in (await loaded(store, "a"), await loaded(store, "a", limit=1)):
        source.messages.append(said("3"))
        if source.revision == (await loaded(store, "a")).revision:
            assert [entry.message for entry in await store.save(source)] == [said("3")]
            assert await store.save(source) == []
    assert (await loaded(store, "a")).messages == [said("1"), said("2"), said("3")]


async def test_of_two_loads_and_saves_the_second_conflicts(store: ConversationStore) -> None:
    await saved(store, "a", "1")
    first, second = await loaded(store, "a"), await loaded(store, "a")
    first.messages.append(said("first"))
    second.messages.append(said("second"))
    await store.save(first)
    with pytest.raises(ConversationConflict):
        await store.save(second)
    assert (await loaded(store, "a")).messages == [said("1"), said("first")]


async def test_saves_that_conflict(store: ConversationStore) -> None:
    await saved(store, "a", "1", scope="s")
    with pytest.raises(ConversationConflict):
        await saved(store, "a", "new, and not loaded")
    found = await loaded(store, "a")
    with pytest.raises(ConversationConflict):
        await store.save(found, scope="other")
    await store.save(found)
    assert [each.scope for each in await store.list_conversations()] == ["s"]
    await store.delete("a")
    with pytest.raises(ConversationConflict):
        await store.save(found)


async def test_a_rewritten_history_leaves_a_branch(store: ConversationStore) -> None:
    await saved(store, "a", "1", "2", "3")
    found = await loaded(store, "a")
    found.messages[1:] = [said("two")]
    await store.save(found)
    (listed,) = await store.list_conversations()
    (left,) = listed.branches
    assert [entry.message for entry in await store.read_history(left)] == [said("1"), said("2"), said("3")]
    back = await store.branch("a", from_entry=left, expected_revision=found.revision)
    assert back.messages == [said("1"), said("2"), said("3")]
    assert (await loaded(store, "a")).messages == back.messages
    with pytest.raises(ConversationConflict):
        await store.branch("a", at=1, expected_revision=found.revision)
    again = await store.branch("a", at=1, expected_revision=back.revision)
    again.messages.append(said("zwei"))
    await store.save(again)
    assert (await loaded(store, "a")).messages == [said("1"), said("zwei")]
    with pytest.raises(UserError, match="between 0 and 2"):
        await store.branch("a", at=3, expected_revision=again.revision)


async def test_forks_live_apart_and_outlive_their_origin(store: ConversationStore) -> None:
    await saved(store, "a", "1", "2", "3")
    fork = await store.fork("a", at=2, new_conversation_id="b", scope="s")
    fork.messages.append(said("other"))
    await store.save(fork)
    assert (await loaded(store, "a")).messages == [said("1"), said("2"), said("3")]
    with pytest.raises(ConversationConflict):
        await store.fork("a", new_conversation_id="b")
    with pytest.raises(UserError, match="not in the store"):
        await store.fork("nobody")
    entries = await store.load_entries("a")
    assert entries is not None
    third = await store.fork("a", from_entry=entries[0].id, new_conversation_id="c")
    assert third.messages == [said("1")]
    await store.delete("a")
    assert (await loaded(store, "b")).messages == [said("1"), said("2"), said("other")]
    assert (await loaded(store, "c")).messages == [said("1")]
    listed = {each.conversation_id: each for each in await store.list_conversations()}
    assert set(listed) == {"b", "c"} and listed["b"].forked_from == "a" and listed["b"].scope == "s"


async def test_delete_keeps_to_its_scope(store: ConversationStore) -> None:
    await saved(store, "a", "1", scope="s")
    await store.delete("a", scope="other")
    await loaded(store, "a")
    await store.delete("a", scope="s")
    assert await store.load("a") is None
    await store.delete("a")  # nothing to do


# --- Many steps at random, against the store in memory ---


async def outcome(call: Any) -> Any:
    try:
        return await call
    except (ConversationConflict, UserError, KeyError) as error:
        return type(error)


Step = Callable[[ConversationStore], Any]


def random_step(rng: random.Random, number: int, model: InMemoryConversationStore) -> Step:
    """A write or a delete of a conversation, now and then with a wrong revision or head."""
    names = "abcdef"
    name = rng.choice(names)
    old = model._records.get(name)
    expected = old.revision if old and rng.random() < 0.95 else rng.choice([None, "wrong"])
    if rng.random() < 0.25:
        return lambda store: store.delete_record(name, expected_revision=expected or "wrong")
    reachable = sorted(model._entries)
    start = rng.choice([None, *reachable]) if not old or rng.random() < 0.4 else old.head_id
    new = chain(*(f"e{number}.{each}" for each in range(rng.randrange(3))), after=start)
    branches = old.branches if old else []
    if old and old.head_id and old.head_id != start:
        branches = [*branches, old.head_id]
    written = record(
        name,
        new[-1].id if new else start,
        f"r{number}",
        scope=rng.choice([None, "s", "t"]),
        branches=branches,
        updated_at=NOW + timedelta(seconds=rng.randrange(1000), microseconds=number),
    )
    return lambda store: store.write_record(replace(written), new_entries=new, expected_revision=expected)


@pytest.mark.parametrize("seed", range(12))
async def test_random_steps_leave_both_stores_the_same(seed: int) -> None:
    rng, model = random.Random(seed), InMemoryConversationStore()
    with occamdb.open_in_memory() as db:
        store = OccamConversationStore(db)
        for number in range(120):
            step = random_step(rng, number, model)
            assert await outcome(step(store)) == await outcome(step(model)), f"step {number}"
        for scope in (None, "s", "t"):
            assert await store.read_records(scope=scope) == await model.read_records(scope=scope)
        for name in "abcdef":
            kept = await model.read_record(name)
            for tip in [kept.head_id, *kept.branches] if kept else []:
                assert await store.read_history(tip) == await model.read_history(tip)
        for run in db.runs.list_runs():  # who borrows from whom is noted on both sides
            for ours, theirs in (("lent/", "borrowed/"), ("borrowed/", "lent/")):
                for key in db.list(run.run_id, ours):
                    assert db.exists(RunId(key.removeprefix(ours)), f"{theirs}{run.run_id}")
        for kept in await model.read_records():
            await store.delete_record(kept.conversation_id, expected_revision=kept.revision)
        runs = db.runs.list_runs()
        assert [each.name for each in runs] == ["pydantic-ai-index/entries"]
        assert db.list(runs[0].run_id) == [], "the index has nothing of conversations that were deleted"
