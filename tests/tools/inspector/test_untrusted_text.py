"""What is stored is text on every page, whatever it looks like."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import pytest

import occamdb
from occamdb.tools.inspector import shown
from tests.support.hostile import MARK, NASTY, Hostile, fill
from tests.support.inspecting import Looked, Page, looking_at

PAGES_MAX = 400
PARTS = ("", "/traces", "/events", "/cells", "/keys", "/work")
OWN_SCRIPTS = {"/static/inspector.js"}
OWN_SHEETS = {"/static/inspector.css", "/static/pictures.css"}
# What may be on a page at all. Anything else came from what is stored.
ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title link script body a header nav span div main dialog h1 h2 h3 dl dt dd form button p table "
        "thead tbody tr th td time label input select option datalist section ul li details summary pre code progress "
        "b svg g path rect line text br",
    )
)
ADDRESSES = ("href", "src", "action", "formaction", "data", "xlink:href", "poster", "srcset")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Looked, Hostile]]:
    path = tmp_path_factory.mktemp("hostile") / "db"
    with occamdb.open(path, idle_timeout=0.2) as db:
        made = fill(db)
        with looking_at(path) as looked:
            yield looked, made


def checked(page: Page, address: str) -> None:
    """Fail if anything on a page is more than text and links of ours."""
    for tag, attributes in page.elements:
        assert tag in ELEMENTS, (address, tag, attributes)
        for name in attributes:
            assert not name.startswith("on") and name != "style" and name.isascii(), (address, tag, name)
        for name in ADDRESSES:
            target = attributes.get(name)
            if target is None:
                continue
            assert target[:1] in ("/", "?", "#") and target[:2] != "//", (address, tag, name, target)
        if tag == "script":
            assert attributes.get("src") in OWN_SCRIPTS, (address, attributes)
        if tag == "link":
            assert attributes.get("href") in OWN_SHEETS | {"/static/icon.svg"}, (address, attributes)
    for bad in ("\x00", "\x1b", "\u202e", "\u2066", "\ufeff"):
        assert bad not in page.markup, (address, bad)
    assert str(7919 * 7907) not in page.markup, "a stored template was run"


def test_no_page_that_can_be_reached_holds_markup_of_the_data(hostile: tuple[Looked, Hostile]) -> None:
    looked, made = hostile
    first, *others = made.runs
    waiting = [
        "/",
        "/runs?view=tree",
        "/conflicts",
        f"/lanes?run={first}&run={others[0]}",
        f"/commits?run={first}",
    ]
    waiting += [f"/compare?left={first}&right={other}" for other in others]
    waiting += [
        f"/run/{run}{part}"
        for run in made.runs
        for part in ("", "/traces", "/events", "/cells", "/keys", "/work")
    ]
    seen: set[str] = set()
    marked = 0
    while waiting and len(seen) < PAGES_MAX:
        address = waiting.pop(0)
        if address in seen:
            continue
        seen.add(address)
        answer = looked.client.get(address)
        assert answer.status_code == 200, (address, answer.text)
        page = Page(answer.text)
        checked(page, address)
        assert "This part cannot be read" not in page.text, address
        marked += MARK in page.text
        for target in page.all("href", "a"):
            joined = urljoin(address, target)
            if not urlsplit(joined).path.startswith("/static/") and "#" not in joined:
                waiting.append(joined)
    assert len(seen) > 200
    assert marked > 100, "the texts must be there to be looked at"


@pytest.mark.parametrize("at", range(len(NASTY)))
def test_every_part_of_a_run_shows_the_text_itself(hostile: tuple[Looked, Hostile], at: int) -> None:
    looked, made = hostile
    run = made.runs[at]
    for part in PARTS:
        page = looked.page(f"/run/{run}{part}")
        # The name of the run stands on each of them, as it was stored but for what no page may hold.
        stored = NASTY[at].encode("utf-8", "replace").decode()
        assert " ".join(shown.line(stored, 120).split()) in page.text, part


@pytest.mark.parametrize(
    "address",
    [
        "/runs?text={}",
        "/runs?status={}",
        "/runs?tag={}",
        "/runs?before={}",
        "/run/{}",
        "/run/RUN/traces?type={}",
        "/run/RUN/traces?tag={}",
        "/run/RUN/traces?under={}",
        "/run/RUN/traces?after={}",
        "/run/RUN/trace/{}",
        "/run/RUN/events?from={}",
        "/run/RUN/events?type={}",
        "/run/RUN/keys?prefix={}",
        "/run/RUN/keys?after={}",
        "/run/RUN/work?queue={}",
        "/run/RUN/work?queue=q&state={}",
        "/run/RUN/work?queue=q&after={}",
        "/run/RUN?first={}&last={}",
        "/commits?before={}",
        "/commits?run={}",
        "/commit/{}",
        "/compare?left={}&right={}",
        "/lanes?run={}",
        "/{}",
    ],
)
def test_what_stands_in_an_address_is_text_too(hostile: tuple[Looked, Hostile], address: str) -> None:
    looked, made = hostile
    for nasty in NASTY:
        filled = address.replace("{}", quote(nasty, safe="", errors="replace"))
        answer = looked.client.get(filled.replace("RUN", str(made.runs[0])))
        assert answer.status_code in (200, 400, 404), answer.text
        checked(Page(answer.text), filled)


def test_texts_have_an_end(database_path: Path) -> None:
    """Whatever is stored, a page stays small."""
    with occamdb.open(database_path) as db:
        run = db.runs.create_run("x" * 50_000, metadata={"m": "y" * 200_000})
        db.kv.put(run, "big", "z" * 1_000_000)
        db.kv.put(run, "wide", {f"k{at}": at for at in range(50_000)})
        db.kv.put(run, "bytes", bytes(1_000_000))
        deep: object = 0
        for _ in range(60):
            deep = [deep]
        db.kv.put(run, "deep", deep)
        db.traces.record(run, occamdb.ToolCall("t", {"a": "b" * 1_000_000}, "c" * 1_000_000))
        db.events.append(run, "e" * 1000, {"p": "q" * 1_000_000})
        with looking_at(database_path) as looked:
            for part in ("", "/traces", "/events", "/keys"):
                markup = looked.page(f"/run/{run.run_id}{part}").markup
                assert len(markup) < 150_000, (part, len(markup))


def test_a_text_says_what_was_left_out() -> None:
    assert shown.line("a" * 500) == "a" * 200 + "…"
    assert shown.block("b" * 30_000).endswith("… 10,000 more characters")
    assert "(600 bytes)" in shown.value_line(bytes(600), 5000)
    assert shown.block({"k": "v" * 100_000}).count("v") < 30_000
    assert "more" in shown.block(list(range(100_000)))
    assert shown.key("a b") == "a b" and shown.key("a  b") == "a  b" and shown.key(" ") == " "
    assert shown.key(b"\xff\x00".decode("utf-8", "surrogateescape")) == "0xff00"
