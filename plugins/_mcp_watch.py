"""Subscriptions of MCP clients, fed by `watch`: a client is told of a change whichever process made it.

1. A watch begins before the subscription is answered, so no change after the answer is missed.
2. A notification says only that a resource changed, and the client reads it again. Changes that come close together are
   told once: one now, and one for all that came within `PAUSE_S` after it.
3. A watch ends with its subscription, or with its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import unquote

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourcesListChanged, ResourceUpdated
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from occamdb import OccamError, RunId, TypeTag, WatchLagged
from occamdb.aio import AsyncDatabase, AsyncTransaction

from ._mcp_fields import LIMIT_MAX, run_fields, run_named_or_id

__all__ = ["RUNS_URI", "Subscriptions"]

logger = logging.getLogger(__name__)

RUNS_URI = "occamdb://runs"
PAUSE_S = 0.05
SUBSCRIPTIONS_MAX = 1000  # of a connection
_TAGS = {
    "keys": TypeTag.KV,
    "events": TypeTag.EVENT,
    "cells": TypeTag.STATE,
    "traces": TypeTag.TRACE,
    "tasks": TypeTag.TASK,
}
_OWN = "occamdb subscriptions"  # in the state of a connection

Tell = Callable[[], Awaitable[None]]


class Subscriptions:
    """Watches what the clients of a server subscribe to.

    Args:
      db: an open database.
      extra: resources besides those of runs: the run and the prefix of the keys that each is made of.
    """

    def __init__(self, db: AsyncDatabase, extra: dict[str, tuple[RunId, str]]) -> None:
        self._db = db
        self._extra = extra
        self.bus = InMemorySubscriptionBus()
        self._watched: dict[str, _Watched] = {}

    def serve(self, server: MCPServer[Any]) -> None:
        """Answer the requests of a server's clients, of both forms of the protocol."""
        server.middleware.append(self._listening)
        # `resources/subscribe` is of the protocol before 2026. MCPServer has no way to serve it but this one.
        server._lowlevel_server.add_request_handler(
            "resources/subscribe", SubscribeRequestParams, self._subscribe
        )
        server._lowlevel_server.add_request_handler(
            "resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe
        )

    # --- What a resource is made of ---

    def _source(self, uri: str) -> _Source:
        """What a resource is made of, watched from now on.

        Raises:
          ValueError: there is no such resource.
        """
        if uri in self._extra:
            return _Keys(self._db, *self._extra[uri])
        if uri == RUNS_URI:
            return _Index(self._db, None)
        scheme, _, path = uri.partition(f"{RUNS_URI}/")
        parts = [unquote(part) for part in path.split("/")]
        if scheme or not parts[0]:
            raise ValueError(uri)
        run_id = run_named_or_id(self._db, parts[0])
        if len(parts) == 1:
            return _Index(self._db, run_id)
        tag = _TAGS.get(parts[1])
        if tag is None or len(parts) > 3 or (len(parts) == 3 and parts[1] not in ("keys", "cells")):
            raise ValueError(uri)
        name = parts[2] if len(parts) == 3 else ""
        return _Keys(self._db, run_id, name, tag, exact=len(parts) == 3)

    def _begin(self, uri: str, tell: Tell) -> asyncio.Task[None]:
        source = self._source(uri)
        task = asyncio.get_running_loop().create_task(_tell_of_changes(source, tell))
        task.add_done_callback(lambda _: source.close())  # also of one that was cancelled before it began
        return task

    # --- The protocol of 2026: one request is a stream ---

    async def _listening(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if ctx.method != "subscriptions/listen" or ctx.request_id is None:
            return await call_next(ctx)
        wanted = (ctx.params or {}).get("notifications")
        wanted = wanted if isinstance(wanted, dict) else {}
        uris = wanted.get("resourceSubscriptions")
        uris = [uri for uri in uris if isinstance(uri, str)] if isinstance(uris, list) else []
        async with contextlib.AsyncExitStack() as stack:
            for uri in dict.fromkeys(uris[:SUBSCRIPTIONS_MAX]):
                with contextlib.suppress(ValueError):  # a resource that is not there never changes
                    await stack.enter_async_context(self._shared(uri))
            if wanted.get("resourcesListChanged"):
                await stack.enter_async_context(self._shared(RUNS_URI))
            return await call_next(ctx)

    @asynccontextmanager
    async def _shared(self, uri: str) -> AsyncIterator[None]:
        """Publish the changes of a resource, by one watch for all streams that want it."""
        watched = self._watched.get(uri)
        if watched is None:

            async def tell() -> None:
                await self.bus.publish(ResourceUpdated(uri=uri))
                if uri == RUNS_URI:
                    await self.bus.publish(ResourcesListChanged())

            watched = self._watched[uri] = _Watched(self._begin(uri, tell))
        watched.count += 1
        try:
            yield
        finally:
            watched.count -= 1
            if not watched.count:
                del self._watched[uri]
                watched.task.cancel()

    # --- The protocol before: requests that subscribe a connection ---

    async def _subscribe(
        self, ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams
    ) -> EmptyResult:
        uri, session = str(params.uri), ctx.session
        connection = session._connection
        own = connection.state.get(_OWN)
        if own is None:
            own = connection.state[_OWN] = {}
            connection.exit_stack.callback(_cancel_all, own)
        if uri not in own:
            if len(own) >= SUBSCRIPTIONS_MAX:
                raise MCPError(INVALID_PARAMS, f"a connection has at most {SUBSCRIPTIONS_MAX} subscriptions")
            with contextlib.suppress(ValueError):  # as above: it never changes
                own[uri] = self._begin(uri, lambda: session.send_resource_updated(uri))
        return EmptyResult()

    async def _unsubscribe(
        self, ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        task = ctx.session._connection.state.get(_OWN, {}).pop(str(params.uri), None)
        if task is not None:
            task.cancel()
        return EmptyResult()


def _cancel_all(tasks: dict[str, asyncio.Task[None]]) -> None:
    for task in tasks.values():
        task.cancel()


class _Watched:
    """A resource that streams listen to."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.count = 0


class _Source(Protocol):
    """What a resource is made of, watched from when this was made."""

    async def changed(self) -> bool:
        """Wait for a change; False: there will be none."""

    def close(self) -> None:
        """Watch no longer."""


class _Keys:
    """The keys of one tag of a run that begin with a prefix; with `exact` the one key."""

    def __init__(
        self, db: AsyncDatabase, run_id: RunId, prefix: str, tag: TypeTag = TypeTag.KV, exact: bool = False
    ) -> None:
        self._key = prefix if exact else None
        self._begin = functools.partial(db.watch, run_id, prefix, tag=int(tag))
        self._watch = self._begin()

    async def changed(self) -> bool:
        try:
            async for change in self._watch:
                keys = {change.key, *(later.key for later in self._watch.ready())}
                if self._key is None or self._key in keys:
                    return True
        except WatchLagged:  # so many changes that they are not kept: it did change
            self._watch.close()
            self._watch = self._begin()
            return True
        return False

    def close(self) -> None:
        self._watch.close()


class _Index:
    """The run index, or one run in it.

    The index has no watch. A transaction sleeps instead until what it read changes.
    """

    def __init__(self, db: AsyncDatabase, run_id: RunId | None) -> None:
        self._db = db
        self._run_id = run_id
        self._seen = self._read(db)

    def _read(self, source: AsyncDatabase | AsyncTransaction) -> str:
        if self._run_id is None:
            return json.dumps(
                [run_fields(run) for run in source.runs.list_runs(limit=LIMIT_MAX, reverse=True)]
            )
        found = source.runs.get_run(self._run_id)
        return "" if found is None else json.dumps(run_fields(found))

    async def changed(self) -> bool:
        def wait(txn: AsyncTransaction) -> str:
            now = self._read(txn)
            if now == self._seen:
                txn.wait()
            return now

        self._seen = await self._db.transaction(self._run_id or RunId.new(), wait)
        return True

    def close(self) -> None:
        pass


async def _tell_of_changes(source: _Source, tell: Tell) -> None:
    try:
        while await source.changed():
            await tell()
            await asyncio.sleep(PAUSE_S)
    except OccamError as error:  # the database was closed, or cannot be reached
        logger.warning("a subscription ended: %s", error)
