"""`occamdb tasks`: queues in numbers, tasks of one queue, pages, and text that would spoil a terminal."""

import pytest

import occamdb
from occamdb.tools import console
from tests.support.shell import RUN, Shell


def fill(db: occamdb.Database) -> None:
    db.tasks.put_many(RUN, "pages", range(4))
    db.tasks.put(RUN, "mail", {"to": "x\x1b[31m"}, delay=60, key="one\nline")
    task = db.tasks.claim(RUN, "pages")
    assert task is not None
    db.tasks.complete(RUN, task, [1])
    task = db.tasks.claim(RUN, "pages")
    assert task is not None
    db.tasks.fail(RUN, task, "no\x1b[2J", retry=False)


def test_queues_and_tasks(db: occamdb.Database, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db)
    assert shell("tasks", "DB", RUN) == "mail\t0\t1\t0\t0\t0\npages\t2\t0\t0\t1\t1\n"
    assert shell.lines("tasks", "DB", RUN, "--json")[1] == {
        "queue": "pages", "ready": 2, "delayed": 0, "claimed": 0, "done": 1, "dead": 1,
    }  # fmt: skip
    rows = [line.split("\t") for line in shell("tasks", "DB", RUN, "pages").splitlines()]
    assert [row[1:5] for row in rows] == [
        ["ready", "0", "0/3", "2"], ["ready", "0", "0/3", "3"], ["done", "0", "1/3", "0"], ["dead", "0", "1/3", "1"],
    ]  # fmt: skip
    assert rows[2][5] == "[1]" and "\x1b" not in "".join(rows[3])
    (found,) = shell.lines("tasks", "DB", RUN, "mail", "--json")
    assert (found["state"], found["key"], found["payload"]) == ("delayed", "one\nline", {"to": "x\x1b[31m"})
    assert found["due_at"] and found["finished_at"] is None
    page = shell.lines("tasks", "DB", RUN, "pages", "--limit", "3", "--json")
    rest = shell.lines("tasks", "DB", RUN, "pages", "--after", page[-1]["id"], "--json")
    assert [task["state"] for task in page + rest] == ["ready", "ready", "done", "dead"]
    assert len(shell.lines("tasks", "DB", RUN, "pages", "--state", "dead", "--json")) == 1
    shell("tasks", "DB", RUN, "pages", "--state", "odd", code=1)
    shell("tasks", "DB", RUN, "--state", "dead", code=2)
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    for words in ((), ("pages",), ("mail",), ("mail", "--full")):
        shown = shell("tasks", "DB", RUN, *words)
        assert "\x1b[2J" not in shown and "\x1b[31m" not in shown
        assert ("pages" if not words else "payload") in shown
