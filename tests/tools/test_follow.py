"""`occamdb events --follow`, as a process beside the one that appends."""

import json
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import occamdb
from tests.support.shell import Shell, command, started

LINE_TIMEOUT_S = 30.0


class Follower:
    """A running follower and the events it printed."""

    def __init__(self, path: Path, run: object, *options: str) -> None:
        self.process = started(command("events", path, str(run), "--follow", "--json", *options))
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def next(self) -> tuple[int, str]:
        """Sequence and type of the next event it prints."""
        line = self._lines.get(timeout=LINE_TIMEOUT_S)
        assert line, "the follower ended"
        row = json.loads(line)
        return row["sequence"], row["type"]

    def interrupt(self) -> int:
        """Ctrl-C; returns its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def following(path: Path, run: object, *options: str) -> Iterator[Follower]:
    follower = Follower(path, run, *options)
    try:
        yield follower
    finally:
        follower.close()


@pytest.fixture
def run(db: occamdb.Database) -> occamdb.RunId:
    return db.runs.create_run("followed").run_id


def test_new_events_of_one_type_are_followed(
    database_path: Path, db: occamdb.Database, run: occamdb.RunId
) -> None:
    db.events.append_many(run, [("a", {}), ("b", {})])
    with following(database_path, run, "--type", "a") as follower:
        assert follower.next() == (0, "a")
        db.events.append_many(run, [("b", {}), ("a", {})])
        assert follower.next() == (3, "a")
        assert follower.interrupt() == 130


def test_a_type_that_has_no_event_yet_is_waited_for(
    database_path: Path, db: occamdb.Database, run: occamdb.RunId
) -> None:
    with following(database_path, run, "--type", "late") as follower:
        db.events.append_many(run, [("a", {}), ("late", {})])
        assert follower.next() == (1, "late")


@pytest.mark.parametrize("options", [(), ("--type", "a")])
def test_the_log_of_a_deleted_run_is_followed_from_its_new_beginning(
    database_path: Path, db: occamdb.Database, run: occamdb.RunId, options: tuple[str, ...]
) -> None:
    db.events.append_many(run, [("a", {"n": n}) for n in range(3)])
    with following(database_path, run, *options) as follower:
        assert [follower.next()[0] for _ in range(3)] == [0, 1, 2]
        db.runs.delete_run(run)
        db.events.append(run, "a", {"n": "new"})
        assert follower.next() == (0, "a")
        db.events.append(run, "a", {"n": "newer"})
        assert follower.next() == (1, "a")


def test_a_following_ends_at_its_limit(database_path: Path, db: occamdb.Database, run: occamdb.RunId) -> None:
    db.events.append_many(run, [("a", {}), ("b", {})])
    with following(database_path, run, "--type", "a", "-n", "2") as follower:
        assert follower.next() == (0, "a")
        db.events.append_many(run, [("a", {}), ("a", {})])
        assert follower.next() == (2, "a")
        assert follower.process.wait(timeout=30) == 0


def test_the_limit_counts_what_is_shown(shell: Shell, db: occamdb.Database, run: occamdb.RunId) -> None:
    db.events.append_many(run, [("a", {}), ("b", {}), ("a", {}), ("a", {})])
    rows = shell.lines("events", "DB", str(run), "--type", "a", "--start", "1", "-n", "1", "--json")
    assert [row["sequence"] for row in rows] == [2]
