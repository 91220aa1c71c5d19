"""How long pages of a large database take, and what the server needs.

The bounds are those that the inspector promises, for a machine that does nothing else. They are held against the CPU
time that the server takes, and four times as much against the clock, since the machine of a test is busy.
"""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import psutil
import pytest

import occamdb
from tests.support.browser import Inspector, inspecting
from tests.support.large_database import LARGE_NAME, LONG_NAME
from tests.web.conftest import SCREENSHOTS, Look
from tests.web.test_pages import run_named

MEMORY_MAX = 150 << 20
FIRST_PAGE_S, RUN_PAGE_S = 0.3, 1.0
TRIES = 5
BUSY_S = 4.0
SHARE_MAX = 0.25  # of a core; far less on a machine that does nothing else


class Client:
    """Asks the server as a browser does, and measures."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        parts = urlsplit(inspector.address)
        self._place = parts.hostname or "", parts.port or 0
        self._process = psutil.Process(inspector.process.pid)
        self._cookie = ""
        _, cookie = self._ask(f"/?{parts.query}")
        self._cookie = cookie.partition(";")[0]

    def _ask(self, path: str) -> tuple[int, str]:
        """The size of a page, and the cookie that came with it."""
        with closing(http.client.HTTPConnection(*self._place, timeout=60)) as connection:
            connection.request("GET", path, headers={"cookie": self._cookie})
            answer = connection.getresponse()
            assert answer.status == 200, path
            return len(answer.read()), answer.getheader("set-cookie") or ""

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def page(self, path: str) -> dict[str, float]:
        """The least seconds and the least CPU seconds of some tries, and the page's size."""
        seconds, busy, size = [], [], 0
        for _ in range(TRIES):
            cpu, began = self._cpu(), perf_counter()
            size, _ = self._ask(path)
            seconds.append(perf_counter() - began)
            busy.append(self._cpu() - cpu)
        return {"seconds": min(seconds), "cpu": min(busy), "bytes": size}


@pytest.fixture(scope="module")
def measured(large_path: Path) -> Iterator[dict[str, dict[str, float]]]:
    """Figures of the pages, also kept beside the screenshots."""
    large, long = run_named(large_path, LARGE_NAME), run_named(large_path, LONG_NAME)
    with inspecting(large_path) as inspector:
        client = Client(inspector)
        found = {"start": {"memory": float(inspector.memory)}}
        for name, path in {
            "first page": "/",
            "runs": "/runs",
            "run trees": "/runs?view=tree",
            "conflicts": "/conflicts",
            "commits": "/commits",
            "run with 10,000 traces": f"/run/{large}",
            "its traces": f"/run/{large}/traces",
            "50,000 events": f"/run/{long}/events",
            "50,000 events, verified": f"/run/{long}/events?verify=all",
            "comparison": f"/compare?left={large}&right={long}",
        }.items():
            found[name] = client.page(path) | {"memory": float(inspector.memory)}
        keep(found)
        yield found


def test_the_first_page_comes_at_once(measured: dict[str, dict[str, float]]) -> None:
    assert measured["first page"]["cpu"] < FIRST_PAGE_S, measured
    assert measured["first page"]["seconds"] < 4 * FIRST_PAGE_S, measured


def test_a_run_with_ten_thousand_traces_takes_less_than_a_second(
    measured: dict[str, dict[str, float]],
) -> None:
    assert measured["run with 10,000 traces"]["cpu"] < RUN_PAGE_S, measured
    assert measured["run with 10,000 traces"]["seconds"] < 4 * RUN_PAGE_S, measured


def test_every_other_page_of_a_large_database_takes_less_too(measured: dict[str, dict[str, float]]) -> None:
    assert {name for name, page in measured.items() if page.get("cpu", 0) >= RUN_PAGE_S} == set(), measured
    assert {name for name, page in measured.items() if page.get("bytes", 0) > 1_500_000} == set(), measured


def test_the_server_stays_small(measured: dict[str, dict[str, float]]) -> None:
    assert max(page["memory"] for page in measured.values()) < MEMORY_MAX, measured


def test_a_database_that_nobody_serves_fits_too(
    large_path: Path, measured: dict[str, dict[str, float]]
) -> None:
    """A copy of it is recovered into the memory of the server; the store is shared memory of its own."""
    copy = large_path.parent / "copy.db"
    with occamdb.open(large_path) as db:
        db.backup(copy)
    with inspecting(copy) as inspector:
        found = Client(inspector).page("/runs")
        assert found["cpu"] < RUN_PAGE_S
        keep({"runs at rest": found | {"memory": float(inspector.memory)}})


def test_three_browsers_on_a_busy_database_cost_little(
    look: Callable[..., Look], inspector: Inspector, db: occamdb.Database
) -> None:
    """What the inspector takes from a core is all that it can take from the commits: readers hold up no writer."""
    run_id = db.runs.create_run("busy").run_id
    db.kv.put(run_id, "count", 0)
    windows = [look(inspector) for _ in range(3)]
    for seen, path in zip(windows, ("/", "/runs", f"/run/{run_id}/keys"), strict=True):
        seen.go(path)
        seen.wait_live()
    process = psutil.Process(inspector.process.pid)
    before, began, commits = process.cpu_times(), perf_counter(), 0
    while perf_counter() - began < BUSY_S:
        commits += 1
        db.kv.put(run_id, "count", commits)
    after, passed = process.cpu_times(), perf_counter() - began
    share = (after.user + after.system - before.user - before.system) / passed
    keep({"three browsers": {"share": share, "commits": commits / passed}})
    assert commits > 100
    assert share < SHARE_MAX, f"{share:.0%} of a core beside {commits / passed:,.0f} commits/s"


def keep(figures: dict[str, dict[str, float]]) -> None:
    """Add figures to the file beside the screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = SCREENSHOTS / "figures.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | figures, indent=2))
