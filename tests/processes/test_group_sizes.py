"""The sizes of group commits count commits, and not the requests that were refused beside them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import occamdb
from occamdb import CASConflict, RunId


def test_refused_requests_do_not_make_a_group_larger(database_path: Path) -> None:
    """One thread commits, one at a time, while others are refused: each group is of one commit."""
    refused = 0
    lock = threading.Lock()
    run = RunId.new()
    with occamdb.open(database_path, idle_timeout=0.2) as db:
        version = db.put(run, "k", 1)

        def fail() -> None:
            nonlocal refused
            for _ in range(300):
                with pytest.raises(CASConflict):
                    db.cas(run, "k", version + 1_000_000, 2)
                with lock:
                    refused += 1

        threads = [threading.Thread(target=fail) for _ in range(4)]
        for thread in threads:
            thread.start()
        puts = 0
        while any(thread.is_alive() for thread in threads):
            db.put(run, "other", puts)
            puts += 1
        for thread in threads:
            thread.join()
        figures = db.stats()
    assert refused == 1200
    assert figures["commits"] == puts + 1
    assert figures["group_commit"] == {"p50": 1, "p90": 1, "p99": 1, "max": 1}
    assert figures["batches"] > figures["commits"]
