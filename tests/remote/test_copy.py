"""Runs from a directory to a server and back, and from one server to another: the same content, order and chains."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import occamdb
from occamdb.tools import copy_runs
from occamdb.tools.copy_runs import RunCopier, is_half
from tests.conftest import stop_coordinator
from tests.support.command_servers import server, server_kind
from tests.support.copies import Point, content, fill, hooks
from tests.support.shell import Shell

__all__ = ["server", "server_kind"]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    path = tmp_path / "db"
    yield Shell(path, capsys)
    stop_coordinator(path)


@pytest.fixture
def back(tmp_path: Path) -> Iterator[Path]:
    """Where runs come back to."""
    path = tmp_path / "back"
    yield path
    stop_coordinator(path)


def test_runs_go_to_a_server_and_back(shell: Shell, server: str, back: Path) -> None:
    with occamdb.open(shell.path, **hooks) as db:
        run = fill(db)
        other = fill(db.namespace("acme", "chat"), "elsewhere")
        before = db.runs.list_runs()
        wanted = content(db, run), content(db.namespace("acme", "chat"), other)
        assert len(shell("copy", "DB", server).splitlines()) == 4
    with occamdb.open(server, **hooks) as there:
        assert (content(there, run), content(there.namespace("acme", "chat"), other)) == wanted
        assert there.runs.list_runs() == before
        assert there.kv.get(run, "typed") == Point(1, 2)
        assert there.events.verify_chain(run).length == 5
        assert there.tasks.stats(run, "work").done == 1
        assert {line.split("\t")[2] for line in shell("copy", "DB", server).splitlines()} == {
            "the same already"
        }
    shell("copy", server, str(back))
    with occamdb.open(back, **hooks) as returned:
        assert (content(returned, run), content(returned.namespace("acme", "chat"), other)) == wanted
        assert returned.runs.list_runs() == before
    stop_coordinator(back)
    shell("check", str(back))


def test_the_order_of_versions_is_kept_both_ways(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_runs, "_BATCH_ROWS", 7)
    with (
        occamdb.open_in_memory() as first,
        occamdb.open(server) as there,
        occamdb.open_in_memory() as last,
    ):
        run = first.runs.create_run("ordered").run_id
        for number in (5, 3, 9, 1, 7, 0, 8, 2, 6, 4) * 3:
            first.kv.put(run, f"k{number}", number)
        RunCopier(first, there).copy(run)
        RunCopier(there, last).copy(run)
        versions = [{key: row.version for key, row in db.kv.scan(run)} for db in (first, there, last)]
        ordered = sorted(versions[0], key=lambda key: versions[0][key])
        for copied in versions[1:]:
            assert [copied[key] for key in ordered] == sorted(copied.values())


def test_more_than_a_page_and_a_batch_is_copied_both_ways(server: str) -> None:
    with (
        occamdb.open_in_memory() as first,
        occamdb.open(server) as there,
        occamdb.open_in_memory() as last,
    ):
        run = first.runs.create_run("large").run_id
        with first.begin(run) as txn:
            for number in range(2500):
                txn.kv.put(f"k{number:05}", "x" * (number % 300))
        assert RunCopier(first, there).copy(run).rows == 2500
        RunCopier(there, last).copy(run)
        assert content(last, run) == content(first, run) == content(there, run)


def test_an_interrupted_copy_to_a_server_is_half_and_can_be_repeated(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_runs, "_BATCH_ROWS", 10)
    with occamdb.open_in_memory(**hooks) as source, occamdb.open(server) as there:
        run = fill(source)
        plain: occamdb.Database = occamdb.Database(source.handle)
        put = RunCopier._put
        puts: list[object] = []

        def interrupt(self: RunCopier, *arguments: object) -> None:
            if len(puts) == 3:
                raise KeyboardInterrupt
            puts.append(arguments)
            put(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(RunCopier, "_put", interrupt)
        with pytest.raises(KeyboardInterrupt):
            RunCopier(plain, there).copy(run)
        monkeypatch.setattr(RunCopier, "_put", put)
        assert is_half(there, run)
        assert there.runs.list_runs() == []
        RunCopier(plain, there).copy(run)
        assert not is_half(there, run)
        assert content(there, run) == content(source, run)


def test_a_key_that_the_server_cannot_hold_is_refused_before_anything_is_written(
    server: str, server_kind: tuple[str, str]
) -> None:
    with occamdb.open_in_memory() as source, occamdb.open(server) as there:
        size = there.handle.limits.key_size_max + 1
        if size > source.handle.limits.key_size_max:
            pytest.skip("it holds every key")
        run = source.runs.create_run("long").run_id
        source.kv.put(run, "k" * size, 1)
        with pytest.raises(occamdb.KeyTooLarge):
            RunCopier(source, there).copy(run)
        assert not is_half(there, run)
