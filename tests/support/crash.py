"""A database whose coordinator is killed on purpose, under load from workers that check every commit they make.

Each writer commits numbered transactions and keeps a journal file that survives it: begun, acknowledged (with the
version), refused, unknown. Number n of writer w, in one transaction,

    writes n under left/w/<n mod SLOTS> and right/w/<n mod SLOTS>, far apart in key order
    moves head/w from [n', done] to [n, done + 1], where n' is the last of its numbers that committed
    adds 1 to `total`, toggles flag/w, and every third number counts up `shared`, which others count up too

and between two of them adds 1 to sum/w and deletes own/w by implicit transactions whose answers it knows beforehand.
So a writer sees at once if an acknowledged commit is lost, a refused one there, or one there twice; `verify` sees it
from outside, from journals read before its snapshot, while the writers go on.

Coordinators to come are armed through files in `arms`: the process that starts one takes the first that is
left and gives it to that coordinator as OCCAMDB_FAILPOINTS. So the writers start armed coordinators by
themselves, one after another.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from occamdb import CommitOutcomeUnknown, ConflictError, Database, OccamError, RunId
from occamdb.engine.client import launcher as launch
from occamdb.engine.client.launcher import Launcher
from occamdb.engine.disk.directory import DatabaseDirectory
from occamdb.engine.log import check as engine_check
from occamdb.engine.log._scratch import ScratchStore
from occamdb.engine.log.recovery import recover
from occamdb.ipc.errors import ControlError, LockHeldError
from occamdb.ipc.process import ProcessIdentity, is_alive
from tests.support import processes
from tests.support.processes import (
    Peer,
    Worker,
    coordinator_identity,
    open_database,
    segments_of,
    state_of,
    wait_until,
)

__all__ = [
    "SETTINGS",
    "Journal",
    "Plan",
    "Scene",
    "arm_next",
    "arms_left",
    "scene_at",
    "take_arms_from",
    "write",
]

# Segments and checkpoints of the smallest size, so that rotations and checkpoints come often by themselves.
SETTINGS: dict[str, Any] = {"wal_segment_size": 16 << 10, "checkpoint_bytes": 64 << 10, "timeout": 60.0}
SLOTS = 16
BEGUN, ACKNOWLEDGED, REFUSED, UNKNOWN = 1, 2, 3, 4
_NOTE = struct.Struct("<BxxxIQ")  # kind, number, version


# ---- arms for the coordinators to come -------------------------------------------------------------------


def arm_next(arms: Path, specifications: Sequence[str]) -> None:
    """Arm the next coordinators with these failpoints, one each; later ones start with none."""
    arms.mkdir(exist_ok=True)
    first = max((int(file.name) for file in arms.iterdir()), default=0) + 1
    for number, text in enumerate(specifications, first):
        _put(arms, f"{number:06d}", text)


def arms_left(arms: Path) -> int:
    """How many of them were not started yet."""
    return len(list(arms.iterdir())) if arms.exists() else 0


def take_arms_from(arms: Path) -> Callable[[], None]:
    """Arm the coordinators that this process starts from the files in `arms`; returns how to end that."""
    spawn, read_report = Launcher._spawn, launch._read_report
    taken = threading.local()

    def armed_spawn(launcher: Launcher, report_fd: int) -> None:
        taken.name, text = _take(arms)
        before = os.environ.pop("OCCAMDB_FAILPOINTS", None)
        if text:
            os.environ["OCCAMDB_FAILPOINTS"] = taken.text = text
        try:
            spawn(launcher, report_fd)
        finally:
            os.environ.pop("OCCAMDB_FAILPOINTS", None)
            if before is not None:
                os.environ["OCCAMDB_FAILPOINTS"] = before

    def armed_read_report(fd: int, limit: float) -> bytes | None:
        answer = read_report(fd, limit)
        if answer and taken.name and json.loads(answer).get("error") == LockHeldError.__name__:
            # Another process was quicker, so its coordinator is not armed: put the arm back for a later one.
            _put(arms, taken.name, taken.text)
        return answer

    def end() -> None:
        Launcher._spawn = spawn  # type: ignore[method-assign]
        launch._read_report = read_report

    Launcher._spawn = armed_spawn  # type: ignore[assignment, method-assign]
    launch._read_report = armed_read_report
    return end


def _take(arms: Path) -> tuple[str, str]:
    for file in sorted(arms.iterdir()) if arms.exists() else ():
        mine = arms.parent / f"arms-taken-{os.getpid()}"
        # The holder of the STARTER lock is alone here, except for processes that waited for it too long.
        with contextlib.suppress(FileNotFoundError):
            file.rename(mine)
            return file.name, mine.read_text()
    return "", ""


def _put(arms: Path, name: str, text: str) -> None:
    draft = arms.parent / f"arms-draft-{os.getpid()}"
    draft.write_text(text)
    draft.rename(arms / name)


# ---- journals ---------------------------------------------------------------------------------------------


class Journal:
    """What one writer was told, readable while it writes and after it was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = 0
        self.acknowledged: dict[int, int] = {}
        self.refused: set[int] = set()
        self.unknown: set[int] = set()
        self._offset = 0
        self._out: BinaryIO | None = None

    def note(self, kind: int, number: int, version: int = 0) -> None:
        """Append one note; the writer's side."""
        if self._out is None:
            self._out = open(self.path, "ab", buffering=0)  # noqa: SIM115 - as long as the writer
        self._out.write(_NOTE.pack(kind, number, version))

    def read(self) -> Journal:
        """Take in what was noted since the last call."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
            whole = len(data) - len(data) % _NOTE.size
            self._offset += whole
            for kind, number, version in _NOTE.iter_unpack(data[:whole]):
                self._take_in(kind, number, version)
        return self

    def _take_in(self, kind: int, number: int, version: int) -> None:
        if kind == BEGUN:
            self.begun = number
        elif kind == ACKNOWLEDGED:
            self.acknowledged[number] = version
        elif kind == REFUSED:
            self.refused.add(number)
        else:
            self.unknown.add(number)

    @property
    def unresolved(self) -> set[int]:
        """Numbers that may have committed or not: at most the last one, unless outcomes were unknown."""
        known = self.acknowledged.keys() | self.refused | self.unknown
        return self.unknown | ({self.begun} - known if self.begun else set())


# ---- the writers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What a writer needs to know; travels to its process.

    Attributes:
      refusals: codes of errors that may refuse its commits; any other error is a failure of the test.
      unknown: whether an outcome may stay unknown.
    """

    path: Path
    files: Path
    run: RunId
    settings: dict[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    unknown: bool = False

    def open(self) -> Database:
        """A handle on the database."""
        return open_database(self.path, **(SETTINGS | self.settings))

    def journal(self, number: int) -> Journal:
        """The journal of one writer."""
        return Journal(self.files / f"writer-{number:02d}")

    @property
    def arms(self) -> Path:
        """Failpoints for coordinators to come."""
        return self.files / "arms"


class Writer:
    """One writer; see the module."""

    def __init__(self, db: Database, plan: Plan, number: int) -> None:
        self.db = db
        self.plan = plan
        self.number = number
        self.journal = plan.journal(number)
        self.count = 0  # numbers begun
        self.last = (0, 0)  # number and version of the last commit
        self.maybe = 0  # a number with unknown outcome, until the head is read again
        self.sum = 0
        self._done = 0  # how many commits there are by the head that the running transaction read

    def step(self) -> None:
        """Make one numbered transaction, and the implicit ones."""
        self.count += 1
        self.journal.note(BEGUN, self.count)
        outcome, version = self._outcome_of(self._numbered)
        if outcome == ACKNOWLEDGED:
            self.last = (self.count, version)
        elif outcome == UNKNOWN:
            self.maybe = self.count
        self.journal.note(outcome, self.count, version)
        self._implicit()

    def _outcome_of(self, action: Callable[[], int]) -> tuple[int, int]:
        try:
            return ACKNOWLEDGED, action()
        except ConflictError:
            return REFUSED, 0
        except CommitOutcomeUnknown:
            if not self.plan.unknown:
                raise
            return UNKNOWN, 0
        except OccamError as error:
            if error.code not in self.plan.refusals:
                raise
            return REFUSED, 0

    def _numbered(self) -> int:
        n, w = self.count, self.number
        txn = self.db.begin(self.plan.run)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(_abort, txn)
            self._check_last(txn)
            txn.put(f"left/{w}/{n % SLOTS}", n)
            txn.put(f"right/{w}/{n % SLOTS}", n)
            txn.put(f"head/{w}", [n, self._done + 1])
            if txn.get(f"flag/{w}"):
                txn.delete(f"flag/{w}")
            else:
                txn.put(f"flag/{w}", n)
            txn.kv.increment("total")
            if n % 3 == 0:
                txn.put("shared", txn.get("shared", 0) + 1)
            return int(txn.commit().version)

    def _check_last(self, txn: Any) -> None:
        """Our last commit is there, whole; what was refused since is not."""
        found = txn.get_versioned(f"head/{self.number}")
        head, version = (found.value, found.version) if found else ([0, 0], 0)
        if self.maybe and head[0] == self.maybe:
            self.last = (self.maybe, version)
        self.maybe = 0
        assert (head[0], version) == self.last, (
            f"writer {self.number}: the head is {head} at {version}, last acknowledged {self.last}"
        )
        self._done = head[1]
        for side in ("left", "right") if head[0] else ():
            slot = txn.get_versioned(f"{side}/{self.number}/{head[0] % SLOTS}", track=False)
            assert slot is not None and (slot.value, slot.version) == self.last, (
                f"{side} of {self.last}: {slot}"
            )
        flag = txn.get(f"flag/{self.number}")
        assert (flag is not None) == bool(head[1] % 2), f"{head[1]} commits, the flag is {flag}"

    def _implicit(self) -> None:
        """Implicit transactions whose answers are known beforehand, even when an answer has to be rebuilt."""
        run, key = self.plan.run, f"sum/{self.number}"
        outcome, answer = self._outcome_of(lambda: self.db.kv.increment(run, key))
        if outcome == ACKNOWLEDGED:
            assert answer == self.sum + 1, f"{key}: {self.sum} and 1 is {answer}"
            self.sum = answer
        elif outcome == UNKNOWN:
            found = self.db.get(run, key, 0)
            assert found in (self.sum, self.sum + 1), f"{key}: was {self.sum}, is {found}"
            self.sum = found
        if self.count % 2:
            self._outcome_of(lambda: self.db.put(run, f"own/{self.number}", self.count))
            expected = self.db.get(run, f"own/{self.number}") is not None
            outcome, existed = self._outcome_of(lambda: self.db.delete(run, f"own/{self.number}"))
            assert outcome != ACKNOWLEDGED or bool(existed) == expected, f"own/{self.number} is lost"
        else:
            # Deletes nothing, unless the delete before was refused or unknown.
            outcome, existed = self._outcome_of(lambda: self.db.delete(run, f"nothing/{self.number}"))
            assert not existed, f"nothing/{self.number} was there, and its delete is lost"


def _abort(txn: Any) -> None:
    with contextlib.suppress(OccamError):  # over already
        txn.abort()


def write(peer: Peer, plan: Plan, number: int) -> dict[str, int]:
    """A writer process: steps until told to stop; says "ready" after the first."""
    take_arms_from(plan.arms)
    with plan.open() as db:
        writer = Writer(db, plan, number)
        writer.step()
        peer.say("ready")
        while not peer.told():
            writer.step()
    return {"count": writer.count, "sum": writer.sum}


# ---- the scene --------------------------------------------------------------------------------------------


class Scene:
    """A database, its writers, and the test that kills.

    Args:
      path: the database directory.
      start: starts workers.
      db: the test's own handle.
    """

    def __init__(self, plan: Plan, start: Callable[..., Worker], db: Database) -> None:
        self.plan = plan
        self.db = db
        self.path = plan.path
        self.journals: dict[int, Journal] = {}
        self.writers: dict[int, Worker] = {}
        self._start = start
        self._asking: list[threading.Thread] = []

    def start_writers(self, count: int = 1) -> None:
        """Start writers and wait until each has made a step."""
        numbers = range(len(self.journals), len(self.journals) + count)
        for number in numbers:
            self.journals[number] = self.plan.journal(number)
            self.writers[number] = self._start(write, self.plan, number)
        for number in numbers:
            self.writers[number].hear()

    def kill_writer(self, number: int) -> None:
        """SIGKILL for a writer; its last number stays unresolved."""
        self.writers.pop(number).kill()

    def acknowledged(self) -> dict[int, int]:
        """How many commits each living writer was told of."""
        return {number: len(self.journals[number].read().acknowledged) for number in self.writers}

    def carry_on(self, count: int = 2) -> None:
        """Wait until every living writer was told of so many more commits."""
        floor = {number: before + count for number, before in self.acknowledged().items()}

        def carried_on() -> bool:
            for number, worker in self.writers.items():
                assert worker.process.is_alive(), f"writer {number} failed: {worker.result()}"
            return all(now >= floor[number] for number, now in self.acknowledged().items())

        wait_until(carried_on, what="a commit of every writer")

    def strike(self, point: str, action: str = "kill@1", trigger: Callable[[], object] | None = None) -> None:
        """Let the coordinator die at a failpoint; the writers continue, and all they were told holds."""
        victim = self.arm(point, action)
        if trigger is not None:
            trigger()
        wait_until(lambda: not is_alive(victim), what=f"a death at {point}")
        self.carry_on()
        self.verify()

    def arm(self, point: str, action: str) -> ProcessIdentity:
        """Arm a failpoint in the running coordinator; returns its identity. It may die before it answers."""
        while True:
            identity = coordinator_identity(self.path)
            try:
                processes.set_coordinator_failpoint(self.path, point, action)
                return identity
            except (OccamError, ControlError, OSError):
                if not is_alive(identity):
                    return identity

    def stand_still_at(self, point: str, action: str) -> ProcessIdentity:
        """Let the coordinator stop itself at a failpoint; it is stopped when this returns."""
        identity = coordinator_identity(self.path)
        # In a thread: a coordinator that is stopped before it answers keeps the caller waiting.
        asking = threading.Thread(target=self.arm, args=(point, action), daemon=True)
        asking.start()
        wait_until(lambda: state_of(identity.pid) == "T", what=f"a stop at {point}")
        self._asking.append(asking)
        return identity

    def checkpoint(self) -> None:
        """Ask for a checkpoint, which may be the coordinator's death."""
        with contextlib.suppress(OccamError):
            self.db.checkpoint()

    # ---- what must hold ---------------------------------------------------------------------------------

    def verify(self, *, final: bool = False) -> dict[Any, Any]:
        """Compare the database with the journals; `final`: there are no more writers. Returns all rows."""
        # Read first: what was acknowledged by now must be in a snapshot begun later.
        for journal in self.journals.values():
            journal.read()
        with self.db.begin(self.plan.run, read_only=True) as txn:
            rows = dict(txn.scan())
            for key, found in rows.items():
                assert txn.get_versioned(key) == found, f"{key} differs between the indices"
        done = [self._verify_writer(number, rows, final) for number in self.journals]
        assert _value(rows, "total", 0) == sum(done), "the total is not the number of commits"
        self._verify_shared(rows, final)
        told = [version for journal in self.journals.values() for version in journal.acknowledged.values()]
        assert len(told) == len(set(told)), "a version was given to two commits"
        return rows

    def _verify_writer(self, number: int, rows: dict[Any, Any], final: bool) -> int:
        """Check one writer's keys; returns how many of its commits there are."""
        journal = self.journals[number]
        slots = {
            side: {slot: rows.get(f"{side}/{number}/{slot}") for slot in range(SLOTS)}
            for side in ("left", "right")
        }
        for slot, left in slots["left"].items():
            right = slots["right"][slot]
            assert (left and (left.value, left.version)) == (right and (right.value, right.version)), (
                f"writer {number}, slot {slot}: half a commit, {left} and {right}"
            )
        present = {found.value: found.version for found in slots["left"].values() if found}
        assert not present.keys() & journal.refused, "a refused commit is there"
        for told, version in journal.acknowledged.items():
            there = slots["left"][told % SLOTS]
            assert there is not None and there.value >= told, f"writer {number}: commit {told} is lost"
            assert there.version == version if there.value == told else there.version > version
        head = rows.get(f"head/{number}")
        newest = max(present, default=0)
        assert (head.value[0] if head else 0) == newest, f"head {head}, newest {newest}"
        assert head is None or head.version == present[newest]
        flag = rows.get(f"flag/{number}")
        done: int = head.value[1] if head else 0
        assert (flag is not None) == bool(done % 2)
        if final:
            certain = len(journal.acknowledged)
            assert certain <= done <= certain + len(journal.unresolved), f"{certain} told, {done} there"
        return done

    def _verify_shared(self, rows: dict[Any, Any], final: bool) -> None:
        told = sum(n % 3 == 0 for journal in self.journals.values() for n in journal.acknowledged)
        open_ones = sum(n % 3 == 0 for journal in self.journals.values() for n in journal.unresolved)
        shared = _value(rows, "shared", 0)
        assert told <= shared, "a shared count is lost"
        assert not final or shared <= told + open_ones, "a shared count is there that nobody made"

    # ---- the end ------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Stop the writers, check their last word, then stop the coordinator and check what it left behind."""
        for worker in self.writers.values():
            worker.say("stop")
        results = {number: worker.result() for number, worker in self.writers.items()}
        for asking in self._asking:
            asking.join(processes.DEADLINE_S)
        rows = self.verify(final=True)
        for number, result in results.items():
            assert _value(rows, f"sum/{number}", 0) == result["sum"]
        self.db.close()
        processes.stop_coordinator(self.path)
        self.check_files(rows)

    def check_files(self, rows: dict[Any, Any]) -> None:
        """Nothing left in shared memory, nothing damaged on disk, and a recovery brings back exactly `rows`."""
        assert segments_of(self.path) == []
        report = engine_check.check(self.path, rebuild=True)
        assert report.findings == []
        assert recovered_rows(self.path, self.plan.run) == {key: found.version for key, found in rows.items()}
        log = (self.path / "coordinator.log").read_text()
        assert "Traceback" not in log, log


def _value(rows: dict[Any, Any], key: str, default: Any) -> Any:
    found = rows.get(key)
    return default if found is None else found.value


def recovered_rows(path: Path, run: RunId) -> dict[str, int]:
    """User keys of a run and their versions, as a recovery of the stopped database brings them back."""
    directory = DatabaseDirectory(path, create=False)
    try:
        store = ScratchStore(directory.database_id)
        recover(directory, store.loader(), repair_disk=False)
    finally:
        directory.close()
    assert store.check() is None
    prefix = bytes(3) + run.bytes + b"\x01"
    return {
        key.removeprefix(prefix).decode(): version
        for key, _, version, _, _ in store.rows()
        if key.startswith(prefix)
    }


@contextlib.contextmanager
def scene_at(
    path: Path, start: Callable[..., Worker], *, writers: int = 3, arms: Sequence[str] = (), **fields: Any
) -> Iterator[Scene]:
    """A scene with writers at work. On a clean way out everything is stopped and checked to the last byte.

    Args:
      arms: for the coordinators that make the database.
      fields: of the `Plan`.
    """
    files = path.parent / f"{path.name}-files"
    files.mkdir()
    plan = Plan(path, files, RunId.new(), **fields)
    arm_next(plan.arms, arms)
    end = take_arms_from(plan.arms)
    try:
        with plan.open() as db:
            scene = Scene(plan, start, db)
            scene.start_writers(writers)
            yield scene
            scene.finish()
    finally:
        end()
        if path.exists():
            with contextlib.suppress(AssertionError):
                _stop_whoever_is_left(path)


def _stop_whoever_is_left(path: Path) -> None:
    from occamdb.tools import coordinator

    coordinator.stop_coordinator(path, timeout=10, kill=True)
