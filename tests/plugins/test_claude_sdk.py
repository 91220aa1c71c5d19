"""Transcripts of the Claude Agent SDK: its conformance suite, its own functions, many processes, and bad input."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    InMemorySessionStore,
    SessionKey,
    SessionStore,
    delete_session_via_store,
    fold_session_summary,
    fork_session_via_store,
    get_session_info_from_store,
    get_session_messages_from_store,
    list_sessions_from_store,
    list_subagents_from_store,
    project_key_for_directory,
    rename_session_via_store,
    tag_session_via_store,
)
from claude_agent_sdk._internal.transcript_mirror_batcher import TranscriptMirrorBatcher
from claude_agent_sdk.testing import run_session_store_conformance

import occamdb
import occamdb.aio
from occamdb.plugins.claude_sdk import OccamSessionStore
from tests.support.crowd import crowd
from tests.support.processes import Peer, Worker, wait_until

APPENDERS = 8
BATCHES = 25
SESSION = "00000000-0000-4000-8000-000000000001"
KEY: SessionKey = {"project_key": "p", "session_id": "s"}
SUBAGENT: SessionKey = {**KEY, "subpath": "subagents/agent-1"}


def entry(number: int, **fields: Any) -> Any:
    return {"type": "user", "uuid": f"u{number}", "n": number, **fields}


# --- The suite of the SDK ---


async def test_the_conformance_suite_of_the_sdk() -> None:
    """It asks for a fresh store once a contract, and for one more to see which methods there are."""
    databases = []

    def make_store() -> OccamSessionStore:
        databases.append(occamdb.open_in_memory())
        return OccamSessionStore(databases[-1])

    await run_session_store_conformance(make_store)
    for db in databases:
        db.close()
    assert len(databases) == 1 + 14, f"{len(databases) - 1} contracts ran"


# --- Beside the store in memory ---


@pytest.fixture(params=["theirs", "ours"])
def store(request: pytest.FixtureRequest) -> Iterator[SessionStore]:
    if request.param == "theirs":
        yield InMemorySessionStore()
        return
    with occamdb.open_in_memory() as db:
        yield OccamSessionStore(db)


async def test_any_json_comes_back(store: SessionStore) -> None:
    given: list[Any] = [
        {"type": "x", "deep": [{"a": [None, True, 1.5, {"b": {}}]}]},
        {"type": "x", "big": 1 << 90, "text": "ü \0 \U0001f600 \ud800", "": "an empty name"},
        {"type": "x", "uuid": 7},
        {"type": "x", "uuid": 7},
    ]
    await store.append(KEY, given)
    assert await store.load(KEY) == given


async def test_transcripts_of_one_session_are_apart(store: SessionStore) -> None:
    paths = ["subagents/agent-1", "subagents/agent-10", "subagents", "a%2Fb", "a/b", "ü/ö"]
    for number, path in enumerate(paths):
        await store.append({**KEY, "subpath": path}, [entry(number)])
    assert await store.load(KEY) is None
    assert await store.list_sessions("p") == [] and await store.list_session_summaries("p") == []
    assert sorted(await store.list_subkeys({"project_key": "p", "session_id": "s"})) == sorted(paths)
    await store.delete(SUBAGENT)
    for number, path in enumerate(paths):
        expected = None if number == 0 else [entry(number)]
        assert await store.load({**KEY, "subpath": path}) == expected
    await store.append(SUBAGENT, [entry(0)])  # the mark of its uuid went with it
    assert await store.load(SUBAGENT) == [entry(0)]


async def test_times_grow_and_are_those_of_the_summaries(store: SessionStore) -> None:
    seen = []
    for number in range(5):
        await store.append(KEY, [entry(number)])
        (listed,) = await store.list_sessions("p")
        (summary,) = await store.list_session_summaries("p")
        assert listed["mtime"] == summary["mtime"]
        seen.append(listed["mtime"])
    assert seen == sorted(set(seen))
    await store.append(SUBAGENT, [entry(9)])
    assert (await store.list_sessions("p"))[0]["mtime"] == seen[-1]


async def test_functions_of_the_sdk(store: SessionStore, tmp_path: Path) -> None:
    directory = str(tmp_path)
    key: SessionKey = {"project_key": project_key_for_directory(directory), "session_id": SESSION}
    said = [
        {
            "type": role,
            "uuid": f"00000000-0000-4000-8000-{number:012d}",
            "parentUuid": f"00000000-0000-4000-8000-{number - 1:012d}" if number else None,
            "sessionId": SESSION,
            "timestamp": f"2026-11-28T12:00:0{number}Z",
            "message": {"role": role, "content": text},
        }
        for number, (role, text) in enumerate([("user", "What is 6 x 7?"), ("assistant", "42")])
    ]
    await store.append(key, said)  # type: ignore[arg-type]
    await store.append({**key, "subpath": "subagents/agent-7"}, [entry(1)])
    messages = await get_session_messages_from_store(store, SESSION, directory=directory)
    assert [message.type for message in messages] == ["user", "assistant"]
    assert await list_subagents_from_store(store, SESSION, directory=directory) == ["7"]
    await rename_session_via_store(store, SESSION, "Arithmetic", directory=directory)
    await tag_session_via_store(store, SESSION, "done", directory=directory)
    (listed,) = await list_sessions_from_store(store, directory=directory)
    assert (listed.summary, listed.tag, listed.first_prompt) == ("Arithmetic", "done", "What is 6 x 7?")
    fork = await fork_session_via_store(store, SESSION, directory=directory)
    info = await get_session_info_from_store(store, fork.session_id, directory=directory)
    assert info is not None and info.custom_title == "Arithmetic (fork)"
    await delete_session_via_store(store, SESSION, directory=directory)
    (left,) = await list_sessions_from_store(store, directory=directory)
    assert left.session_id == fork.session_id


# --- What ours does besides ---


async def test_a_batch_that_comes_again_is_stored_once() -> None:
    async with occamdb.aio.open_in_memory() as db:
        store = OccamSessionStore(db)
        title: Any = {"type": "custom-title", "customTitle": "T"}  # without a uuid: stored each time
        await store.append(KEY, [entry(1), entry(2), entry(1, again=True)])
        before = await store.list_sessions("p")
        await store.append(KEY, [entry(1), entry(2)])
        assert await store.list_sessions("p") == before, "nothing was written"
        await store.append(KEY, [entry(2), title, entry(3)])
        await store.append(KEY, [title])
        assert await store.load(KEY) == [entry(1), entry(2), title, entry(3), title]


async def test_sessions_are_runs(database_path: Path) -> None:
    async with occamdb.aio.open(database_path, strict_runs=True) as db:
        store = OccamSessionStore(db)
        odd: list[SessionKey] = [
            {"project_key": "a/b", "session_id": "c"},
            {"project_key": "a", "session_id": "b/c"},
            {"project_key": "a", "session_id": "b%2Fc"},
        ]
        for number, key in enumerate(odd):
            await store.append(key, [entry(number)])
        for number, key in enumerate(odd):
            assert await store.load(key) == [entry(number)]
        assert [run.name for run in db.runs.query_runs(tag="claude/a")] == [
            "claude/a/b%2Fc",
            "claude/a/b%252Fc",
        ]
        assert [each["session_id"] for each in await store.list_sessions("a")] == ["b/c", "b%2Fc"]
        await db.runs.delete_run(store.run_of(odd[1]))
        assert [each["session_id"] for each in await store.list_sessions("a")] == ["b%2Fc"]
        await store.append({**odd[0], "subpath": "x"}, [entry(5)])
        await store.delete(odd[0])
        await store.append({**odd[0], "subpath": "x"}, [entry(5)])
        await store.delete({**odd[0], "subpath": "x"})  # the last transcript of its session
        assert [run.name for run in db.runs.list_runs()] == ["claude/a/b%252Fc"]


async def test_frames_of_the_command_line_reach_the_store(tmp_path: Path) -> None:
    """The SDK's own batcher writes through the store."""
    async with occamdb.aio.open_in_memory() as db:
        store, errors = OccamSessionStore(db), []

        async def on_error(key: SessionKey | None, message: str) -> None:
            errors.append(message)

        batcher = TranscriptMirrorBatcher(store, str(tmp_path), on_error, max_pending_entries=10)
        for number in range(40):
            batcher.enqueue(str(tmp_path / "p" / "s.jsonl"), [entry(number)])
            batcher.enqueue(str(tmp_path / "p" / "s" / "subagents" / "agent-1.jsonl"), [entry(number)])
        await batcher.close()
        assert errors == []
        assert await store.load(KEY) == await store.load(SUBAGENT) == [entry(number) for number in range(40)]


class Odd:
    """Something that JSON does not know."""


async def test_what_cannot_be_stored_is_refused_and_nothing_is_stored() -> None:
    async with occamdb.aio.open_in_memory() as db:
        store = OccamSessionStore(db)
        with pytest.raises(occamdb.ValueEncodingError, match="an entry of type 'user' cannot be stored"):
            await store.append(KEY, [entry(1), entry(2, odd=Odd())])
        wrong: Any = "an entry"
        with pytest.raises(TypeError, match="must be a dict, got str"):
            await store.append(KEY, [wrong])
        assert await store.load(KEY) is None and db.runs.list_runs() == []


@pytest.mark.parametrize(
    ("change", "expected", "text"),
    [
        ({"project_key": 7}, TypeError, "the project_key of a session must be a str, got int"),
        ({"session_id": None}, TypeError, "the session_id of a session must be a str"),
        ({"subpath": b"x"}, TypeError, "the subpath of a session must be a str"),
        ({"session_id": ""}, ValueError, "must not be empty"),
        ({"subpath": ""}, ValueError, "must not be empty"),
    ],
)
async def test_keys_of_another_form_are_refused(change: Any, expected: type[Exception], text: str) -> None:
    async with occamdb.aio.open_in_memory() as db:
        store = OccamSessionStore(db)
        key: Any = {**KEY, **change}
        for call in (store.append(key, [entry(1)]), store.load(key), store.delete(key)):
            with pytest.raises(expected, match=text):
                await call


# --- Many processes ---


async def append_batches(path: str, who: int) -> None:
    store = OccamSessionStore(path)
    for batch in range(BATCHES):
        numbers = [batch * 3, batch * 3 + 1, batch * 3 + 2]
        entries = [entry(n, uuid=f"{who}.{n}", who=who, customTitle=f"{who}.{n}") for n in numbers]
        await store.append(KEY, entries)
        await store.append(SUBAGENT, entries[:1])
    await store.aclose()


def appenders(peer: Peer, path: str) -> None:
    crowd(APPENDERS, lambda who: asyncio.run(append_batches(path, who)))


async def test_processes_that_append_lose_and_reorder_nothing(
    database_path: Path, start: Callable[..., Worker]
) -> None:
    async with occamdb.aio.open(database_path) as db:
        start(appenders, str(database_path), method="spawn").result()
        store = OccamSessionStore(db)
        loaded: Any = await store.load(KEY)
        assert len(loaded) == APPENDERS * BATCHES * 3
        for who in range(APPENDERS):
            assert [each["n"] for each in loaded if each["who"] == who] == list(range(BATCHES * 3))
        whole = [loaded[at : at + 3] for at in range(0, len(loaded), 3)]
        assert all(len({each["who"] for each in batch}) == 1 for batch in whole), "a batch is not torn apart"
        below: Any = await store.load(SUBAGENT)
        assert len(below) == APPENDERS * BATCHES
        # The summary is what folding the transcript from its beginning gives.
        (summary,) = await store.list_session_summaries("p")
        assert summary["data"] == fold_session_summary(None, KEY, loaded)["data"]
        assert summary["data"]["custom_title"] == loaded[-1]["customTitle"]


async def append_for_ever(path: str) -> None:
    store, number = OccamSessionStore(path), 0
    while True:
        await store.append(KEY, [entry(number + each, customTitle=f"{number + each}") for each in range(4)])
        number += 4


def tireless(peer: Peer, path: str) -> None:
    asyncio.run(append_for_ever(path))


async def test_a_killed_process_leaves_whole_batches(
    database_path: Path, start: Callable[..., Worker]
) -> None:
    async with occamdb.aio.open(database_path) as db:
        store = OccamSessionStore(db)
        worker = start(tireless, str(database_path))
        wait_until(lambda: db.kv.get(store.run_of(KEY), "head/", [0])[0] >= 40)
        os.kill(worker.pid, signal.SIGKILL)
        worker.process.join(60)
        loaded: Any = await store.load(KEY)
        assert [each["n"] for each in loaded] == list(range(len(loaded))) and len(loaded) % 4 == 0
        (summary,) = await store.list_session_summaries("p")
        assert summary["data"]["custom_title"] == str(len(loaded) - 1)
        await store.append(KEY, [entry(len(loaded) - 1), entry(len(loaded))])  # the SDK sends a batch again
        again = await store.load(KEY)
        assert again is not None and len(again) == len(loaded) + 1
