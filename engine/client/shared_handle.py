"""A worker's connection to a shared database: one true outcome for every commit.

pool.py has the links to the coordinator; outcome.py finds out what became of a commit whose coordinator
vanished.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...ipc.errors import ChannelBroken, ChannelTimeout, ControlError
from ..disk import failpoints
from ..model.control_messages import raise_refusal
from ..model.errors import (
    CommitOutcomeUnknown,
    CoordinatorUnavailable,
    DatabaseClosedError,
    LogWriteError,
    TransactionTimeout,
)
from ..model.limits import Limits
from ..model.public_types import BackupSummary, Durability
from ..model.settings import Settings
from ..transaction._answer import Answer, seal
from ..transaction._view import StoreAttachment
from ..transaction.engine_handle import PinnedSnapshot
from ..transaction.waiting import WaitHub
from .backup import attach_store, copy_snapshot
from .link import CoordinatorGone
from .outcome import answer_of, is_stopping, resolve
from .pool import LinkPool

__all__ = ["SharedHandle", "open_handle"]

_CHECKPOINT_POLL = 0.01
# A request that was sent in time may have to wait for somebody's turn. So its answer, which says for certain what
# became of it, is waited for a little beyond the deadline.
_TURN_GRACE = 0.1


class SharedHandle:
    """`EngineHandle` over a coordinator process; see engine_handle.py for the methods.

    Args:
      path: the database directory.
      durability: "none", "standard" or "always"; "always" asks for it with every commit.
      asked: settings given by keyword.
      start: "auto" starts a coordinator when none runs, now and whenever it is gone; "never" waits for one.
      timeout: seconds to wait for a coordinator or for an answer before giving up.
      database_id: which database it must be; empty: whichever is there.

    Raises:
      DatabaseClosedError: another database than `database_id` is there, or none.
      CoordinatorUnavailable: none runs (`start="never"`) or none came up in time.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: str,
        asked: dict[str, Any],
        start: str,
        timeout: float,
        database_id: bytes = b"",
    ) -> None:
        self.durability = durability
        self._asked = asked
        self._start = start
        self._timeout = timeout
        # Another process may have opened the database first and asked for less.
        self._sync = durability == Durability.ALWAYS
        self.waits = WaitHub(self)
        self.pool = LinkPool(path, durability=durability, asked=asked, start=start, database_id=database_id)
        self.pool.attach_primary(time.monotonic() + timeout)

    def __reduce__(self) -> Any:
        return open_handle, (
            self.path,
            self.durability,
            self._asked,
            self._start,
            self._timeout,
            self.pool.database_id,
        )

    @property
    def path(self) -> str:
        """The database directory."""
        return self.pool.path

    @property
    def timeout(self) -> float:
        """Seconds to wait for a coordinator or for an answer before giving up."""
        return self._timeout

    @property
    def syncs(self) -> bool:
        """Whether every commit through this handle asks for a sync."""
        return self._sync

    @property
    def settings(self) -> Settings:
        return self.pool.settings

    @property
    def limits(self) -> Limits:
        return self.pool.settings.limits

    @property
    def log_mode(self) -> str:
        return self.pool.log_mode

    @property
    def session(self) -> int:
        self.pool.check_open()
        return self.pool.owner

    def keep_session(self) -> None:
        self.pool.keep_session(time.monotonic() + self._timeout)

    def of(self, base: bytes) -> SharedHandle:
        return self  # all namespaces have one order

    def attachment(self) -> StoreAttachment:
        primary = self.pool.primary
        if primary is not None:
            primary.retire_if_orphaned()
            if primary.attachment.usable:
                return primary.attachment
        return self.pool.attach_primary(time.monotonic() + self._timeout).attachment

    @property
    def orphaned(self) -> bool:
        """Whether the coordinator was killed, and this handle may start another one. A clean stop is to last."""
        primary = self.pool.primary
        return (
            primary is not None
            and self.pool.starts
            and not self.pool.closed
            and primary.gone()
            and not primary.channel.drained
        )

    def revive(self, limit: float) -> None:
        """Attach to the next coordinator, and start it if need be, or give up at `limit`."""
        with contextlib.suppress(CoordinatorUnavailable, DatabaseClosedError, LogWriteError):
            self.pool.give_back(self.pool.take(limit))

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        limit = time.monotonic() + self._timeout if deadline is None else deadline
        pool = self.pool
        # Keep this list object: `close`, and a fork inside a signal handler, replace `pool.idle`.
        idle = pool.idle
        try:
            # Popping and appending are atomic under the GIL: no lock on this path.
            link = idle.pop()
        except IndexError:
            link = pool.take_by(limit, deadline)
        # Consume the sequence before sending, so that no interrupt can cause it to be used twice.
        link.sequence = sequence = link.sequence + 1
        synced = seal(request, sequence, self._sync)
        try:
            exchange: Callable[[bytearray, float, Callable[[], None]], bytes] = link.exchange
            if failpoints.armed():
                failpoints.hit("worker.before_submit")
                exchange = link.exchange_slowly
            remaining = limit - time.monotonic()
            if remaining <= 0:
                raise TransactionTimeout("the deadline passed before the commit was sent")
            reply = exchange(
                request, remaining if deadline is None else remaining + _TURN_GRACE, link.on_idle
            )
            if not is_stopping(reply):
                return answer_of(link, sequence, reply, synced)
            return resolve(pool, self.admin, link, request, sequence, limit, sent=False)
        except CoordinatorGone:
            words, sent = link.last_words()
            if words is not None and not is_stopping(words):
                return answer_of(link, sequence, words, synced)
            return resolve(pool, self.admin, link, request, sequence, limit, sent=sent)
        except ChannelBroken:
            # The damage may be in the reply: then the coordinator knows what became of the request. But a
            # channel that another thread's `close` has closed took nothing.
            return resolve(pool, self.admin, link, request, sequence, limit, sent=not link.channel.closed)
        except ChannelTimeout as error:
            if not error.sent:
                raise TransactionTimeout(
                    "the coordinator took no request in time; nothing was committed"
                ) from None
            raise CommitOutcomeUnknown(
                f"no answer from the coordinator within {remaining:.3g} s; the commit may still happen",
                txn_id=(link.session, sequence),
            ) from None
        finally:
            if link.channel.idle and not link.left and not pool.closed:
                idle.append(link)
            else:
                pool.forget(link)

    def admin(self, message: dict[str, Any]) -> dict[str, Any]:
        reply = self._ask(dict(message))
        if message["kind"] != "checkpoint":
            return reply
        # The coordinator answers at once and works on; the caller wants the checkpoint done. One that was
        # already under way may be of an older version, and may die with its coordinator: then we ask again.
        wanted = reply["wanted"]
        while True:
            while reply["running"]:
                time.sleep(_CHECKPOINT_POLL)
                reply = self._ask({"kind": "checkpoint_state"})
            if reply["error"]:
                raise LogWriteError(
                    reply["error"], hint="free space on the database's file system, then try again"
                )
            if reply["version"] >= wanted:
                return reply
            reply = self._ask(dict(message))

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        limit = time.monotonic() + float(message.pop("timeout", self._timeout))
        while True:
            link = self.pool.take(limit)
            try:
                reply = link.client.call(
                    {"op": message["kind"], **message}, max(0.001, limit - time.monotonic())
                )
                raise_refusal(reply)
                return reply
            except (ControlError, OSError) as error:
                if not link.gone() or time.monotonic() >= limit:
                    raise CoordinatorUnavailable(
                        f"the coordinator did not answer {message['kind']!r}: {error}",
                        hint="try again, or give a larger timeout",
                    ) from error
                self.pool.forget(link)
            finally:
                self.pool.give_back(link)

    def copy_to(
        self, snapshot: PinnedSnapshot, destination: Path, progress: Callable[[int], None] | None
    ) -> BackupSummary:
        with attach_store(self.pool.database_id, snapshot.store_incarnation) as store:
            return copy_snapshot(snapshot, store.map, destination, str(self.durability), progress)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.pool.closed

    def close(self) -> None:
        """Detach from the coordinator. Open transactions and snapshots end with DatabaseClosedError."""
        if self.pool.pid == os.getpid():
            self.pool.close()


def open_handle(
    path: str, durability: str, asked: dict[str, Any], start: str, timeout: float, database_id: bytes = b""
) -> SharedHandle:
    """Attach to a database; also how a pickled handle comes back in another process.

    Pickles of older versions come without `database_id`.
    """
    return SharedHandle(
        path, durability=durability, asked=asked, start=start, timeout=timeout, database_id=database_id
    )
