"""The pictures of docs/inspector.md: `make screenshots`.

A small database is made, two agents that get in each other's way go on working in it, and each page is photographed.
Only ids, times and figures differ from one time to the next.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import occamdb
from occamdb import Decision, RunId, Thought, ToolCall
from occamdb.primitives import Custom, Error, Query
from tests.support.browser import chromium, inspecting
from tests.support.shell import ROOT

__all__ = ["FOLDER", "SIZE_MAX", "main"]

FOLDER = ROOT / "docs" / "img"
SIZE_MAX = 150_000
WINDOW = {"width": 1100, "height": 680}
WORKING_S = 8.0


def plan_a_trip(db: occamdb.Database, run: RunId, slow: float) -> None:
    """What an agent does, in a second or two."""
    with db.traces.span(run, Custom("turn", {"user": "plan a trip to Oslo"}), tags=["goal"]):
        db.traces.record(run, Thought("I need the weather before I choose how to go", 0.8))
        db.events.append(run, "asked", {"question": "plan a trip to Oslo"})
        with db.traces.span(run, ToolCall("weather", {"city": "Oslo"})) as weather:
            with db.traces.span(run, Query("http", "GET /oslo")) as first:
                time.sleep(0.2 * slow)
                first.set_error("TimeoutError: no answer in 200 ms")
            with db.traces.span(run, Query("http", "GET /oslo, second try")) as second:
                time.sleep(0.3 * slow)
                second.set_result({"status": 200})
            weather.set_result({"sky": "clear", "degrees": -4})
        db.traces.record(run, Decision("walk or bus?", ["walk", "bus"], "bus", "four below zero"))
        db.events.append(run, "decided", {"by": "bus", "because": "four below zero"})
        with db.traces.span(run, ToolCall("plan_route", {"to": "Oslo S"})) as route:
            time.sleep(0.4 * slow)
            route.set_result({"minutes": 35})
        with db.traces.span(run, ToolCall("book_hotel", {"nights": 2})) as hotel:
            time.sleep(0.25 * slow)
            hotel.set_result({"id": "H-1138"})
        db.traces.record(run, Error("MailRefused", "no address on file"))
        db.events.append(run, "answered", {"minutes": 35, "hotel": "H-1138"})
    db.cells.set(run, "progress", {"done": 4, "of": 4})
    db.kv.put(run, "plan", {"go": "by bus", "minutes": 35, "hotel": "H-1138", "nights": 2})
    db.kv.put(run, "seen/oslo", ["weather", "route", "hotels"])
    db.tasks.put(run, "letters", {"to": "office", "about": "H-1138"})
    db.steps.run(run, "pay", lambda txn: {"receipt": "R-42"})


def fill(db: occamdb.Database) -> tuple[RunId, RunId, RunId]:
    """The runs: two that can be compared, and one for counters."""
    top = db.runs.create_run("travel desk", tags=["nightly"], metadata={"model": "m1"})
    first = db.runs.create_run("planner", parent=top.run_id, tags=["agent"])
    second = db.runs.create_run("planner, second try", parent=top.run_id, tags=["agent"])
    working = [
        threading.Thread(target=plan_a_trip, args=(db, run.run_id, slow))
        for run, slow in ((first, 1.0), (second, 0.6))
    ]
    for each in working:
        each.start()
    for each in working:
        each.join()
    db.kv.put(second.run_id, "plan", {"go": "on foot", "minutes": 70, "hotel": "H-1138", "nights": 2})
    db.runs.complete_run(first)
    db.runs.complete_run(second)
    db.runs.fail_run(
        db.runs.create_run("booker", parent=top.run_id), "TimeoutError: no answer from the hotel"
    )
    scores = db.runs.create_run("scoreboard", parent=top.run_id)
    return first.run_id, second.run_id, scores.run_id


def compete(path: Path, run: RunId, until: threading.Event) -> None:
    """Count up keys that others count up too."""
    with occamdb.open(path) as db:
        number = 0
        while not until.is_set():
            number += 1
            key = f"score/{number % 4}"

            def add(txn: occamdb.Transaction, key: str = key) -> None:
                txn.kv.put(key, (txn.kv.get(key) or 0) + 1)
                time.sleep(0.001)

            db.transaction(run, add)
            time.sleep(0.02)


def photograph(page: Any, root: str, first: RunId, second: RunId) -> None:
    """Every page."""
    pages = {
        "overview": "/",
        "runs": "/runs?view=tree",
        "run": f"/run/{first}",
        "traces": f"/run/{first}/traces",
        "events": f"/run/{first}/events",
        "conflicts": "/conflicts",
        "commits": f"/commits?run={first}",
        "lanes": f"/lanes?run={first}&run={second}",
        "compare": f"/compare?left={first}&right={second}",
    }
    for name, path in pages.items():
        page.goto(root + path)
        page.wait_for_selector('#live[data-state="live"]')
        # What is drawn over time needs some of it.
        page.wait_for_timeout(1_500)
        save(page, name)
    page.emulate_media(color_scheme="dark")
    page.goto(f"{root}/run/{first}")
    page.wait_for_selector("svg.tl")
    save(page, "run-dark")


def save(page: Any, name: str) -> None:
    """One picture, as high as the page is, up to the window's height."""
    height = page.evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
    target = FOLDER / f"{name}.png"
    page.screenshot(
        path=str(target), clip={"x": 0, "y": 0, "width": WINDOW["width"], "height": min(height, 680)}
    )
    size = target.stat().st_size
    assert size < SIZE_MAX, f"{target} has {size:,} bytes"


def main() -> None:
    """Make them all."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="occamdb-screenshots-") as folder:
        os.chdir(folder)  # the pages show the path as it was given
        path = Path("agents.db")
        done = threading.Event()
        with occamdb.open(path) as db:
            first, second, scores = fill(db)
            competing = [threading.Thread(target=compete, args=(path, scores, done)) for _ in range(4)]
            for each in competing:
                each.start()
            try:
                with inspecting(path) as inspector, chromium() as browser:
                    page = browser.new_page(viewport=WINDOW)
                    page.goto(inspector.address)
                    page.wait_for_selector("main h1")
                    page.wait_for_timeout(WORKING_S * 1_000)
                    photograph(page, inspector.root, first, second)
            finally:
                done.set()
                for each in competing:
                    each.join()


if __name__ == "__main__":
    main()
