"""Every page, on a small database and on a large one: it shows what is stored, in light and in dark."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import RunId, RunMetadata
from tests.support.browser import Inspector
from tests.support.large_database import LARGE_NAME, LONG_NAME
from tests.web.conftest import Look

Open = Callable[..., Look]
RUN_TABS = ["", "/traces", "/events", "/cells", "/keys", "/work"]


def run_named(path: Path, name: str) -> RunId:
    with occamdb.open(path) as db:
        found = db.runs.find(name)
        assert found is not None
        return found.run_id


def test_the_overview_says_what_goes_on(look: Open, demo: Inspector) -> None:
    seen = look(demo)
    seen.wait_live()
    text = seen.page.inner_text("main")
    assert "Overview" in text and "commits" in text.lower()
    assert seen.page.locator("main svg.tl-spark").count() >= 3
    seen.picture("overview")


def test_runs_are_listed_and_filtered(look: Open, demo: Inspector) -> None:
    seen = look(demo)
    seen.go("/runs")
    names = seen.page.locator("#runs tbody tr td.name").all_inner_texts()
    assert len([name for name in names if name.startswith("indexer-")]) == 3
    seen.go("/runs?status=failed")
    (row,) = seen.page.locator("#runs tbody tr").all_inner_texts()
    assert row.startswith("indexer-") and "killed on purpose" in row
    seen.go("/runs?view=tree")
    levels = seen.page.locator("#runs tbody tr").evaluate_all("rows => rows.map(r => r.ariaLevel)")
    assert levels == ["1", "2", "2", "2"]
    seen.go("/runs")
    seen.page.fill("#filter", "indexer-3")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_url("**/runs?*indexer-3*")
    assert seen.page.locator("#runs tbody tr").count() == 1


@pytest.mark.parametrize("tab", RUN_TABS, ids=[tab.strip("/") or "timeline" for tab in RUN_TABS])
def test_each_tab_of_a_run_opens_from_the_list(
    look: Open, demo: Inspector, agent: RunMetadata, tab: str
) -> None:
    seen = look(demo)
    seen.go("/runs")
    seen.page.click(f"text={agent.name}")
    seen.page.wait_for_selector("#tabs")
    if tab:
        seen.page.click(f'#tabs a[href$="{tab}"]')
    seen.page.wait_for_url(f"**/run/{agent.run_id}{tab}")
    assert agent.name in seen.page.inner_text("h1")
    seen.picture(tab.strip("/") or "timeline")


def test_the_timeline_shows_traces_and_leads_to_them(
    look: Open, demo: Inspector, demo_path: Path, agent: RunMetadata
) -> None:
    seen = look(demo)
    seen.go(f"/run/{agent.run_id}")
    bars = seen.page.locator("svg.tl a[data-trace]")
    with occamdb.open(demo_path) as db:
        assert bars.count() == db.traces.count(agent)
    fills = bars.locator("rect").evaluate_all("rects => rects.map(r => getComputedStyle(r).fill)")
    assert "rgb(0, 0, 0)" not in fills and len(set(fills)) >= 3, "bars have the colours of their types"
    assert seen.page.locator("svg.tl path.tl-path").count() == 1
    trace = bars.nth(2).get_attribute("data-trace")
    bars.nth(2).click()
    seen.page.wait_for_url(f"**/run/{agent.run_id}/trace/{trace}")
    assert "Input and output" in seen.page.inner_text("main")


def test_a_timeline_is_zoomed_into_and_back(look: Open, demo: Inspector, agent: RunMetadata) -> None:
    seen = look(demo)
    seen.go(f"/run/{agent.run_id}")
    whole = seen.page.locator("svg.tl a[data-trace]").count()
    seen.page.click('#timeline-tools a[data-zoom="in"]')
    seen.page.wait_for_function("() => location.search.includes('first=')")
    seen.wait_live()
    assert 0 < seen.page.locator("svg.tl a[data-trace]").count() <= whole
    seen.page.click('#timeline-tools a[data-zoom="all"]')
    seen.page.wait_for_function("() => !location.search")
    assert seen.page.locator("svg.tl a[data-trace]").count() == whole


def test_the_events_of_the_demo_are_verified(
    look: Open, demo: Inspector, demo_path: Path, agent: RunMetadata
) -> None:
    seen = look(demo)
    seen.go(f"/run/{agent.run_id}/events")
    with occamdb.open(demo_path) as db:
        length = db.events.len(agent)
    assert seen.page.locator("tr[data-event]").count() == length
    assert re.search(r"verified|holds|valid", seen.page.inner_text("main"))


PAGES = ["/", "/runs", "/runs?view=tree", "/conflicts", "/commits", "/compare"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_of_the_menu(look: Open, anywhere: Inspector, scheme: str) -> None:
    seen = look(anywhere, color_scheme=scheme)
    for path in PAGES:
        answer = seen.go(path)
        assert answer.status == 200, f"{path}: {seen.page.inner_text('main')}"
        seen.picture(path.strip("/").replace("?", "-") or "overview")
    assert is_dark(seen.page) == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tab", RUN_TABS)
def test_every_tab_of_large_runs(
    look: Open, large: Inspector, large_path: Path, tab: str, scheme: str
) -> None:
    seen = look(large, color_scheme=scheme)
    for name in (LARGE_NAME, LONG_NAME):
        answer = seen.go(f"/run/{run_named(large_path, name)}{tab}")
        assert answer.status == 200
        seen.picture(f"{name.replace(' ', '_')}-{tab.strip('/') or 'timeline'}")
    assert is_dark(seen.page) == (scheme == "dark")


def is_dark(page: Any) -> bool:
    """Whether the page is light writing on a dark ground, and the text can be told from it."""
    paper, ink = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    ground, text = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in (paper, ink))
    assert abs(ground - text) > 400, f"{ink} on {paper}"
    return bool(ground < text)


def test_ten_thousand_runs_are_paged_through(look: Open, large: Inspector) -> None:
    seen = look(large)
    seen.go("/runs")
    assert "10,000" in seen.page.inner_text("#runs-total")
    first = seen.page.locator("#runs tbody tr").evaluate_all("rows => rows.map(r => r.dataset.run)")
    seen.page.click('#pager a[rel="next"]')
    seen.page.wait_for_url("**before=*")
    second = seen.page.locator("#runs tbody tr").evaluate_all("rows => rows.map(r => r.dataset.run)")
    assert len(first) == len(second) >= 50 and not set(first) & set(second)


def test_ten_thousand_traces_are_drawn_in_groups(look: Open, large: Inspector, large_path: Path) -> None:
    seen = look(large)
    seen.go(f"/run/{run_named(large_path, LARGE_NAME)}")
    assert 100 < seen.page.locator("svg.tl [data-trace]").count() <= 2_000
    assert "10,000 traces" in (seen.page.locator("svg.tl .tl-note").text_content() or "")


def test_fifty_thousand_events_are_paged_through(look: Open, large: Inspector, large_path: Path) -> None:
    seen = look(large)
    seen.go(f"/run/{run_named(large_path, LONG_NAME)}/events")
    assert 50 <= seen.page.locator("tr[data-event]").count() <= 1_000
    assert "50,000" in seen.page.inner_text("main")
