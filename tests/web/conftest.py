"""The pages of `occamdb inspect` in Chromium: `make test-web`. Elsewhere these tests skip.

Every test that uses `look` fails on an error in the browser's console, on a violation of the content security policy,
on an uncaught error of a script, and on a request to anywhere but the inspector.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

import occamdb
from occamdb import RunMetadata
from tests.conftest import stop_coordinator
from tests.support import browser as browsers
from tests.support import large_database, leaks
from tests.support.browser import Inspector, inspecting
from tests.support.shell import ROOT, command, run

SCREENSHOTS = Path(os.environ.get("OCCAMDB_SCREENSHOTS", ROOT / "build" / "web-screenshots"))
ENABLED = bool(os.environ.get("OCCAMDB_TEST_WEB"))
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "OCCAMDB_TEST_WEB is not set: make test-web runs these in Chromium"
    for item in items:
        if not ENABLED and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium(nothing_left_at_the_end: None) -> Iterator[Any]:
    if browsers.executable() is None:
        pytest.fail("there is no Chromium: .ci/need-chromium installs it")
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, chromium: Any) -> Iterator[None]:
    """As in all tests, but the browser's own processes, which come and go as it likes, are the session's."""
    before = leaks.all_pids()
    yield
    left = leaks.wait_until_gone(
        lambda: {
            pid: process
            for pid, process in leaks.own_processes(request.config.stash[MARKER], besides=before).items()
            if not _is_of_browser(process)
        }
    )
    description = leaks.describe(left)
    leaks.kill(left)
    assert not left, f"the test left processes behind:\n{description}"


def _is_of_browser(process: psutil.Process) -> bool:
    try:
        return "chrom" in process.name()
    except psutil.NoSuchProcess:
        return True  # it has just ended


MARKER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MARKER] = os.environ[leaks.MARKER]


class Look:
    """A browser window on one inspector."""

    def __init__(self, page: Any, inspector: Inspector, name: str) -> None:
        self.page = page
        self.inspector = inspector
        self.name = name
        self.wrong: list[str] = []
        self.expected: list[str] = []
        self.has_picture = False
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        page.on("dialog", self._interrupted)
        page.on("request", self._asked)
        page.goto(inspector.address)
        page.wait_for_selector("main h1")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not self.inspector.is_ending:
            self.wrong.append(f"console: {message.text} {message.location.get('url', '')}")

    def _interrupted(self, dialog: Any) -> None:
        self.wrong.append("a dialog opened")
        dialog.dismiss()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.inspector.root, "data:", "file:")):
            self.wrong.append(f"a request to {request.url}")

    def go(self, path: str) -> Any:
        """Open a page of the inspector; the answer."""
        answer = self.page.goto(self.inspector.root + path)
        self.page.wait_for_selector("main h1")
        return answer

    def expect(self, pattern: str) -> None:
        """What the console may say: the server is away in this test."""
        self.expected.append(pattern)

    def wait_live(self) -> None:
        """Until the page listens to the server."""
        self.page.wait_for_selector('#live[data-state="live"]')

    def picture(self, of: str = "") -> Path:
        """Keep what is seen, as an artefact."""
        self.has_picture = True
        target = SCREENSHOTS / f"{self.name}{'-' if of else ''}{of}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(target))
        return target

    def check(self) -> None:
        """Nothing went wrong in the browser."""
        wrong = [each for each in self.wrong if not any(re.search(one, each) for one in self.expected)]
        assert wrong == []


@pytest.fixture
def look(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Look]]:
    """Opens windows; `look(inspector)`, with options of Playwright's contexts."""
    opened: list[Look] = []
    with ExitStack() as contexts:

        def open_window(inspector: Inspector, **options: Any) -> Look:
            given = {"viewport": {"width": 1200, "height": 800}} | options
            context = chromium.new_context(**given)
            contexts.callback(context.close)
            context.set_default_timeout(15_000)
            name = re.sub(r"[^\w.-]+", "_", request.node.name)
            opened.append(Look(context.new_page(), inspector, f"{name}-{len(opened)}" if opened else name))
            return opened[-1]

        yield open_window
        for one in opened:
            if not one.page.is_closed() and not one.has_picture:
                one.picture()
    for one in opened:
        one.check()


# --- Databases -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def demo_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `make demo` leaves behind, of this repository's documents."""
    path = tmp_path_factory.mktemp("demo") / "demo.db"
    done = run(command("demo", ROOT / "docs", "--agents", "3", "--keep", path))
    assert done.returncode == 0, done.stderr
    yield path
    stop_coordinator(path)


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Iterator[Inspector]:
    """An inspector of it, with a coordinator beside it."""
    with occamdb.open(demo_path), inspecting(demo_path) as inspector:
        yield inspector


@pytest.fixture(scope="session")
def large_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """100,000 traces, 10,000 runs and 100,000 events, made once a session."""
    path = tmp_path_factory.mktemp("large") / "large.db"
    with occamdb.open(path) as db:
        large_database.fill(db)
        yield path
    stop_coordinator(path)


@pytest.fixture(scope="session")
def large(large_path: Path) -> Iterator[Inspector]:
    with inspecting(large_path) as inspector:
        yield inspector


@pytest.fixture(params=["demo", "large"])
def anywhere(request: pytest.FixtureRequest, demo: Inspector, large: Inspector) -> Inspector:
    """One after the other."""
    return {"demo": demo, "large": large}[request.param]


@pytest.fixture(scope="session")
def agent(demo_path: Path) -> RunMetadata:
    """The run of the demo that did the most and was not killed."""
    with occamdb.open(demo_path) as db:
        done = db.runs.query_runs(tag="agent", status="completed")
        return max(done, key=lambda run: db.traces.count(run))


@pytest.fixture
def db(database_path: Path) -> Iterator[occamdb.Database]:
    with occamdb.open(database_path) as database:
        yield database


@pytest.fixture
def inspector(database_path: Path, db: occamdb.Database) -> Iterator[Inspector]:
    """An inspector of `db`."""
    with inspecting(database_path) as found:
        yield found


def path_of(address: str) -> str:
    """Path and query of an address."""
    parts = urlsplit(address)
    return parts.path + (f"?{parts.query}" if parts.query else "")
