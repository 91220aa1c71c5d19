"""The report's page, section by section, as pieces of text to write one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import occamdb
from occamdb.tools.console import duration, show_key
from occamdb.tools.pictures import Bar, timeline, timeline_svg
from occamdb.tools.run_report.content import Part, RunContent
from occamdb.tools.run_report.elements import Markup, element, opening, rows, table
from occamdb.tools.run_report.style import CSS, POLICY
from occamdb.tools.run_report.trace_tree import Room, anchor, trace_list

if TYPE_CHECKING:
    from datetime import datetime

    from occamdb.primitives import ChainVerification, RunMetadata

__all__ = ["TREE_SIZE_MAX", "report_page"]

# A browser opens a page with so many traces in a second or two.
TREE_SIZE_MAX = 5_000
# Of stored values, in characters: a file that can be mailed.
VALUES_SIZE_MAX = 8_000_000


def report_page(run: RunContent, database: str) -> Iterator[str]:
    """The whole file.

    Args:
      run: what it tells.
      database: a name for the database.
    """
    room = Room(VALUES_SIZE_MAX)
    title = next((known.name for known in run.metadata.rows if known.name), f"run {run.run_id}")
    yield "<!DOCTYPE html>\n"
    yield opening("html", lang="en")
    yield Markup("<head>") + opening("meta", charset="utf-8")
    yield opening("meta", http_equiv="Content-Security-Policy", content=POLICY)
    yield opening("meta", name="viewport", content="width=device-width, initial-scale=1")
    yield opening("meta", name="referrer", content="no-referrer")
    yield element("title", f"{title} – occamdb")
    yield f"<style>{CSS}</style></head>\n<body>\n"
    yield element("h1", title)
    yield element(
        "p",
        f"A run in the occamdb database {database}, as of its version {run.version:,}, "
        f"read {_moment(run.read_at)} with occamdb {occamdb.__version__}.",
        class_="faint",
    )
    sections = {
        "Run": _metadata(run, room),
        "Timeline": _timeline(run, title),
        "Traces": _traces(run, room),
        "Events": _events(run, room),
        "Cells": _cells(run, room),
        "Keys": _keys(run, room),
        "Tasks": _tasks(run, room),
        "Leases": _leases(run),
        "Steps": _steps(run, room),
    }
    yield element("nav", *(element("a", each, href=f"#{each.lower()}") for each in sections))
    for heading, pieces in sections.items():
        yield Markup(f"\n{opening('section', id=heading.lower())}") + element("h2", heading) + "\n"
        yield from pieces
        yield "</section>\n"
    if room.was_short:
        note = (
            f"The values of this run are long: those behind the first {VALUES_SIZE_MAX:,} characters "
            f"are cut to {room.short} characters each."
        )
        yield element("p", note, class_="note")
    yield "</body></html>\n"


def _metadata(run: RunContent, room: Room) -> Iterator[str]:
    if not run.metadata.rows:
        if run.metadata.error is None:
            yield element("p", "The run is not in the index of runs: it has no name, status or tags.")
        yield rows([("run", element("code", str(run.run_id)))])
        yield _left_out(run.metadata, "facts of the run")
        return
    (known,) = run.metadata.rows
    seconds = (known.completed_at - known.created_at).total_seconds() if known.completed_at else None
    yield rows(
        [
            ("run", element("code", str(known.run_id))),
            ("status", _status(known)),
            ("error", room.value(known.error) if known.error is not None else ""),
            ("parent", element("code", str(known.parent_run_id)) if known.parent_run_id else ""),
            ("tags", ", ".join(known.tags)),
            ("created", _moment(known.created_at)),
            ("ended", _moment(known.completed_at) if known.completed_at else ""),
            ("took", duration(seconds)),
            ("metadata", room.value(known.metadata) if known.metadata else ""),
        ]
    )
    if run.children.rows:
        yield element("h3", "Runs below it")
        yield table(
            ("run", "name", "status", "created"),
            (
                (element("code", str(child.run_id)), child.name, _status(child), _moment(child.created_at))
                for child in run.children.rows
            ),
        )
    yield _left_out(run.children, "runs below it")


def _timeline(run: RunContent, title: str) -> Iterator[str]:
    layout = timeline(run.traces.rows)
    # Only what is in the tree below can be jumped to.
    linked = {trace.id for trace in run.traces.rows} if len(run.traces.rows) <= TREE_SIZE_MAX else set()

    def link(bar: Bar) -> str | None:
        return f"#{anchor(bar.trace_id)}" if bar.trace_id in linked else None

    yield Markup(
        f'<div class="picture">{timeline_svg(layout, title=f"timeline of {title}", link=link)}</div>\n'
    )
    yield _left_out(run.traces, "traces")


def _traces(run: RunContent, room: Room) -> Iterator[str]:
    found = len(run.traces.rows)
    if found > TREE_SIZE_MAX:
        note = f"The first {TREE_SIZE_MAX:,} of {found:,} traces, tree by tree. The timeline above has all of them."
        yield element("p", note, class_="note")
    yield from trace_list(run.traces.rows, TREE_SIZE_MAX, room)
    if not found:
        yield _none("traces")


def _events(run: RunContent, room: Room) -> Iterator[str]:
    yield _chain(run.chain)
    broken = None if run.chain is None else run.chain.first_invalid
    if run.events.rows:
        yield '<div class="wide"><table>'
        yield element("tr", *(element("th", each) for each in ("", "time", "type", "payload", "hash")))
    expected = 0
    for event in run.events.rows:
        if event.sequence > expected:
            gap = f"… {event.sequence - expected:,} events left out, {expected:,} to {event.sequence - 1:,}"
            yield element("tr", element("td", gap, colspan="5", class_="faint"))
        expected = event.sequence + 1
        cells = (
            f"{event.sequence:,}",
            _moment(event.timestamp),
            event.event_type,
            room.value(event.payload) if event.payload else "",
            element("code", event.hash.hex()[:12]),
        )
        attributes = {"class_": "broken"} if event.sequence == broken else {}
        yield element("tr", *(element("td", cell) for cell in cells), **attributes) + "\n"
    if run.events.rows:
        yield "</table></div>\n"
    elif run.events.error is None:
        yield _none("events")
    yield _left_out(run.events, "events")


def _chain(chain: ChainVerification | None) -> Markup:
    if chain is None:
        return element("p", "The chain of the events could not be checked.", class_="bad")
    if chain.is_valid:
        words = f"Chain verified: {chain.length:,} events, every hash as it must be."
        return element("p", words, class_="good") if chain.length else Markup("")
    return element("p", f"Chain broken at event {chain.first_invalid}: {chain.error}", class_="bad")


def _cells(run: RunContent, room: Room) -> Iterator[str]:
    yield from _listed(
        run.cells,
        "cells",
        ("cell", "version", "value", "written"),
        (
            (show_key(name), f"{state.version:,}", room.value(state.value), _moment(state.updated_at))
            for name, state in run.cells.rows
        ),
    )


def _keys(run: RunContent, room: Room) -> Iterator[str]:
    yield from _listed(
        run.keys,
        "keys",
        ("key", "version", "value"),
        ((show_key(key), f"{found.version:,}", room.value(found.value)) for key, found in run.keys.rows),
    )


def _tasks(run: RunContent, room: Room) -> Iterator[str]:
    for queue in run.queues.rows:
        states = ("ready", "delayed", "claimed", "done", "dead")
        numbers = ", ".join(f"{getattr(queue.stats, state):,} {state}" for state in states)
        yield element("h3", f"{queue.name}: {numbers}")
        count = sum(getattr(queue.stats, state) for state in states)
        yield table(
            ("task", "state", "attempts", "payload", "result or error", "put"),
            (
                (
                    element("code", task.id),
                    str(task.state),
                    f"{task.attempts} of {task.max_attempts}",
                    room.value(task.payload),
                    room.value(task.error if task.error is not None else task.result)
                    if task.error is not None or task.result is not None
                    else "",
                    _moment(task.created_at),
                )
                for task in queue.tasks
            ),
        )
        yield _left_out(Part(queue.tasks, count), f"tasks of {queue.name}")
    if not run.queues.rows and run.queues.error is None:
        yield _none("tasks")
    yield _left_out(run.queues, "queues")


def _leases(run: RunContent) -> Iterator[str]:
    yield from _listed(
        run.leases,
        "leases",
        ("lease", "slot", "token", "pid", "since", "until", "waiting"),
        (
            (
                each.name,
                f"{each.slot} of {each.slots}",
                str(each.token),
                str(each.pid),
                _moment(each.since),
                _moment(each.expires_at) if each.expires_at is not None else "no limit",
                str(waiting),
            )
            for each, waiting in run.leases.rows
        ),
    )


def _steps(run: RunContent, room: Room) -> Iterator[str]:
    yield from _listed(
        run.steps,
        "steps",
        ("step", "state", "attempts", "took", "result or error", "began"),
        (
            (
                step.name,
                step.state,
                str(step.attempts),
                duration((step.ended - step.began).total_seconds()) if step.ended is not None else "",
                room.value(step.error if step.error is not None else step.result) if step.ended else "",
                _moment(step.began),
            )
            for step in run.steps.rows
        ),
    )


def _listed(
    part: Part[Any], what: str, titles: tuple[str, ...], body: Iterator[tuple[str, ...]]
) -> Iterator[str]:
    """A section that is one table."""
    if part.rows:
        yield table(titles, body)
    elif part.error is None:
        yield _none(what)
    yield _left_out(part, what)


def _left_out(part: Part[Any], what: str) -> Markup:
    """What a section does not have, and why; nothing if it is whole."""
    if part.is_whole:
        return Markup("")
    if part.error is not None:
        words = f"Not all {what} could be read: {part.error}"
        return element("p", words, class_="bad")
    of = "more" if part.count is None else f"{part.count:,}"
    return element("p", f"Cut: {len(part.rows):,} of {of} {what} are in this report.", class_="note")


def _none(what: str) -> Markup:
    return element("p", f"no {what}", class_="faint")


def _status(run: RunMetadata) -> Markup:
    colours = {"completed": "good", "failed": "bad"}
    return element("span", run.status.value, class_=colours.get(run.status.value, ""))


def _moment(when: datetime) -> str:
    return when.isoformat(sep=" ", timespec="milliseconds")
