"""What the inspector refuses, and what it says when something is wrong."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import occamdb
from occamdb import RunId
from tests.conftest import stop_coordinator
from tests.support.browser import Inspector, inspecting
from tests.support.log_driver import flip
from tests.web.conftest import Look

Open = Callable[..., Look]


def test_a_wrong_token_is_not_let_in(look: Open, inspector: Inspector) -> None:
    seen = look(inspector)
    seen.expect("403")
    seen.page.context.clear_cookies()
    for address in (f"{inspector.root}/", f"{inspector.root}/?token=wrong", f"{inspector.root}/runs"):
        answer = seen.page.goto(address)
        assert answer.status == 403
        assert re.search("token", seen.page.inner_text("body"), re.IGNORECASE)
        assert seen.page.locator("table").count() == 0
    seen.picture("refused")


def test_the_token_is_gone_from_the_address_after_the_first_page(look: Open, inspector: Inspector) -> None:
    seen = look(inspector)
    assert "token" not in seen.page.url
    cookies = seen.page.context.cookies()
    assert [(each["httpOnly"], each["sameSite"]) for each in cookies] == [(True, "Strict")]
    assert seen.page.evaluate("document.cookie") == ""


@pytest.mark.parametrize(
    "path", ["/nothing", "/run/nonsense", "/commit/x", "/runs?before=zz", "/runs?status=odd"]
)
def test_a_wrong_address_says_so_and_leads_back(look: Open, inspector: Inspector, path: str) -> None:
    seen = look(inspector)
    seen.expect("40[04]")
    answer = seen.go(path)
    assert answer.status in (400, 404)
    assert seen.page.locator('[role="alert"]').count() == 1
    seen.page.click("text=Runs")
    seen.page.wait_for_selector("#runs")


def test_an_unknown_run_is_an_empty_one(look: Open, inspector: Inspector) -> None:
    seen = look(inspector)
    seen.expect("404")
    seen.go(f"/run/{RunId.new()}")
    assert re.search("not in the index|no such run|no traces|none", seen.page.inner_text("main"))


def test_a_database_that_nobody_serves_is_shown_and_stays_so(look: Open, database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        run_id = db.runs.create_run("of yesterday").run_id
        db.kv.put(run_id, "k", "kept")
    stop_coordinator(database_path)
    with inspecting(database_path) as inspector:
        seen = look(inspector)
        seen.go(f"/run/{run_id}/keys")
        assert "kept" in seen.page.inner_text("main")
        assert "No coordinator serves" in seen.page.inner_text("#condition")
        seen.picture("at-rest")
        # Somebody begins to use it.
        seen.wait_live()
        with occamdb.open(database_path) as db:
            db.kv.put(run_id, "k", "changed")
            seen.page.wait_for_selector("text=changed")
            assert "No coordinator serves" not in seen.page.inner_text("#condition")


def test_a_damaged_database_shows_what_can_be_read(look: Open, database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        run_id = db.runs.create_run("survivor").run_id
        for number in range(200):
            db.kv.put(run_id, f"key {number:03}", "word " * 20)
    stop_coordinator(database_path)
    (segment,) = (database_path / "wal").iterdir()
    flip(segment, segment.stat().st_size // 3)
    with inspecting(database_path) as inspector:
        seen = look(inspector)
        seen.go(f"/run/{run_id}/keys")
        assert "This database is damaged" in seen.page.inner_text("#condition")
        assert "key 000" in seen.page.inner_text("main")
        seen.picture("damaged")
