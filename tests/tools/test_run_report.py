"""`occamdb report` and `occamdb traces --svg`: files that show a run to somebody who does not have the database."""

import base64
import re
import stat
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import occamdb
from occamdb import RunId, ToolCall
from occamdb.engine.model.public_types import TypeTag
from occamdb.primitives import Custom, Decision, Error, Query, Thought, layout
from occamdb.tools.run_report.content import Limits, read_run
from occamdb.tools.run_report.page import TREE_SIZE_MAX, VALUES_SIZE_MAX, report_page
from occamdb.tools.run_report.trace_tree import Room
from tests.support.shell import ROOT, RUN, Shell
from tests.support.trace_forests import NASTY

VOID = {"meta", "line", "rect", "path", "br"}
# What the pages are made of; anything else came out of the database.
ELEMENTS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "nav",
        "a",
        "section",
        "div",
        "span",
    ),
    *("table", "tr", "th", "td", "code", "pre", "b", "ul", "li", "details", "summary"),
    *("svg", "g", "line", "text", "rect", "path"),
}
STORABLE = [text for text in NASTY if "\ud800" not in text]


class Page(HTMLParser):
    """A page as a browser takes it: that its elements are closed in order, which there are, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def page_of(db: occamdb.Database, run: Any = RUN, limits: Limits | None = None) -> Page:
    return Page("".join(report_page(read_run(db, RunId.of(run), limits), "agents.db")))


@pytest.fixture
def memory() -> Any:
    with occamdb.open_in_memory() as db:
        yield db


def fill(db: occamdb.Database) -> str:
    """A run with something in every primitive; the id of its outer trace."""
    db.runs.create_run_with_options("agent 7", run_id=RUN, tags=["nightly"], metadata={"model": "m1"})
    db.runs.create_run("helper of 7", parent=RUN)
    with db.traces.span(RUN, Custom("turn", {"n": 1}), tags=["goal"]) as turn:
        db.traces.record(RUN, Decision("which tool?", ["search", "ask"], "search", "cheaper"))
        with db.traces.span(RUN, ToolCall("search", {"q": "weather"})) as call:
            call.set_result({"hits": 3})
        db.traces.record(RUN, Error("Timeout", "no answer"))
    for number in range(3):
        db.events.append(RUN, "asked", {"question": f"number {number}"})
    db.cells.init(RUN, "progress", {"done": 1})
    db.kv.put(RUN, "plan", ["walk", "bus"])
    db.tasks.put(RUN, "pages", {"url": "http://x"})
    db.steps.run(RUN, "pay", lambda txn: {"receipt": 42})
    return turn.id


def test_a_report_tells_everything_of_a_run(memory: occamdb.Database) -> None:
    turn = fill(memory)
    with memory.leases.hold(RUN, "gpu"):
        page = page_of(memory)
    for words in (
        *(
            "agent 7",
            "nightly",
            "model:",
            "helper of 7",
            "which tool?",
            "weather",
            "hits: 3",
            "Timeout: no answer",
        ),
        *(
            "Chain verified: 3 events",
            "number 2",
            "progress",
            "done: 1",
            "plan",
            "walk",
            "pages: 1 ready",
            "http://x",
        ),
        *("gpu", "0 of 1", "pay", "receipt: 42", "4 traces", "database agents.db, as of its version"),
    ):
        assert words in page.words, words
    # A bar leads to its trace in the tree.
    links = {dict(attributes)["href"] for name, attributes in page.elements if name == "a"}
    assert f"#t-{turn}" in links and f"t-{turn}" in page.ids
    assert {str(link)[1:] for link in links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_an_empty_run_that_no_index_has_is_told_too(memory: occamdb.Database) -> None:
    page = page_of(memory)
    for words in (
        "not in the index",
        "no traces",
        "no events",
        "no cells",
        "no keys",
        "no tasks",
        "no steps",
    ):
        assert words in page.words


def test_nothing_stored_becomes_markup(memory: occamdb.Database) -> None:
    db, every = memory, "".join(STORABLE)
    db.runs.create_run_with_options(every, run_id=RUN, tags=STORABLE, metadata={every: [every]})
    db.runs.create_run(every, parent=RUN)
    for text in STORABLE:
        with db.traces.span(RUN, ToolCall(text, {text: text}), tags=[text], metadata={text: text}) as span:
            span.set_result(text)
            span.set_error(text)
            for content in (
                Decision(text, [text], text, text),
                Query(text, text, text),
                Thought(text),
                Error(text, text),
                Custom(text, text),
            ):
                db.traces.record(RUN, content)
        db.events.append(RUN, text, {text: text})
        db.cells.init(RUN, text, text)
        db.kv.put(RUN, text, text)
        db.tasks.put(RUN, text, text)
        db.steps.run(RUN, text, lambda txn, text=text: text)
    db.runs.fail_run(RUN, every)
    with db.leases.hold(RUN, "<script>alert(2)</script>"):
        text = "".join(report_page(read_run(db, RunId.of(RUN)), "<script>"))
    page = Page(text)
    assert {name for name, _ in page.elements} <= ELEMENTS
    attributes = {attribute for _, found in page.elements for attribute in found}
    assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "action")}
    assert "<script>alert(1)</script>" in page.words and "<script>alert(2)</script>" in page.words
    assert "\x1b" not in text and "\u202e" not in text and "\x00" not in text
    text.encode()


def test_a_report_loads_nothing_and_its_policy_allows_its_styles_alone(memory: occamdb.Database) -> None:
    fill(memory)
    text = "".join(report_page(read_run(memory, RunId.of(RUN)), "x"))
    policy = next(
        found["content"]
        for name, found in Page(text).elements
        if name == "meta" and found.get("http-equiv") == "Content-Security-Policy"
    )
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(sha256(styles[0].encode()).digest()).decode()
    assert len(styles) == 1
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert set(re.findall(r"\w+://[^\s\"<&]+", text)) == {"http://www.w3.org/2000/svg", "http://x"}
    assert "url(" not in styles[0] and "@import" not in styles[0]


def test_a_large_run_is_cut_and_says_so(memory: occamdb.Database) -> None:
    db = memory

    def record(txn: occamdb.Transaction) -> None:
        top = txn.traces.record(Thought("top"))
        for number in range(TREE_SIZE_MAX + 9):
            txn.traces.record_child(top, Thought(f"number {number}"))
        txn.events.append_many([("e", {"n": number}) for number in range(50)])
        for number in range(30):
            txn.kv.put(f"key {number:02}", number)
            txn.cells.init(f"cell {number:02}", number)

    db.transaction(RUN, record)
    page = page_of(db, limits=Limits(rows=20))
    assert f"The first {TREE_SIZE_MAX:,} of {TREE_SIZE_MAX + 10:,} traces" in page.words
    assert len([each for each in page.ids if each.startswith("t-")]) == TREE_SIZE_MAX
    assert "30 events left out, 10 to 39" in page.words and "Cut: 20 of 50 events" in page.words
    assert "Cut: 20 of 30 keys" in page.words and "key 19" in page.words and "key 20" not in page.words
    assert "Cut: 20 of more cells" in page.words
    page = page_of(db, limits=Limits(traces=100))
    assert f"Cut: 100 of {TREE_SIZE_MAX + 10:,} traces" in page.words


def test_the_document_says_where_a_report_is_cut() -> None:
    text = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    table = text.partition("| what | at most |")[2].partition("\n\n")[0]
    limits, room = Limits(), Room(0)
    for number in (limits.traces, TREE_SIZE_MAX, limits.rows, limits.rows // 2, room.each, room.short):
        assert f"{number:,}" in table
    assert f"{VALUES_SIZE_MAX // 1_000_000} million" in table


def test_long_values_are_cut(memory: occamdb.Database) -> None:
    memory.kv.put(RUN, "long", ["word " * 1_000] * 1_000)
    content = read_run(memory, RunId.of(RUN))
    assert len("".join(report_page(content, "x"))) < 30_000


def damage(db: occamdb.Database, tag: TypeTag, key: bytes, value: Any) -> None:
    db.space(RunId.of(RUN), tag, raw=True).put(key, value)


def test_a_broken_chain_is_marked_where_it_breaks(memory: occamdb.Database) -> None:
    fill(memory)
    space = memory.space(RunId.of(RUN), TypeTag.EVENT, raw=True)
    stored = space.get(layout.event(1))
    damage(memory, TypeTag.EVENT, layout.event(1), bytes(32) + stored[32:])
    page = page_of(memory)
    assert "Chain broken at event 1: its hash is" in page.words
    assert [name for name, found in page.elements if found.get("class") == "broken"] == ["tr"]


def test_what_is_damaged_is_named_and_the_rest_is_told(memory: occamdb.Database) -> None:
    turn = fill(memory)
    other = memory.traces.record(RUN, Thought("soon damaged"))
    damage(memory, TypeTag.TRACE, layout.TRACE + bytes.fromhex(other.replace("-", "")), b"rubbish")
    damage(memory, TypeTag.EVENT, layout.event(2), b"rubbish")
    page = page_of(memory)
    assert "Not all traces could be read: 1 unreadable, the first of them: trace" in page.words
    assert f"t-{turn}" in page.ids and "which tool?" in page.words
    assert "Not all events could be read: event 2 is unreadable" in page.words and "number 1" in page.words
    assert "receipt: 42" in page.words


# --- The commands --------------------------------------------------------------------------------


def test_report_writes_a_file_and_replaces_none_unasked(
    shell: Shell, db: occamdb.Database, tmp_path: Path
) -> None:
    fill(db)
    target = tmp_path / "run.html"
    told = shell("report", "DB", "agent 7", "-o", str(target))
    assert told.startswith(f"{target}: ") and "4 traces and 3 events" in told
    first = target.read_text(encoding="utf-8")
    assert "which tool?" in Page(first).words
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    db.kv.put(RUN, "later", 1)
    shell("report", "DB", RUN, "-o", str(target), code=1)
    assert "exists" in shell.error and "--force" in shell.error
    assert target.read_text(encoding="utf-8") == first
    shell("report", "DB", RUN, "-o", str(target), "--force")
    assert "later" in target.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_report_has_a_name_of_its_own(
    shell: Shell, db: occamdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db)
    monkeypatch.chdir(tmp_path)
    shell("report", "DB", RUN)
    assert (tmp_path / f"run-{RUN}.html").exists()


@pytest.mark.parametrize("words", [("report", "DB", "agent 7", "-o"), ("traces", "DB", "agent 7", "--svg")])
def test_what_cannot_be_written_leaves_nothing(
    shell: Shell, db: occamdb.Database, tmp_path: Path, words: tuple[str, ...]
) -> None:
    fill(db)
    shell(*words, str(tmp_path / "none" / "file"), code=1)
    assert "No such file" in shell.error
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    shell(*words, str(tmp_path / "link"), code=1)
    assert not (tmp_path / "elsewhere").exists()


def test_a_report_of_a_database_nobody_serves_starts_no_coordinator(shell: Shell, tmp_path: Path) -> None:
    with occamdb.open(shell.path) as db:
        fill(db)
    shell("stop", "DB", code=0)
    shell("report", "DB", "agent 7", "-o", str(tmp_path / "run.html"))
    shell("status", "DB", code=3)  # nobody serves it


def test_traces_are_drawn_into_a_file(shell: Shell, db: occamdb.Database, tmp_path: Path) -> None:
    turn = fill(db)

    def drawn(*words: str) -> set[str]:
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.svg"
        shell("traces", "DB", RUN, *words, "--svg", str(target))
        return {each.get("data-trace", "") for each in ElementTree.parse(target).iter()} - {""}

    assert len(drawn()) == 4
    assert drawn(turn[:30]) == drawn(turn) == drawn()
    assert len(drawn("--type", "ToolCall")) == 1 and drawn("--tag", "goal") == {turn}
    assert len(drawn("--limit", "2")) == 2


def test_svg_refuses_what_has_no_effect_beside_it(shell: Shell, db: occamdb.Database, tmp_path: Path) -> None:
    target = str(tmp_path / "t.svg")
    for options in (("--json",), ("--full",), ("--tree",)):
        shell("traces", "DB", RUN, "--svg", target, *options, code=2)
    shell("traces", "DB", RUN, "--force", code=2)
    shell("traces", "DB", RUN, "--svg", target)
    shell("traces", "DB", RUN, "--svg", target, code=1)
    shell("traces", "DB", RUN, "--svg", target, "--force")
