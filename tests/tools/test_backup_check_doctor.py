"""Backups, checks and the doctor, on real directories."""

import fcntl
import json
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb.engine.client import backup
from occamdb.engine.disk.directory import read_meta
from occamdb.ipc.lock import _put_up_sign
from occamdb.tools import doctor
from occamdb.tools.backup import copy_live, copy_stopped
from occamdb.tools.cli import main
from occamdb.tools.coordinator import coordinator_of, stop_coordinator
from tests.conftest import stop_coordinator as stop_quietly
from tests.support.processes import kill_coordinator

RUN = "00000000-0000-7000-8000-000000000001"


def filled(path: Path, count: int = 200) -> None:
    """A database with a history: overwritten, deleted and expiring keys, events, a run in the index."""
    with occamdb.open(path) as db:
        db.kv.put_many(RUN, {f"key {number}": number for number in range(count)})
        for number in range(0, count, 3):
            db.kv.put(RUN, f"key {number}", {"again": number})
        for number in range(0, count, 7):
            db.kv.delete(RUN, f"key {number}")
        db.kv.put(RUN, "expiring", 1, ttl=3600)
        db.events.append_many(RUN, [("e", {"n": number}) for number in range(10)])
        db.runs.create_run("indexed")


def content(path: Path) -> list[Any]:
    """Everything a user can see, versions and expiry included."""
    with occamdb.open(path) as db:
        rows = [(key, found.value, found.version, found.expires_at) for key, found in db.kv.scan(RUN)]
        events = [(event.sequence, event.payload, event.hash) for event in db.events.iterate(RUN)]
        assert db.events.verify_chain(RUN).is_valid
        return [rows, events, [run.name for run in db.runs.list_runs()]]


# --- Backups -------------------------------------------------------------------------------------


def test_a_backup_holds_everything_and_opens_beside_the_original(database_path: Path, tmp_path: Path) -> None:
    filled(database_path)
    copied = copy_live(database_path, tmp_path / "copy")
    try:
        expected = content(database_path)
        assert content(tmp_path / "copy") == expected
        assert copied.rows > 100
        # Both are served at the same moment: the copy is a database of its own.
        with occamdb.open(database_path) as db, occamdb.open(tmp_path / "copy") as other:
            other.put(RUN, "only here", 1)
            assert db.get(RUN, "only here") is None
    finally:
        stop_quietly(tmp_path / "copy")


def test_a_backup_is_one_moment_of_a_database_in_use(database_path: Path, tmp_path: Path) -> None:
    with occamdb.open(database_path) as db:
        db.kv.put_many(RUN, {"left": 0, "right": 0} | {f"filler {n}": "x" * 100 for n in range(2000)})
        stop = threading.Event()

        def move() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                db.kv.put_many(RUN, {"left": number, "right": -number})

        mover = threading.Thread(target=move)
        mover.start()
        try:
            copy_live(database_path, tmp_path / "copy")
        finally:
            stop.set()
            mover.join()
    copy_stopped(tmp_path / "copy", tmp_path / "restored")
    try:
        with occamdb.open(tmp_path / "restored") as restored:
            assert restored.get(RUN, "left") == -restored.get(RUN, "right")
            assert restored.kv.count(RUN) == 2002
    finally:
        stop_quietly(tmp_path / "restored")


def replace_coordinator(path: Path, db: occamdb.Database) -> None:
    """Kill it; a new one gets commits that overwrite half of what there was."""
    kill_coordinator(path)
    db.kv.put_many(RUN, {f"key {number}": "later" for number in range(50)})


def hundred_keys(db: occamdb.Database) -> None:
    db.kv.put_many(RUN, {f"key {number}": number for number in range(100)})


def test_a_backup_whose_coordinator_is_replaced_as_it_begins_is_refused(
    database_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new store holds nothing for a snapshot of the old one: what was overwritten there would be missing."""
    with occamdb.open(database_path) as db:
        hundred_keys(db)
        begin = occamdb.Database.begin

        def begin_then_replace(self: occamdb.Database, *arguments: Any, **keywords: Any) -> Any:
            begun = begin(self, *arguments, **keywords)
            if keywords.get("read_only"):
                monkeypatch.undo()
                replace_coordinator(database_path, db)
            return begun

        monkeypatch.setattr(occamdb.Database, "begin", begin_then_replace)
        with pytest.raises(occamdb.SnapshotExpired, match="new coordinator") as caught:
            copy_live(database_path, tmp_path / "copy")
        assert caught.value.retryable and not (tmp_path / "copy").exists()
        assert copy_live(database_path, tmp_path / "copy").rows == 100


def test_a_backup_under_way_outlives_its_coordinator(
    database_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with occamdb.open(database_path) as db:
        hundred_keys(db)
        write = backup.write_copy

        def replace_then_write(*arguments: Any) -> Any:
            replace_coordinator(database_path, db)
            return write(*arguments)

        monkeypatch.setattr(backup, "write_copy", replace_then_write)
        assert copy_live(database_path, tmp_path / "copy").rows == 100
        monkeypatch.undo()
    try:
        with occamdb.open(tmp_path / "copy") as copy:
            assert dict(copy.kv.scan(RUN)).keys() == {f"key {number}" for number in range(100)}
            assert copy.get(RUN, "key 1") == 1
    finally:
        stop_quietly(tmp_path / "copy")


def test_a_restored_backup_goes_on_with_higher_versions(database_path: Path, tmp_path: Path) -> None:
    filled(database_path)
    copied = copy_live(database_path, tmp_path / "copy")
    restored = copy_stopped(tmp_path / "copy", tmp_path / "restored")
    assert restored.version == copied.version
    try:
        assert content(tmp_path / "restored") == content(database_path)
        with occamdb.open(tmp_path / "restored") as db:
            assert db.put(RUN, "new", 1) > copied.version
    finally:
        stop_quietly(tmp_path / "restored")


def test_a_destination_in_use_is_refused_and_left_alone(database_path: Path, tmp_path: Path) -> None:
    filled(database_path, 5)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(occamdb.AlreadyExistsError):
        copy_live(database_path, tmp_path / "taken")
    stop_coordinator(database_path)
    with pytest.raises(occamdb.AlreadyExistsError):
        copy_stopped(database_path, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_a_served_directory_is_not_restored_from(database_path: Path, tmp_path: Path) -> None:
    with occamdb.open(database_path), pytest.raises(occamdb.CoordinatorUnavailable, match="is served by pid"):
        copy_stopped(database_path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_damaged_backup_is_refused_and_leaves_nothing(database_path: Path, tmp_path: Path) -> None:
    filled(database_path)
    copy_live(database_path, tmp_path / "copy")
    (checkpoint,) = (tmp_path / "copy" / "checkpoints").iterdir()
    flip(checkpoint, checkpoint.stat().st_size // 2)
    with pytest.raises(occamdb.CorruptionError):
        copy_stopped(tmp_path / "copy", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_copy_that_fails_leaves_nothing(
    database_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(database_path, 5)
    (tmp_path / "empty").mkdir()

    def full(_file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("occamdb.engine.disk.files.File.sync", full)
    for destination in ("new", "empty"):
        with pytest.raises(OSError, match="No space left"):
            copy_live(database_path, tmp_path / destination)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_commands(database_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(database_path)
    original, copy, restored = str(database_path), str(tmp_path / "copy"), str(tmp_path / "restored")
    assert main(["checkpoint", original]) == 0
    assert main(["backup", original, copy]) == 0
    assert main(["restore", copy, restored]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == ["checkpoint", "backed", "restored"]
    assert main(["check", copy, "--rebuild"]) == 0
    assert "keys rebuilt and audited: sound" in capsys.readouterr().out


# --- Checks --------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_check_finds_damage_and_repair_salvages(
    database_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(database_path)
    expected = content(database_path)
    stop_coordinator(database_path)
    (log,) = (database_path / "wal").iterdir()
    assert main(["check", str(database_path)]) == 0
    flip(log, 200)
    assert main(["check", str(database_path)]) == 1
    assert "damage" in capsys.readouterr().out
    assert main(["check", str(database_path), "--repair"]) == 0
    out = capsys.readouterr().out
    assert "repair" in out
    assert out.rstrip().endswith("sound")
    # The checkpoint of the clean stop has everything the damaged log had.
    assert content(database_path) == expected


def test_repair_is_refused_while_the_database_is_served(
    database_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with occamdb.open(database_path):
        assert main(["check", str(database_path), "--repair"]) == 1
    assert "is held by process" in capsys.readouterr().err


# --- The doctor ----------------------------------------------------------------------------------


def texts(findings: Any, level: str) -> str:
    return "\n".join(finding.text for finding in findings if finding.level == level)


def test_a_healthy_machine_and_database_have_no_problem(database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        db.put(RUN, "k", 1)
        findings = list(doctor.directory(database_path))
        holder = coordinator_of(database_path)
        assert holder is not None
        assert f"coordinator: pid {holder.pid}" in texts(findings, doctor.OK)
        assert f"of pid {holder.pid}" in texts(doctor.segments(), doctor.OK)
    assert texts(findings, doctor.PROBLEM) == ""


def test_the_doctor_finds_what_a_killed_coordinator_left_and_cleans_it(
    database_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with occamdb.open(database_path, start="auto") as db:
        db.put(RUN, "k", 1)
        db.close()
    stop_coordinator(database_path, kill=True)
    database = read_meta(database_path)
    assert database is not None
    name = database.database_id.hex()[:16]
    assert name in texts(doctor.segments(), doctor.PROBLEM)
    assert "not stopped cleanly" in texts(doctor.directory(database_path), doctor.NOTE)
    assert main(["doctor", str(database_path), "--clean"]) == 0
    assert f"removed /occam-{name}" in capsys.readouterr().out
    assert name not in texts(doctor.segments(), doctor.PROBLEM)
    with occamdb.open(database_path) as db:
        assert db.get(RUN, "k") == 1


def test_cleaning_up_does_not_leave_a_worker_behind_on_an_old_store(database_path: Path) -> None:
    with occamdb.open(database_path) as worker:
        worker.put(RUN, "k", "old")
        stop_coordinator(database_path, kill=True)
        with worker.snapshot(RUN) as view:
            assert view.get("k") == "old"
        assert main(["doctor", str(database_path), "--clean"]) == 0
        with occamdb.open(database_path) as other:
            other.put(RUN, "k", "new")
        with worker.snapshot(RUN) as view:
            assert view.get("k") == "new", "the worker reads the store that the next coordinator made"


@pytest.mark.parametrize(
    ("limit", "name"), [(resource.RLIMIT_AS, "address space"), (resource.RLIMIT_FSIZE, "file size")]
)
def test_the_doctor_knows_limits_that_are_too_low(
    monkeypatch: pytest.MonkeyPatch, limit: int, name: str
) -> None:
    real = resource.getrlimit
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (1 << 30, 1 << 30) if which == limit else real(which)
    )
    assert f"{name} is limited to 1.0 GiB" in texts(doctor.machine(), doctor.PROBLEM)


def test_the_doctor_knows_when_shared_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("occamdb.ipc.segment.shm_free_bytes", lambda: 1 << 30)
    assert "less than the default max_store_size" in texts(doctor.machine(), doctor.NOTE)
    monkeypatch.setattr("occamdb.ipc.segment.shm_free_bytes", lambda: 1 << 20)
    assert "1.0 MiB free" in texts(doctor.machine(), doctor.PROBLEM)


def test_the_doctor_looks_at_directories(tmp_path: Path, database_path: Path) -> None:
    assert "is not an occamdb database" in texts(doctor.directory(tmp_path), doctor.PROBLEM)
    filled(database_path, 5)
    stop_coordinator(database_path)
    flip(database_path / "meta", 20)
    assert "damaged" in texts(doctor.directory(database_path), doctor.PROBLEM)


def test_stop_refuses_to_signal_a_process_that_only_has_the_pid(database_path: Path) -> None:
    filled(database_path, 5)
    stop_coordinator(database_path, kill=True)
    # Its identity is still in LOCK; another process (here: this one) may get its pid.
    lock = database_path / "LOCK"
    noted = json.loads(lock.read_text())
    lock.write_text(json.dumps(noted | {"pid": os.getpid()}))
    holder = open(lock, "r+")  # noqa: SIM115 (held until the end of the test)
    fcntl.flock(holder, fcntl.LOCK_EX)
    _put_up_sign(holder.fileno())
    try:
        assert coordinator_of(database_path) is None
        assert stop_coordinator(database_path) is None
    finally:
        holder.close()
    assert main(["doctor", str(database_path), "--clean"]) == 0


def test_every_problem_carries_a_hint(tmp_path: Path) -> None:
    found = [*doctor.machine(), *doctor.segments(), *doctor.directory(tmp_path)]
    assert all(finding.hint for finding in found if finding.level == doctor.PROBLEM)
