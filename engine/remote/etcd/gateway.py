"""etcd's JSON gateway (`/v3/...`) over HTTP connections that are kept open: one call, one answer.

1. `ask` is for calls that may be repeated: it goes from member to member until one answers or the deadline passes.
2. `send` makes one attempt. It ends in an answer, in a `Refused` (definite: nothing was done), or in `Unanswered`
   (it may have been done, or may still be). The caller finds out which.
3. Bytes travel in base64, and 64-bit integers as text. What an answer holds is checked where it is read (`wire.py`).
4. After a fork the child's `Gateway` is a new one (backend.py); connections are never shared.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from ...model.errors import OccamError, ServerSetupError, ServerUnavailable
from .address import Address
from .clock import ServerClock

__all__ = ["Gateway", "Refused", "Unanswered"]

_INVALID, _DENIED, _EXHAUSTED, _RANGE, _UNAUTHENTICATED, _UNIMPLEMENTED = 3, 7, 8, 11, 16, 12
_DEFINITE: Final = frozenset({_INVALID, _DENIED, _EXHAUSTED, _RANGE, _UNAUTHENTICATED, 5, 9})
_AUTHENTICATE: Final = "/v3/auth/authenticate"
_IDLE_MAX: Final = 16  # connections kept for each member
_BYTES_A_SECOND: Final = 1_000_000  # a large request gets more time
_PAUSE: Final = 0.05  # after every member was tried in vain


class Refused(Exception):
    """A definite refusal of a server: nothing was done.

    Attributes:
      code: of gRPC.
      text: the server's words.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Unanswered(Exception):
    """No answer, or none that says what was done."""


class Gateway:
    """The connections to a cluster. Any thread may call."""

    def __init__(self, address: Address, clock: ServerClock) -> None:
        self._address = address
        self._clock = clock
        self._tls = address.tls_context()
        self._lock = threading.Lock()
        self._idle: dict[int, list[http.client.HTTPConnection]] = {}
        self._current = 0
        self._token = ""
        self._closed = False
        self._failure = ""  # the last one
        self.cluster = 0  # the id of the cluster that answered last
        self.calls = 0
        self.failures = 0

    # ---- calls --------------------------------------------------------------------------------------------

    def ask(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """Make a call that may be repeated.

        Args:
          deadline: on the monotonic clock.

        Raises:
          Refused: the servers refuse it.
          ServerUnavailable: none answered in time.
        """
        attempts = 0
        while True:
            try:
                return self.send(path, body, deadline)
            except Unanswered as error:
                attempts += 1
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    raise self.unavailable(str(error)) from None
                if attempts % len(self._address.members) == 0:
                    time.sleep(min(_PAUSE, left))

    def send(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """Make one attempt; see the module."""
        payload = json.dumps(body).encode()
        answer = self._exchange(path, payload, deadline)
        if answer is None:  # the token is no longer valid, and nothing was done
            self.authenticate(deadline)
            answer = self._exchange(path, payload, deadline)
            if answer is None:
                raise Refused(_UNAUTHENTICATED, "invalid auth token")
        return answer

    def version(self, deadline: float) -> str:
        """The version of the cluster, such as "3.4.0"."""
        while True:
            try:
                found = self._roundtrip("GET", "/version", b"", deadline)[1]
                return str(json.loads(found)["etcdserver"])
            except Unanswered as error:
                if time.monotonic() >= deadline:
                    raise self.unavailable(str(error)) from None
                time.sleep(_PAUSE)
            except (ValueError, KeyError, TypeError):
                raise ServerSetupError(
                    f"what answers at {self._address.location} is not etcd",
                    hint="give the client URLs of the members (--listen-client-urls), port 2379 by default",
                ) from None

    def authenticate(self, deadline: float) -> None:
        """Get a token for the user, if there is one.

        Raises:
          ServerSetupError: the user or the password is wrong, or etcd has no users.
        """
        chosen = self._address.settings
        if not chosen.user:
            return
        body = json.dumps({"name": chosen.user, "password": chosen.password}).encode()
        while True:
            try:
                answer = self._exchange(_AUTHENTICATE, body, deadline)
                self._token = str((answer or {}).get("token", ""))
                return
            except Refused as error:
                raise ServerSetupError(
                    f"etcd refused the user {chosen.user!r}: {error.text}",
                    hint="check user and password; `etcdctl user list` shows the users",
                ) from None
            except Unanswered as error:
                if time.monotonic() >= deadline:
                    raise self.unavailable(str(error)) from None
                time.sleep(_PAUSE)

    def unavailable(self, why: str) -> ServerUnavailable:
        """The error when no member answers and nothing was committed."""
        return ServerUnavailable(
            f"no member of {self._address.location} answered in time; nothing was committed: {why}",
            hint="`etcdctl endpoint health` shows which members are up; a majority of them must be",
            details={"location": self._address.location},
        )

    def setup_error(self, refused: Refused) -> OccamError:
        """A refusal that no later try will change, in our terms."""
        if refused.code == _DENIED:
            return ServerSetupError(
                f"etcd refused: {refused.text}",
                hint="grant the user's role read and write on the prefix: etcdctl role grant-permission --prefix=true "
                f"ROLE readwrite {self._address.prefix.decode()}",
            )
        if refused.code == _UNAUTHENTICATED or "user name is empty" in refused.text:
            return ServerSetupError(
                f"etcd wants a user: {refused.text}",
                hint="give user= and password= to open, or ETCDCTL_USER and ETCDCTL_PASSWORD",
            )
        return ServerSetupError(f"etcd refused: {refused.text}", hint="its log says more")

    # ---- connections --------------------------------------------------------------------------------------

    def _exchange(self, path: str, payload: bytes, deadline: float) -> dict[str, Any] | None:
        """None: the token is not valid."""
        status, data = self._roundtrip("POST", path, payload, deadline)
        try:
            answer = json.loads(data)
            if not isinstance(answer, dict):
                raise ValueError
        except ValueError:
            raise Unanswered(f"HTTP {status} with {data[:100]!r}") from None
        if status == 200 and "error" not in answer:
            self._note_cluster(answer.get("header"))
            return answer
        code, text = answer.get("code"), str(answer.get("message") or answer.get("error"))
        if code == _UNAUTHENTICATED and self._address.settings.user and path != _AUTHENTICATE:
            return None
        if code in _DEFINITE and isinstance(code, int):
            raise Refused(code, text)
        self._advance(self._current)
        raise Unanswered(text)

    def _note_cluster(self, header: object) -> None:
        if isinstance(header, dict):
            with contextlib.suppress(TypeError, ValueError):
                self.cluster = int(header["cluster_id"]) if "cluster_id" in header else self.cluster

    def _roundtrip(self, method: str, path: str, payload: bytes, deadline: float) -> tuple[int, bytes]:
        member = self._current
        patience = self._address.settings.call_timeout + len(payload) / _BYTES_A_SECOND
        timeout = min(patience, deadline - time.monotonic())
        if timeout <= 0:
            raise Unanswered(self._failure or "no time is left")
        self.calls += 1
        connection = self._take(member, timeout)
        sent = time.monotonic_ns()
        try:
            connection.request(method, path, payload, self._headers(path))
            response = connection.getresponse()
            data = response.read()
        except ssl.SSLError as error:
            connection.close()
            raise ServerSetupError(
                f"no secure connection to {self._address.location}: {error}",
                hint="ca_file= names the certificate that signed those of the members; if they use no TLS, leave "
                "tls, ca_file and cert_file out",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.failures += 1
            self._advance(member)
            host, port = self._address.members[member]
            self._failure = f"{host}:{port}: {type(error).__name__} {error}"
            raise Unanswered(self._failure) from None
        except BaseException:  # interrupted: the answer may still come
            connection.close()
            raise
        self._clock.observe(response.getheader("Date"), sent, time.monotonic_ns())
        if response.will_close:
            connection.close()
        else:
            self._give_back(member, connection)
        return response.status, data

    def _headers(self, path: str) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self._token and path != _AUTHENTICATE:  # which refuses a token that is too old, too
            headers["Authorization"] = self._token
        return headers

    def _advance(self, member: int) -> None:
        """Go on with another member, unless somebody did already."""
        with self._lock:
            if self._current == member:
                self._current = (member + 1) % len(self._address.members)

    def _take(self, member: int, timeout: float) -> http.client.HTTPConnection:
        with self._lock:
            idle = self._idle.get(member)
            connection = idle.pop() if idle else None
        if connection is None:
            return self.connection(member, timeout)
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection

    def connection(self, member: int, timeout: float) -> http.client.HTTPConnection:
        """A new connection to a member, which is not open yet."""
        host, port = self._address.members[member]
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def _give_back(self, member: int, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(member, [])
            if not self._closed and len(idle) < _IDLE_MAX:
                idle.append(connection)
                return
        connection.close()

    def stream(self, path: str, body: Mapping[str, Any], timeout: float) -> Stream:
        """Open a stream of answers.

        Args:
          timeout: seconds without a byte after which reading fails.

        Raises:
          Unanswered: it could not be opened.
        """
        member = self._current
        connection = self.connection(member, timeout)
        try:
            connection.request("POST", path, json.dumps(body), self._headers(path))
            response = connection.getresponse()
            if response.status != 200:
                raise http.client.HTTPException(f"HTTP {response.status}")
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self._advance(member)
            raise Unanswered(str(error)) from None
        return Stream(connection, response)

    def close(self) -> None:
        """Close the idle connections, and each other one at the end of its call."""
        with self._lock:
            self._closed = True
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()


class Stream:
    """Answers as they come, one a line. One thread reads; any thread may close."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self._socket = connection.sock

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
          Unanswered: the stream ended, failed, or was silent for too long.
        """
        try:
            line = self._response.readline()
            answer = json.loads(line)
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            raise Unanswered(str(error)) from None
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), dict):
            raise Unanswered(str(answer)[:200])
        result: dict[str, Any] = answer["result"]
        return result

    def close(self) -> None:
        """End the stream; a thread that reads from it gets Unanswered."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Free the connection. Only the thread that reads calls this."""
        self._response.close()
        self._connection.close()
