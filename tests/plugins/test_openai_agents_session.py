"""Sessions of the OpenAI Agents SDK: beside its SQLiteSession, with real agents, and among processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, SQLiteSession, function_tool
from agents.memory import OpenAIResponsesCompactionSession, Session, SessionSettings
from agents.testing import ScriptedModel, assistant_message, function_call

import occamdb
import occamdb.aio
from occamdb.plugins.openai_agents import OccamSession
from tests.support.crowd import crowd
from tests.support.processes import Peer, Worker, wait_until

WRITERS = 8
CALLS = 25

Make = Callable[..., Any]


@pytest.fixture(params=["theirs", "ours"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes sessions of one kind, all in one database."""
    opened: list[Any] = []
    if request.param == "theirs":

        def made(session_id: str, **options: Any) -> Any:
            opened.append(SQLiteSession(session_id, tmp_path / "sessions.sqlite", **options))
            return opened[-1]
    else:
        db = occamdb.open_in_memory()
        opened.append(db)

        def made(session_id: str, **options: Any) -> Any:
            return OccamSession(db, session_id, **options)

    yield made
    for each in opened:
        each.close()


def said(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


def texts_of(items: list[Any]) -> list[str]:
    return [item["content"] for item in items]


# --- Beside SQLiteSession ---


async def test_it_is_a_session(make: Make) -> None:
    session = make("a")
    assert isinstance(session, Session)
    assert session.session_id == "a" and session.session_settings == SessionSettings()
    for name in ("get_items", "add_items", "pop_item", "clear_session"):
        assert asyncio.iscoroutinefunction(getattr(session, name))


async def test_items_come_back_in_order(make: Make) -> None:
    session = make("a")
    assert await session.get_items() == []
    await session.add_items([])
    assert await session.get_items() == []
    await session.add_items(said("1", "2"))
    await session.add_items(said("3"))
    assert texts_of(await session.get_items()) == ["1", "2", "3"]
    assert texts_of(await make("a").get_items()) == ["1", "2", "3"]
    assert await make("b").get_items() == []


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "12345"), (0, ""), (1, "5"), (3, "345"), (5, "12345"), (99, "12345"), (-1, "12345")],
)
async def test_a_limit_gives_the_latest(make: Make, limit: int | None, expected: str) -> None:
    session = make("a")
    await session.add_items(said(*"12345"))
    assert "".join(texts_of(await session.get_items(limit=limit))) == expected


async def test_the_limit_of_the_settings(make: Make) -> None:
    session = make("a", session_settings=SessionSettings(limit=2))
    await session.add_items(said(*"12345"))
    assert texts_of(await session.get_items()) == ["4", "5"]
    assert texts_of(await session.get_items(limit=3)) == ["3", "4", "5"]
    session.session_settings = None
    assert len(await session.get_items()) == 5


async def test_pop(make: Make) -> None:
    session = make("a")
    assert await session.pop_item() is None
    await session.add_items(said("1", "2"))
    assert await session.pop_item() == said("2")[0]
    await session.add_items(said("3"))
    assert texts_of(await session.get_items()) == ["1", "3"]
    assert [await session.pop_item() for _ in range(3)] == [*said("3", "1"), None]
    await session.add_items(said("4"))
    assert texts_of(await session.get_items()) == ["4"]


async def test_clear(make: Make) -> None:
    session, other = make("a"), make("b")
    await session.clear_session()
    await session.add_items(said("1"))
    await other.add_items(said("2"))
    await session.clear_session()
    assert await session.get_items() == [] and await session.pop_item() is None
    assert texts_of(await other.get_items()) == ["2"]
    await session.add_items(said("3"))
    assert texts_of(await session.get_items()) == ["3"]


ITEMS: list[Any] = [
    {"role": "user", "content": "ü \0 \U0001f600 ' \" ; DROP TABLE"},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": [1, {"b": null}]}'},
    {"type": "message", "content": [{"type": "output_text", "text": "x" * 100_000, "annotations": []}]},
    {"type": "x", "number": 1.5, "big": 1 << 80, "flag": True, "none": None, "": {}},
    {"type": "x", "lone": "\ud800"},
]


@pytest.mark.parametrize("item", ITEMS, ids=["text", "call", "large", "kinds", "surrogate"])
async def test_any_json_comes_back(make: Make, item: Any) -> None:
    session = make("a")
    await session.add_items([item])
    assert await session.get_items() == [item]
    assert await session.pop_item() == item


async def test_calls_at_once_in_one_loop(make: Make) -> None:
    session = make("a")
    await asyncio.gather(*(session.add_items(said(f"{n}a", f"{n}b")) for n in range(50)))
    texts = texts_of(await session.get_items())
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    assert sorted(pairs) == sorted((f"{n}a", f"{n}b") for n in range(50))
    popped = await asyncio.gather(*(session.pop_item() for _ in range(100)))
    assert sorted(texts_of(popped)) == sorted(texts)


async def test_a_cancelled_call_has_ended_when_it_raises(make: Make) -> None:
    session = make("a")
    for number in range(20):
        task = asyncio.ensure_future(session.add_items(said(str(number))))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = await session.get_items()
        await session.add_items(said("next"))
        assert await session.get_items() == [*before, *said("next")], "it did not change anything later"


# --- Agents ---


def an_agent(*steps: Any) -> Agent[Any]:
    @function_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    return Agent(name="Ada", model=ScriptedModel(list(steps)), tools=[weather])


QUIET = RunConfig(tracing_disabled=True)


async def a_conversation(session: Any) -> tuple[list[Any], list[Any]]:
    """Two turns, the first with a tool call; the items, and what the model got in the second turn."""
    call = [function_call("weather", {"city": "Oslo"}, call_id="c1")]
    first = an_agent(call, [assistant_message("Rain.", item_id="m1")])
    await Runner.run(first, "How is it in Oslo?", session=session, run_config=QUIET)
    second = an_agent([assistant_message("Yes.", item_id="m2")])
    await Runner.run(second, "Really?", session=session, run_config=QUIET)
    assert isinstance(second.model, ScriptedModel) and second.model.last_call is not None
    got: Any = second.model.last_call.input
    return await session.get_items(), got


async def test_an_agent_has_the_same_history_as_with_their_session(tmp_path: Path) -> None:
    theirs = SQLiteSession("a", tmp_path / "sessions.sqlite")
    async with occamdb.aio.open_in_memory() as db:
        ours = OccamSession(db, "a")
        assert await a_conversation(ours) == await a_conversation(theirs)
        items: list[Any] = await ours.get_items()
        assert [item.get("type", item.get("role")) for item in items] == [
            *("user", "function_call", "function_call_output", "message"),
            *("user", "message"),
        ]
    theirs.close()


def ask_once(peer: Peer, path: str) -> str:
    async def ask() -> str:
        session = OccamSession(path, "a")
        agent = an_agent([assistant_message("Seven.")])
        result = await Runner.run(agent, "How many?", session=session, run_config=QUIET)
        assert isinstance(agent.model, ScriptedModel) and agent.model.last_call is not None
        await session.aclose()
        return f"{len(agent.model.last_call.input)} {result.final_output}"

    return asyncio.run(ask())


def test_an_agent_goes_on_in_another_process(database_path: Path, start: Callable[..., Worker]) -> None:
    with occamdb.open(database_path) as db:
        found = [start(ask_once, str(database_path), method="spawn").result() for _ in range(2)]
        assert found == ["1 Seven.", "3 Seven."]
        (run,) = db.runs.query_runs(tag="openai-session")
        assert run.name == "openai-session/a" and run.run_id == OccamSession(db, "a").run_id


async def test_the_compaction_of_the_sdk_works_on_it(make: Make) -> None:
    """It wraps a session, and replaces its items by what a server makes of them; here by one item."""

    async def compact(**request: Any) -> Any:
        assert len(request["input"]) == 4
        return SimpleNamespace(output=[{"type": "compaction", "id": "cmp", "encrypted_content": "x"}])

    inner = make("a")
    session = OpenAIResponsesCompactionSession(
        "a",
        inner,
        client=SimpleNamespace(responses=SimpleNamespace(compact=compact)),  # type: ignore[arg-type]
        compaction_mode="input",
    )
    await session.add_items(said("1", "2", "3", "4"))
    await session.run_compaction({"force": True})
    assert [item["type"] for item in await inner.get_items()] == ["compaction"]


# --- Many processes ---


async def write_all(path: str, who: int) -> None:
    session = OccamSession(path, "a")
    for number in range(CALLS):
        await session.add_items(said(*(f"{who} {number} {part}" for part in range(3))))
    await session.aclose()


def writers(peer: Peer, path: str) -> None:
    crowd(WRITERS, lambda who: asyncio.run(write_all(path, who)))


def test_processes_that_add_lose_and_reorder_nothing(
    database_path: Path, start: Callable[..., Worker]
) -> None:
    """They open the database at the same moment, and the first of them makes it."""
    start(writers, str(database_path), method="spawn").result()
    with occamdb.open(database_path) as db:
        texts = texts_of(asyncio.run(OccamSession(db, "a").get_items()))
        assert len(texts) == WRITERS * CALLS * 3
        for who in range(WRITERS):
            own = [text for text in texts if text.startswith(f"{who} ")]
            assert own == [f"{who} {number} {part}" for number in range(CALLS) for part in range(3)]
        calls = [{text.rsplit(" ", 1)[0] for text in texts[at : at + 3]} for at in range(0, len(texts), 3)]
        assert all(len(call) == 1 for call in calls), "items of one call are next to each other"


def tireless(peer: Peer, path: str) -> None:
    async def write() -> None:
        session, number = OccamSession(path, "a"), 0
        while True:
            await session.add_items(said(*(str(number + part) for part in range(4))))
            number += 4

    asyncio.run(write())


async def test_a_killed_process_leaves_whole_calls(database_path: Path, start: Callable[..., Worker]) -> None:
    async with occamdb.aio.open(database_path) as db:
        session = OccamSession(db, "a")
        worker = start(tireless, str(database_path))
        wait_until(lambda: db.get(session.run_id, "head", 0) >= 40)
        os.kill(worker.pid, signal.SIGKILL)
        worker.process.join(60)
        texts = texts_of(await session.get_items())
        assert texts == [str(number) for number in range(len(texts))] and len(texts) % 4 == 0
        await session.add_items(said("after"))
        assert texts_of(await session.get_items(limit=2)) == [texts[-1], "after"]


# --- Databases and arguments ---


async def test_databases_with_other_rules(database_path: Path) -> None:
    async with occamdb.aio.open(database_path, isolation="snapshot", strict_runs=True) as db:
        session = OccamSession(db, "a")
        await asyncio.gather(*(session.add_items(said(str(number))) for number in range(20)))
        assert sorted(texts_of(await session.get_items())) == sorted(str(number) for number in range(20))
        await session.clear_session()
        assert db.runs.list_runs() == []


class Odd:
    """Something that JSON does not know."""


async def test_what_cannot_be_stored_is_refused_and_nothing_is_stored() -> None:
    async with occamdb.aio.open_in_memory() as db:
        session = OccamSession(db, "a")
        odd: Any = {"role": "user", "content": Odd()}
        with pytest.raises(occamdb.ValueEncodingError, match="an item of type 'user' cannot be stored"):
            await session.add_items([*said("1"), odd])
        text: Any = "hello"
        with pytest.raises(TypeError, match="must be a dict, got str"):
            await session.add_items([text])
        assert await session.get_items() == [] and db.runs.list_runs() == []


@pytest.mark.parametrize("session_id", [7, None, b"a"])
def test_a_name_that_is_not_text_is_refused(session_id: Any) -> None:
    with occamdb.open_in_memory() as db:
        with pytest.raises(TypeError, match="must be a str"):
            OccamSession(db, session_id)
        with pytest.raises(ValueError, match="must not be empty"):
            OccamSession(db, "")
