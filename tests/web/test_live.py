"""Pages follow the database by themselves, without a reload."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import occamdb
from occamdb import RunId, Thought
from occamdb.tools.coordinator import coordinator_of
from tests.support.browser import Inspector, inspecting
from tests.support.shell import command, run
from tests.web.conftest import Look

Open = Callable[..., Look]


def stay(seen: Look) -> None:
    """Mark the document: a reload would lose the mark."""
    seen.wait_live()
    seen.page.evaluate("window.stayed = true")


def assert_stayed(seen: Look) -> None:
    assert seen.page.evaluate("window.stayed") is True, "the page was loaded anew"


def commit(path: Path, *words: str) -> None:
    """A commit of another process."""
    done = run(command("put", path, *words))
    assert done.returncode == 0, done.stderr


def test_a_commit_of_another_process_shows(
    look: Open, inspector: Inspector, database_path: Path, db: occamdb.Database
) -> None:
    run_id = db.runs.create_run("agent 7").run_id
    seen = look(inspector)
    seen.go(f"/run/{run_id}/keys")
    stay(seen)
    commit(database_path, str(run_id), "plan", '{"go": "by bus"}')
    seen.page.wait_for_selector("text=by bus")
    commit(database_path, str(run_id), "plan", '{"go": "on foot"}')
    seen.page.wait_for_selector("text=on foot")
    assert seen.page.locator("text=by bus").count() == 0
    assert_stayed(seen)


def test_a_new_run_appears_in_the_list_and_on_the_overview(
    look: Open, inspector: Inspector, db: occamdb.Database
) -> None:
    lists, overview = look(inspector), look(inspector)
    lists.go("/runs")
    for seen in (lists, overview):
        stay(seen)
    made = db.runs.create_run("newcomer")
    for seen in (lists, overview):
        seen.page.wait_for_selector(f'tr[data-run="{made.run_id}"]')
    db.runs.fail_run(made.run_id, "gone wrong")
    for seen in (lists, overview):
        seen.page.wait_for_selector("text=gone wrong")
        assert_stayed(seen)


def test_a_timeline_grows_with_the_run(look: Open, inspector: Inspector, db: occamdb.Database) -> None:
    run_id = db.runs.create_run("worker").run_id
    seen = look(inspector)
    seen.go(f"/run/{run_id}")
    stay(seen)
    for number in range(3):
        trace = db.traces.record(run_id, Thought(f"thought {number}"))
        seen.page.wait_for_selector(f'svg.tl [data-trace="{trace}"]')
    assert_stayed(seen)


def test_events_arrive_and_what_is_open_stays_open(
    look: Open, inspector: Inspector, db: occamdb.Database
) -> None:
    run_id = RunId.new()
    db.events.append(run_id, "first", {"text": "word " * 100})
    seen = look(inspector)
    seen.go(f"/run/{run_id}/events")
    stay(seen)
    seen.page.click('tr[data-event="0"] details.value > summary')
    assert seen.page.locator('tr[data-event="0"] details.value[open]').count() == 1
    for number in range(1, 4):
        db.events.append(run_id, "next", {"n": number})
        seen.page.wait_for_selector(f'tr[data-event="{number}"]')
    assert seen.page.locator('tr[data-event="0"] details.value[open]').count() == 1
    assert_stayed(seen)


def test_a_burst_of_commits_ends_with_the_last_state(
    look: Open, inspector: Inspector, db: occamdb.Database
) -> None:
    run_id = RunId.new()
    db.kv.put(run_id, "count", 0)
    seen = look(inspector)
    seen.go(f"/run/{run_id}/keys")
    stay(seen)
    for number in range(1, 2_001):
        db.kv.put(run_id, "count", number)
    seen.page.wait_for_selector('tr[data-key] >> text="2000"')
    assert_stayed(seen)


def test_a_page_that_is_held_still_waits(look: Open, inspector: Inspector, db: occamdb.Database) -> None:
    run_id = RunId.new()
    db.kv.put(run_id, "k", "before")
    seen, other = look(inspector), look(inspector)
    for each in (seen, other):
        each.go(f"/run/{run_id}/keys")
        stay(each)
    seen.page.keyboard.press("Space")
    seen.page.wait_for_selector('#live[data-state="still"]')
    db.kv.put(run_id, "k", "after")
    other.page.wait_for_selector("text=after")  # the same message went to both
    assert seen.page.locator("text=before").count() == 1
    seen.page.keyboard.press("Space")
    seen.page.wait_for_selector("text=after")
    assert_stayed(seen)


@pytest.mark.parametrize("browsers", [3])
def test_several_browsers_are_told_of_the_same_commit(
    look: Open, inspector: Inspector, db: occamdb.Database, browsers: int
) -> None:
    windows = [look(inspector) for _ in range(browsers)]
    run_id = RunId.new()
    db.kv.put(run_id, "k", 1)
    for seen in windows:
        seen.go(f"/run/{run_id}/keys")
        stay(seen)
    db.kv.put(run_id, "shared", "news")
    for seen in windows:
        seen.page.wait_for_selector("text=news")
        assert_stayed(seen)


def test_a_coordinator_that_dies_is_told_of_and_its_return_too(look: Open, database_path: Path) -> None:
    run_id = RunId.new()
    with ExitStack() as opened:
        db = opened.enter_context(occamdb.open(database_path))
        db.kv.put(run_id, "k", 1)
        seen = look(opened.enter_context(inspecting(database_path)))
        seen.expect("503|Failed to load resource")
        seen.go(f"/run/{run_id}/keys")
        stay(seen)
        holder = coordinator_of(database_path)
        assert holder is not None
        os.kill(holder.pid, signal.SIGKILL)
        seen.page.wait_for_selector('#live[data-state="lost"]')
        assert seen.page.locator('tr[data-key="k"]').count() == 1, "what was seen last stays"
        seen.picture("coordinator-gone")
        # The next commit starts another one.
        db.kv.put(run_id, "again", "back")
        seen.page.wait_for_selector("text=back", timeout=30_000)
        seen.page.wait_for_selector('#live[data-state="live"]', timeout=30_000)
        assert_stayed(seen)
