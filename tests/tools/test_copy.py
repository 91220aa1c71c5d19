"""`occamdb copy` between directories: what is copied, what is refused, and what an interruption leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
from occamdb import Database, RunId
from occamdb.tools import copy_runs
from occamdb.tools.copy_runs import CopyMismatch, RunCopier, is_half
from tests.conftest import stop_coordinator
from tests.support.copies import Point, content, fill, hooks
from tests.support.processes import wait_until
from tests.support.shell import Shell, command, started


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """Where a copy goes."""
    path = tmp_path / "other"
    yield path
    stop_coordinator(path)


@pytest.fixture
def source() -> Iterator[Database]:
    with occamdb.open_in_memory(**hooks) as db:
        yield db.namespace()


@pytest.fixture
def target() -> Iterator[Database]:
    with occamdb.open_in_memory() as db:
        yield db


def plain(db: Database) -> Database:
    """The database as the command opens it: without hooks."""
    return Database(db.handle, namespace=db.current_namespace)


# ---- the command ---------------------------------------------------------------------------------------------


def test_every_run_is_copied_with_all_its_parts(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path, **hooks) as db:
        run = fill(db)
        elsewhere = fill(db.namespace("acme"), "elsewhere")
        lines = shell("copy", "DB", str(other)).splitlines()
        assert len(lines) == 4
        assert [line.split("\t")[5] for line in lines if line.startswith(str(run))] == [
            "1 ephemeral left out"
        ]
        with occamdb.open(other, **hooks) as copied:
            assert content(copied, run) == content(db, run)
            assert content(copied.namespace("acme"), elsewhere) == content(db.namespace("acme"), elsewhere)
            assert copied.runs.list_runs() == db.runs.list_runs()
            assert copied.kv.get(run, "typed") == Point(1, 2)
            assert copied.events.verify_chain(run).length == 5
            assert copied.runs.get_or_create("mission").run_id == run
    stop_coordinator(other)
    shell("check", str(other))


def test_a_copy_of_chosen_runs(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path) as db:
        for name in ("a", "b", "c"):
            db.kv.put(db.runs.create_run(name).run_id, "k", name)
    shell("copy", "DB", str(other), "--run", "a", "--run", "c")
    assert [line.split("\t")[1] for line in shell("runs", str(other)).splitlines()] == ["a", "c"]


def test_copying_again_copies_what_is_missing(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path) as db:
        first = db.runs.create_run("first").run_id
        db.kv.put(first, "k", 1)
        shell("copy", "DB", str(other))
        second = db.runs.create_run("second").run_id
    states = {
        line.split("\t")[0]: line.split("\t")[2] for line in shell("copy", "DB", str(other)).splitlines()
    }
    assert states == {str(first): "the same already", str(second): "copied"}


def test_a_run_that_differs_is_refused_or_replaced(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path) as db:
        run = db.runs.create_run("first").run_id
        db.kv.put(run, "k", 1)
        shell("copy", "DB", str(other))
        db.kv.put(run, "k", 2)
        new = db.runs.create_run("new").run_id
    with occamdb.open(other) as there:
        there.kv.put(run, "another", 3)
        shell("copy", "DB", str(other), code=1)
        assert "--replace" in shell.error
        assert there.runs.get_run(new) is None  # nothing was copied
        shell("copy", "DB", str(other), "--replace")
        assert list(there.kv.keys(run)) == ["k"]
        assert there.runs.get_run(new) is not None


def test_a_child_needs_its_parent(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path) as db:
        parent = db.runs.create_run("parent").run_id
        child = db.runs.create_run("child", parent=parent).run_id
    shell("copy", "DB", str(other), "--run", str(child), code=1)
    assert str(parent) in shell.error
    shell("copy", "DB", str(other), "--run", str(child), "--run", str(parent))
    shell("copy", "DB", str(other), "--run", str(child))


def test_what_cannot_be_copied_makes_no_database(shell: Shell, other: Path) -> None:
    shell("copy", "DB", str(other), code=1)
    shell("put", "DB", "notes", "k", "1", "--create-run")
    shell("copy", "DB", str(other), "--run", "nothing", code=1)
    assert not other.exists()
    shell("copy", "DB", "DB", code=1)
    assert "the same" in shell.error


def test_a_broken_event_chain_is_copied_and_told(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path) as db:
        run = db.runs.create_run("broken").run_id
        for number in range(3):
            db.events.append(run, "step", {"number": number})
        with db.begin(run) as txn:
            space = txn.space(occamdb.TypeTag.EVENT, raw=True)
            key = list(space.keys(b"\x01"))[1]
            space.put(key, b"\0" * 32 + space.get(key)[32:])
    shell("copy", "DB", str(other), code=1)
    assert "has a fault, as in the source" in shell.error
    shell("events", str(other), "broken", "--verify", code=1)


# ---- one run -------------------------------------------------------------------------------------------------


def test_the_order_of_versions_is_kept(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_runs, "_BATCH_ROWS", 7)
    run = fill(source, keys=100)
    RunCopier(plain(source), target).copy(run)
    versions = {key: row.version for key, row in source.kv.scan(run) if not row.session}
    copied = {key: row.version for key, row in target.kv.scan(run)}
    ordered = sorted(versions, key=lambda key: versions[key])
    assert [copied[key] for key in ordered] == sorted(copied.values())
    assert len(set(copied.values())) > 10


def test_one_commit_larger_than_a_batch_is_copied_in_several(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_runs, "_BATCH_ROWS", 7)
    run = RunId.new()
    source.kv.put(run, "before", 1)
    with source.begin(run) as txn:
        for number in range(50):
            txn.kv.put(f"k{number}", number)
    source.kv.put(run, "after", 1)
    RunCopier(source, target).copy(run)
    assert content(target, run) == content(source, run)


def test_an_expiry_time_stays_the_same_moment(source: Database, target: Database) -> None:
    run = RunId.new()
    source.kv.put(run, "k", 1, ttl=1000)
    RunCopier(source, target).copy(run)
    ours, theirs = source.kv.get_versioned(run, "k"), target.kv.get_versioned(run, "k")
    assert ours is not None and theirs is not None
    assert abs(ours.expires_at_ns - theirs.expires_at_ns) < 1000


def test_a_claimed_task_is_ready_in_the_copy(source: Database, target: Database) -> None:
    run = RunId.new()
    source.tasks.put(run, "work", "payload")
    assert source.tasks.claim(run, "work") is not None
    found = RunCopier(source, target).copy(run)
    assert found.ephemeral == 1
    assert target.tasks.stats(run, "work").ready == 1


def test_what_the_destination_cannot_hold_is_refused_before_it_is_touched(source: Database) -> None:
    run = RunId.new()
    source.kv.put(run, "k" * 3000, 1)
    with occamdb.open_in_memory(key_size_max=2048) as target:
        target.kv.put(run, "old", 1)
        with pytest.raises(occamdb.KeyTooLarge):
            RunCopier(source, target, replace=True).copy(run)
        assert target.kv.get(run, "old") == 1


def test_a_write_to_the_copy_meanwhile_is_noticed(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fill(source)
    verify = RunCopier._verify

    def meddle(self: RunCopier, *arguments: Any, **options: Any) -> None:
        target.kv.put(run, "key-0003", "mine")
        verify(self, *arguments, **options)

    monkeypatch.setattr(RunCopier, "_verify", meddle)
    with pytest.raises(CopyMismatch, match="has another value"):
        RunCopier(plain(source), target).copy(run)
    assert is_half(target, run)


def test_of_two_copies_of_one_run_the_first_ends(
    source: Database, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fill(source)
    put = RunCopier._put
    inner: list[RunCopier] = []

    def put_after_another_began(self: RunCopier, *arguments: Any) -> None:
        if not inner:
            inner.append(RunCopier(plain(source), target))
            inner[0].copy(run)
        put(self, *arguments)

    monkeypatch.setattr(RunCopier, "_put", put_after_another_began)
    with pytest.raises(CopyMismatch, match="another copy"):
        RunCopier(plain(source), target).copy(run)
    assert content(target, run) == content(source, run)
    assert target.runs.get_run(run) == source.runs.get_run(run)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_copy_that_is_interrupted_anywhere_looks_half_until_it_is_repeated(
    source: Database, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """The copy ends before each of its transactions in turn, as if its process had been killed there."""
    monkeypatch.setattr(copy_runs, "_BATCH_ROWS", 10)
    run = fill(source)
    allowed = 0
    while True:
        with occamdb.open_in_memory() as target:
            if replaced:
                target.runs.create_run("old", run_id=run)
                target.kv.put(run, "old", 1)
            before = content(target, run)
            if _copied_with(RunCopier(plain(source), target, replace=replaced), run, allowed):
                assert allowed > 4
                return
            if allowed == 0:
                assert content(target, run) == before  # nothing was begun
            else:
                assert is_half(target, run)
                assert target.runs.get_run(run) is None
            RunCopier(plain(source), target, replace=replaced).copy(run)
            assert content(target, run) == content(source, run)
            assert target.runs.get_run(run) == source.runs.get_run(run)
        allowed += 1


class _Killed(BaseException):
    """The process ends here."""


def _copied_with(copier: RunCopier, run: RunId, allowed: int) -> bool:
    """Copy until so many transactions on the destination were made; whether it came to its end."""
    database: Any = copier._destination
    left = [allowed]

    class Ending(type(database)):  # type: ignore[misc]
        __slots__ = ()

        def transaction(self, *arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise _Killed
            left[0] -= 1
            return super().transaction(*arguments, **options)

    copier._destination = Ending(database.handle, namespace=database.current_namespace)
    try:
        copier.copy(run)
    except _Killed:
        return False
    return True


def test_a_copy_that_is_killed_is_half_and_goes_on_when_repeated(shell: Shell, other: Path) -> None:
    with occamdb.open(shell.path) as db, occamdb.open(other) as there:
        run = db.runs.create_run("large").run_id
        for first in range(0, 20_000, 1000):
            with db.begin(run) as txn:
                for number in range(first, first + 1000):
                    txn.kv.put(f"k{number}", number)
        copying = started(command("copy", shell.path, other))
        wait_until(lambda: is_half(there, run) and there.kv.list(run, limit=1))
        copying.kill()
        copying.communicate()
        assert is_half(there, run)
        assert there.runs.list_runs() == []
        assert "copied" in shell("copy", "DB", str(other))
        assert content(there, run) == content(db, run)
        assert [each.name for each in there.runs.list_runs()] == ["large"]


def test_a_half_run_is_shown_as_such(shell: Shell, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with occamdb.open(shell.path) as db:
        run = db.runs.create_run("mission").run_id
        db.kv.put(run, "k", 1)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunCopier, "_end", interrupt)
    shell("copy", "DB", str(other), code=130)
    monkeypatch.undo()
    assert shell("runs", str(other)) == ""
    shell("get", str(other), str(run), "k", code=1)
    assert "was not copied to its end" in shell.error
    shell("copy", str(other), "DB", "--run", str(run), code=1)
    stop_coordinator(other)
    assert "a copy of this run was interrupted" in shell("check", str(other), code=1)
    shell("copy", "DB", str(other))
    assert shell("get", str(other), "mission", "k") == "1\n"
    stop_coordinator(other)
    shell("check", str(other))
