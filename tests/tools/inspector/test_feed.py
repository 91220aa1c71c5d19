"""What browsers are told: every commit, across reconnects, once for all of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import RunId
from occamdb.tools.inspector import feed as feed_module
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.source import DirectorySource, Source
from tests.support.inspecting import inspecting
from tests.support.processes import kill_coordinator, wait_until


@pytest.fixture
def db(database_path: Path) -> Iterator[occamdb.Database]:
    with occamdb.open(database_path) as database:
        yield database


@pytest.fixture
def source(db: occamdb.Database, database_path: Path) -> Iterator[Source]:
    found = DirectorySource(database_path, None)
    yield found
    found.close()


def parsed(raw: bytes) -> dict[str, Any] | None:
    """A message as a browser reads it; None for a comment and for the time to wait."""
    fields = dict(
        line.split(": ", 1) for line in raw.decode().strip().split("\n") if not line.startswith(":")
    )
    return fields | {"data": json.loads(fields["data"])} if "data" in fields else None


async def first_messages(feed: Feed, seen: int | None) -> list[dict[str, Any]]:
    """What a browser is told at once."""
    found: list[dict[str, Any]] = []
    stream: AsyncIterator[bytes] = feed.subscribe(seen)
    try:
        while True:
            message = parsed(await asyncio.wait_for(anext(stream), 0.2 if found else 10))
            if message is not None:
                found.append(message)
            if message is not None and message["event"] == "figures":
                return found  # the last one of those
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


def told(feed: Feed, seen: int | None) -> list[dict[str, Any]]:
    """The messages about commits that a browser is told at once."""
    return [each for each in asyncio.run(first_messages(feed, seen)) if each["event"] == "commits"]


def test_a_browser_that_comes_back_is_told_what_it_missed(db: occamdb.Database, source: Source) -> None:
    feed = Feed(source)
    feed.look()
    seen = feed.version
    assert seen is not None
    runs = [RunId.new() for _ in range(5)]
    for run in runs:
        db.kv.put(run, "k", 1)
        feed.look()
    assert [each["data"]["runs"] for each in told(feed, seen)] == [[str(run)] for run in runs]
    assert all(each["data"]["complete"] for each in told(feed, seen))
    assert [int(each["id"]) for each in told(feed, seen)] == list(range(seen + 1, seen + 6))
    assert [each["data"]["runs"] for each in told(feed, seen + 3)] == [[str(run)] for run in runs[3:]]
    assert told(feed, seen + 5) == []


def test_commits_between_two_looks_come_together(db: occamdb.Database, source: Source) -> None:
    feed = Feed(source)
    feed.look()
    seen, runs = feed.version, [RunId.new() for _ in range(5)]
    for run in runs:
        db.kv.put(run, "k", 1)
    feed.look()
    (message,) = told(feed, seen)
    assert message["data"]["runs"] == [str(run) for run in runs] and message["data"]["count"] == 5


def test_what_is_no_longer_kept_is_said_to_be_missing(
    db: occamdb.Database, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(source)
    feed._kept = type(feed._kept)(maxlen=4)
    monkeypatch.setattr(feed_module, "KEPT_MAX", 4)
    feed.look()
    seen = feed.version
    for _ in range(10):
        db.kv.put(RunId.new(), "k", 1)
        feed.look()
    assert feed.version is not None and seen is not None
    (message,) = told(feed, seen)
    assert not message["data"]["complete"] and int(message["id"]) == feed.version
    assert [each["data"]["complete"] for each in told(feed, feed.version - 3)] == [True] * 3


@pytest.mark.parametrize("strange", [0, 1, 1 << 60])
def test_a_version_that_was_never_told_is_answered_with_the_present_one(
    db: occamdb.Database, source: Source, strange: int
) -> None:
    for _ in range(3):
        db.kv.put(RunId.new(), "k", 1)
    feed = Feed(source)
    feed.look()
    (message,) = told(feed, strange)
    assert not message["data"]["complete"] and int(message["id"]) == feed.version


def test_more_commits_than_can_be_told_are_told_as_many(db: occamdb.Database, source: Source) -> None:
    feed = Feed(source)
    feed.look()
    seen, run = feed.version, RunId.new()
    for at in range(feed_module.COMMITS_TOLD_MAX + 1):
        db.kv.put(run, "k", at)
    feed.look()
    (message,) = told(feed, seen)
    assert not message["data"]["complete"] and message["data"]["runs"] == []
    db.kv.put(run, "k", 0)
    feed.look()
    assert told(feed, feed.version and feed.version - 1)[0]["data"]["runs"] == [str(run)]


@pytest.mark.parametrize("count", [30, 5_000])
def test_a_deleted_run_is_told(db: occamdb.Database, source: Source, count: int) -> None:
    """Of a large one the engine only notes the range, which might be that of several runs."""
    run = db.runs.create_run("r")
    db.kv.put_many(run, {f"k{at}": at for at in range(count)})
    feed = Feed(source)
    feed.look()
    seen = feed.version
    db.runs.delete_run(run)
    feed.look()
    (message,) = told(feed, seen)
    assert str(run.run_id) in message["data"]["runs"] or not message["data"]["complete"]
    assert message["data"]["complete"] is (count == 30)


def test_a_browser_that_does_not_read_is_dropped(
    db: occamdb.Database, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "QUEUE_MAX", 3)
    feed = Feed(source)
    feed.look()

    async def sleepy() -> list[bytes]:
        stream = feed.subscribe(None)
        got = [await anext(stream)]  # from here on it is subscribed, and does not read
        for _ in range(10):
            await asyncio.to_thread(feed.look)
        got += [each async for each in stream]
        return got

    got = asyncio.run(asyncio.wait_for(sleepy(), 30))
    assert len(got) < 8, "it ends, and the browser comes back by itself"
    assert not feed._subscribers


def test_every_browser_is_told_every_commit_once(db: occamdb.Database, database_path: Path) -> None:
    """Over real sockets: three browsers, one of which comes back with the last id that it has seen."""
    with inspecting(database_path) as inspector:
        runs: list[str] = []

        def commit() -> None:
            run = RunId.new()
            runs.append(str(run))
            db.kv.put(run, "k", 1)

        with inspector.events() as one, inspector.events() as two:
            first, seen = set[str](), None
            with inspector.events() as leaving:
                next(leaving)
                commit()
                for message in leaving:
                    if message["event"] == "commits" and runs[0] in message["data"]["runs"]:
                        seen = int(message["id"])
                        first.update(message["data"]["runs"])
                        break
            assert seen is not None
            for _ in range(4):
                commit()
            for browser in (one, two):
                found: list[str] = []
                while set(runs) - set(found):
                    message = next(browser)
                    if message["event"] == "commits":
                        assert message["data"]["complete"]
                        found += message["data"]["runs"]
                assert sorted(found) == sorted(runs), "each of them once"
            with inspector.events(seen) as again:
                while set(runs) - first:
                    message = next(again)
                    if message["event"] == "commits":
                        assert int(message["id"]) > seen and message["data"]["complete"]
                        first.update(message["data"]["runs"])


def test_the_feed_outlives_the_coordinator(db: occamdb.Database, database_path: Path) -> None:
    """The page says that the coordinator is gone, and that it is back, with what was committed since."""
    db.kv.put(RunId.new(), "k", 1)
    with inspecting(database_path) as inspector, inspector.events() as messages:
        wait_for(messages, lambda data: data.get("kind") == "served" and not data["gone"])
        kill_coordinator(database_path)
        wait_for(messages, lambda data: data.get("gone") is True or data.get("kind") == "at rest")
        assert "No coordinator" in inspector.page("/").text or "is gone" in inspector.page("/").text
        run = RunId.new()
        db.kv.put(run, "back", 1)  # this starts another one
        wait_for(messages, lambda data: data.get("kind") == "served" and not data["gone"])
        wait_until(lambda: "back" in inspector.page(f"/run/{run}/keys").text)
        last = RunId.new()
        db.kv.put(last, "k", 2)
        wait_for(messages, lambda data: str(last) in data.get("runs", ()) or data.get("complete") is False)


def wait_for(messages: Iterator[dict[str, Any]], wanted: Any) -> dict[str, Any]:
    """The first message whose data is what is wanted."""
    for _, message in zip(range(200), messages, strict=False):
        if wanted(message["data"]):
            return message
    raise AssertionError("it was not told")


def test_without_a_browser_the_thread_rests(
    db: occamdb.Database, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "IDLE_S", 0.0)
    looks = 0
    feed = Feed(source)
    look = feed._look_at_commits

    def counted() -> bool:
        nonlocal looks
        looks += 1
        return look()

    monkeypatch.setattr(feed, "_look_at_commits", counted)
    feed.start()
    try:
        wait_until(lambda: not feed._wanted.is_set())
        before = looks
        feed._wanted_until = float("inf")
        feed._wanted.set()
        wait_until(lambda: looks > before + 2)
    finally:
        feed.stop()
