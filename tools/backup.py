"""`occamdb backup`, `restore` and `checkpoint`.

A backup is a database directory with one checkpoint and an id of its own, so it can be opened, checked and restored
on a machine where the original is open. It is taken from a snapshot while commits go on; restoring recovers the
backup into private memory and writes that out again, so what is restored has been read and checked completely.

1. The destination is new or empty; what a failed copy made is removed again.
2. Versions, expiry times and values are those of the original at one version.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from occamdb.tools import console
from occamdb.tools.bars import bars, stages
from occamdb.tools.console import PathArgument

if TYPE_CHECKING:
    from occamdb.engine.disk.directory import DatabaseDirectory
    from occamdb.ipc.segment import Segment

PANEL = "Care"
DestinationArgument = Annotated[
    Path,
    typer.Argument(metavar="DEST", help="A directory that does not exist yet.", parser=console.path_given),
]


@dataclass(frozen=True)
class Copied:
    """What a copy holds: its version, rows and bytes, and how long it took."""

    version: int
    rows: int
    size: int
    seconds: float


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


def _tell(what: str, done: Copied, destination: Path) -> None:
    console.echo(
        f"{what} version {done.version} to {destination}: {done.rows:,} rows, {console.size(done.size)}, "
        f"{done.seconds:.1f} s"
    )


def copy_live(path: Path, destination: Path) -> Copied:
    """Copy what an open database holds, from a snapshot of its shared store.

    Raises:
      AlreadyExistsError: there is something at the destination.
      SnapshotExpired: it took longer than `snapshot_max_age`, the store filled up, or a new coordinator took over
        before it had begun; try again.
      OSError: it could not be written.
    """
    from occamdb import RunId
    from occamdb.engine.disk.directory import read_meta

    meta = read_meta(path)
    assert meta is not None, "require_database found it"
    with (
        console.database(path) as db,
        db.begin(RunId.new(), read_only=True) as txn,
        _store_of(txn, meta.database_id) as store,
    ):
        # A coordinator that dies from here on does no harm: nobody changes its store then, and the mapping keeps it.
        return _write(store.map, txn.start_version, destination, db.durability, lambda: _check_pin(txn))


def _store_of(txn: Any, database_id: bytes) -> Segment:
    """The store that the transaction's snapshot is pinned in, and no other: what a new coordinator's store has at that
    version is not held for us.

    Raises:
      SnapshotExpired: a new coordinator has taken it away.
    """
    from occamdb import SnapshotExpired
    from occamdb.ipc.errors import SegmentMissingError
    from occamdb.ipc.layout import store_name
    from occamdb.ipc.segment import attach_segment

    try:
        return attach_segment(store_name(database_id, txn.store_incarnation), writable=False)
    except SegmentMissingError as error:
        raise SnapshotExpired(
            "a new coordinator took over before the backup had begun; nothing was copied", hint="run it again"
        ) from error


def _check_pin(txn: Any) -> None:
    from occamdb import SnapshotExpired

    if txn.expired:
        raise SnapshotExpired("the backup's snapshot was revoked", hint="raise snapshot_max_age")


def copy_stopped(path: Path, destination: Path) -> Copied:
    """Copy what a directory that nobody serves holds, checking all of it.

    Raises:
      AlreadyExistsError: there is something at the destination.
      CoordinatorUnavailable: somebody serves it.
      CorruptionError: it is damaged; nothing was written.
      OSError: it could not be written.
    """
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
    _require_free(destination)
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
    return _write(scratch.mapping, result.version, destination, durability, lambda: None)


def _write(
    mapping: Any, version: int, destination: Path, durability: str, check: Callable[[], None]
) -> Copied:
    """A new database at `destination` with what `mapping` holds at `version`."""
    from occamdb.engine.disk.directory import DatabaseDirectory

    _require_free(destination)
    existed = destination.exists()
    started = time.monotonic()
    try:
        directory = DatabaseDirectory(destination)
        try:
            rows, size = _write_checkpoint(directory, mapping, version, check)
            directory.note_running(durability, version, 0)
            directory.note_clean_stop(version)
        finally:
            directory.close()
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        if existed:
            destination.mkdir(exist_ok=True)
        raise
    return Copied(version, rows, size, time.monotonic() - started)


def _write_checkpoint(
    directory: DatabaseDirectory, mapping: Any, version: int, check: Callable[[], None]
) -> tuple[int, int]:
    from occamdb.engine.log._checkpoint import CheckpointWriter
    from occamdb.engine.log.checkpoint import checkpoint_name

    name = checkpoint_name(version)
    with directory.checkpoints.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        writer = CheckpointWriter(file.fd, directory.database_id, 0, version, time.time_ns(), mapping)
        with bars() as progress:
            task = progress.add_task("writing", total=None)
            while writer.write_rows():
                check()
                progress.update(task, description=f"writing: {writer.rows:,} rows")
        writer.write_outcomes(())  # sessions belong to the original: nobody asks the copy about them
        writer.finish(tombstone_horizon=version)
        check()
        file.sync()
    directory.checkpoints.sync()
    return writer.rows, writer.position


def _require_free(destination: Path) -> None:
    from occamdb import AlreadyExistsError

    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise AlreadyExistsError(
            f"{destination} is not empty", hint="choose a directory that does not exist yet"
        )
