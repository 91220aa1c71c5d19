"""Who may ask the inspector, and what its pages may do.

The files of a database belong to one user; a port of the loopback interface is open to every user of the machine, and
to every web page that a browser of it shows. So:

1. Everything but the style sheet and the scripts needs the secret cookie. It is given for the token, which stands in
   the address that is printed, or for a ticket, which works once: the address that the browser is started with stands
   in its command line, and other users may read that.
2. The cookie is SameSite=Strict, so no other site's page can ask in the user's name, and HttpOnly, so no script can
   read it. Its name holds the port: browsers do not tell the ports of a host apart.
3. The Host header names this machine by an address, by "localhost" or by the name that was asked for. A name of
   somebody else's that resolves to this machine (DNS rebinding) is refused.
4. Only GET and HEAD are answered.
5. A page loads nothing from elsewhere, and runs no script and no style that stands in it.
"""

from __future__ import annotations

import ipaddress
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

__all__ = ["Gate", "Secrets", "is_allowed_host"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TICKET_LIFE_S = 60.0
OPEN_PATHS = ("/static/", "/favicon.ico")  # what does not depend on the database
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Secrets:
    """The token, the cookie and the tickets of one server. Used by any thread.

    Attributes:
      token: stands in the printed address.
      cookie: what the browser that brought the token or a ticket shows from then on.
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self.cookie = secrets.token_urlsafe(32)
        self._tickets: dict[str, float] = {}
        self._lock = threading.Lock()

    def ticket(self) -> str:
        """A token that works once, within a minute."""
        made = secrets.token_urlsafe(24)
        with self._lock:
            self._tickets[made] = time.monotonic() + TICKET_LIFE_S
        return made

    def admits(self, token: str) -> bool:
        """Whether the token or a ticket was brought. A ticket is used up by that."""
        if _same(token, self.token):
            return True
        with self._lock:
            end = self._tickets.pop(token, 0.0)
        return time.monotonic() < end

    def knows(self, cookie: str) -> bool:
        """Whether this is the cookie."""
        return _same(cookie, self.cookie)


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), expected.encode())


def is_allowed_host(header: str, asked: str) -> bool:
    """Whether a Host header names this machine in a way that only its user can choose.

    Args:
      header: as the browser sent it, with or without a port.
      asked: the host that the server was told to listen on.
    """
    if header.startswith("["):
        name, bracket, rest = header[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return False
    else:
        name = header.rpartition(":")[0] if ":" in header else header
    if name.lower() in ("localhost", asked.lower()):
        return bool(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Gate:
    """Lets requests through to an application, as the module says; the outermost of all.

    Args:
      app: what is behind it.
      known: the secrets.
      host, port: what the server listens on.
      refuse: makes the answer to a request without the cookie; called with the status, a headline and a text.
    """

    def __init__(
        self, app: App, known: Secrets, host: str, port: int, refuse: Callable[[int, str, str], bytes]
    ) -> None:
        self._app = app
        self._known = known
        self._host = host
        self._port = port
        self._refuse = refuse

    @property
    def cookie_name(self) -> str:
        """The name of the cookie."""
        return f"occamdb-inspect-{self._port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope, as ASGI gives it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the inspector serves no {scope['type']}")
        guarded = _with_headers(send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path: str = scope["path"]
        if not is_allowed_host(headers.get("host", ""), self._host):
            await self._answer(
                guarded, 421, "Wrong host", "Open the inspector by the address that it printed."
            )
        elif scope["method"] not in ("GET", "HEAD"):
            await self._answer(guarded, 405, "Read only", "The inspector answers GET and HEAD alone.")
        elif path.startswith(OPEN_PATHS):
            await self._app(scope, receive, guarded)
        elif (query := _query(scope)).get("token") is not None:
            await self._admit(path, query, guarded)
        elif self._known.knows(self._cookie_of(headers)):
            await self._app(scope, receive, guarded)
        else:
            await self._answer(
                guarded,
                403,
                "Not let in",
                "This page needs the token in the address that `occamdb inspect` printed. "
                "A server that was started again has a new one.",
            )

    async def _admit(self, path: str, query: dict[str, str], send: Send) -> None:
        """Change a token into the cookie, and take the token out of the address."""
        if not self._known.admits(query.pop("token")):
            await self._answer(
                send,
                403,
                "Wrong token",
                "The token in this address is not the one of this server, or it was used up. Open the address that "
                "`occamdb inspect` printed last.",
            )
            return
        # A page that goes on to the real one, and not a redirect: if a link on another site led here, the browser
        # would not send a strict cookie with what it is redirected to.
        target = f"{path if not path.startswith('//') else '/'}{'?' + urlencode(query) if query else ''}"
        cookie = f"{self.cookie_name}={self._known.cookie}; Path=/; HttpOnly; SameSite=Strict"
        await _send(
            send,
            200,
            b"",
            [
                (b"set-cookie", cookie.encode()),
                (b"refresh", f"0; url={_in_header(target)}".encode("latin-1")),
            ],
        )

    def _cookie_of(self, headers: dict[str, str]) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie_name)
        except CookieError:
            return ""
        return "" if found is None else found.value

    async def _answer(self, send: Send, status: int, headline: str, text: str) -> None:
        await _send(send, status, self._refuse(status, headline, text), [])


def _query(scope: Scope) -> dict[str, str]:
    raw: bytes = scope["query_string"]
    return dict(parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=64)) if raw else {}


def _in_header(target: str) -> str:
    """A local address without anything that could end a header or the address in it."""
    from urllib.parse import quote

    return quote(target, safe="/?&=%-._~+")


async def _send(send: Send, status: int, body: bytes, more: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers + more})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    """The same, with the headers that every answer has."""

    async def guarded(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message["headers"]}
            fixed = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            if b"cache-control" not in given:
                # What is stored belongs into no cache on the disk.
                fixed.append((b"cache-control", b"no-store"))
            message["headers"] = [*message["headers"], *fixed]
        await send(message)

    return guarded
