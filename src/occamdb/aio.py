"""occamdb for asyncio: the names of `occamdb`, with everything that commits awaited. See docs/async.md.

    import asyncio
    import occamdb.aio

    async def main() -> None:
        async with occamdb.aio.open("agents.db") as db:
            await db.kv.put(run_id, "plan", ["think"])

It works with asyncio's own event loop and with uvloop.
"""

from .engine.transaction.async_transaction import AsyncAttempt
from .primitives.async_handles import (
    AsyncDatabase,
    AsyncTransaction,
    Opening,
    open,
    open_in_memory,
    unwrap,
    wrap,
)

__all__ = [
    "AsyncAttempt",
    "AsyncDatabase",
    "AsyncTransaction",
    "Opening",
    "open",
    "open_in_memory",
    "unwrap",
    "wrap",
]
