"""The process of the inspector: its socket, its server, the browser that it opens."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
import webbrowser
from collections.abc import Callable

import uvicorn

from occamdb.engine.model.errors import InvalidArgumentError, OccamError
from occamdb.tools.inspector.app import make_app, refusal
from occamdb.tools.inspector.feed import Feed
from occamdb.tools.inspector.security import Gate, Secrets
from occamdb.tools.inspector.source import Source

__all__ = ["PORT", "PortTakenError", "address_of", "is_loopback", "listen", "serve"]

PORT = 8790  # the first choice where none is named
STOP_S = 2


class PortTakenError(OccamError):
    """The port that was named is in use."""

    code = "occam.inspect.port_taken"


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a host's address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Args:
      host: an address or a name of this machine.
      port: None: the usual one, or any free one if that is taken; 0: any free one.

    Raises:
      PortTakenError: somebody listens there.
      InvalidArgumentError: the host is none of this machine.
    """
    try:
        return _listen(host, PORT if port is None else port)
    except PortTakenError:
        if port is not None:
            raise
        return _listen(host, 0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidArgumentError(
            f"{host!r} is no host: {error}", hint="--host 127.0.0.1, or an address of this machine"
        ) from None
    opened = socket.socket(family, kind, protocol)
    try:
        # A port whose last connections have just ended can be had again. Two servers cannot have one port.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(place)
        opened.listen(128)
    except OSError as error:
        opened.close()
        if isinstance(error, PermissionError) or error.errno in (98, 48):
            raise PortTakenError(
                f"port {port} of {host} cannot be had: {error.strerror}",
                hint="another inspector may have it: name another --port, or 0 for any free one",
                details={"host": host, "port": port},
            ) from None
        raise InvalidArgumentError(
            f"{host}:{port} cannot be listened on: {error.strerror}",
            hint="--host is an address of this machine",
        ) from None
    return opened


def address_of(host: str, port: int, token: str) -> str:
    """What is opened in a browser."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/?token={token}"


class _Server(uvicorn.Server):
    """A server that ends its streams before it waits for its connections to end."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        self._feed.stop()
        await super().shutdown(sockets)


def serve(
    source: Source, opened: socket.socket, host: str, *, browse: bool, say: Callable[[str], None]
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
      source: the database.
      opened: the socket that listens.
      host: as it was asked for.
      browse: open a browser.
      say: prints a line for the user.
    """
    port = opened.getsockname()[1]
    known = Secrets()
    feed = Feed(source)
    gate = Gate(make_app(source, feed), known, host, port, refusal)
    config = uvicorn.Config(
        gate,
        log_level="warning",
        access_log=False,  # addresses may hold the token
        server_header=False,
        date_header=False,
        lifespan="off",
        http="h11",
        ws="none",
        loop="asyncio",
        timeout_graceful_shutdown=STOP_S,
        h11_max_incomplete_event_size=32 * 1024,
    )
    feed.start()
    try:
        say(address_of(host, port, known.token))
        if browse:
            threading.Thread(
                target=_browse, args=(address_of(host, port, known.ticket()),), daemon=True
            ).start()
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, feed).run(sockets=[opened])
    finally:
        feed.stop()
        source.close()


def _browse(address: str) -> None:
    """Open a browser. One that prints something does not write between our lines, and none is no error."""
    time.sleep(0.3)  # the server may begin first; a browser that comes earlier only waits
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(address)
