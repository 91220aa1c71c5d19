"""The mapped part of the segment loses its storage: the copy's SIGBUS is a failed copy, and nobody else's business.

A file cut off behind a mapping gives a real SIGBUS on any file system, at the first page past its end. What full file
systems do is in tests/faults/test_full_disk.py. Everything runs in a child: without the guard it is the end of it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.log_driver import content

START = """
import faulthandler, mmap, os, signal, sys
from pathlib import Path
from occamdb.engine.disk import failpoints
from tests.support.log_driver import Database, segments, write

path = Path(sys.argv[1])

def position(database):
    return database.appender.statistics()["log_segment_bytes"]

def cut(database):
    # Up to the next page: that much of a copy goes into the file, then comes the fault.
    os.truncate(segments(path)[-1], -(-position(database) // mmap.PAGESIZE) * mmap.PAGESIZE)

def figures(database):
    numbers = database.appender.statistics()
    return numbers["log_copies"], numbers["log_copy_faults"]

def begun(**settings):
    database = Database(path, **settings)
    database.commit([write(b"before")])
    assert figures(database) == (1, 0)
    return database

def foreign_fault():
    with open(path / "mapped", "w+b") as file:
        file.truncate(2 * mmap.PAGESIZE)
        memory = mmap.mmap(file.fileno(), 2 * mmap.PAGESIZE)
        file.truncate(0)
        memory[mmap.PAGESIZE] = 1
"""


def run(path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """`body` after START in a process of its own."""
    command = [sys.executable, "-c", START + body, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def keys_after(path: Path, body: str) -> list[bytes]:
    """The keys that are recovered after `body` ran to its end."""
    done = run(path, body)
    assert done.returncode == 0, done.stderr
    result, rows = content(path)
    assert result.version == len(rows)
    return sorted(row[0] for row in rows)


FALL_BACK = """
database = begun()
cut(database)
database.commit([write(b"fault", b"v" * 20000)])
assert figures(database) == (1, 1), figures(database)
for number in range(3):
    database.commit([write(b"later %d" % number)])
# This segment gets no window again.
assert figures(database) == (1, 1), figures(database)
database.kill()
"""


def test_the_batch_is_written_instead(tmp_path: Path) -> None:
    assert keys_after(tmp_path / "db", FALL_BACK) == [b"before", b"fault", b"later 0", b"later 1", b"later 2"]


REFUSED = """
database = begun()
size = position(database)
cut(database)
failpoints.set("file.write", "errno:ENOSPC@2")      # the first is the copy, the second the write in its place
try:
    database.commit([write(b"fault", b"v" * 20000), write(b"more", b"v" * 20000)])
except OSError as error:
    assert error.errno == 28
else:
    raise AssertionError("not refused")
failpoints.clear()
assert figures(database) == (1, 1), figures(database)
assert position(database) == segments(path)[0].stat().st_size == size
assert not database.appender.statistics()["log_poisoned"]
database.commit([write(b"after")])
database.kill()
"""


def test_a_write_that_fails_too_is_a_refusal(tmp_path: Path) -> None:
    """The part that was copied is cut off with the rest, and what comes later is readable."""
    assert keys_after(tmp_path / "db", REFUSED) == [b"after", b"before"]


TORN = """
database = begun()
cut(database)
failpoints.set("file.write", "torn:15000")
database.commit([write(b"fault", b"v" * 20000)])
"""


def test_a_death_at_the_fault_leaves_a_torn_tail(tmp_path: Path) -> None:
    assert run(tmp_path / "db", TORN).returncode == -signal.SIGKILL
    result, rows = content(tmp_path / "db")
    assert [row[0] for row in rows] == [b"before"] and result.bytes_cut > 1000


NEXT_SEGMENT = """
database = begun(segment_size=1 << 16)
cut(database)
database.commit([write(b"fault", b"v" * 20000)])
database.commit([write(b"rest", b"v" * 50000)])
database.commit([write(b"elsewhere")])
assert len(segments(path)) == 2 and figures(database) == (2, 1), figures(database)
cut(database)
# Again, in the same process and thread: nothing of the first is left behind.
database.commit([write(b"second fault", b"v" * 20000)])
assert figures(database) == (2, 2), figures(database)
database.kill()
"""


def test_the_next_segment_has_a_window_again(tmp_path: Path) -> None:
    assert keys_after(tmp_path / "db", NEXT_SEGMENT) == [
        b"before",
        b"elsewhere",
        b"fault",
        b"rest",
        b"second fault",
    ]


@pytest.mark.parametrize(
    ("before", "then", "code", "printed"),
    [
        ("", "foreign_fault()", -signal.SIGBUS, ""),
        ("", "os.kill(os.getpid(), signal.SIGBUS)", -signal.SIGBUS, ""),
        ("signal.signal(signal.SIGBUS, signal.SIG_IGN)", "foreign_fault()", -signal.SIGBUS, ""),
        ("signal.signal(signal.SIGBUS, signal.SIG_IGN)", "os.kill(os.getpid(), signal.SIGBUS)", 0, "end"),
        (
            "signal.signal(signal.SIGBUS, lambda *_: print('heard'))",
            "signal.raise_signal(7)",
            0,
            "heard\nend",
        ),
        ("faulthandler.enable(sys.stdout)", "foreign_fault()", -signal.SIGBUS, "Bus error"),
        ("faulthandler.enable(sys.stdout)", "signal.raise_signal(7)", -signal.SIGBUS, "Bus error"),
    ],
)
def test_any_other_goes_where_it_went_before(
    before: str, then: str, code: int, printed: str, tmp_path: Path
) -> None:
    """A fault elsewhere or a signal that was sent: also after a copy was saved from one."""
    saved = "cut(database)\ndatabase.commit([write(b'fault', b'v' * 20000)])\nassert figures(database) == (1, 1)\n"
    done = run(tmp_path / "db", f"{before}\ndatabase = begun()\n{saved}{then}\nprint('end')")
    assert done.returncode == code, done.stderr
    assert printed in done.stdout
    assert ("end" in done.stdout.splitlines()) == (code == 0)


def test_no_window_once_another_handler_has_taken_the_place(tmp_path: Path) -> None:
    """Without the guard nothing is mapped: the same commits, by writes."""
    body = """
database = Database(path)
signal.signal(signal.SIGBUS, signal.SIG_DFL)
database.commit([write(b"written")])
assert figures(database) == (0, 0), figures(database)
database.kill()
"""
    assert keys_after(tmp_path / "db", body) == [b"written"]
