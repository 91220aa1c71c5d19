"""`occamdb backup`, `restore` and `checkpoint`.

A backup is `Database.backup`. Restoring recovers the backup into private memory and writes that out again, so what is
restored has been read and checked completely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from occamdb.tools import console
from occamdb.tools.bars import bars, stages
from occamdb.tools.console import PathArgument

if TYPE_CHECKING:
    from occamdb import BackupSummary

PANEL = "Care"
DestinationArgument = Annotated[
    Path,
    typer.Argument(metavar="DEST", help="A directory that does not exist yet.", parser=console.path_given),
]


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command("checkpoint", rich_help_panel=PANEL)(checkpoint)
    app.command("backup", rich_help_panel=PANEL)(backup)
    app.command("restore", rich_help_panel=PANEL)(restore)


def checkpoint(path: PathArgument) -> None:
    """Write a checkpoint and remove the log before it. Commits go on meanwhile."""
    with console.database(path) as db:
        done = db.checkpoint()
    console.echo(
        f"checkpoint of version {done['version']}: {done['rows']:,} rows, {console.size(done['bytes'])}"
    )


def backup(path: PathArgument, destination: DestinationArgument) -> None:
    """Copy a database as it is at this moment into a new directory, while others go on working with it."""
    done = copy_live(console.require_database(path), destination)
    _tell("backed up", done, destination)


def restore(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="BACKUP", help="A backup, or a database nobody serves.", parser=console.path_given
        ),
    ],
    destination: DestinationArgument,
) -> None:
    """Make a database of a backup: read and check it completely, then write it to a new directory."""
    done = copy_stopped(console.require_database(source), destination)
    _tell("restored", done, destination)


def _tell(what: str, done: BackupSummary, destination: Path) -> None:
    console.echo(
        f"{what} version {done.version} to {destination}: {done.rows:,} rows, {console.size(done.size)}, "
        f"{done.seconds:.1f} s"
    )


def copy_live(path: Path, destination: Path) -> BackupSummary:
    """Copy what an open database holds; see `Database.backup`.

    Raises:
      AlreadyExistsError: there is something at the destination.
      SnapshotExpired: it took longer than `snapshot_max_age`, the store filled up, or a new coordinator took over
        before it had begun; try again.
      OSError: it could not be written.
    """
    with console.database(path) as db, _counting() as progress:
        return db.backup(destination, progress=progress)


@contextmanager
def _counting() -> Iterator[Callable[[int], None]]:
    with bars() as progress:
        task = progress.add_task("writing", total=None)
        yield lambda rows: progress.update(task, description=f"writing: {rows:,} rows")


def copy_stopped(path: Path, destination: Path) -> BackupSummary:
    """Copy what a directory that nobody serves holds, checking all of it.

    Raises:
      AlreadyExistsError: there is something at the destination.
      CoordinatorUnavailable: somebody serves it.
      CorruptionError: it is damaged; nothing was written.
      OSError: it could not be written.
    """
    from occamdb.engine.client.backup import require_free, write_copy
    from occamdb.engine.disk.directory import DatabaseDirectory
    from occamdb.engine.log._scratch import ScratchStore
    from occamdb.engine.log.recovery import recover
    from occamdb.engine.model.errors import CoordinatorUnavailable
    from occamdb.tools.coordinator import coordinator_of

    holder = coordinator_of(path)
    if holder is not None:
        raise CoordinatorUnavailable(
            f"{path} is served by pid {holder.pid}", hint="`occamdb stop` it, or use `occamdb backup`"
        )
    require_free(destination)
    directory = DatabaseDirectory(path, create=False)
    try:
        scratch = ScratchStore(directory.database_id)
        with bars() as progress:
            result = recover(directory, scratch.loader(), progress=stages(progress), repair_disk=False)
        fault = scratch.check()
        assert fault is None, fault
        durability = directory.meta.durability or "standard"
    finally:
        directory.close()
    with _counting() as progress:
        return write_copy(scratch.mapping, result.version, destination, durability, progress)
