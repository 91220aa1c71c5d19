"""`occamdb demo`: several agent processes index a tree of files through one database, and the result is proved.

This process starts the database, the shared run and the agents, kills one agent half-way, watches, recounts
everything by itself and compares. Exit code 1 unless the shared result is exactly the plain one, every event chain is
whole, and the work of the agent that was killed was taken over.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from occamdb.tools import console, corpus
from occamdb.tools.places import url_given

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from occamdb import Database
    from occamdb.tools.demo_agent import Plan
    from occamdb.tools.demo_kill import Killer
    from occamdb.tools.demo_report import Report

LOOK_S = 0.05
STOP_TIMEOUT_S = 10.0
SERVER_NAMESPACE = "demo"


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("demo", rich_help_panel="Trying it out")(demo)


def demo(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="What to index; default: Python's standard library."),
    ] = None,
    agents: Annotated[int, typer.Option("--agents", "-a", min=1, max=64, help="How many processes.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="How many files an agent claims at once.")] = 8,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Put the database there and keep it for a look.",
            parser=console.path_given,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--db",
            metavar="URL",
            help=f"Work on this server, in its namespace {SERVER_NAMESPACE}, and leave the runs there.",
            parser=url_given,
        ),
    ] = None,
    durability: Annotated[str, typer.Option(help="none, standard or always.")] = "standard",
) -> None:
    """Index a tree of files with several agent processes at once, and check the result against a plain recount.

    With two agents or more, one is killed half-way on purpose, and another takes its work over.
    """
    if server is not None:
        console.refuse("with --db", keep=keep)
    from occamdb.tools.demo_report import show

    source = (directory or corpus.default_directory()).resolve()
    files = corpus.text_files(source)
    if not files:
        console.echo(f"no text files below {source}", err=True)
        raise typer.Exit(1)
    out = console.out()
    out.print(f"{len(files):,} text files below {source}, {agents} agents, durability {durability}")
    with _database(keep, durability) if server is None else _on_server(server, durability) as db:
        report = run(db, source, files, agents, batch)
        show(report, out)
        if server is not None:
            out.print(
                f"\nThe runs are in {db.path}: try `occamdb inspect URL --namespace {SERVER_NAMESPACE}`."
            )
        if keep is not None:
            out.print(f"\nThe database is in {keep}. Look at it in a browser:")
            out.print(f"{_command()} inspect {keep}", soft_wrap=True)
    if report.faults:
        raise typer.Exit(1)


def run(db: Database, source: Path, files: list[str], agents: int, batch: int) -> Report:
    """The whole demo on an open database: agents, recount, comparison."""
    from occamdb.tools import demo_agent
    from occamdb.tools.demo_kill import Killer
    from occamdb.tools.demo_report import gather, recounted
    from occamdb.tools.demo_view import Watcher, watch

    out = console.out()
    shared = db.runs.create_run_with_options(f"index of {source}", tags=["demo", "index"])
    plan = demo_agent.Plan(shared.run_id, source, files, batch, kills=agents > 1)
    demo_agent.prepare(db, plan)
    watcher, killer = Watcher(db, plan), Killer(db, plan)
    with _agents(db, plan, agents) as processes:
        watch(watcher, lambda seconds: _any_running(processes, seconds, killer), out)
        seconds = watcher.seconds
        failed = [process.name for process in processes if process.exitcode and not killer.killed(process)]
    if failed:
        console.echo(f"{', '.join(failed)} failed", err=True)
        raise typer.Exit(1)
    out.print("recounting with one plain process ...")
    started = time.monotonic()
    recount = recounted(plan)
    out.print(f"recounted in {time.monotonic() - started:.1f} s")
    report = gather(db, plan, recount, seconds)
    db.runs.complete_run(plan.shared)
    return report


def _command() -> str:
    """The command line as it was called, for the next call."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "occamdb" else "occamdb"


@contextmanager
def _database(keep: Path | None, durability: str) -> Iterator[Database]:
    """A database for the demo, its coordinator stopped at the end; in a temporary directory unless kept."""
    import occamdb
    from occamdb.tools.coordinator import stop_coordinator

    with tempfile.TemporaryDirectory(prefix="occamdb-demo-", ignore_cleanup_errors=True) as scratch:
        path = keep or Path(scratch, "index.db")
        db = occamdb.open(path, durability=occamdb.Durability(durability))
        try:
            yield db
        finally:
            db.close()
            stop_coordinator(path)


@contextmanager
def _on_server(url: str, durability: str) -> Iterator[Database]:
    """The namespace of demos on a server."""
    import occamdb

    with occamdb.open(url, durability=occamdb.Durability(durability), tenant=SERVER_NAMESPACE) as db:
        yield db


@contextmanager
def _agents(db: Database, plan: Plan, count: int) -> Iterator[list[SpawnProcess]]:
    """Running agent processes; those left at the end (Ctrl-C) are ended."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_agent_main, args=(db, plan, number), name=f"indexer-{number}")
        for number in range(1, count + 1)
    ]
    try:
        # Ctrl-C reaches the whole group. Agents are born with it blocked: this process ends them in order.
        # Start the tracker first: the first spawn would start it, which unblocks the signal again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for process in processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield processes
    finally:
        for process in processes:
            if process.pid is not None and process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join(STOP_TIMEOUT_S)
            if process.pid is not None and process.is_alive():
                # Otherwise this process would wait for it at exit, without end.
                process.kill()
                process.join()


def _any_running(processes: list[SpawnProcess], seconds: float, killer: Killer) -> bool:
    """Whether an agent still works; waits up to `seconds` for all to end, and kills the one that is to be killed."""
    deadline = time.monotonic() + seconds
    while running := [process.sentinel for process in processes if process.is_alive()]:
        if killer.look(processes):
            console.out().print(killer.news)
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return True
        multiprocessing.connection.wait(running, min(left, LOOK_S))
    return False


def _agent_main(db: Database, plan: Plan, number: int) -> None:
    from occamdb.tools.demo_agent import run_agent

    run_agent(db, plan, number)
    db.close()
