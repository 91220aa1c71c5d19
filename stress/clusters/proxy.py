"""A TCP proxy in front of a server: it forwards bytes as they are, and makes faults on demand.

All proxies of a process share one thread that runs an event loop. Any thread may call the public methods; each
returns when its effect is there.

Invariants:
1. The bytes of a connection that are forwarded are a prefix of those that were sent, in order, and none twice.
2. `cut` is a partition: no byte passes, connections stay open on both sides, and `heal` delivers what waited.
   `refuse` is a dead host: connections are reset, and new ones are refused.
3. The end of a stream is forwarded after its bytes, also when these are delayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from occamdb.stress.clusters.keeper import free_port

__all__ = ["Drop", "Proxy"]

T = TypeVar("T")
Direction = Literal["request", "reply"]

CALL_TIMEOUT = 30.0


@dataclass(slots=True)
class Drop:
    """An order to lose one chunk, and with it the connection.

    Attributes:
      direction: of the chunk: a request goes to the server, a reply comes from it.
      skip: how many chunks of that direction pass before, on all connections.
      partial: the first half of the chunk is forwarded still.
      fired: set when it has happened.
    """

    direction: Direction
    skip: int = 0
    partial: bool = False
    fired: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """One listening port before one server."""

    def __init__(self, target: int, port: int = 0) -> None:
        """Listen on `port` of loopback (0: a free one) and forward to `target`."""
        self.target = target
        self.port = port or free_port()
        self._links: set[_Link] = set()
        self._drops: list[Drop] = []
        self._delay = 0.0
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        _run(self._listen())

    # ---- faults: any thread ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """From now on no byte passes in either direction, and nothing says so."""

        def apply() -> None:
            self._is_cut = True
            for link in self._links:
                link.hold()

        _call(apply)

    def refuse(self) -> None:
        """Reset all connections and refuse new ones."""
        _run(self._close())

    def reset(self) -> None:
        """Reset all connections; new ones are welcome."""
        _call(self._reset_all)

    def delay(self, seconds: float) -> None:
        """Every chunk takes so much longer from now on; 0: at once."""
        _call(lambda: setattr(self, "_delay", seconds))

    def drop_next(self, direction: Direction = "reply", *, skip: int = 0, partial: bool = False) -> Drop:
        """Lose one of the next chunks and its connection; `fired` of what is returned tells when it has happened."""
        drop = Drop(direction, skip, partial)
        _call(lambda: self._drops.append(drop))
        return drop

    def heal(self) -> None:
        """No more faults: listen, forward what was held back, and forget the drops that have not happened."""

        def apply() -> None:
            self._is_cut, self._delay = False, 0.0
            self._drops.clear()
            for link in list(self._links):
                link.release()

        _call(apply)
        if self._server is None:
            _run(self._listen())

    def close(self) -> None:
        """Reset all connections and end. Closing twice is harmless."""
        self.refuse()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return _call(lambda: len(self._links))

    # ---- the thread of the loop -----------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Half(_Link(self), "request"), sock=self._listener
        )

    async def _close(self) -> None:
        if self._server is not None and self._listener is not None:
            # A fork of this process may hold the listening socket too: only a shutdown ends it for both.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._server.close()
        self._server = self._listener = None
        self._reset_all()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.abort()

    def _drop_of(self, direction: Direction) -> Drop | None:
        """The order that this chunk meets; chunks count against the oldest order of their direction."""
        for drop in self._drops:
            if drop.direction == direction:
                if drop.skip:
                    drop.skip -= 1
                    return None
                self._drops.remove(drop)
                return drop
        return None


class _Link:
    """A connection from a client and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.halves: list[_Half] = []
        self.waiting: list[_Half] = []
        self.connecting: asyncio.Task[None] | None = None
        self.is_aborted = False
        proxy._links.add(self)

    def opened(self, half: _Half) -> None:
        self.halves.append(half)
        if self.is_aborted or self.proxy._server is None:  # it was accepted in the moment of a `refuse`
            self.abort()
        elif (
            half.direction == "request"
        ):  # the client's; nothing is read from it before the server's is there
            half.transport.pause_reading()
            if not self.proxy._is_cut:
                self.connecting = asyncio.get_running_loop().create_task(self._connect())
        else:
            client = self.halves[0]
            client.peer, half.peer = half, client
            if self.proxy._is_cut:
                half.transport.pause_reading()
            client.resume()

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Half(self, "reply"), "127.0.0.1", self.proxy.target
            )
        except OSError:
            self.abort()

    def hold(self) -> None:
        for half in self.halves:
            half.transport.pause_reading()

    def release(self) -> None:
        if len(self.halves) == 2:
            for half in self.halves:
                half.resume()
        elif self.halves and self.connecting is None:
            self.connecting = asyncio.get_running_loop().create_task(self._connect())

    def abort(self) -> None:
        self.is_aborted = True
        self.proxy._links.discard(self)
        for half in self.halves:
            half.abort()

    def closed(self) -> None:
        if all(half.is_closed for half in self.halves):
            self.proxy._links.discard(self)


class _Half(asyncio.Protocol):
    """One of the two connections of a link: what it receives goes to its peer."""

    transport: asyncio.Transport

    def __init__(self, link: _Link, direction: Direction) -> None:
        self.link = link
        self.direction = direction
        self.peer: _Half | None = None
        self.is_closed = False
        self.has_ended = False  # nothing more is received
        self.is_full = False  # the peer's buffer
        self.due = 0.0  # when the last chunk is to be forwarded; later ones not before it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.opened(self)

    def data_received(self, data: bytes) -> None:
        drop = self.link.proxy._drop_of(self.direction)
        if drop is None:
            self._later(lambda: self._forward(data))
            return
        if drop.partial and self.peer is not None:
            self._forward(data[: len(data) // 2])
        drop.fired.set()
        # An orderly end, so that what was forwarded before is still delivered: a reset would discard it.
        self.link.is_aborted = True
        for half in self.link.halves:
            half.transport.close()
        self.link.proxy._links.discard(self.link)

    def eof_received(self) -> bool:
        self.has_ended = True
        self._later(self._forward_end)
        return True  # the other direction stays open

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closed = True
        if self.peer is not None and not self.peer.is_closed:
            self._later(self.peer.transport.close)
        elif self.direction == "request" and len(self.link.halves) == 1:
            self.link.is_aborted = True
        self.link.closed()

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.is_full = True
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.is_full = False
            self.peer.resume()

    def resume(self) -> None:
        if not self.link.proxy._is_cut and not self.is_full and not self.is_closed:
            self.transport.resume_reading()

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            # No time to linger: the other side gets a reset, as from a host that has lost the connection.
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.transport.abort()

    def _forward(self, data: bytes) -> None:
        if self.peer is not None and not self.peer.is_closed:
            self.peer.transport.write(data)

    def _forward_end(self) -> None:
        if self.peer is not None and not self.peer.is_closed:
            with contextlib.suppress(OSError):
                self.peer.transport.write_eof()
            if self.peer.has_ended:  # both directions have ended, and nobody reads any more who could notice
                self.transport.close()
                self.peer.transport.close()

    def _later(self, action: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        delay = self.link.proxy._delay
        if not delay and self.due <= now:
            action()
            return
        self.due = max(self.due, now + delay)
        loop.call_at(self.due, action)


# ---- the one thread of all proxies of this process -----------------------------------------------------------

_start_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_loops_of_parents: list[Any] = []  # a fork has the object but not the thread


def _forget_loop() -> None:
    global _loop
    _loops_of_parents.append(_loop)
    _loop = None


os.register_at_fork(after_in_child=_forget_loop)


def _the_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _start_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="occamdb-stress-proxies", daemon=True).start()
        return _loop


def _run(coroutine: Any) -> None:
    asyncio.run_coroutine_threadsafe(coroutine, _the_loop()).result(CALL_TIMEOUT)


def _call(function: Callable[[], T]) -> T:
    done: Future[T] = Future()

    def apply() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    _the_loop().call_soon_threadsafe(apply)
    return done.result(CALL_TIMEOUT)
