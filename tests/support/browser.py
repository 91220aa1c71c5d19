"""A real browser and a running inspector, for `tests/web` and for the screenshots of the documents."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.shell import command

__all__ = ["Inspector", "chromium", "executable", "inspecting"]

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *(
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--disable-breakpad",
        "--disable-crash-reporter",
    ),
]
START_S = 60.0


def executable() -> str | None:
    """The browser: OCCAMDB_CHROMIUM, or one on the path; None if there is none."""
    named = os.environ.get("OCCAMDB_CHROMIUM")
    return named or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's handle of a browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Inspector:
    """A running `occamdb inspect`.

    Attributes:
      address: what it printed, with the token.
      process: it.
      is_ending: it is being stopped, so browsers may find it gone.
    """

    address: str
    process: subprocess.Popen[bytes]
    is_ending: bool = False

    @property
    def root(self) -> str:
        """Its address without path and token."""
        return self.address.partition("/?")[0]

    @property
    def memory(self) -> int:
        """Bytes of memory that are its own: the database, which it shares with everybody, does not count."""
        return int(psutil.Process(self.process.pid).memory_full_info().uss)


@contextmanager
def inspecting(path: Path | str, *options: str) -> Iterator[Inspector]:
    """`occamdb inspect` of a database, on a free port."""
    words = command("inspect", path, "--no-browser", "--port", "0", *options)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0)
    found = None
    try:
        found = Inspector(_printed_address(process), process)
        yield found
    finally:
        if found is not None:
            found.is_ending = True
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _printed_address(process: subprocess.Popen[bytes]) -> str:
    """Wait for the line with the address."""
    assert process.stderr is not None
    deadline, told = time.monotonic() + START_S, b""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stderr, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if ready.select(0.5):
                block = process.stderr.read(4096)
                told += block
                if found := re.search(rb"http://\S+", told):
                    return found[0].decode()
                if not block:
                    break
    raise AssertionError(f"the inspector did not start: {told.decode(errors='replace')}")
