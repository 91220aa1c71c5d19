"""How commits of event loops get along with turns, so that no loop keeps its own task from using one.

1. A turn belongs to a transaction, and commits of others that would invalidate it wait until it comes back. On a
   coordinator these commits lie in their links. So a link that brought a turn is kept for the transaction that has it
   (`KeptLinks`): if another commit took it, and had to wait, the transaction could not come back.
2. In memory a commit that waits would block its thread. If that is the loop's, the transaction with the turn may be a
   task that cannot run. So such a commit waits in a thread of `TurnWaiters`. The commit of a transaction with a turn
   waits for nothing, and needs no thread.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..model.errors import DatabaseClosedError, TransactionTimeout
from ..transaction._pending import PendingCommit
from .carrier import Carrier
from .local_handle import LocalHandle

__all__ = ["KeptLinks", "TurnWaiters"]

KEPT_SECONDS = 0.02  # as long as a turn lasts at most
_THREADS_MAX = 8  # those that find none wait before they have a place in the line


class KeptLinks:
    """The links that are kept for transactions with a turn, by the number that names the transaction.

    Args:
      let_go: is given a link whose transaction did not come back in time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, let_go: Callable[[Carrier], None]) -> None:
        self._loop = loop
        self._let_go = let_go
        self._kept: dict[int, tuple[Carrier, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, turn: int, carrier: Carrier) -> None:
        """Keep a link for this transaction, which was given a turn through it just now."""
        timer = self._loop.call_later(KEPT_SECONDS, self._expire, turn)
        self._kept[turn] = carrier, timer

    def take(self, turn: int) -> Carrier | None:
        """The link that was kept for a transaction; it is no longer."""
        found = self._kept.pop(turn, None)
        if found is None:
            return None
        found[1].cancel()
        return found[0]

    def remove(self, carrier: Carrier) -> None:
        """Its connection has ended."""
        for turn, (kept, _) in list(self._kept.items()):
            if kept is carrier:
                self.take(turn)

    def clear(self) -> list[Carrier]:
        """Keep none; those that were kept."""
        return [carrier for turn in list(self._kept) if (carrier := self.take(turn)) is not None]

    def forget_after_fork(self) -> None:
        """In a forked child. The timers are of the parent's loop, and are not touched."""
        self._kept = {}

    def _expire(self, turn: int) -> None:
        carrier = self.take(turn)
        if carrier is not None:
            self._let_go(carrier)


class TurnWaiters:
    """Commits in memory that wait for turns, in threads.

    Args:
      handle: the database; none of these is called if it has a coordinator.
    """

    def __init__(self, handle: Any) -> None:
        self._handle: LocalHandle = handle
        self._threads: ThreadPoolExecutor | None = None
        self._jobs: set[Future[None]] = set()

    def try_at_once(self, pending: PendingCommit) -> None:
        """Carry a commit out in this thread. It is not `done` behind this if it has to wait for a turn."""
        self._carry_out(pending, patient=False)

    async def carry_out(self, pending: PendingCommit) -> None:
        """Carry a commit out in a thread. Once begun it goes on to its end, also if its task is cancelled."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="occamdb-turns")
        try:
            job = self._threads.submit(functools.partial(self._carry_out, pending, patient=True))
        except RuntimeError:  # closed, or the interpreter ends
            pending.refuse(DatabaseClosedError())
            return
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        try:
            await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if job.cancel() and not pending.done:
                pending.refuse(TransactionTimeout("cancelled before the commit was sent"))
            raise

    async def drain(self) -> None:
        """Wait until no commit is under way."""
        while self._jobs:
            await asyncio.wait([asyncio.wrap_future(job) for job in tuple(self._jobs)])

    def close(self) -> None:
        """Take no further commits; the threads end with those that are under way."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def _carry_out(self, pending: PendingCommit, *, patient: bool) -> None:
        try:
            while not pending.done:
                answer = self._handle.try_submit(pending.request, pending.deadline, patient=patient)
                if answer is None:
                    return
                pending.accept(answer)
        except BaseException as error:
            if not pending.done:
                pending.refuse(error)
