"""How long pages of a large database take, and what the server needs.

The bounds are those that the inspector promises, for a machine that does nothing else. They are held against the CPU
time that the server takes for a page, as far as that can be told apart, since the machine of a test is busy.
"""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import psutil
import pytest

import occamdb
from tests.support.browser import Inspector, inspecting
from tests.support.large_database import LARGE_NAME, LONG_NAME
from tests.web.conftest import SCREENSHOTS
from tests.web.test_pages import run_named

MEMORY_MAX = 150 << 20
FIRST_PAGE_S, RUN_PAGE_S = 0.3, 1.0
TRIES = 5


class Client:
    """Asks the server as a browser does, and measures."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        parts = urlsplit(inspector.address)
        self._place = parts.hostname or "", parts.port or 0
        self._process = psutil.Process(inspector.process.pid)
        self._cookie = ""
        answer = self._ask(f"/?{parts.query}")
        self._cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
        answer.read()

    def _ask(self, path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(*self._place, timeout=60)
        connection.request("GET", path, headers={"cookie": self._cookie})
        return connection.getresponse()

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def page(self, path: str) -> dict[str, float]:
        """The least seconds and the least CPU seconds of some tries, and the page's size."""
        seconds, busy, size = [], [], 0
        for _ in range(TRIES):
            cpu, began = self._cpu(), perf_counter()
            answer = self._ask(path)
            assert answer.status == 200, path
            size = len(answer.read())
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
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        (SCREENSHOTS / "figures.json").write_text(json.dumps(found, indent=2))
        yield found


def test_the_first_page_comes_at_once(measured: dict[str, dict[str, float]]) -> None:
    assert measured["first page"]["cpu"] < FIRST_PAGE_S, measured


def test_a_run_with_ten_thousand_traces_takes_less_than_a_second(
    measured: dict[str, dict[str, float]],
) -> None:
    assert measured["run with 10,000 traces"]["cpu"] < RUN_PAGE_S, measured


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
        measured["runs at rest"] = found | {"memory": float(inspector.memory)}
