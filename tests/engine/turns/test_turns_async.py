"""Turns of asynchronous transactions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import occamdb.aio
from occamdb import RunId


def test_an_async_transaction_gets_a_turn(tmp_path: Path) -> None:
    async def main() -> tuple[int, int]:
        run = RunId.new()
        attempts = 0
        async with occamdb.aio.open(tmp_path / "db", idle_timeout=0.2) as db:

            async def read_and_write(txn: occamdb.aio.AsyncTransaction) -> None:
                nonlocal attempts
                attempts += 1
                value = txn.get("key")
                if attempts <= 3:
                    await db.put(run, "key", attempts)
                txn.put("key", value)

            await db.transaction(run, read_and_write)
            figures = await db.stats()
        return attempts, figures["turns"]["granted"]

    assert asyncio.run(main()) == (4, 1)
