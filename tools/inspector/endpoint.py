"""What the endpoints share: one snapshot for a request, a page made of a template, the words of an address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import occamdb
from occamdb import RunId, Snapshot
from occamdb.engine.model.errors import InvalidArgumentError
from occamdb.tools.inspector import pages
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.reading.safely import PAGE_ROWS
from occamdb.tools.inspector.reading.timelines import Window
from occamdb.tools.inspector.source import Source

__all__ = ["ANY_RUN", "Endpoint", "html", "number", "window_of", "word"]

WORDS_MAX = 500  # characters of what is typed into a filter
# Snapshots show the index of runs whichever run they are of.
ANY_RUN = RunId.new()


class Endpoint:
    """What the endpoints share.

    Args:
      source: the database.
      feed: what browsers are told.
    """

    def __init__(self, source: Source, feed: Feed) -> None:
        self.source = source
        self.feed = feed

    @contextmanager
    def view(self, run: RunId = ANY_RUN) -> Iterator[Snapshot]:
        """One snapshot, for one request."""
        self.feed.want()
        with self.source.reading() as db, db.snapshot(run) as view:
            yield view

    @contextmanager
    def reading(self) -> Iterator[occamdb.Database]:
        """The database, for one request that takes its snapshots itself."""
        self.feed.want()
        with self.source.reading() as db:
            yield db

    def page(self, template: str, request: Request, **values: Any) -> Response:
        """A page made of a template."""
        common = {
            "source": self.source.name,
            "condition": self.source.condition,
            "here": request.url.path,
            "page_rows": PAGE_ROWS,
            "version": self.feed.version,
            "run_id": None,
        }
        return html(pages.render(template, **(common | values)))


def window_of(request: Request) -> Window:
    """The piece of a timeline that is asked for; None: all of it."""
    first, last = number(request, "first"), number(request, "last")
    return None if first is None or last is None or last <= first else (first, last)


def word(request: Request, name: str) -> str:
    return request.query_params.get(name, "")[:WORDS_MAX]


def number(request: Request, name: str) -> int | None:
    """A whole number from 0 in the query; None if there is none.

    Raises:
      InvalidArgumentError: it is something else.
    """
    text = word(request, name)
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidArgumentError(f"{name} is a whole number from 0")
    return int(text)


def html(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="text/html; charset=utf-8")
