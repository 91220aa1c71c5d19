"""The addresses of the inspector, and what becomes of errors.

An endpoint reads from one snapshot, gives it back, and then makes the page. Endpoints run in threads, so a slow one
holds up no other.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from occamdb.engine.model.errors import InvalidArgumentError, NotFoundError, OccamError
from occamdb.tools.inspector import pages
from occamdb.tools.inspector.database_pages import DatabasePages
from occamdb.tools.inspector.endpoint import Endpoint, html
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.run_pages import RunPages
from occamdb.tools.inspector.source import Source

__all__ = ["make_app", "refusal"]


class _Beside(Endpoint):
    """What belongs to all pages."""

    def static(self, request: Request) -> Response:
        """The style sheet and the scripts."""
        found = pages.static_file(request.path_params["name"])
        if found is None:
            raise NotFoundError("there is no such file")
        return Response(found[0], media_type=found[1], headers={"cache-control": "no-cache"})

    def icon(self, request: Request) -> Response:
        """What browsers ask for beside a page that names no icon."""
        found = pages.static_file("icon.svg")
        assert found is not None
        return Response(found[0], media_type=found[1])

    async def events(self, request: Request) -> Response:
        """Server-sent events, for as long as the browser listens."""
        seen = request.headers.get("last-event-id", "")
        messages = self.feed.subscribe(int(seen) if seen.isdecimal() and len(seen) < 20 else None)
        return StreamingResponse(
            messages, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )


def refusal(status: int, headline: str, text: str) -> bytes:
    """A page for somebody who may not see anything of the database."""
    return pages.render("refusal.html", status=status, headline=headline, text=text)


def make_app(source: Source, feed: Feed) -> Starlette:
    """The application, without its gate."""
    whole, one, beside = DatabasePages(source, feed), RunPages(source, feed), _Beside(source, feed)

    def fault(request: Request, error: Exception) -> Response:
        """The page of an error; what can be looked at besides stays in reach."""
        status, hint = _status_of(error), getattr(error, "hint", "")
        body = pages.render(
            "error.html",
            source=source.name,
            condition=source.condition,
            here=request.url.path,
            version=feed.version,
            run_id=None,
            headline=HTTPStatus(status).phrase,
            message=getattr(error, "message", None) or str(error) or type(error).__name__,
            hint=hint,
        )
        return html(body, status)

    def missing(request: Request, error: Exception) -> Response:
        return fault(request, NotFoundError("there is no such page", hint="the menu has all of them"))

    routes = [
        Route("/", whole.overview),
        Route("/runs", whole.runs),
        Route("/conflicts", whole.conflicts),
        Route("/commits", whole.commits),
        Route("/commit/{version}", whole.commit),
        Route("/lanes", whole.lanes),
        Route("/compare", whole.compare),
        Route("/run/{run}", one.run),
        Route("/run/{run}/traces", one.run_traces),
        Route("/run/{run}/trace/{trace}", one.trace),
        Route("/run/{run}/events", one.run_events),
        Route("/run/{run}/cells", one.run_cells),
        Route("/run/{run}/keys", one.run_keys),
        Route("/run/{run}/work", one.run_work),
        Route("/events", beside.events),
        Route("/static/{name}", beside.static),
        Route("/favicon.ico", beside.icon),
    ]
    return Starlette(routes=routes, exception_handlers={OccamError: fault, OSError: fault, 404: missing})


def _status_of(error: Exception) -> int:
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, InvalidArgumentError):
        return 400
    return 503
