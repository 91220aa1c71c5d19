"""`occamdb doctor`: what is wrong with this machine's shared memory, with stale segments, with a directory.

Each examination yields findings and changes nothing; `--clean` removes what is certainly dead.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from occamdb.ipc.errors import OccamError
from occamdb.tools import console
from occamdb.tools.console import JsonOption
from occamdb.tools.printable import markup

OK, NOTE, PROBLEM = "ok", "note", "problem"
DESCRIPTOR_COUNT_MIN = 1024
NEARBY_COUNT_MAX = 1000
FREE_BYTES_MIN = 256 << 20
_NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "fuse.sshfs",
    "glusterfs",
    "ceph",
    "afs",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: level (ok, note, problem), what was found, what to do."""

    level: str
    text: str
    hint: str = ""


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("doctor", rich_help_panel="Care")(doctor)


def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="Also look at this database.", parser=console.path_given),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove segments whose coordinator is dead (of PATH, or all).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong with this machine, its shared memory and a database; exit code 1 if something is."""
    findings = [*_clean_up(path)] if clean else []
    findings += [*machine(), *segments(path)]
    if path is not None:
        findings += directory(path)
    if as_json:
        console.print_json([vars(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.level == PROBLEM for finding in findings):
        raise typer.Exit(1)


def machine() -> Iterator[Finding]:
    """Shared memory and resource limits."""
    from occamdb.engine.model.limits import sized
    from occamdb.engine.model.settings import Settings
    from occamdb.ipc.segment import SHM_DIRECTORY, shm_free_bytes

    if not os.access(SHM_DIRECTORY, os.W_OK):
        yield Finding(PROBLEM, f"{SHM_DIRECTORY} is not writable", f"mount a tmpfs at {SHM_DIRECTORY}")
        return
    free, wanted = shm_free_bytes(), Settings().max_store_size
    text = f"shared memory: {console.size(free)} free"
    if free < FREE_BYTES_MIN:
        yield Finding(PROBLEM, text, "free memory, or enlarge the tmpfs (docker: --shm-size)")
    elif free < wanted:
        hint = "commits fail with StoreFullError when it is used up; set max_store_size below it"
        yield Finding(NOTE, f"{text}, less than the default max_store_size of {sized(wanted)}", hint)
    else:
        yield Finding(OK, text)
    yield from _limits(wanted)


def _limits(store_size: int) -> Iterator[Finding]:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    enough = descriptors == resource.RLIM_INFINITY or descriptors >= DESCRIPTOR_COUNT_MIN
    hint = "" if enough else "a coordinator takes one for each connection: ulimit -n 4096"
    yield Finding(OK if enough else NOTE, f"open files: up to {descriptors}", hint)
    for name, limit in (("address space", resource.RLIMIT_AS), ("file size", resource.RLIMIT_FSIZE)):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY and soft < store_size:
            hint = "the store is mapped as a whole: raise the limit, or lower max_store_size"
            yield Finding(PROBLEM, f"{name} is limited to {console.size(soft)}", hint)


def _id_of(path: Path) -> bytes | None:
    """The id of the database at `path`; None if no database can be read there."""
    from occamdb.engine.disk.directory import read_meta

    try:
        meta = read_meta(path)
    except (OccamError, OSError):
        return None  # `directory` says what is wrong with it
    return meta.database_id if meta else None


def _database_of(path: Path | None) -> str | None:
    """How the segments of the database at `path` are named; None: no path, or no database there."""
    database_id = None if path is None else _id_of(path)
    return database_id.hex()[:16] if database_id else None


def _nearby_databases(path: Path | None) -> dict[str, Path]:
    """Paths of databases, by how their segments are named: `path`, and what is in and directly below here.

    Segments hold no path, since a directory can be moved while nobody serves it.
    """
    try:
        here = Path.cwd()
        below = islice((each for each in here.iterdir() if each.is_dir()), NEARBY_COUNT_MAX)
        candidates = [here, *below]
    except OSError:
        candidates = []
    found: dict[str, Path] = {}
    for each in [*([path] if path is not None else []), *candidates]:
        name = _database_of(each) if console.has_database(each) else None
        if name is not None:
            found.setdefault(name, each)
    return found


def segments(path: Path | None = None) -> Iterator[Finding]:
    """What lies in shared memory, of every database. What others left is not a problem of the one at `path`."""
    from occamdb.ipc.stale import list_incarnations

    own = _database_of(path)
    found = list_incarnations()
    paths = _nearby_databases(path) if found else {}
    for item in found:
        place = f" ({paths[item.database]})" if item.database in paths else ""
        text = (
            f"database {item.database}{place}, incarnation {item.number}: {console.size(item.allocated_size)}"
        )
        if item.foreign:
            yield Finding(NOTE, f"{text}, of another user")
        elif item.dead:
            level = PROBLEM if own in (None, item.database) else NOTE
            yield Finding(
                level, f"{text}, left by a dead coordinator", _how_to_clean(paths.get(item.database))
            )
        else:
            owner = f"pid {item.owner.pid}" if item.owner else "a coordinator that is starting"
            yield Finding(OK, f"{text}, of {owner}")
    if not found:
        yield Finding(OK, "no segments in shared memory")


def _how_to_clean(path: Path | None) -> str:
    return f"occamdb doctor --clean {path} removes it" if path else "occamdb doctor --clean removes it"


def directory(path: Path) -> Iterator[Finding]:
    """One database directory, without opening it."""
    from occamdb.engine.disk.directory import read_meta
    from occamdb.ipc.errors import LockHeldError, OccamError
    from occamdb.tools.coordinator import coordinator_of

    if not console.has_database(path):
        yield Finding(
            PROBLEM, f"{path} is not an occamdb database", "the first open of a directory makes one"
        )
        return
    try:
        meta = read_meta(path)
        assert meta is not None
        yield Finding(OK, f"{path}: database {meta.database_id.hex()[:16]}, durability {meta.durability}")
    except OccamError as error:
        yield Finding(PROBLEM, error.message, error.hint)
        return
    try:
        holder = coordinator_of(path)
        yield Finding(OK, f"coordinator: pid {holder.pid}" if holder else "coordinator: none running")
        if holder is None and not meta.clean:
            yield Finding(NOTE, "it was not stopped cleanly", "nothing to do: the next open recovers")
    except LockHeldError as error:
        yield Finding(NOTE, error.message, "a coordinator may be starting: try again")
    if holder is not None:
        yield from _durability(path)
    yield from _storage(path)


def _durability(path: Path) -> Iterator[Finding]:
    """Whether what the running coordinator acknowledges gets to the disk."""
    from occamdb.tools.coordinator import ask

    try:
        figures = ask(path, "stats")
    except OccamError as error:
        yield Finding(NOTE, error.message, error.hint)
        return
    last, log = figures["durable"]["checkpoint"], figures["log"]
    if log and log["poisoned"]:
        state = "is in a checkpoint" if last["saved"] else "is not saved yet"
        yield Finding(
            PROBLEM,
            f"the log failed: commits are refused; what was acknowledged {state}",
            "look into coordinator.log, mend the disk, then `occamdb stop`; the next open recovers it",
        )
    if last["failures"]:
        yield Finding(
            PROBLEM,
            f"{last['failures']} checkpoints in a row failed, and the log grows: {last['error']}",
            "free space on the disk; if the store was full, raise max_store_size or delete keys",
        )


def _storage(path: Path) -> Iterator[Finding]:
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, f"{path} is not writable by this user", "chown or chmod it")
    owner = path.stat().st_uid
    if owner != os.geteuid():
        yield Finding(NOTE, f"{path} belongs to user {owner}", "coordinator and workers must be one user")
    state = os.statvfs(path)
    free = state.f_bavail * state.f_frsize
    low = free < FREE_BYTES_MIN
    hint = "commits fail with LogWriteError when it is used up" if low else ""
    yield Finding(PROBLEM if low else OK, f"file system: {console.size(free)} free", hint)
    kind = _file_system_of(path)
    if kind in _NETWORK_FILE_SYSTEMS:
        hint = "locks and fsync may not hold there: use a local disk"
        yield Finding(PROBLEM, f"file system: {kind}, over a network", hint)


def _file_system_of(path: Path) -> str:
    """The type of the file system that holds a path; "" when unknown."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return ""


def _clean_up(path: Path | None) -> Iterator[Finding]:
    """Remove the segments of dead coordinators: of the database at `path`, or without one of all of this user's."""
    from occamdb.engine.coordinator.coordinator import mark_superseded
    from occamdb.ipc.stale import remove_dead

    def retire(name: str) -> None:
        # Workers may still have it mapped. Without its name the next coordinator could not tell them
        # that there is a newer store, and they would go on beginning snapshots of this one.
        if name.endswith("-store"):
            mark_superseded(name)

    database_id = None if path is None else _id_of(path)
    if path is not None and database_id is None:
        return  # to `remove_dead` no id means every database, and a user who names a path means one
    for name in remove_dead(database_id, retire=retire):
        yield Finding(OK, f"removed {name}")


def _show(findings: list[Finding]) -> None:
    marks = {OK: "[green]ok[/]     ", NOTE: "[yellow]note[/]   ", PROBLEM: "[red]problem[/]"}
    for finding in findings:
        console.out().print(f"{marks[finding.level]} {markup(finding.text)}")
        if finding.hint:
            console.out().print(f"        [dim]{markup(finding.hint)}[/]")
