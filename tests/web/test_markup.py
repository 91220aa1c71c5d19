"""What is stored never becomes markup or script, in a browser either."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import occamdb
from occamdb import Custom, Decision, Error, RunId, Thought, ToolCall
from occamdb.primitives import Query
from tests.support.browser import Inspector
from tests.support.trace_forests import NASTY
from tests.web.conftest import Look

Open = Callable[..., Look]
RUN = "00000000-0000-7000-8000-000000000001"
BAD = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</title></style></svg><script>document.title='owned'</script>",
    '"><svg onload="document.title=\'owned\'">',
    "javascript:document.title='owned'",
    "{{ 7 * 7 }}{% raw %}",
    *(text for text in NASTY if "\ud800" not in text),
]
EVERY = "".join(BAD)


@pytest.fixture
def filled(db: occamdb.Database) -> Iterator[occamdb.Database]:
    """Every text field of every primitive holds all of it."""
    db.runs.create_run_with_options(EVERY, run_id=RUN, tags=BAD, metadata={EVERY: [EVERY]})
    db.runs.create_run_with_options(EVERY, parent=RUN, tags=BAD)
    for text in BAD:
        with db.traces.span(RUN, ToolCall(text, {text: text}), tags=[text], metadata={text: text}) as span:
            span.set_result(text)
            span.set_error(text)
            contents = (
                *(Decision(text, [text], text, text), Query(text, text, text), Thought(text)),
                *(Error(text, text), Custom(text, {text: text.encode()})),
            )
            for content in contents:
                db.traces.record(RUN, content)
        db.events.append(RUN, text, {text: text})
        db.cells.init(RUN, text, text)
        db.kv.put(RUN, text, text)
        db.tasks.put(RUN, text, text, key=text)
        db.steps.run(RUN, text, lambda txn, text=text: text)
    db.runs.fail_run(RUN, EVERY)
    with db.leases.hold(RUN, EVERY[:500]):
        yield db


def test_stored_text_is_shown_as_text_on_every_page(
    look: Open, inspector: Inspector, filled: occamdb.Database
) -> None:
    seen = look(inspector)
    trace = filled.traces.query(RUN, limit=1)[0].id
    version = 5
    pages = [
        *("/", "/runs", "/runs?view=tree", "/conflicts", "/commits", f"/commit/{version}"),
        *(f"/run/{RUN}{tab}" for tab in ("", "/traces", "/events", "/cells", "/keys", "/work")),
        *(f"/run/{RUN}/trace/{trace}", f"/compare?left={RUN}&right={RUN}", f"/lanes?run={RUN}"),
    ]
    for path in pages:
        assert seen.go(path).status == 200, path
        assert "owned" not in seen.page.title() or "<script>" in seen.page.title()
        # No element is there that the pages do not have themselves, and none that runs anything.
        assert seen.page.locator("script:not([src]), img, iframe, object, embed").count() == 0
        handlers = "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => /^on/.test(a.name))"
        assert seen.page.evaluate(f"{handlers}.length") == 0
        links = seen.page.eval_on_selector_all(
            "a[href]", "all => all.map(a => new URL(a.getAttribute('href'), location).protocol)"
        )
        assert set(links) <= {"http:"}
        assert not seen.page.evaluate("document.body.innerText.includes('\\u202e')")
    seen.go(f"/run/{RUN}/keys")
    assert "<script>document.title = 'owned'</script>" in seen.page.inner_text("main")
    assert "49" not in seen.page.inner_text("main").replace("7 * 7", "").split()


@pytest.mark.parametrize("text", ["<b>bold</b>", "' or 1=1 --", "%3Cscript%3E", "é漢字"])
def test_what_is_typed_into_filters_is_text_too(
    look: Open, inspector: Inspector, filled: occamdb.Database, text: str
) -> None:
    seen = look(inspector)
    seen.go("/runs")
    seen.page.fill("#filter", text)
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_function("() => location.search.includes('text=')")
    assert seen.page.input_value("#filter") == text
    assert seen.page.locator("main b:has-text('bold')").count() == 0


def test_a_report_runs_nothing_and_has_its_styles(
    look: Open, inspector: Inspector, filled: occamdb.Database, tmp_path: Path
) -> None:
    from occamdb.tools.run_report.content import read_run
    from occamdb.tools.run_report.page import report_page

    target = tmp_path / "run.html"
    target.write_text("".join(report_page(read_run(filled, RunId.of(RUN)), EVERY)), encoding="utf-8")
    seen = look(inspector)
    seen.page.goto(target.as_uri())
    assert seen.page.title().endswith("occamdb") and "owned" in seen.page.title()
    assert seen.page.locator("script, img, iframe").count() == 0
    fill = seen.page.locator("svg.tl rect.tl-toolcall").first.evaluate("r => getComputedStyle(r).fill")
    assert fill == "rgb(116, 174, 245)", "the hash of its policy is that of its styles"
    # A bar leads to its trace, which opens what is around it.
    bar = seen.page.locator("svg.tl a[data-trace]").first
    bar.click()
    assert seen.page.locator(f"#t-{bar.get_attribute('data-trace')}").is_visible()
    # Its policy refuses a script that somebody puts in later.
    seen.expect("Content Security Policy")
    seen.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = \"document.title = 'owned!'\";"
        " document.body.append(s); }"
    )
    assert seen.page.title() != "owned!"
