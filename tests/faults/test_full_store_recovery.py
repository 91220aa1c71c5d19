"""A store filled to the brim must open again, however its coordinator ended (M5, C13)."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

import occamdb
from tests.support.processes import wait_until

STORE_SIZE = 4 << 20


def _fill(db: occamdb.Database, run: occamdb.RunId, rng: random.Random) -> dict[str, str]:
    """Put values of all sizes, over and over each other, until the store is full; what was acknowledged."""
    kept: dict[str, str] = {}
    full = 0
    while full < 20:  # what is put, each key once, is several times the store
        key, value = f"k{rng.randrange(4000)}", "x" * int(2 ** rng.uniform(1, 15))
        try:
            db.put(run, key, value)
            kept[key] = value
        except occamdb.StoreFullError:
            full += 1
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_a_full_store_opens_again_after_a_kill(tmp_path: Path, seed: int) -> None:
    run = occamdb.RunId.new()
    with occamdb.open(tmp_path / "db", max_store_size=STORE_SIZE, timeout=30) as db:
        kept = _fill(db, run, random.Random(seed))
        pid = db.handle.admin({"kind": "status"})["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: db.handle.admin({"kind": "status"})["pid"] != pid)
        assert {str(key): db.get(run, key) for key in db.list(run)} == kept
        # The limit holds for commits as before, and a delete makes room as before.
        for key in list(kept)[:200]:
            assert db.delete(run, key)
        db.put(run, "after", "y" * 1000)
        assert db.get(run, "after") == "y" * 1000
        db.handle.admin({"kind": "stop"})
