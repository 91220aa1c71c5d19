"""Looking at the inspector in tests: in this process through Starlette's client, or as a process over a real socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.testclient import TestClient

from occamdb.tools.inspector.app import make_app, refusal
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.security import Gate, Secrets
from occamdb.tools.inspector.source import Source, source_of
from tests.support.shell import command, started

PORT = 8790
DEADLINE_S = 30.0
_ADDRESS = re.compile(r"http://(\S+?):(\d+)/\?token=(\S+)")


@dataclass
class Looked:
    """An inspector in this process.

    Attributes:
      client: has the cookie.
    """

    client: TestClient
    stranger: TestClient
    known: Secrets
    source: Source
    feed: Feed

    def page(self, address: str, status: int = 200) -> Page:
        """A page as a browser gets it."""
        answer = self.client.get(address)
        assert answer.status_code == status, answer.text
        return Page(answer.text)


@contextlib.contextmanager
def looking_at(target: Path | str, namespace: str | None = None, *, look: bool = True) -> Iterator[Looked]:
    """An inspector of a database, without the thread of its feed: `feed` is asked by the test."""
    source = source_of(str(target), namespace)
    feed = Feed(source)
    known = Secrets()
    gate = Gate(make_app(source, feed), known, "127.0.0.1", PORT, refusal)
    base = f"http://127.0.0.1:{PORT}"
    with TestClient(gate, base_url=base) as client, TestClient(gate, base_url=base) as stranger:
        if look:
            feed.look()
        assert client.get(f"/?token={known.token}").status_code == 200
        try:
            yield Looked(client, stranger, known, source, feed)
        finally:
            source.close()


class Page(HTMLParser):
    """A page: its elements with their attributes, and its text.

    Attributes:
      text: everything between the tags, as a person reads it, white space as one blank.
      elements: (tag, attributes) in order.
    """

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.markup = markup
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._parts: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self._by_id: dict[str, list[str]] = {}
        self.feed(markup)
        self.close()

    _VOID = frozenset({"meta", "link", "input", "br", "hr", "img"})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of the parser."""
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag not in self._VOID:
            self._open.append((tag, found.get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of the parser; elements of SVG end so."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """Of the parser."""
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        """Of the parser."""
        self._parts.append(data)
        for _, name in self._open:
            if name is not None:
                self._by_id.setdefault(name, []).append(data)

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(" ".join(self._parts).split())

    def text_of(self, name: str) -> str:
        """The text of the element with an id."""
        return " ".join(" ".join(self._by_id.get(name, [])).split())

    def all(self, attribute: str, tag: str | None = None) -> list[str]:
        """The values of an attribute, of every element or those of one kind."""
        return [
            found[attribute] for kind, found in self.elements if attribute in found and tag in (None, kind)
        ]

    def one(self, name: str) -> dict[str, str]:
        """The attributes of the element with an id."""
        found = [attributes for _, attributes in self.elements if attributes.get("id") == name]
        assert len(found) == 1, f"{len(found)} elements have the id {name}"
        return found[0]

    def link(self, relation: str) -> str | None:
        """The address of the first link with a relation such as "next"."""
        for tag, found in self.elements:
            if tag == "a" and found.get("rel") == relation:
                return found["href"]
        return None


class Inspecting:
    """An inspector as a process of its own, and a browser without a screen."""

    def __init__(self, process: subprocess.Popen[str], host: str, port: int, token: str) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.token = token
        self._cookie = ""
        self.log: list[str] = []

    def request(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask, with the cookie that was given."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, headers=self._headers(headers))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read()
        finally:
            connection.close()

    def _headers(self, headers: dict[str, str] | None) -> dict[str, str]:
        return ({"Cookie": self._cookie} if self._cookie else {}) | (headers or {})

    def let_in(self) -> None:
        """Bring the token."""
        status, headers, _ = self.request(f"/?token={self.token}")
        assert status == 200
        self._cookie = headers["set-cookie"].partition(";")[0]

    def page(self, path: str) -> Page:
        """A page."""
        status, _, body = self.request(path)
        assert status == 200, body.decode()
        return Page(body.decode())

    @contextlib.contextmanager
    def events(self, seen: int | None = None) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages of the feed: {"event", "id", "data"}."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            headers = {} if seen is None else {"Last-Event-ID": str(seen)}
            connection.request("GET", "/events", headers=self._headers(headers))
            answer = connection.getresponse()
            assert answer.status == 200
            yield _messages(answer)
        finally:
            connection.close()


def _messages(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    while line := answer.readline():
        text = line.decode().rstrip("\n")
        if not text and "data" in found:
            yield found | {"data": json.loads(found["data"])}
        if not text:
            found = {}
        elif not text.startswith(":"):
            name, _, value = text.partition(": ")
            found[name] = value


@contextlib.contextmanager
def inspecting(target: Path | str, *options: str) -> Iterator[Inspecting]:
    """`occamdb inspect TARGET` until the block ends; the browser is let in."""
    process = started(command("inspect", str(target), "--no-browser", "--port", "0", *options))
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        while line and not _ADDRESS.search(line):
            line = process.stderr.readline()
        found = _ADDRESS.search(line)
        assert found is not None, f"no address: {line}"
        inspector = Inspecting(process, found[1], int(found[2]), found[3])
        # Else it would stand still as soon as the pipe is full.
        reader = threading.Thread(target=lambda: inspector.log.extend(process.stderr or ()), daemon=True)
        reader.start()
        inspector.let_in()
        yield inspector
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):
                (process.stdout and process.stdout.close())
    reader.join(DEADLINE_S)
    process.stderr.close()
    assert code == 0, "".join(inspector.log)
    assert inspector.log == [], "the server complained"


def query_of(address: str) -> dict[str, str]:
    """The query of an address."""
    return dict(parse_qsl(urlsplit(address).query))
