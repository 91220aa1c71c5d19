"""Commits as rows across primitives, conflicts with both sides, lanes and comparisons."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import occamdb
from occamdb import RunId, Thought, ToolCall, Transaction
from occamdb.tools.inspector.conflicts import ConflictLog
from tests.support.inspecting import Looked, Page, looking_at, query_of
from tests.support.transactions import lose_by_read


@pytest.fixture
def db(database_path: Path) -> Iterator[occamdb.Database]:
    with occamdb.open(database_path) as database:
        yield database


@pytest.fixture
def looked(db: occamdb.Database, database_path: Path) -> Iterator[Looked]:
    with looking_at(database_path) as found:
        yield found


def row_of(page: Page, version: int) -> str:
    """The words of a commit's row."""
    at = page.text_of("commits-table").index(f" {version:,} ")
    return page.text_of("commits-table")[at:].partition("Z ")[2]


def everything(txn: Transaction) -> None:
    """Something in every primitive."""
    txn.put("one", 1)
    txn.put("two", 2)
    txn.events.append("step", {"needle": 1})
    txn.traces.record(Thought("a thought"), tags=["t"])
    txn.cells.init("cell", 5)
    txn.tasks.put("pages", "x")


def test_one_commit_across_primitives_is_one_row(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("the run")
    txn = db.begin(run)
    everything(txn)
    version = txn.commit().version
    page = looked.page("/commits")
    assert page.all("data-commit", "tr") == [str(version), str(version - 1)]
    row = row_of(page, version).partition("; ")[0]
    assert row.startswith("the run")
    for words in ("2 keys", "1 event", "1 trace", "1 cell", "1 task"):
        assert words in row, words
    detail = looked.page(f"/commit/{version}")
    for words in ("needle", "a thought", "one", "two", "cell", "pages"):
        assert words in detail.text_of("changes"), words
    assert f"by process {os.getpid()}" in detail.text_of("commit-facts") or "by session" in detail.text_of(
        "commit-facts"
    )


def test_commits_come_page_by_page_and_each_once(db: occamdb.Database, looked: Looked) -> None:
    one, two = RunId.new(), RunId.new()
    for at in range(350):
        db.kv.put(two if at % 7 == 0 else one, "k", at)
    newest = db.kv.get_versioned(one, "k")
    assert newest is not None

    def versions(address: str | None) -> list[int]:
        found: list[int] = []
        while address is not None:
            page = looked.page(address)
            found += map(int, page.all("data-commit", "tr"))
            address = page.link("next")
        return found

    every = versions("/commits")
    assert every == list(range(newest.version, 0, -1))
    of_two = versions(f"/commits?run={two}")
    assert len(of_two) == 50 and set(of_two) < set(every)


def test_a_deleted_run_and_expired_and_deleted_keys_are_named(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("doomed")
    db.kv.put_many(run, {f"k{at}": at for at in range(5_000)})
    db.kv.delete(run, "k0")
    db.runs.delete_run(run)
    page = looked.page("/commits")
    text = page.text_of("commits-table")
    assert "5,000 keys" in text and "1 deleted key" in text
    assert "deleted" in text.partition("5,000")[0] or "range" in text.partition("5,000")[0]


def test_a_commit_that_is_not_there(db: occamdb.Database, looked: Looked) -> None:
    db.kv.put(RunId.new(), "k", 1)
    looked.page("/commit/1")
    for version in ("0", "2", "99999999999"):
        assert "no commit" in looked.page(f"/commit/{version}", 404).text


def test_conflicts_are_shown_with_both_sides(db: occamdb.Database, looked: Looked) -> None:
    run = RunId.new()
    won = [lose_by_read(db, run, f"hot {at}") for at in range(3)]
    looked.feed.look()
    page = looked.page("/conflicts")
    text = page.text_of("conflicts")
    assert len(page.all("data-conflict", "tr")) == 3
    for at, version in enumerate(won):
        assert f"hot {at}" in text and f"/commit/{version}" in page.all("href", "a")
    assert text.count(str(os.getpid())) == 6, "this process lost and won"
    assert "read 3" in page.text_of("conflict-counts")
    assert "granted" in page.text_of("turns")


def test_the_heat_map_has_keys_by_time(db: occamdb.Database, looked: Looked) -> None:
    run = RunId.new()
    looked.feed.look()
    for _ in range(5):
        lose_by_read(db, run, "hottest")
    lose_by_read(db, run, "warm")
    looked.feed.look()
    page = looked.page("/conflicts")
    keys = [
        found["data-key"]
        for tag, found in page.elements
        if tag == "tr" and "hot" in found.get("data-key", "")
    ]
    assert keys and "hottest" in keys[0]
    levels = [
        found["class"]
        for tag, found in page.elements
        if tag == "td" and found.get("class", "").startswith("heat-")
    ]
    assert "heat-6" in levels and len(levels) >= 2


def reading(at: float, hot: dict[str, int], recent: int = 0, session: int = 1) -> dict[str, object]:
    """Figures with conflicts in them."""
    return {
        "read_at": at,
        "workers": [{"session": session, "pid": 7}],
        "hot_keys": [{"key": key, "conflicts": count} for key, count in hot.items()],
        "recent_conflicts": [
            {
                "at": at,
                "pid": 7,
                "session": session,
                "attempt": 1,
                "kind": "read",
                "run": "",
                "tag": 1,
                "key": "k",
                "expected": 1,
                "found": 2,
                "number": number,
            }
            for number in range(1, recent + 1)
        ],
    }


def test_conflicts_are_counted_by_what_was_added() -> None:
    log = ConflictLog()
    log.add(reading(0.0, {"a": 100}))
    log.add(reading(1.0, {"a": 103, "b": 1}))
    log.add(None)  # the coordinator was away: what it counted before is not known
    log.add(reading(5.0, {"a": 2}))
    log.add(reading(6.0, {"a": 4}))
    totals = {row.key: row.total for row in log.heat_map().rows}
    assert totals == {"a": 5, "b": 1}


def test_a_key_that_takes_over_the_count_of_another_is_not_blamed_for_it() -> None:
    log = ConflictLog()
    full = {f"k{at}": 1000 for at in range(32)}
    log.add(reading(0.0, full))
    del full["k0"]
    log.add(reading(1.0, full | {"new": 1001}))
    assert {row.key: row.total for row in log.heat_map().rows} == {"new": 1}


def test_each_conflict_is_listed_once() -> None:
    log = ConflictLog()
    assert log.add(reading(0.0, {}, recent=2)) == 2
    assert log.add(reading(1.0, {}, recent=2)) == 0
    assert log.add(reading(2.0, {}, recent=3)) == 1
    assert log.add(reading(3.0, {}, recent=1, session=2)) == 1
    assert len(log.newest(100)) == 4
    assert log.newest(100, {2: 1})[0].winner == 7


def test_lanes_have_runs_on_one_axis(db: occamdb.Database, looked: Looked) -> None:
    top = db.runs.create_run("top")
    agents = [db.runs.create_run(f"agent {at}", parent=top) for at in range(3)]
    bars = [db.traces.record(agent, ToolCall("work")) for agent in agents]
    page = looked.page(f"/lanes?run={top.run_id}")
    for agent, bar in zip(agents, bars, strict=True):
        assert agent.name in page.text and f"/run/{agent.run_id}/trace/{bar}" in page.all("href", "a")
    some = looked.page(f"/lanes?run={agents[0].run_id}&run={agents[2].run_id}")
    assert {found for found in some.all("data-trace") if found} == {bars[0], bars[2]}
    closer = next(found["href"] for _, found in some.elements if found.get("data-zoom") == "in")
    assert query_of(closer)["run"] in (str(agents[0].run_id), str(agents[2].run_id))
    looked.page(closer)


def test_two_runs_are_compared(db: occamdb.Database, looked: Looked) -> None:
    left, right = db.runs.create_run("left"), db.runs.create_run("right", tags=["x"])
    for at, run in enumerate((left, right)):
        db.kv.put(run, "same", {"a": [1]})
        db.kv.put(run, "differs", at)
        db.kv.put(run, f"only {run.name}", 1)
        db.events.append(run, "began", {})
        db.events.append(run, "went", {"way": run.name})
        db.cells.init(run, "cell", "idle")
        db.steps.run(run, "fetch", lambda: 1)
    db.events.append(right, "more", {})
    db.runs.fail_run(right, "no answer")
    page = looked.page(f"/compare?left={left.run_id}&right={right.run_id}")
    facts = {found["data-fact"]: found["class"] for _, found in page.elements if "data-fact" in found}
    assert {name for name, kind in facts.items() if kind == "differs"} == {"name", "status", "error", "tags"}
    assert "differs only left only right" in " ".join(page.all("data-difference", "tr"))
    assert page.all("data-difference", "tr")[:2] == ["event 1", "event 2"]
    assert "alike" in page.text_of("compare-cells") and "alike" in page.text_of("compare-steps")
    itself = looked.page(f"/compare?left={left.run_id}&right={left.run_id}")
    assert itself.all("data-difference", "tr") == []


def test_types_are_compared_too(db: occamdb.Database, looked: Looked) -> None:
    left, right = db.runs.create_run("l"), db.runs.create_run("r")
    db.kv.put(left, "k", 1)
    db.kv.put(right, "k", True)
    page = looked.page(f"/compare?left={left.run_id}&right={right.run_id}")
    assert page.all("data-difference", "tr") == ["k"]


def test_the_choice_of_runs_to_compare(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("choose me")
    page = looked.page("/compare")
    assert str(run.run_id) in page.all("value", "option")
    looked.page(f"/compare?left={run.run_id}&right={RunId.new()}")
