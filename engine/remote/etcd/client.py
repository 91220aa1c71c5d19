"""What all namespaces of one open database share: the connections, the session, and the names of requests.

1. The session is a random number. It costs nothing on the servers until `keep` is called. Then a lease of that number
   holds the key `s SESSION`, and every later commit compares that this key exists. So once etcd has dropped the lease,
   nothing of the session is committed.
2. A session that was found dead is replaced by a new one, which is kept alive only when it is asked for again.
3. The lease is renewed by a thread, three times in its time to live. A process that is frozen or cut off for longer
   loses it, by the clock of etcd's leader.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections import OrderedDict
from typing import Any

from ...model.errors import DatabaseClosedError, OccamError, ServerSetupError
from .address import Address
from .clock import ServerClock
from .gateway import Gateway, Refused, Unanswered
from .records import FORMAT, session_key
from .wire import mod_is, put, range_of, read_txn, txn

__all__ = ["Client"]

_VERSION_MIN = (3, 4)
_OUTCOMES_MAX = 10_000


class Client:
    """One process's side of a cluster. After a fork the child makes a new one (`renewed`)."""

    def __init__(self, address: Address, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self.settings = address.settings
        self.prefix = address.prefix
        self.pid = os.getpid()
        self.clock = ServerClock()
        self.gateway = Gateway(address, self.clock)
        self.closed = False
        self.server_version = ""
        self._sequences = itertools.count(1)
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._stop = threading.Event()
        self.session = _new_session()
        self.kept = False  # the session has a lease
        self._use = threading.Lock()  # one `keep` at a time
        self._outcomes: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def renewed(self) -> Client:
        """The same for a forked child: other connections, another session."""
        child = Client(self.address, self.timeout)
        child.server_version = self.server_version
        child.closed = self.closed
        return child

    def deadline(self) -> float:
        """When a call that starts now gives up, on the monotonic clock."""
        return time.monotonic() + self.timeout

    def require_open(self) -> None:
        """Refuse when it was closed."""
        if self.closed:
            raise DatabaseClosedError()

    def next_sequence(self) -> int:
        """The name of the next request."""
        return next(self._sequences)

    # ---- outcomes -----------------------------------------------------------------------------------------

    def remember(self, session: int, sequence: int, version: int, committed_at: int) -> None:
        """Keep the outcome of a commit for a while."""
        with self._lock:
            self._outcomes[session, sequence] = (version, committed_at)
            if len(self._outcomes) > _OUTCOMES_MAX:
                self._outcomes.popitem(last=False)

    def remembered(self, session: int, sequence: int) -> tuple[int, int] | None:
        """The outcome of a commit that was acknowledged not long ago."""
        with self._lock:
            return self._outcomes.get((session, sequence))

    # ---- setting up ---------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Check the servers, and mark the prefix as ours when it is new.

        Raises:
          ServerUnavailable: nobody answers.
          ServerSetupError: an older etcd, wrong credentials, or a prefix of another format.
        """
        deadline = self.deadline()
        self.gateway.authenticate(deadline)
        self.server_version = self.gateway.version(deadline)
        numbers = tuple(int(part) for part in self.server_version.split(".")[:2] if part.isdigit())
        if len(numbers) < 2 or numbers < _VERSION_MIN:
            raise ServerSetupError(
                f"etcd {self.server_version} is too old: 3.4 or later is needed",
                hint="upgrade the members one by one (etcd.io/docs, Upgrading), or use another cluster",
                details={"found": self.server_version, "needed": "3.4"},
            )
        if not self.clock.now():
            raise ServerSetupError(
                f"the answers of {self.address.location} carry no Date",
                hint="connect to the members themselves, or let the proxy in front of them keep the header Date: "
                "expiry follows it",
            )
        key = self.prefix + b"f"
        mine = b"occamdb %d" % FORMAT
        try:
            asked = txn([mod_is(key, 0)], [put(key, mine)], [range_of(key)])
            answer = read_txn(self.gateway.ask("/v3/kv/txn", asked, deadline))
        except Refused as refused:
            raise self.gateway.setup_error(refused) from None
        found = answer.pages[0].rows[0].value if not answer.succeeded and answer.pages[0].rows else mine
        if found != mine:
            raise ServerSetupError(
                f"the prefix {self.prefix.decode()} in etcd holds {found[:40]!r}, not format {FORMAT} of occamdb",
                hint="choose another prefix in the URL, or the version of occamdb that wrote it",
            )

    # ---- the session --------------------------------------------------------------------------------------

    def session_key(self, session: int) -> bytes:
        """The key in etcd that lives as long as a session."""
        return session_key(self.prefix, session)

    def keep(self) -> None:
        """Give the session a lease, if it has none."""
        with self._use:
            self.require_open()
            if self.kept:
                return
            session, deadline = self.session, self.deadline()
            seconds = max(1, round(self.settings.session_grace))
            body = {"ID": str(session), "TTL": str(seconds)}
            try:
                with contextlib.suppress(Refused):  # a repeated call finds the lease of the first
                    self.gateway.ask("/v3/lease/grant", body, deadline)
                key = self.session_key(session)
                asked = txn([mod_is(key, 0)], [put(key, b"", session)])
                self.gateway.ask("/v3/kv/txn", asked, deadline)
            except Refused as refused:
                raise self.gateway.setup_error(refused) from None
            self.kept = True
            if self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep_alive, name="occamdb-etcd-session", daemon=True
                )
                self._keeper.start()

    def lost(self, session: int) -> None:
        """The session has ended on the servers: begin another one."""
        with self._lock:
            if self.session == session:
                self.session, self.kept = _new_session(), False

    def _keep_alive(self) -> None:
        pause = self.settings.session_grace / 3
        while not self._stop.wait(pause):
            session = self.session
            if not self.kept:
                continue
            with contextlib.suppress(Unanswered, Refused, OccamError):
                answer = self.gateway.send(
                    "/v3/lease/keepalive", {"ID": str(session)}, time.monotonic() + pause
                )
                result = answer.get("result")
                if isinstance(result, dict) and "TTL" not in result:  # 0 is left out: there is no such lease
                    self.lost(session)

    # ---- the end ------------------------------------------------------------------------------------------

    def revoke(self) -> int:
        """End the session on the servers, and return its number; 0: there was nothing to end."""
        if not self.kept:
            return 0
        session = self.session
        with contextlib.suppress(Refused, OccamError):
            self.gateway.ask(
                "/v3/lease/revoke", {"ID": str(session)}, time.monotonic() + self.settings.call_timeout
            )
            return session
        return 0

    def close(self) -> None:
        """End the threads and the connections."""
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join(self.settings.call_timeout + 1)
        self.gateway.close()

    def figures(self) -> dict[str, Any]:
        """What `stats` tells of this process's connections."""
        return {"calls": self.gateway.calls, "failed_calls": self.gateway.failures}


def _new_session() -> int:
    return secrets.randbits(62) + 1
