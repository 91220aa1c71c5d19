"""The pages about one run: timeline, traces, events, cells, keys, and tasks, leases and steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import occamdb
from occamdb import RunId, Snapshot
from occamdb.tools.inspector.endpoint import Endpoint, number, window_of, word
from occamdb.tools.inspector.reading import events, holdings, runs, timelines, traces
from occamdb.tools.inspector.reading.safely import part

__all__ = ["RunPages"]


class RunPages(Endpoint):
    """The endpoints; arguments as for `Endpoint`."""

    def run(self, request: Request) -> Response:
        """A run: its facts, the timeline, its children."""

        window = window_of(request)

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
        kind, tag, under = word(request, "type"), word(request, "tag"), word(request, "under")
        failed, after = word(request, "failed") == "1", word(request, "after")

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
        start, whole = number(request, "from"), word(request, "verify") == "all"
        event_type = word(request, "type")

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
        prefix, after = word(request, "prefix"), word(request, "after")

        def read(view: Snapshot, run_id: RunId) -> dict[str, Any]:
            return {
                "found": part(holdings.keys_page, view, tag, prefix=prefix, after=after),
                "prefix": prefix,
            }

        return read

    def run_work(self, request: Request) -> Response:
        """The tasks, leases and steps of a run."""
        queue, state, after = word(request, "queue"), word(request, "state"), word(request, "after")

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
