"""What watches and event loops see of keys that end with their session."""

from __future__ import annotations

import asyncio
from pathlib import Path

from occamdb import Database, RunId, Transaction
from tests.support.aio import open_async
from tests.support.processes import DEADLINE_S, kill_coordinator, open_database


def test_the_end_of_a_session_wakes_a_watch_with_deletes(database_path: Path, run: RunId) -> None:
    with open_database(database_path) as db:
        owner = open_database(database_path)
        owner.put(run, "bound", 1, ephemeral=True)
        with db.watch(run, since=db.put(run, "plain", 1), timeout=DEADLINE_S) as watch:
            owner.close()
            change = next(iter(watch))
            assert (change.kind, change.key) == ("delete", "bound")
        assert db.get(run, "bound") is None


def test_a_wait_ends_with_the_session_of_the_key_it_read(database_path: Path, run: RunId) -> None:
    with open_database(database_path) as db:
        owner = open_database(database_path)
        owner.put(run, "lock", "owner", ephemeral=True)

        def take(txn: Transaction) -> None:
            if txn.exists("lock"):
                owner.close()
                txn.wait()
            txn.put("lock", "mine")

        db.transaction(run, take, timeout=DEADLINE_S)
        assert db.get(run, "lock") == "mine"


def test_a_watch_that_reads_the_log_gets_bound_writes(database_path: Path, run: RunId) -> None:
    with open_database(database_path) as db:
        start = db.put(run, "first", 0)
        db.put(run, "bound", {"by": "session"}, ephemeral=True)
        kill_coordinator(database_path)
        db.put(run, "last", 1)
        with db.watch(run, since=start, timeout=DEADLINE_S) as watch:
            seen = iter(watch)
            found = [next(seen), next(seen)]
        assert [(change.kind, change.key, change.value) for change in found] == [
            ("put", "bound", {"by": "session"}),
            ("put", "last", 1),
        ]


def test_keys_that_an_event_loop_binds_end_with_its_database(database_path: Path, run: RunId) -> None:
    async def main(db: Database) -> None:
        async with open_async(database_path) as other:
            await other.put(run, "a", 1, ephemeral=True)
            await other.cells.init(run, "c", 2, ephemeral=True)
            await other.transaction(run, lambda txn: txn.put("b", 3, ephemeral=True))
            await asyncio.gather(*[other.put(run, f"n{n}", n, ephemeral=True) for n in range(40)])
            assert db.get(run, "a") == 1
            assert db.get(run, "n39") == 39
            version = await other.put(run, "stays", 4)
        with db.watch(run, since=version, timeout=DEADLINE_S) as watch:
            gone = set()
            for change in watch:
                assert change.kind == "delete"
                gone.add(change.key)
                if len(gone) == 42:
                    break
        assert db.list(run) == ["stays"]

    with open_database(database_path) as db:
        asyncio.run(main(db))
