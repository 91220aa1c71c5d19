"""Large requests share the coordinator's memory for what is being received: one who stands still must not keep it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from occamdb import RunId
from occamdb.engine.disk import failpoints
from tests.support.processes import Peer, Worker, open_database, stop_coordinator

LARGE = 4 << 20
SETTINGS = {"request_memory_max": "1MiB", "timeout": 30}


def put_large(peer: Peer, path: Path, run: RunId) -> int:
    """One commit that stops its process when a part of it is in the ring."""
    with open_database(path, **SETTINGS) as db:
        failpoints.set("worker.mid_submit", "stop@2")
        peer.say("ready")
        version = db.put(run, "stopped", b"s" * LARGE)
        failpoints.clear()
        return version


def test_a_stopped_worker_gives_the_memory_up_and_commits_later(
    tmp_path: Path, run: RunId, start: Callable[..., Worker]
) -> None:
    path = tmp_path / "db"
    with open_database(path, **SETTINGS) as db:
        worker = start(put_large, path, run)
        worker.hear()
        worker.wait_stopped()
        version = db.put(run, "other", b"o" * LARGE)
        assert db.get(run, "stopped") is None
        worker.resume()
        # It was disconnected with half a request; it attaches again, and sends it once more, once.
        assert worker.result() == version + 1
        assert db.get(run, "stopped") == b"s" * LARGE and db.get(run, "other") == b"o" * LARGE
    stop_coordinator(path)
