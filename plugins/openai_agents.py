"""OpenAI Agents SDK: sessions that several processes share, and traces of agents in the database.

    import asyncio
    import occamdb
    from agents import Agent, Runner, add_trace_processor
    from occamdb.plugins.openai_agents import OccamSession, OccamTracing

    async def main() -> None:
        with occamdb.open("agents.db") as db:
            add_trace_processor(OccamTracing(db))
            await Runner.run(Agent(name="Ada"), "Hello", session=OccamSession(db, "conversation 7"))

    asyncio.run(main())

1. A session has a run of its own. Its items are numbered, and the head says which number is next. Each change reads
   and writes the head in one transaction, so the items of several processes are in the order of commits.
2. Items of one call are next to each other: they are stored together or not at all.
3. A call that is cancelled waits for its commit, as the sessions of the SDK do. So what it changed is there, or not,
   before anything else is done with the session.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from occamdb import ValueEncodingError
from occamdb.aio import AsyncTransaction
from occamdb.plugins._support import AnyDatabase, Engine, missing_extra, run_named, warn_if_newer

try:
    from agents.memory import SessionSettings

    from occamdb.plugins._openai_tracing import OccamTracing
except ImportError as error:
    missing_extra("openai-agents", error)

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

__all__ = ["OccamSession", "OccamTracing"]

T = TypeVar("T")

KIND = "openai-session"
HEAD = "head"
ITEM = "item/"

warn_if_newer("openai-agents", "0.24")


class OccamSession:
    """The history of one conversation in an occamdb database: a `Session` of the OpenAI Agents SDK.

    Any number of processes may use one session.

    Args:
      db: a Database, an AsyncDatabase, or the path of a database.
      session_id: the name of the conversation.
      session_settings: `limit` is how many items `get_items` gives unless it is told another number.

    Attributes:
      run_id: the run that holds the session, for `db.watch`, `occamdb runs` and the like.

    Raises:
      TypeError: `db` is nothing of the kind, or `session_id` is not text.
      ValueError: `session_id` is empty.
    """

    session_id: str
    session_settings: SessionSettings | None

    def __init__(
        self, db: AnyDatabase, session_id: str, session_settings: SessionSettings | None = None
    ) -> None:
        self.run_id = run_named(KIND, session_id)
        self.session_id = session_id
        self.session_settings = session_settings if session_settings is not None else SessionSettings()
        self._engine = Engine(db)

    def close(self) -> None:
        """Close the database if it was given as a path."""
        self._engine.close()

    async def aclose(self) -> None:
        """`close`, after the commits that are under way."""
        await self._engine.aclose()

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The items in order.

        Args:
          limit: the latest so many; a negative number: all; None: what the settings of the session say.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is not None and limit < 0:
            limit = None
        async with self._engine.aio.begin(self.run_id, read_only=True) as txn:
            texts = [row.value for _, row in txn.kv.scan(ITEM, limit=limit, reverse=limit is not None)]
        if limit is not None:
            texts.reverse()
        items: list[TResponseInputItem] = json.loads(f"[{','.join(texts)}]")
        return items

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Add items behind those that there are, in one transaction.

        Raises:
          ValueEncodingError: JSON cannot hold an item; nothing was stored.
        """
        texts = [_encoded(item) for item in items]
        if not texts:
            return

        def add(txn: AsyncTransaction) -> None:
            number = txn.kv.get(HEAD)
            if number is None:
                number = 0
                if txn.runs.get_run(self.run_id) is None:
                    txn.runs.create_run(f"{KIND}/{self.session_id}", run_id=self.run_id, tags=[KIND])
            for text in texts:
                txn.kv.put(f"{ITEM}{number:012d}", text)
                number += 1
            txn.kv.put(HEAD, number)

        await self._commit(add)

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the latest item, and return it; None when there is none. No two callers get the same one."""

        def pop(txn: AsyncTransaction) -> str | None:
            for key, row in txn.kv.scan(ITEM, limit=1, reverse=True):
                txn.kv.delete(key)
                txn.kv.put(HEAD, int(key.removeprefix(ITEM)))
                text: str = row.value
                return text
            return None

        text = await self._commit(pop)
        if text is None:
            return None
        item: TResponseInputItem = json.loads(text)
        return item

    async def clear_session(self) -> None:
        """Remove the session's run, with all items, in one commit."""
        await self._commit(lambda txn: txn.runs.delete_run(self.run_id))

    async def _commit(self, change: Callable[[AsyncTransaction], T]) -> T:
        return await _to_its_end(self._engine.aio.transaction(self.run_id, change, isolation="serializable"))


async def _to_its_end(change: Coroutine[Any, Any, T]) -> T:
    """Await a change of the database, also if the caller is cancelled meanwhile; then pass the cancellation on."""
    task = asyncio.ensure_future(change)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
    if cancelled is not None:
        task.exception()  # it has been looked at: asyncio does not report it
        raise cancelled
    return task.result()


def _encoded(item: object) -> str:
    if not isinstance(item, dict):
        raise TypeError(f"an item of a session must be a dict, got {type(item).__name__}")
    try:
        return json.dumps(item)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueEncodingError(
            f"an item of type {item.get('type', item.get('role'))!r} cannot be stored: {error}",
            hint="keep what JSON can hold in the items of a session",
        ) from error
