"""Commands on the URL of a server: those that work there do, the others refuse it, and no message has the password."""

import sys
from pathlib import Path

import pytest

import occamdb
import occamdb.engine.remote
from tests.support.command_servers import server, server_kind
from tests.support.shell import RUN, Shell

__all__ = ["server", "server_kind"]

SECRET = "s3cr3t-word"
WITH_SECRET = f"postgresql://app:{SECRET}@127.0.0.1:1/app"


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "db", capsys)


def words_of(error: str) -> str:
    """An error without the frame around it."""
    return " ".join(error.replace("│", " ").split())


# ---- data and agents -----------------------------------------------------------------------------------------


def test_data_commands_work_on_a_server(shell: Shell, server: str) -> None:
    shell("put", server, "notes", "a", '{"n": 1}', "--create-run")
    shell("put", server, "notes", "b", "2", "--ttl", "3600")
    assert shell("get", server, "notes", "a") == '{"n": 1}\n'
    assert shell("list", server, "notes") == "a\nb\n"
    first, second = shell.lines("scan", server, "notes", "--json")
    assert (first["key"], first["expires_at"]) == ("a", None)
    assert second["value"] == 2
    assert second["expires_at"] is not None
    shell("put", server, "notes", "a", "3", "--expect", "0", code=1)
    assert "expected it to be absent" in shell.error
    shell("delete", server, "notes", "a")
    shell("get", server, "notes", "a", code=1)


def test_agent_commands_work_on_a_server(shell: Shell, server: str) -> None:
    with occamdb.open(server, start="never") as db:
        run = db.runs.create_run("mission").run_id
        db.events.append(run, "started", {"by": "me"})
        db.cells.init(run, "phase", "plan")
        with db.traces.span(run, occamdb.ToolCall("search", {"q": 1})):
            pass
        db.tasks.put(run, "work", {"file": "x"})
        db.steps.run(run, "fetch", lambda: 5)
    assert shell("runs", server).split("\t")[1] == "mission"
    assert "started" in shell("events", server, "mission")
    assert "valid: 1 events" in shell("events", server, "mission", "--verify")
    assert shell("cells", server, "mission").split("\t")[0] == "phase"
    assert "search" in shell("traces", server, "mission", "--tree")
    assert shell("tasks", server, "mission").split("\t")[:2] == ["work", "1"]
    assert shell("steps", server, "mission").split("\t")[0] == "fetch"
    assert shell("leases", server, "mission") == ""


def test_pictures_are_made_of_a_run_on_a_server(shell: Shell, server: str, tmp_path: Path) -> None:
    with occamdb.open(server, start="never") as db:
        run = db.runs.create_run("mission").run_id
        db.events.append(run, "started", {"by": "me"})
        with db.traces.span(run, occamdb.ToolCall("search", {"q": 1})):
            pass
    assert "1 traces and 1 events" in shell("report", server, "mission", "-o", str(tmp_path / "run.html"))
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "Chain verified: 1 events" in text
    assert "127.0.0.1" not in text and "@" not in text.partition("</h1>")[2].partition("</p>")[0]
    assert "1 traces" in shell("traces", server, "mission", "--svg", str(tmp_path / "run.svg"))


def test_a_watch_shows_what_was_committed_since_a_version(shell: Shell, server: str) -> None:
    with occamdb.open(server) as db:
        run = occamdb.RunId.of(RUN)
        before = db.kv.put(run, "a", 1)
        db.kv.put(run, "b", 2)
    (change,) = shell.lines("watch", server, RUN, "--since", str(before), "--limit", "1", "--json")
    assert (change["key"], change["value"]) == ("b", 2)


def test_namespaces_are_chosen_as_in_a_directory(shell: Shell, server: str) -> None:
    shell("put", server, RUN, "k", "1", "--namespace", "acme/chat")
    assert shell("get", server, RUN, "k", "--namespace", "acme/chat") == "1\n"
    shell("get", server, RUN, "k", code=1)


# ---- what is there -------------------------------------------------------------------------------------------


def test_reading_makes_no_database_on_a_server(
    shell: Shell, server: str, server_kind: tuple[str, str]
) -> None:
    if server_kind[0] == "etcd":
        pytest.skip("etcd has no schema")
    shell("get", server, RUN, "k", code=1)
    assert "there is no occamdb database" in shell.error
    assert "occamdb migrate" in shell.error
    assert shell.json("status", server, "--json", code=3)["format"] == 0
    shell("migrate", server)
    shell("get", server, RUN, "k", code=1)
    assert shell.error == "no key 'k'\n"


def test_migrating_again_does_nothing(shell: Shell, server: str, server_kind: tuple[str, str]) -> None:
    if server_kind[0] == "etcd":
        assert "nothing to do" in shell("migrate", server)
        return
    assert "made the schema" in shell("migrate", server)
    assert "already" in shell("migrate", server)


def test_the_sql_of_a_migration_makes_the_schema(
    shell: Shell, server: str, server_kind: tuple[str, str]
) -> None:
    if server_kind[0] != "postgres":
        shell("migrate", server, "--print-sql", code=1)
        assert "no SQL" in shell.error
        return
    import psycopg

    script = shell("migrate", server, "--print-sql")
    assert shell.json("status", server, "--json", code=3)["format"] == 0  # nothing was run
    with psycopg.connect(server.partition("?")[0], autocommit=True) as connection:
        connection.execute(script.encode())
    assert "already" in shell("migrate", server)
    shell("put", server, RUN, "k", "1")
    assert "nothing to do" in shell("migrate", server, "--print-sql")


def test_status_tells_what_is_on_a_server(shell: Shell, server: str, server_kind: tuple[str, str]) -> None:
    shell("put", server, RUN, "k", "1", "--namespace", "acme/chat")
    found = shell.json("status", server, "--json")
    assert found["reachable"]
    assert found["engine"] == server_kind[0]
    assert found["durability"] in ("none", "standard", "always")
    assert found["namespace_names"] == ["acme/chat/default"]
    assert "acme/chat/default" in shell("status", server)
    if server_kind[0] == "postgres":
        assert (found["role"], found["takes_writes"], found["fsync"]) == ("app", True, "off")
        assert int(found["server_version"].split(".")[0]) >= 14
        assert found["schema_size"] > 0
        assert found["sessions_with_keys"] == 0


def test_figures_of_a_server(shell: Shell, server: str) -> None:
    shell("put", server, RUN, "k", "1")
    assert shell.json("stats", server, "--json")["version"] == 1
    assert "version\t1" in shell("stats", server)
    assert "version 1" in shell("top", server, "--interval", "0.1", "--count", "1")


# ---- what is refused -----------------------------------------------------------------------------------------

ON_DIRECTORIES = [
    ("serve", "URL"),
    ("stop", "URL"),
    ("check", "URL"),
    ("checkpoint", "URL"),
    ("backup", "URL", "copy"),
    ("backup", "DB", "URL"),
    ("restore", "URL", "copy"),
    ("restore", "DB", "URL"),
    ("wal", "dump", "URL"),
    ("wal", "verify", "URL"),
    ("doctor", "URL"),
    ("doctor", "URL", "--clean"),
    ("demo", "DB", "--keep", "URL"),
]


@pytest.mark.parametrize("words", ON_DIRECTORIES)
def test_a_command_on_directories_refuses_a_url(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    shell(*(WITH_SECRET if word == "URL" else word for word in words), code=2)
    assert "it names a server" in words_of(shell.error)
    assert SECRET not in shell.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("typed", ["postgresql:/app@host/app", "etcd:host"])
def test_a_url_without_its_slashes_is_no_directory(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shell("put", typed, RUN, "k", "1", code=2)
    assert "the URL of a server begins with" in words_of(shell.error)
    assert list(tmp_path.iterdir()) == []


def test_a_typing_error_in_the_scheme_is_told_without_the_password(shell: Shell) -> None:
    shell("get", WITH_SECRET.replace("postgresql", "postgrsql"), RUN, "k", code=1)
    assert "did you mean postgresql://" in words_of(shell.error)
    assert SECRET not in shell.error


def test_a_driver_that_is_not_installed_is_named(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("occamdb.engine.remote.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delattr(occamdb.engine.remote, "postgres", raising=False)
    shell("get", WITH_SECRET, RUN, "k", code=1)
    assert "pip install 'occamdb[postgres]'" in words_of(shell.error)
    assert SECRET not in shell.error


@pytest.mark.parametrize("words", [("get", RUN, "k"), ("status",), ("stats",), ("migrate",)])
def test_a_server_that_is_down_is_told_without_the_password(shell: Shell, words: tuple[str, ...]) -> None:
    pytest.importorskip("psycopg")
    command, *rest = words
    shell(command, WITH_SECRET + "?connect_timeout=1", *rest, code=1)
    assert "could be reached" in words_of(shell.error)
    assert "hint" in shell.error
    assert SECRET not in shell.error


def test_a_wrong_password_is_told_and_not_shown(
    shell: Shell, server: str, server_kind: tuple[str, str]
) -> None:
    if server_kind[0] != "postgres":
        pytest.skip("only PostgreSQL asks for a password here")
    user, _, rest = server.partition("@")
    shell("get", f"{user[: user.rindex(':')]}:{SECRET}@{rest}", RUN, "k", code=1)
    assert "the password or the user is wrong" in words_of(shell.error)
    assert SECRET not in shell.error
