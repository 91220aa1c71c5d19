"""The addresses of the inspector, and what becomes of errors.

An endpoint reads from one snapshot, gives it back, and then makes the page. Endpoints run in threads, so a slow one
holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import occamdb
from occamdb import Snapshot
from occamdb.engine.model.errors import InvalidArgumentError, NotFoundError, OccamError
from occamdb.engine.model.public_types import RunId
from occamdb.tools.inspector import pages
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.reading import commits, compare, events, holdings, runs, timelines, traces
from occamdb.tools.inspector.reading.committers import Committers
from occamdb.tools.inspector.reading.safely import PAGE_ROWS, part, problem
from occamdb.tools.inspector.source import Source

__all__ = ["make_app", "refusal"]

WORDS_MAX = 500  # characters of what is typed into a filter
ACTIVE_SHOWN = 12
CONFLICTS_SHOWN = 60
LANES_MAX = 12
LANE_TRACES_MAX = 5_000
# Snapshots show the index of runs whichever run they are of.
ANY_RUN = RunId.new()


class Inspector:
    """The endpoints.

    Args:
      source: the database.
      feed: what browsers are told.
    """

    def __init__(self, source: Source, feed: Feed) -> None:
        self.source = source
        self.feed = feed
        self._committers = Committers(source.log)

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
        return _html(pages.render(template, **(common | values)))

    # --- The whole database ---

    def overview(self, request: Request) -> Response:
        """Figures that move, and what goes on."""
        version, active, failed, counts = None, None, None, None
        fault = None
        try:
            with self.view() as view:
                version = view.version
                active = part(runs.runs_page, view, runs.RunsWanted(status="active"))
                failed = part(runs.runs_page, view, runs.RunsWanted(status="failed"))
                counts = part(_runs_by_status, view)
        except (OccamError, OSError) as error:
            fault = problem(error)
        return self.page(
            "overview.html",
            request,
            fault=fault,
            active=active,
            failed=failed,
            counts=counts,
            shown=ACTIVE_SHOWN,
            figures=self.feed.history.newest,
            series=self.feed.history.series(),
            snapshot_version=version,
        )

    def runs(self, request: Request) -> Response:
        """The table of runs, or their trees."""
        wanted = runs.RunsWanted(
            status=_word(request, "status"),
            tag=_word(request, "tag"),
            text=_word(request, "text").strip(),
            before=_word(request, "before"),
            tree=_word(request, "view") == "tree",
        )
        with self.view() as view:
            version, found = view.version, runs.runs_page(view, wanted)
        return self.page(
            "runs.html",
            request,
            found=found,
            wanted=wanted,
            statuses=list(occamdb.RunStatus),
            snapshot_version=version,
        )

    def conflicts(self, request: Request) -> Response:
        """Which keys conflict, when, and who lost to whom."""
        self.feed.want()
        log, figures = self.feed.conflicts, self.feed.history.newest
        newest = log.newest(CONFLICTS_SHOWN)
        sessions = self._committers.sessions(row.found for row in newest)
        return self.page(
            "conflicts.html",
            request,
            figures=figures,
            heat=log.heat_map(),
            rows=log.newest(CONFLICTS_SHOWN, sessions),
            series=self.feed.history.series(),
        )

    def commits(self, request: Request) -> Response:
        """Commits, each on one row whatever it changed."""
        before, run = _number(request, "before"), _word(request, "run")
        run_id = runs.run_id_of(run) if run else None
        with self.reading() as db:
            found = part(commits.commits_page, db, self.source.log, before=before, run=run_id)
            names = {} if found.value is None else _names(db, found.value.rows)
        return self.page(
            "commits.html",
            request,
            found=found,
            wanted=run_id,
            names=names,
            before=before,
            runs_shown=commits.RUNS_SHOWN,
        )

    def commit(self, request: Request) -> Response:
        """One commit with everything that it changed."""
        version = commits.wanted_version(request.path_params["version"])
        with self.reading() as db:
            found = commits.commit_detail(db, self.source.log, version)
            names = _names(db, [found.row])
        session = self._committers.sessions([version]).get(version)
        pid = self.feed.conflicts.pid_of(session)
        return self.page("commit.html", request, found=found, names=names, session=session, pid=pid)

    def lanes(self, request: Request) -> Response:
        """Runs side by side on one time axis."""
        window = _window(request)
        asked = [runs.run_id_of(text) for text in request.query_params.getlist("run")[:LANES_MAX]]
        with self.reading() as db:
            shown = asked if len(asked) != 1 else [*asked, *_below(db, asked[0])][:LANES_MAX]
            if not shown:
                with db.snapshot(ANY_RUN) as view:
                    shown = [row.run_id for row in runs.runs_page(view, runs.RunsWanted()).rows[:LANES_MAX]]
            found = [part(_lane, db, run_id) for run_id in shown]
        faults = [lane.error for lane in found if lane.value is None]
        lanes = [lane.value for lane in found if lane.value is not None]
        picture = part(timelines.draw, lanes, window, "Runs side by side") if lanes else None
        return self.page("lanes.html", request, picture=picture, asked=asked, shown=shown, faults=faults)

    def compare(self, request: Request) -> Response:
        """Two runs: what is alike and what differs."""
        left, right = _word(request, "left"), _word(request, "right")
        found, names = None, {}
        if left and right:
            one, two = runs.run_id_of(left), runs.run_id_of(right)
            with self.reading() as db, db.snapshot(one) as view, db.snapshot(two) as other:
                found = part(compare.compare, view, other, one, two)
        else:
            with self.view() as view:
                names = {row.run_id: row for row in runs.runs_page(view, runs.RunsWanted()).rows}
        return self.page("compare.html", request, left=left, right=right, found=found, choices=names)

    # --- One run ---

    def run(self, request: Request) -> Response:
        """A run: its facts, the timeline, its children."""

        window = _window(request)

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            lane = part(timelines.read_lane, view, run_id, "")
            return {"children": part(runs.children_of, view, run_id), "lane": lane}

        def draw(values: dict[str, Any]) -> dict[str, Any]:
            lane = values.pop("lane")
            drawn = (
                lane
                if lane.value is None
                else part(timelines.draw, [lane.value], window, "Timeline of the run")
            )
            return {"picture": drawn}

        return self._of_run(request, "run.html", "timeline", read, draw)

    def run_traces(self, request: Request) -> Response:
        """The traces of a run, as trees or filtered."""
        kind, tag, under = _word(request, "type"), _word(request, "tag"), _word(request, "under")
        failed, after = _word(request, "failed") == "1", _word(request, "after")

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            if kind or tag or failed:
                found = part(traces.traces_listed, view, kind=kind, tag=tag, failed=failed, after=after)
            else:
                found = part(traces.trace_trees, view, under=under, after=after)
            return {"found": found, "kind": kind, "tag": tag, "failed": failed, "under": under}

        return self._of_run(request, "run_traces.html", "traces", read)

    def trace(self, request: Request) -> Response:
        """One trace, whole."""

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            return {"node": traces.one_trace(view, request.path_params["trace"])}

        return self._of_run(request, "trace.html", "traces", read)

    def run_events(self, request: Request) -> Response:
        """The events of a run and their chain."""
        start, whole = _number(request, "from"), _word(request, "verify") == "all"
        event_type = _word(request, "type")

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            found = part(events.events_page, view, start=start, whole=whole, event_type=event_type)
            return {"found": found, "event_type": event_type}

        return self._of_run(request, "run_events.html", "events", read)

    def run_cells(self, request: Request) -> Response:
        """The cells of a run with their versions."""
        return self._of_run(request, "run_keys.html", "cells", self._keys_of(request, occamdb.TypeTag.STATE))

    def run_keys(self, request: Request) -> Response:
        """The keys of a run with their values."""
        return self._of_run(request, "run_keys.html", "keys", self._keys_of(request, occamdb.TypeTag.KV))

    def _keys_of(self, request: Request, tag: occamdb.TypeTag) -> Callable[[Snapshot, RunId], dict[str, Any]]:
        prefix, after = _word(request, "prefix"), _word(request, "after")

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            return {
                "found": part(holdings.keys_page, view, tag, prefix=prefix, after=after),
                "prefix": prefix,
            }

        return read

    def run_work(self, request: Request) -> Response:
        """The tasks, leases and steps of a run."""
        queue, state, after = _word(request, "queue"), _word(request, "state"), _word(request, "after")

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            return {
                "tasks": part(holdings.tasks_page, view, queue=queue, state=state, after=after),
                "leases": part(holdings.leases_of, view),
                "steps": part(holdings.steps_of, view),
                "state": state,
                "states": list(occamdb.TaskState),
            }

        return self._of_run(request, "run_work.html", "work", read)

    def _of_run(
        self,
        request: Request,
        template: str,
        tab: str,
        read: Callable[[Snapshot, RunId], dict[str, Any]],
        finish: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Response:
        """A page about one run: what all of them have, what `read` gives, and what `finish` makes of it.

        `finish` is called when the snapshot was given back.
        """
        run_id = runs.run_id_of(request.path_params["run"])
        with self.view(run_id) as view:
            metadata = part(view.runs.get_run, run_id)
            values = {
                "run": metadata.value,
                "run_error": metadata.error,
                "above": [] if metadata.value is None else runs.ancestors(view, metadata.value),
                "counts": holdings.counts_of(view),
                "snapshot_version": view.version,
            } | read(view, run_id)
        if finish is not None:
            values |= finish(values)
        return self.page(
            template,
            request,
            run_id=run_id,
            tab=tab,
            seconds=None if metadata.value is None else runs.seconds_of(metadata.value),
            **values,
        )

    # --- Beside the pages ---

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


def _runs_by_status(view: Snapshot) -> dict[str, int]:
    return {str(status): view.runs.count(status=status) for status in occamdb.RunStatus}


def _names(db: occamdb.Database, rows: Iterable[commits.CommitRow]) -> dict[RunId, str]:
    """The names of the runs that some commits changed, as far as the index has them."""
    found = {}
    with db.snapshot(ANY_RUN) as view:
        for run_id in {run_id for row in rows for run_id, _ in row.runs[: commits.RUNS_SHOWN]}:
            metadata = part(view.runs.get_run, run_id).value if run_id != commits.INDEX_RUN else None
            found[run_id] = metadata.name if metadata is not None and metadata.name else ""
    return found


def _below(db: occamdb.Database, run_id: RunId) -> list[RunId]:
    with db.snapshot(run_id) as view:
        return [row.run_id for row in runs.children_of(view, run_id)][::-1]


def _lane(db: occamdb.Database, run_id: RunId) -> timelines.LaneOfRun:
    with db.snapshot(run_id) as view:
        metadata = part(view.runs.get_run, run_id).value
        name = metadata.name if metadata is not None and metadata.name else str(run_id)
        return timelines.read_lane(view, run_id, name, LANE_TRACES_MAX)


def _window(request: Request) -> timelines.Window:
    """The piece of a timeline that is asked for; None: all of it."""
    first, last = _number(request, "first"), _number(request, "last")
    return None if first is None or last is None or last <= first else (first, last)


def _word(request: Request, name: str) -> str:
    return request.query_params.get(name, "")[:WORDS_MAX]


def _number(request: Request, name: str) -> int | None:
    """A whole number from 0 in the query; None if there is none.

    Raises:
      InvalidArgumentError: it is something else.
    """
    text = _word(request, name)
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidArgumentError(f"{name} is a whole number from 0")
    return int(text)


def _html(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="text/html; charset=utf-8")


def refusal(status: int, headline: str, text: str) -> bytes:
    """A page for somebody who may not see anything of the database."""
    return pages.render("refusal.html", status=status, headline=headline, text=text)


def make_app(source: Source, feed: Feed) -> Starlette:
    """The application, without its gate."""
    inspector = Inspector(source, feed)

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
        return _html(body, status)

    def missing(request: Request, error: Exception) -> Response:
        return fault(request, NotFoundError("there is no such page", hint="the menu has all of them"))

    routes = [
        Route("/", inspector.overview),
        Route("/runs", inspector.runs),
        Route("/conflicts", inspector.conflicts),
        Route("/commits", inspector.commits),
        Route("/commit/{version}", inspector.commit),
        Route("/lanes", inspector.lanes),
        Route("/compare", inspector.compare),
        Route("/run/{run}", inspector.run),
        Route("/run/{run}/traces", inspector.run_traces),
        Route("/run/{run}/trace/{trace}", inspector.trace),
        Route("/run/{run}/events", inspector.run_events),
        Route("/run/{run}/cells", inspector.run_cells),
        Route("/run/{run}/keys", inspector.run_keys),
        Route("/run/{run}/work", inspector.run_work),
        Route("/events", inspector.events),
        Route("/static/{name}", inspector.static),
        Route("/favicon.ico", inspector.icon),
    ]
    return Starlette(routes=routes, exception_handlers={OccamError: fault, OSError: fault, 404: missing})


def _status_of(error: Exception) -> int:
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, InvalidArgumentError):
        return 400
    return 503
