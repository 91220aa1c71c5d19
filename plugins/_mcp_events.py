"""What makes the streams of MCP's streamable HTTP resumable: their events, kept in a database.

1. An event's id is `STREAM~NUMBER`. Numbers grow within a stream, also after its events expired, because each is at
   least the time of its writing in nanoseconds.
2. The transport names streams by the ids of requests, so two sessions have streams of one name. `SessionScope`
   keeps them apart, and no session is given the events of another one.
3. Events expire by themselves.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote, unquote

from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage, jsonrpc_message_adapter

from occamdb.aio import AsyncDatabase, AsyncTransaction

from ._support import AnyDatabase, Engine, run_named

__all__ = ["OccamEventStore", "SessionScope"]

KIND = "mcp-events"
SESSION_HEADER = b"mcp-session-id"
SESSIONS_MAX = 100_000
_scope: ContextVar[str] = ContextVar("occamdb_mcp_session", default="")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class OccamEventStore(EventStore):
    """Events of resumable streams in one run of a database.

    Args:
      db: an open database of either form, or the path of one.
      name: of the store; each has a run of its own.
      ttl: seconds for which an event can be replayed.
    """

    def __init__(self, db: AnyDatabase, *, name: str = "default", ttl: float = 3600.0) -> None:
        self._engine = Engine(db)
        self._ttl = ttl
        self._name = f"{KIND}/{name}"
        self.run_id = run_named(KIND, name)

    @property
    def _db(self) -> AsyncDatabase:
        return self._engine.aio

    async def aclose(self) -> None:
        """Close the database if it was opened here."""
        await self._engine.aclose()

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event, and give its id. A message that is None is a mark that a client may resume from."""
        body = (
            None
            if message is None
            else jsonrpc_message_adapter.dump_python(message, mode="json", by_alias=True, exclude_none=True)
        )
        # Without a `~` of its own, so that the keys of no stream begin like those of another one.
        stream = f"{_scope.get()}/{quote(stream_id, safe='').replace('~', '%7E')}"

        def write(txn: AsyncTransaction) -> str:
            txn.runs.get_or_create(self._name, tags=[KIND])
            last = txn.kv.list(f"{stream}~", limit=1, reverse=True)
            number = max(time.time_ns(), _number(last[0]) + 1 if last else 0)
            event_id = f"{stream}~{number:020d}"
            txn.kv.put(event_id, body, ttl=self._ttl)
            return event_id

        return await self._db.transaction(self.run_id, write)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what followed an event in its stream; gives the stream, None if this session has no such one."""
        stream, _, number = last_event_id.rpartition("~")
        session, _, stream_id = stream.partition("/")
        if session != _scope.get() or not stream_id or not number.isdecimal():
            return None
        with self._db.begin(self.run_id, read_only=True) as txn:
            if not txn.kv.list(f"{stream}~", limit=1):
                return None
            rows = txn.kv.list_with_values(f"{stream}~", start=last_event_id + "\0")
        for event_id, body in rows:
            if body is not None:
                await send_callback(EventMessage(jsonrpc_message_adapter.validate_python(body), event_id))
        return unquote(stream_id)


def _number(event_id: str) -> int:
    return int(event_id.rpartition("~")[2])


class SessionScope:
    """ASGI middleware that tells `OccamEventStore` which session a request belongs to.

    The task that stores a session's events is begun by the request that opens the session, and inherits its context.
    The session's id is known only at the end of that request. So each session has a token: it is set for a request
    without an id, remembered under the id of the answer, and set again for requests with this id.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._tokens: dict[bytes, str] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        session = dict(scope["headers"]).get(SESSION_HEADER)
        token = self._tokens.get(session or b"") or secrets.token_hex(8)

        async def sent(message: Message) -> None:
            if session is None and message["type"] == "http.response.start":
                opened = dict(message.get("headers", ())).get(SESSION_HEADER)
                if opened is not None:
                    self._remember(opened, token)
            await send(message)

        reset = _scope.set(token)
        try:
            await self._app(scope, receive, sent)
        finally:
            _scope.reset(reset)
            if scope["method"] == "DELETE" and session is not None:
                self._tokens.pop(session, None)

    def _remember(self, session: bytes, token: str) -> None:
        if len(self._tokens) >= SESSIONS_MAX:  # of sessions that ended without a word, the oldest
            del self._tokens[next(iter(self._tokens))]
        self._tokens[session] = token
