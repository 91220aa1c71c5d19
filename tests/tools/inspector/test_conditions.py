"""Databases without a coordinator, damaged ones, and servers that cannot start."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import occamdb
from occamdb import Thought
from occamdb.engine.disk.directory import read_meta
from occamdb.ipc.stale import remove_dead
from occamdb.tools.coordinator import coordinator_of, stop_coordinator
from occamdb.tools.inspector import source as source_module
from occamdb.tools.inspector.serve import PORT, PortTakenError, listen
from tests.support.inspecting import inspecting, looking_at
from tests.support.processes import wait_until
from tests.support.shell import RUN, command, run, started
from tests.tools.test_reading_at_rest import content


def fill(path: Path, *, kill: bool) -> None:
    """One record of each kind, and no coordinator afterwards."""
    with occamdb.open(path) as db:
        db.runs.create_run_with_options("notes", run_id=RUN)
        db.kv.put(RUN, "k", [1])
        db.events.append(RUN, "step", {"n": 1})
        db.cells.init(RUN, "cell", 5)
        db.traces.record(RUN, Thought("hm"))
        stop_coordinator(path, kill=kill)
    meta = read_meta(path)
    assert meta is not None
    remove_dead(meta.database_id)


@pytest.mark.parametrize("kill", [False, True])
def test_a_directory_at_rest_is_read_and_not_changed(database_path: Path, kill: bool) -> None:
    fill(database_path, kill=kill)
    before = content(database_path)
    with looking_at(database_path) as looked:
        for address, words in [
            ("/", "notes"),
            ("/runs", "notes"),
            (f"/run/{RUN}/traces", "hm"),
            (f"/run/{RUN}/events", "step"),
            (f"/run/{RUN}/cells", "cell"),
            (f"/run/{RUN}/keys", "k"),
            ("/conflicts", "nobody serves"),
            ("/lanes", "notes"),
        ]:
            page = looked.page(address)
            assert words in page.text, address
            assert page.one("condition")["data-kind"] == "at rest"
            assert "No coordinator serves" in page.text_of("condition")
        assert coordinator_of(database_path) is None
    assert content(database_path) == before


def test_the_commits_of_a_directory_at_rest_come_from_its_log(database_path: Path) -> None:
    fill(database_path, kill=True)
    with looking_at(database_path) as looked:
        page = looked.page("/commits")
        assert len(page.all("data-commit", "tr")) >= 5
        assert "1 event" in page.text_of("commits-table") and "1 trace" in page.text_of("commits-table")


def test_a_coordinator_that_starts_is_read_through(database_path: Path) -> None:
    fill(database_path, kill=False)
    with looking_at(database_path) as looked:
        assert looked.page("/runs").one("condition")["data-kind"] == "at rest"
        with occamdb.open(database_path) as db:
            db.runs.create_run("later")
            looked.feed.look()
            page = looked.page("/runs")
            assert page.one("condition")["data-kind"] == "served" and "later" in page.text


def test_a_coordinator_that_ends_is_missed_and_then_its_files_are_read(
    database_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with occamdb.open(database_path) as db, looking_at(database_path) as looked:
        db.runs.create_run("kept")
        assert "kept" in looked.page("/runs").text
        stop_coordinator(database_path, kill=True)
        looked.feed.look()
        page = looked.page("/runs")
        assert page.one("condition")["data-gone"] == "yes" and "is gone" in page.text_of("condition")
        assert "kept" in page.text, "what was seen last stays"
        monkeypatch.setattr(source_module, "GRACE_S", 0.0)
        looked.feed.look()
        page = looked.page("/runs")
        assert page.one("condition")["data-kind"] == "at rest" and "kept" in page.text
        db.runs.create_run("after the restart")
        looked.feed.look()
        page = looked.page("/runs")
        assert page.one("condition")["data-kind"] == "served" and "after the restart" in page.text


def damage(path: Path) -> None:
    """Destroy a piece in the middle of the log."""
    (segment,) = (path / "wal").glob("*.log")
    with open(segment, "r+b") as file:
        file.seek(800)
        file.write(b"\xde\xad" * 30)


def test_a_damaged_directory_shows_what_can_be_saved_and_says_what_cannot(database_path: Path) -> None:
    fill(database_path, kill=True)
    damage(database_path)
    before = content(database_path)
    with looking_at(database_path) as looked:
        page = looked.page("/runs")
        assert page.one("condition")["data-kind"] == "damaged"
        assert "This database is damaged" in page.text_of("condition")
        assert "keys, up to version" in page.text_of("condition")
        assert "notes" in page.text, "the run was written before the damage"
    assert content(database_path) == before, "the repair was made in a copy"


def test_what_cannot_be_saved_at_all_is_said(database_path: Path) -> None:
    fill(database_path, kill=True)
    for path in [*(database_path / "wal").iterdir(), *(database_path / "checkpoints").iterdir()]:
        path.write_bytes(os.urandom(4096))
    (database_path / "meta").write_bytes(b"OCCAMDB\0" + bytes(120))
    with looking_at(database_path) as looked:
        page = looked.page("/", 200)
        assert page.one("condition")["data-kind"] in ("unreadable", "damaged")
        assert page.text_of("condition")
        assert looked.client.get("/runs").status_code in (200, 503)


def test_there_must_be_a_database(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        found = run(command("inspect", path, "--no-browser"))
        assert found.returncode == 1 and "error" in found.stderr and "hint" in found.stderr, found.stderr


def test_two_inspectors_do_not_share_a_port(database_path: Path) -> None:
    fill(database_path, kill=False)
    with inspecting(database_path) as one:
        taken = run(command("inspect", database_path, "--no-browser", "--port", str(one.port)))
        assert taken.returncode == 1
        assert f"port {one.port}" in taken.stderr and "--port" in taken.stderr
        with inspecting(database_path) as two:
            assert one.port != two.port and one.token != two.token
            assert "notes" in one.page("/runs").text and "notes" in two.page("/runs").text
            cookie = {"Cookie": two._cookie}
            assert one.request("/runs", headers=cookie)[0] == 403, "each has its own cookie"


def test_the_usual_port_gives_way_and_a_named_one_does_not(database_path: Path) -> None:
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", PORT))
        except OSError:
            pass  # somebody has it already
        else:
            holder.listen()
        with listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] != PORT
        with pytest.raises(PortTakenError):
            listen("127.0.0.1", PORT)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a b"])
def test_a_host_that_is_not_this_machine_is_refused(database_path: Path, host: str) -> None:
    fill(database_path, kill=False)
    found = run(command("inspect", database_path, "--no-browser", "--host", host))
    assert found.returncode == 1 and "hint" in found.stderr, found.stderr


def test_it_listens_on_the_loopback_interface_unless_asked(database_path: Path) -> None:
    fill(database_path, kill=False)
    with inspecting(database_path) as inspector:
        assert inspector.host == "127.0.0.1"
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{inspector.port:04X}" in listening
        assert f"00000000:{inspector.port:04X}" not in listening


def test_another_interface_is_warned_of(database_path: Path) -> None:
    fill(database_path, kill=False)
    process = started(command("inspect", database_path, "--no-browser", "--port", "0", "--host", "0.0.0.0"))
    assert process.stderr is not None
    try:
        said = process.stderr.readline() + process.stderr.readline()
        assert "encrypted" in said
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_while_browsers_listen(database_path: Path, how: signal.Signals) -> None:
    fill(database_path, kill=False)
    with inspecting(database_path) as inspector, inspector.events() as messages:
        next(messages)
        inspector.process.send_signal(how)
        assert inspector.process.wait(20) in (0, -how)
        inspector.process.returncode = 0


def test_it_says_what_to_install(database_path: Path, tmp_path: Path) -> None:
    fill(database_path, kill=False)
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('No module', name='starlette')")
    found = subprocess.run(
        [sys.executable, "-m", "occamdb.tools", "inspect", str(database_path)],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 2
    assert (
        found.stderr == "occamdb: `inspect` needs the package 'starlette': pip install 'occamdb[inspect]'\n"
    )


def test_a_browser_is_opened_with_a_ticket_and_not_with_the_token(
    database_path: Path, tmp_path: Path
) -> None:
    """Other users see the command line of the browser."""
    fill(database_path, kill=False)
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}.part && mv {seen}.part {seen}\n')
    browser.chmod(0o755)
    os.environ["BROWSER"] = str(browser)
    try:
        process = started(command("inspect", database_path, "--port", "0"))
    finally:
        del os.environ["BROWSER"]
    try:
        assert process.stderr is not None
        address = process.stderr.readline()
        wait_until(seen.exists)
        assert "token=" in address and seen.read_text().strip() not in address
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def record_many(txn: occamdb.Transaction) -> None:
    """A thousand traces."""
    for at in range(1_000):
        txn.traces.record(Thought(f"t{at}"))


def test_the_server_stays_small(database_path: Path) -> None:
    """Less than 150 MiB of memory of its own, after every page was shown."""
    with occamdb.open(database_path) as db:
        made = db.runs.create_run("r")
        for _ in range(10):
            db.transaction(made, record_many)
        db.events.append_many(made, [("step", {"at": at}) for at in range(10_000)])
        with inspecting(database_path) as inspector:
            for part in ("", "/traces", "/events", "/keys"):
                for _ in range(3):
                    inspector.page(f"/run/{made.run_id}{part}")
            for address in ("/", "/runs", "/commits", "/conflicts", "/lanes"):
                inspector.page(address)
            rollup = Path(f"/proc/{inspector.process.pid}/smaps_rollup").read_text()
            own = sum(
                int(line.split()[1])
                for line in rollup.splitlines()
                if line.startswith(("Private_", "Shared_Dirty"))
            )
            assert own < 150 * 1024, f"{own:,} KiB"
