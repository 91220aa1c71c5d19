"""Which directory a command works on: never one by mistake, and a mistake leaves nothing behind."""

from pathlib import Path

import pytest

from occamdb.engine.disk.directory import read_meta
from occamdb.ipc import stale
from occamdb.tools.cli import main
from occamdb.tools.coordinator import coordinator_of
from tests.support.shell import RUN, Shell

# --- An empty path -------------------------------------------------------------------------------


EMPTY_PATHS = [
    ("put", "", RUN, "k", "1"),
    ("put", "", "notes", "k", "1", "--create-run"),
    ("get", "", RUN, "k"),
    ("delete", "", RUN, "k"),
    ("list", "", RUN),
    ("scan", "", RUN),
    ("runs", ""),
    ("events", "", RUN),
    ("cells", "", RUN),
    ("tasks", "", RUN),
    ("leases", "", RUN),
    ("steps", "", RUN),
    ("traces", "", RUN),
    ("traces", "DB", RUN, "--svg", ""),
    ("report", "", RUN),
    ("report", "DB", RUN, "--output", ""),
    ("watch", "", RUN),
    ("serve", "", "--set", "ring_size=5"),  # refused as well; if "" were accepted it would not return
    ("stop", ""),
    ("status", ""),
    ("stats", ""),
    ("top", ""),
    ("check", ""),
    ("checkpoint", ""),
    ("backup", "", "copy"),
    ("backup", "DB", ""),
    ("restore", "", "copy"),
    ("restore", "DB", ""),
    ("wal", "dump", ""),
    ("wal", "verify", ""),
    ("doctor", ""),
    ("doctor", "", "--clean"),
    ("demo", "DB", "--keep", ""),
    ("mcp", ""),
]


@pytest.fixture
def removals(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the doctor asked to have removed. It is not removed, since it may belong to other programs."""
    asked: list[object] = []

    def remove_dead(database_id: bytes | None = None, **_: object) -> list[str]:
        asked.append(database_id)
        return []

    monkeypatch.setattr(stale, "remove_dead", remove_dead)
    return asked


@pytest.mark.parametrize("words", EMPTY_PATHS)
def test_an_empty_path_is_refused_before_anything_is_made(
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    removals: list[object],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    shell(*words, code=2)
    assert "is a shell variable not set?" in " ".join(shell.error.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
    assert removals == []


def test_no_command_that_takes_a_database_is_missing_above() -> None:
    from typer.main import get_command

    from occamdb.tools.cli import app

    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    commands |= commands.pop("wal").commands
    tried = {words[1] if words[0] == "wal" else words[0] for words in EMPTY_PATHS}
    assert {name for name, command in commands.items() if _takes_a_path(command)} == tried


def _takes_a_path(command: object) -> bool:
    return any(
        str(parameter.metavar).strip("[]") in ("PATH", "DEST", "BACKUP")
        for parameter in command.params  # type: ignore[attr-defined]
    )


def test_the_current_directory_is_named_by_a_dot(
    shell: Shell, database_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_path.mkdir()
    monkeypatch.chdir(database_path)
    shell("put", ".", RUN, "k", "1")
    assert shell("get", ".", RUN, "k") == "1\n"
    assert (database_path / "meta").exists()


# --- A put that cannot succeed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("notes", "k", "1"), "no run is named 'notes'"),
        ((RUN, "k", "1", "--expect", "5"), "expected version 5"),
        ((RUN, "k", "1", "--ttl", "-1"), "ttl"),
        ((RUN, "", "1"), "the key is empty"),
        ((RUN, "k" * 10_000, "1"), "key"),
        ((RUN, "k", str(2**64)), "does not fit"),
        ((RUN, "k", "1", "--namespace", "a//b"), "app"),
    ],
)
def test_a_put_that_is_refused_makes_no_database(shell: Shell, words: tuple[str, ...], message: str) -> None:
    shell("put", "DB", *words, code=1)
    assert message in shell.error
    assert not shell.path.exists()


def test_a_put_that_is_refused_leaves_an_empty_directory_as_it_was(shell: Shell) -> None:
    shell.path.mkdir()
    shell("put", "DB", "notes", "k", "1", code=1)
    assert list(shell.path.iterdir()) == []


def test_a_put_makes_the_database_with_the_limits_of_its_settings(shell: Shell) -> None:
    shell.path.mkdir()
    settings = shell.path / "settings.toml"
    settings.write_text("value_size_max = 1000")
    shell("put", "DB", RUN, "k", f'"{"x" * 2000}"', code=1)
    assert "value_size_max" in shell.error
    assert list(shell.path.iterdir()) == [settings]
    settings.write_text("key_size_max = 8193")
    shell("put", "DB", RUN, "k" * 8193, "1")
    assert shell("list", "DB", RUN) == "k" * 8193 + "\n"


@pytest.mark.parametrize("words", [(RUN,), ("notes", "--create-run")])
def test_a_put_that_can_succeed_makes_the_database(shell: Shell, words: tuple[str, ...]) -> None:
    run, *options = words
    shell("put", "DB", run, "k", "1", *options)
    assert shell("get", "DB", run, "k") == "1\n"
    assert coordinator_of(shell.path) is not None


# --- The doctor at a path without a database -----------------------------------------------------


@pytest.mark.parametrize("kind", ["nothing there", "no database", "damaged"])
def test_the_doctor_removes_nothing_where_no_database_is(
    shell: Shell, removals: list[object], kind: str
) -> None:
    if kind != "nothing there":
        shell.path.mkdir()
    if kind == "damaged":
        (shell.path / "meta").write_bytes(b"no meta at all")
    shell("doctor", "DB", "--clean", code=1)
    assert removals == []


def test_the_doctor_cleans_up_after_one_database_or_after_all(shell: Shell, removals: list[object]) -> None:
    shell("put", "DB", RUN, "k", "1")
    meta = read_meta(shell.path)
    assert meta is not None
    shell("doctor", "DB", "--clean")
    assert removals == [meta.database_id]
    main(["doctor", "--clean"])  # its exit code tells of what others left on this machine
    assert removals == [meta.database_id, None]
