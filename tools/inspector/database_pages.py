"""The pages about the whole database: overview, runs, conflicts, commits, runs side by side, two runs compared."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response

import occamdb
from occamdb import RunId, Snapshot
from occamdb.engine.model.errors import OccamError
from occamdb.tools.inspector.endpoint import ANY_RUN, Endpoint, number, window_of, word
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.reading import commits, compare, runs, timelines
from occamdb.tools.inspector.reading.committers import Committers
from occamdb.tools.inspector.reading.safely import part, problem
from occamdb.tools.inspector.source import Source

__all__ = ["DatabasePages"]

ACTIVE_SHOWN = 12
CONFLICTS_SHOWN = 60
LANES_MAX = 12
LANE_TRACES_MAX = 5_000


class DatabasePages(Endpoint):
    """The endpoints; arguments as for `Endpoint`."""

    def __init__(self, source: Source, feed: Feed) -> None:
        super().__init__(source, feed)
        self._committers = Committers(source.log)

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
            status=word(request, "status"),
            tag=word(request, "tag"),
            text=word(request, "text").strip(),
            before=word(request, "before"),
            tree=word(request, "view") == "tree",
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
        before, run = number(request, "before"), word(request, "run")
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
        window = window_of(request)
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
        left, right = word(request, "left"), word(request, "right")
        found, names = None, {}
        if left and right:
            one, two = runs.run_id_of(left), runs.run_id_of(right)
            with self.reading() as db, db.snapshot(one) as view, db.snapshot(two) as other:
                found = part(compare.compare, view, other, one, two)
        else:
            with self.view() as view:
                names = {row.run_id: row for row in runs.runs_page(view, runs.RunsWanted()).rows}
        return self.page("compare.html", request, left=left, right=right, found=found, choices=names)


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
