"""`occamdb copy`: runs from a directory or server into another one, compared afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer

from occamdb.tools import console
from occamdb.tools.bars import bars
from occamdb.tools.copy_runs import Copied, RunCopier, run_ids
from occamdb.tools.naming import run_of
from occamdb.tools.places import Place, place_given
from occamdb.tools.printable import printable

if TYPE_CHECKING:
    from occamdb import Database, RunId

    PlaceOf: TypeAlias = Place
    PlaceTo: TypeAlias = Place
else:
    PlaceOf = Annotated[
        Any, typer.Argument(metavar="SRC", help="A directory or the URL of a server.", parser=place_given)
    ]
    PlaceTo = Annotated[
        Any,
        typer.Argument(
            metavar="DEST", help="Another one; a directory is made if needed.", parser=place_given
        ),
    ]

_FAULTS_SHOWN = 5


class _Plan(NamedTuple):
    """What is to be copied of one namespace, parents first."""

    namespace: str
    copier: RunCopier
    runs: list[RunId]


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("copy", rich_help_panel="Care")(copy)


def copy(
    source: PlaceOf,
    destination: PlaceTo,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="Only this run: id, name or beginning; may be repeated."),
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", metavar="TENANT/APP/AGENT", help="Only this namespace; may be repeated."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace runs that the destination has, and that differ.")
    ] = False,
) -> None:
    """Copy runs, every part of them, between directories and servers, and compare the copies with the source.

    Without --run and --namespace: every run of every namespace; with --run alone: of the default namespace. A run that
    is the same in the destination already is left alone, so an interrupted copy goes on where it was. If one differs,
    nothing is copied without --replace.

    Versions count anew in the destination, in the same order. Keys that are bound to a session (held leases, claimed
    tasks, ephemeral keys) are left out and counted. Exit code 1 if a copied run has faults, as it has in the source.
    """
    if run and len(namespace or ()) > 1:
        raise typer.BadParameter("--run names runs of one --namespace")
    _refuse_the_same(source, destination)
    faulty = False
    with ExitStack() as opened:
        from_db = opened.enter_context(console.reading(source))
        chosen = namespace or (["default"] if run else _namespaces(from_db))
        wanted = {name: _runs_of(_in(from_db, name), run or ()) for name in chosen}
        to_db = opened.enter_context(console.database(destination, create=True))
        plans: list[_Plan] = []
        for name, runs in wanted.items():
            copier = RunCopier(_in(from_db, name), _in(to_db, name), replace=replace)
            plans.append(_Plan(name, copier, copier.in_order(runs)))
        same = _already_there(plans, replace)
        for plan in plans:
            for run_id in plan.runs:
                found = same.get((plan.namespace, run_id))
                if found is None:
                    with _bar(run_id) as progress:
                        found = plan.copier.copy(run_id, progress)
                _tell(plan.namespace, run_id, found)
                faulty = faulty or bool(found.faults)
    if faulty:
        raise typer.Exit(1)


def _refuse_the_same(source: Place, destination: Place) -> None:
    from occamdb.engine.model.errors import InvalidArgumentError

    ours = source.resolve() if isinstance(source, Path) else source
    if ours == (destination.resolve() if isinstance(destination, Path) else destination):
        raise InvalidArgumentError(
            "the source and the destination are the same", hint="name another directory or URL as DEST"
        )


def _runs_of(db: Database, named: Iterable[str]) -> list[RunId]:
    """The runs that were named, or all of the namespace."""
    chosen = [run_of(db, text) for text in named]
    return list(dict.fromkeys(chosen)) if chosen else run_ids(db)


def _in(db: Database, namespace: str) -> Database:
    return db.namespace(*namespace.split("/", 2))


def _namespaces(db: Database) -> list[str]:
    """Every namespace in which something is stored, as `--namespace` takes it."""
    from occamdb.engine.model.errors import CorruptionError
    from occamdb.engine.model.keys import decode_key, successor

    backend: Any = getattr(db.handle, "backend", None)
    if backend is not None:
        bases = [bytes(base) for base in backend.namespaces()]
        return ["/".join(part.decode() or "default" for part in base.split(b"\0")[:3]) for base in bases]
    found: list[str] = []
    start: bytes | None = b""
    while start is not None and (key := db.first_key(start)) is not None:
        try:
            where = decode_key(key).namespace
        except CorruptionError:
            start = key + b"\0"
            continue
        found.append(f"{where.tenant}/{where.app}/{where.agent}")
        start = successor(where.base)
    return found


def _already_there(plans: list[_Plan], replace: bool) -> dict[tuple[str, RunId], Copied]:
    """The runs that the destination has already and that are the same.

    Raises:
      AlreadyExistsError: some differ, and are not to be replaced.
    """
    from occamdb.engine.model.errors import AlreadyExistsError

    same: dict[tuple[str, RunId], Copied] = {}
    different: list[str] = []
    for plan in plans:
        for run_id in plan.runs:
            if plan.copier.exists(run_id):
                found = plan.copier.compare(run_id)
                if found is None:
                    different.append(str(run_id))
                else:
                    same[plan.namespace, run_id] = found
    if different and not replace:
        shown = ", ".join(different[:3]) + (f" and {len(different) - 3:,} more" if len(different) > 3 else "")
        raise AlreadyExistsError(
            f"the destination has other data in {len(different):,} of these runs: {shown}; nothing was copied",
            hint="--replace drops what is there and copies them again",
        )
    return same


@contextmanager
def _bar(run_id: RunId) -> Iterator[Any]:
    with bars() as progress:
        bar = progress.add_task(str(run_id), total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _tell(namespace: str, run_id: RunId, found: Copied) -> None:
    what = "the same already" if found.same else "copied"
    console.echo_row(
        str(run_id),
        namespace,
        what,
        f"{found.rows:,} keys",
        console.size(found.size),
        f"{found.ephemeral:,} ephemeral left out",
        "in the index" if found.indexed else "not in the index",
    )
    for fault in found.faults[:_FAULTS_SHOWN]:
        console.echo(f"run {run_id} has a fault, as in the source: {printable(fault)}", err=True)
    if len(found.faults) > _FAULTS_SHOWN:
        console.echo(f"and {len(found.faults) - _FAULTS_SHOWN:,} more", err=True)
