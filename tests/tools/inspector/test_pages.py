"""What the pages show of a database that is served."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import occamdb
from occamdb import Custom, Decision, Error, RunId, Thought, ToolCall, Transaction, TypeTag
from occamdb.primitives import layout
from tests.support.inspecting import Looked, Page, looking_at, query_of
from tests.support.processes import wait_until


@pytest.fixture
def db(database_path: Path) -> Iterator[occamdb.Database]:
    with occamdb.open(database_path) as database:
        yield database


@pytest.fixture
def looked(db: occamdb.Database, database_path: Path) -> Iterator[Looked]:
    with looking_at(database_path) as found:
        yield found


def pages_from(looked: Looked, address: str | None) -> Iterator[Page]:
    """A page and those that follow it."""
    while address is not None:
        page = looked.page(address)
        yield page
        address = page.link("next")


def test_the_overview_says_what_runs_what_failed_and_how_it_goes(
    db: occamdb.Database, looked: Looked
) -> None:
    active = db.runs.create_run("the one that runs")
    failed = db.runs.create_run("the one that failed")
    db.runs.fail_run(failed, "no answer")
    looked.feed.look()
    looked.feed.look()
    page = looked.page("/")
    assert str(active.run_id) in page.all("data-run", "tr") and str(failed.run_id) in page.all(
        "data-run", "tr"
    )
    assert "no answer" in page.text_of("failed")
    for name in ("card-commits", "card-conflicts", "card-latency", "card-store", "card-log", "card-workers"):
        assert re.search(r"\d", page.text_of(name)), name
    assert page.one("condition")["data-kind"] == "served"
    assert len(page.all("data-pid", "tr")) == 2, "the test's connection and the inspector's"


def test_the_oldest_snapshot_of_a_worker_is_shown(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    with db.snapshot(run):
        db.kv.put(run, "k", 1)

        def held() -> bool:
            looked.feed.look()
            return looked.page("/").text_of("workers").count("none") == 1  # of the inspector itself

        wait_until(held)


def test_thousands_of_runs_come_page_by_page(db: occamdb.Database, looked: Looked) -> None:
    made = []
    for start in range(0, 1050, 350):

        def enter(txn: Transaction, start: int = start) -> None:
            for at in range(start, start + 350):
                made.append(txn.runs.create_run(f"run {at}", tags=["odd"] if at % 2 else ["even"]).run_id)

        db.transaction(RunId.new(), enter)
    seen = [run for page in pages_from(looked, "/runs") for run in page.all("data-run", "tr")]
    assert seen == [str(run) for run in reversed(made)]
    odd = [run for page in pages_from(looked, "/runs?tag=odd") for run in page.all("data-run", "tr")]
    assert odd == [str(run) for run in reversed(made[1::2])]
    assert looked.page("/runs").text_of("runs-total") == "1,050"


def test_runs_are_filtered_by_status_tag_and_text(db: occamdb.Database, looked: Looked) -> None:
    one = db.runs.create_run("Alpha search", tags=["a", "b"])
    two = db.runs.create_run("beta search", tags=["b"])
    three = db.runs.create_run("gamma", tags=["a"])
    db.runs.complete_run(three)

    def found(query: str) -> set[str]:
        return set(looked.page(f"/runs?{query}").all("data-run", "tr"))

    assert found("text=SEARCH") == {str(one.run_id), str(two.run_id)}
    assert found("status=completed") == {str(three.run_id)}
    assert found("tag=a&text=alpha") == {str(one.run_id)}
    assert found("tag=a&status=completed") == {str(three.run_id)}
    assert found(f"text={three.run_id}") == {str(three.run_id)}
    assert found("text=nothing") == set()
    assert looked.page("/runs?status=nonsense", 400)


def test_runs_as_trees_have_parents_before_children(db: occamdb.Database, looked: Looked) -> None:
    top = db.runs.create_run("top")
    child = db.runs.create_run("child", parent=top)
    grandchild = db.runs.create_run("grandchild", parent=child)
    other = db.runs.create_run("other")
    page = looked.page("/runs?view=tree")
    rows = [
        (found["data-run"], found["aria-level"])
        for tag, found in page.elements
        if tag == "tr" and "data-run" in found
    ]
    assert rows == [
        (str(other.run_id), "1"),
        (str(top.run_id), "1"),
        (str(child.run_id), "2"),
        (str(grandchild.run_id), "3"),
    ]
    assert "top / child" in " ".join(looked.page(f"/run/{grandchild.run_id}").text.split())


def test_the_timeline_of_a_run(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    with db.traces.span(run, Thought("outer")) as outer, db.traces.span(run, ToolCall("inner tool")) as inner:
        pass
    page = looked.page(f"/run/{run.run_id}")
    bars = {found["data-trace"] for tag, found in page.elements if tag == "a" and "data-trace" in found}
    assert bars == {outer.id, inner.id}
    assert f"/run/{run.run_id}/trace/{inner.id}" in page.all("href", "a")
    assert page.all("data-zoom", "a") == ["in", "out", "earlier", "later", "all"]
    closer = next(found["href"] for _, found in page.elements if found.get("data-zoom") == "in")
    zoomed = looked.page(closer)
    window = query_of(closer)
    assert int(window["last"]) - int(window["first"]) > 0
    assert zoomed.text_of("timeline-window") != page.text_of("timeline-window")


def test_the_tree_of_traces_with_input_and_output(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    top = db.traces.record(run, Thought("plan"))
    call = db.traces.record(
        run, ToolCall("search", {"q": "needle"}, ["found it"]), parent_id=top, tags=["hay"]
    )
    db.traces.record(run, Error("Timeout", "no answer"), parent_id=call)
    page = looked.page(f"/run/{run.run_id}/traces")
    assert page.all("data-state", "li") == ["ok", "ok", "error"]
    for words in ("plan", "needle", "found it", "no answer"):
        assert words in page.text_of("trace-tree"), words
    detail = looked.page(f"/run/{run.run_id}/trace/{call}")
    assert "needle" in detail.text_of("trace") and top in detail.text_of("trace")
    branch = looked.page(f"/run/{run.run_id}/traces?under={call}")
    assert len(branch.all("data-trace", "li")) == 1
    assert looked.page(f"/run/{run.run_id}/traces?tag=hay").all("data-trace", "li") == [call]
    assert looked.page(f"/run/{run.run_id}/traces?failed=1").all("data-state", "li") == ["error"]
    assert looked.page(f"/run/{run.run_id}/traces?type=Thought").all("data-trace", "li") == [top]
    looked.page(f"/run/{run.run_id}/trace/{RunId.new()}", 404)


def test_wide_and_deep_trees_come_in_parts(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    made: set[str] = set()

    def record(txn: Transaction) -> None:
        top = txn.traces.record(Thought("wide"))
        made.add(top)
        for at in range(450):
            made.add(txn.traces.record(Custom("leaf", at), parent_id=top))
        deep = None
        for at in range(120):
            deep = txn.traces.record(Custom("deep", at), parent_id=deep)
            made.add(deep)

    db.transaction(run, record)
    waiting, opened, seen = [f"/run/{run.run_id}/traces"], set[str](), set[str]()
    while waiting:
        address = waiting.pop()
        if address in opened:
            continue
        opened.add(address)
        page = looked.page(address)
        seen.update(page.all("data-trace", "li"))
        waiting += [
            found["href"]
            for tag, found in page.elements
            if tag == "a" and ("under=" in found.get("href", "") or "after=" in found.get("href", ""))
        ]
    assert seen == made


def test_events_page_by_page_with_the_chain(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    db.events.append_many(run, [("odd" if at % 2 else "even", {"at": at}) for at in range(250)])
    pages = list(pages_from(looked, f"/run/{run.run_id}/events?from=0"))
    assert [int(at) for page in pages for at in page.all("data-event", "tr")] == list(range(250))
    assert all(page.one("chain")["data-chain"] == "valid" for page in pages)
    assert set(pages[0].all("data-fault", "tr")) == {"no"}
    last = looked.page(f"/run/{run.run_id}/events")
    assert last.all("data-event", "tr")[-1] == "249", "the newest are shown first"
    odd = [
        at
        for page in pages_from(looked, f"/run/{run.run_id}/events?type=odd&from=0")
        for at in page.all("data-event", "tr")
    ]
    assert [int(at) for at in odd] == list(range(1, 250, 2))


@pytest.mark.parametrize("sequence", [0, 3, 119, 120])
def test_a_break_of_the_chain_is_marked_where_it_is(
    db: occamdb.Database, looked: Looked, sequence: int
) -> None:
    run = db.runs.create_run("r")
    db.events.append_many(run, [("step", {"at": at}) for at in range(121)])
    space = db.space(run, TypeTag.EVENT, raw=True)
    stored = space.get(layout.event(sequence))
    space.put(layout.event(sequence), stored[:40] + bytes([stored[40] ^ 1]) + stored[41:])
    page = looked.page(f"/run/{run.run_id}/events?from={sequence // 100 * 100}")
    assert page.one("chain")["data-chain"] == "broken"
    assert page.all("data-break", "tr")[0] == str(sequence)
    assert len(page.all("data-event", "tr")) == (100 if sequence < 100 else 21), "the others are still shown"


def test_a_missing_event_is_marked(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    db.events.append_many(run, [("step", {"at": at}) for at in range(5)])
    db.space(run, TypeTag.EVENT, raw=True).delete(layout.event(2))
    page = looked.page(f"/run/{run.run_id}/events")
    assert page.one("chain")["data-chain"] == "broken" and page.all("data-break", "tr") == ["3"]


def test_keys_and_cells_with_their_versions(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    for at in range(130):
        db.kv.put(run, f"k{at:03}", {"at": at})
    version = db.put(run, b"\xff\x00raw", {"nested": [1, {"x": b"\x01\x02"}]})
    db.cells.init(run, "task", "idle")
    keys = [
        key for page in pages_from(looked, f"/run/{run.run_id}/keys") for key in page.all("data-key", "tr")
    ]
    assert keys == [f"k{at:03}" for at in range(130)] + ["0xff00726177"]
    page = looked.page(f"/run/{run.run_id}/keys?prefix=0xff")
    assert page.all("data-key", "tr") == ["0xff00726177"]
    assert "0x0102" in page.text_of("keys-table")
    assert f"/commit/{version}" in page.all("href", "a")
    cells = looked.page(f"/run/{run.run_id}/cells")
    state = db.cells.read(run, "task")
    assert state is not None
    assert cells.all("data-key", "tr") == ["task"] and f"{state.version:,}" in cells.text_of("cells-table")


def test_tasks_leases_and_steps(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    db.tasks.put(run, "pages", {"url": "needle"})
    task = db.tasks.put(run, "mail", 1)
    with db.leases.hold(run, "leader"):
        db.steps.run(run, "fetch", lambda: "fetched")
        page = looked.page(f"/run/{run.run_id}/work")
        assert page.all("data-lease", "tr") == ["leader"]
    assert page.all("data-queue", "tr") == ["mail", "pages"]
    assert page.all("data-step", "tr") == ["fetch"] and "fetched" in page.text_of("steps")
    assert "needle" in looked.page(f"/run/{run.run_id}/work?queue=pages").text_of("tasks-table")
    assert looked.page(f"/run/{run.run_id}/work?queue=mail").all("data-task", "tr") == [task.id]
    assert looked.page(f"/run/{run.run_id}/work?queue=mail&state=done").all("data-task", "tr") == []
    assert looked.page(f"/run/{run.run_id}/work").all("data-lease", "tr") == []


def test_a_run_that_is_not_in_the_index_shows_its_data(db: occamdb.Database, looked: Looked) -> None:
    run = RunId.new()
    db.kv.put(run, "k", 1)
    page = looked.page(f"/run/{run}/keys")
    assert page.all("data-key", "tr") == ["k"] and "not in the index" in page.text


def test_unknown_addresses(looked: Looked) -> None:
    for address in ("/run/nonsense", "/nothing", "/run/../x", "/commit/x", "/compare?left=a&right=b"):
        page = looked.page(address, 404 if address != "/commit/x" else 400)
        assert page.text_of("main"), address


def test_another_namespace(db: occamdb.Database, database_path: Path) -> None:
    other = db.namespace("acme", "bot", "seven")
    db.runs.create_run("in the default one")
    other.runs.create_run("of seven")
    with looking_at(database_path, "acme/bot/seven") as looked:
        page = looked.page("/runs")
        assert "of seven" in page.text and "in the default one" not in page.text
        assert len(looked.page("/commits").all("data-commit", "tr")) == 1


def test_one_damaged_record_hides_no_other(db: occamdb.Database, looked: Looked) -> None:
    good, bad = db.runs.create_run("good"), db.runs.create_run("bad")
    spoilt = db.traces.record(good, Thought("spoilt"))
    fine = db.traces.record(good, Decision("which?", ["a"], "a"))
    db.space(good, TypeTag.TRACE, raw=True).put(
        layout.trace(bytes.fromhex(spoilt.replace("-", ""))), b"nonsense"
    )

    def spoil(txn: Transaction) -> None:
        txn.runs.space.put(layout.run(bad.run_id.bytes), ["too", "short"])

    db.transaction(RunId.new(), spoil)
    page = looked.page("/runs")
    assert {str(good.run_id), str(bad.run_id)} == set(
        page.all("data-run", "tr")
    ) and "unreadable" in page.text
    tree = looked.page(f"/run/{good.run_id}/traces")
    assert set(tree.all("data-trace", "li")) == {spoilt, fine}
    assert sorted(tree.all("data-state", "li")) == ["ok", "unreadable"]
    assert "1 traces cannot be read" in looked.page(f"/run/{good.run_id}").text
    assert looked.page(f"/run/{bad.run_id}").text


def test_no_snapshot_outlives_its_request(db: occamdb.Database, looked: Looked) -> None:
    run = db.runs.create_run("r")
    db.events.append_many(run, [("step", {})] * 50)
    for part in ("", "/traces", "/events", "/keys", "/cells", "/work"):
        looked.page(f"/run/{run.run_id}{part}")
    for address in (
        "/",
        "/runs",
        "/commits",
        "/conflicts",
        "/lanes",
        f"/compare?left={run.run_id}&right={run.run_id}",
    ):
        looked.page(address)
    workers = db.stats()["workers"]
    assert [worker["snapshot_version"] for worker in workers] == [None] * len(workers)


@dataclass
class Slow:
    """How long a page took on the server."""

    looked: Looked

    def seconds(self, address: str) -> float:
        """Of the processor, the best of three: other tests run beside this one."""
        times = []
        for _ in range(3):
            began = time.process_time()
            self.looked.page(address)
            times.append(time.process_time() - began)
        return min(times)


def test_a_run_of_ten_thousand_traces_is_shown_soon(db: occamdb.Database, looked: Looked) -> None:
    """The bounds are those that the inspector promises; both are held several times over on a quiet machine."""
    run = db.runs.create_run("large")
    for start in range(0, 10_000, 500):

        def record(txn: Transaction, start: int = start) -> None:
            top = txn.traces.record(Thought(f"batch {start}"))
            for at in range(499):
                txn.traces.record(
                    ToolCall("search", {"at": at}, [at] * 5, duration_ms=at % 7 + 0.5), parent_id=top
                )

        db.transaction(run, record)
    slow = Slow(looked)
    assert slow.seconds("/") < 0.3
    assert slow.seconds(f"/run/{run.run_id}") < 1.0
    assert slow.seconds(f"/run/{run.run_id}/traces") < 1.0
    page = looked.page(f"/run/{run.run_id}")
    assert len(page.all("data-trace")) <= 2_000 and len(page.markup) < 2_000_000
