"""The pages without a mouse."""

from collections.abc import Callable

from occamdb import RunMetadata
from tests.support.browser import Inspector
from tests.web.conftest import Look, path_of

Open = Callable[..., Look]


def press(seen: Look, *keys: str) -> None:
    """Press keys, when the page's script has begun to listen to them."""
    seen.page.wait_for_selector('#live:not([data-state="starting"])')
    for key in keys:
        seen.page.keyboard.press(key)


def test_letters_lead_to_the_pages_of_the_menu(look: Open, demo: Inspector) -> None:
    seen = look(demo)
    for letter, path in (
        ("r", "/runs"),
        ("c", "/conflicts"),
        ("m", "/commits"),
        ("p", "/compare"),
        ("o", "/"),
    ):
        press(seen, "g", letter)
        seen.page.wait_for_function(f"() => location.pathname === {path!r}")
        seen.page.wait_for_selector("main h1")


def test_rows_are_walked_and_opened(look: Open, demo: Inspector) -> None:
    seen = look(demo)
    seen.go("/runs")
    rows = seen.page.locator("#runs tbody tr")
    press(seen, "j", "j", "j", "k")
    focused = seen.page.evaluate("document.activeElement.dataset.run")
    assert focused == rows.nth(1).get_attribute("data-run")
    seen.picture("focused-row")
    press(seen, "Enter")
    seen.page.wait_for_url(f"**/run/{focused}")


def test_digits_are_the_tabs_of_a_run(look: Open, demo: Inspector, agent: RunMetadata) -> None:
    seen = look(demo)
    run_id = agent.run_id
    seen.go(f"/run/{run_id}")
    for digit, tab in (
        ("2", "/traces"),
        ("3", "/events"),
        ("4", "/cells"),
        ("5", "/keys"),
        ("6", "/work"),
        ("1", ""),
    ):
        press(seen, digit)
        seen.page.wait_for_function(f"() => location.pathname === '/run/{run_id}{tab}'")
        seen.page.wait_for_selector("#tabs")


def test_the_timeline_is_zoomed_by_keys(look: Open, demo: Inspector, agent: RunMetadata) -> None:
    seen = look(demo)
    seen.go(f"/run/{agent.run_id}")
    press(seen, "+")
    seen.page.wait_for_function("() => location.search.includes('first=')")
    seen.wait_live()
    zoomed = path_of(seen.page.url)
    press(seen, "ArrowRight")
    seen.page.wait_for_function(f"() => location.pathname + location.search !== {zoomed!r}")
    seen.wait_live()
    assert "first=" in seen.page.url
    press(seen, "0")
    seen.page.wait_for_function("() => location.search === ''")


def test_a_slash_goes_to_the_filter_and_escape_leaves_it(look: Open, demo: Inspector) -> None:
    seen = look(demo)
    seen.go("/runs")
    press(seen, "/")
    assert seen.page.evaluate("document.activeElement.id") == "filter"
    press(seen, "j")
    assert seen.page.input_value("#filter") == "j", "letters are text there"
    press(seen, "Escape")
    assert seen.page.evaluate("document.activeElement.id") != "filter"


def test_a_question_mark_shows_the_keys(look: Open, demo: Inspector) -> None:
    seen = look(demo)
    press(seen, "?")
    seen.page.wait_for_selector("#help[open]")
    assert "next and the previous row" in seen.page.inner_text("#help")
    seen.picture("keys")
    press(seen, "Escape")
    seen.page.wait_for_selector("#help:not([open])", state="attached")


def test_everything_is_reached_by_tab_and_has_a_name(look: Open, demo: Inspector, agent: RunMetadata) -> None:
    seen = look(demo)
    seen.go(f"/run/{agent.run_id}")
    names = []
    for _ in range(14):
        press(seen, "Tab")
        names.append(
            seen.page.evaluate(
                "(e => (e.getAttribute('aria-label') || e.innerText || e.textContent || e.title || '').trim())"
                "(document.activeElement)"
            )
        )
    assert names[0] == "Skip to the content" and all(names), names
    assert len(set(names)) > 10
