"""A server as the engine of an asynchronous database: begins and commits are awaited, on the server's own driver.

1. Tasks that commit at the same time travel together (rule 10 of backend.py).
2. A commit that was sent goes on when its task is cancelled: it is a task of its own, and `ended` waits for it.
3. Reads inside a transaction are plain calls, so each row that was not read yet holds the loop up for one round trip.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..model.errors import CommitOutcomeUnknown, DatabaseClosedError
from ..transaction.forwarding import ForwardingHandle
from ._source import RemoteSource
from .handle import RemoteHandle, answer_of, wants_sync

if TYPE_CHECKING:
    pass

__all__ = ["AwaitedRemote"]


class AwaitedRemote(ForwardingHandle[RemoteHandle]):
    """`EngineHandle` over a RemoteHandle, with `commit` for event loops."""

    begins_afar = True

    def __init__(self, inner: RemoteHandle) -> None:
        super().__init__(inner)
        self._under_way: dict[Any, asyncio.Task[None]] = {}  # by pending commit

    def __reduce__(self) -> Any:
        return AwaitedRemote, (self.inner,)

    def of(self, base: bytes) -> AwaitedRemote:
        inner = self.inner.of(base)
        if inner is self.inner:
            return self
        other = AwaitedRemote(inner)
        other._under_way = self._under_way  # they close together
        return other

    @property
    def location(self) -> str:
        """Where the server is, without secrets."""
        return self.inner.location

    @property
    def path(self) -> None:
        """There is no directory."""

    def attachment(self) -> RemoteSource:
        return self.inner.attachment()

    def close(self) -> None:
        """Let go of the server at once. Commits in flight have no outcome here; `aclose` waits for it."""
        self.inner.close()

    # ---- in an event loop -------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Begin the snapshot that the next `begin` of this task's step takes."""
        source = self.inner.attachment()
        source.prepare(await self.inner.backend.begin_async())

    def unready(self) -> None:
        """Nothing begins behind `ready` after all."""
        self.inner.attachment().prepare(None)

    async def commit(self, pending: Any) -> Any:
        """Carry a commit out. What its caller is given, or the error it gets."""
        if not pending.done:
            task = asyncio.ensure_future(self._carry_out(pending))
            self._under_way[pending] = task
            task.add_done_callback(lambda _: self._under_way.pop(pending, None))
            await asyncio.shield(task)
        return pending.result()

    async def _carry_out(self, pending: Any) -> None:
        """Send it until it has its outcome; see `PendingCommit.accept` why that may take several requests."""
        backend = self.inner.backend
        try:
            if pending.binds:
                await asyncio.to_thread(self.inner.keep_session)
            while not pending.done:
                self.inner.attachment()
                request = pending.request
                outcome = await backend.commit_async(
                    bytes(request), pending.deadline, durable=wants_sync(request)
                )
                pending.accept(answer_of(outcome))
        except BaseException as error:
            if isinstance(error, CommitOutcomeUnknown) and error.txn_id is not None and not pending.done:
                pending.seal(*error.txn_id, False)  # so that `outcome` can ask for it later
            if not pending.done:
                pending.refuse(error if isinstance(error, Exception) else DatabaseClosedError())
            if not isinstance(error, Exception):
                raise

    async def ended(self, pending: Any) -> None:
        """Wait until a commit that is under way has its outcome, as far as its loop still runs."""
        task = self._under_way.get(pending)
        if task is None:
            return
        if task.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([task])
        while not pending.done and not task.get_loop().is_closed() and task.get_loop().is_running():
            await asyncio.sleep(0.01)

    async def outcome_of(self, name: tuple[int, int]) -> tuple[bool, int, int]:
        """Whether a commit that ended without an answer happened, its version and its time."""
        found = await asyncio.to_thread(self.inner.backend.outcome, *name)
        return (False, 0, 0) if found is None else (True, *found)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """`admin`, in a thread."""
        return await asyncio.to_thread(self.inner.admin, message)

    async def aclose(self) -> None:
        """Wait for the commits in flight, then close."""
        here = asyncio.get_running_loop()
        tasks = [task for task in self._under_way.values() if task.get_loop() is here]
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.to_thread(self.inner.close)
