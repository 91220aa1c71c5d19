"""Leases: one holder at a time, or `slots` of them. A holder whose process ends loses the lease.

1. A holder is a key, the claim. Every claim that is made or given back writes that key, so the commit order has at
   most one holder of a slot at each of its points, whatever the isolation.
2. Claims and tickets are session-bound: those of a process that ended are deleted in one commit.
3. A caller that finds the lease taken, or others waiting, takes a ticket with a number above those of all waiters. Only
   the first in line claims; each of the others waits for the one before it. So the end of a hold wakes one waiter.
4. A claim is known by its nonce, its token is the version of the commit that made it. A commit that requires the lease
   reads the claim, so it conflicts if the claim was changed before it in the order.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from ..engine.model.errors import (
    InvalidArgumentError,
    LeaseLost,
)
from ..engine.model.public_types import RunId, TypeTag
from . import holding, layout
from ._lease_moves import claim_of, is_in_run
from .blocks import Block
from .extension import (
    DatabaseBase,
    H_co,
    Primitive,
    RunLike,
    operation,
    reader,
)
from .lease_acquisition import Acquisition, Lease, checked_lease
from .work import CleanUp, Transact, Work, carry_out
from .wrong_calls import outside_only

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["Lease", "LeaseHolder", "Leases"]


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """The holder of one slot of a lease.

    Attributes:
      name: of the lease.
      slot: which of its slots.
      slots: how many there are.
      token: its fencing token.
      pid: of the process that acquired it.
      since: when it was acquired, or extended last.
      expires_at: when it runs out; None: never.
    """

    name: str
    slot: int
    slots: int
    token: int
    pid: int
    since: datetime
    expires_at: datetime | None


# Inside Leases the name `list` is an operation.
_Holders: TypeAlias = list[LeaseHolder]
_Values: TypeAlias = list[Any]


class Leases(Primitive[H_co]):
    """The leases of a run: `with db.leases.hold(run_id, "leader") as lease: ...`."""

    __slots__ = ()
    name = "leases"
    tag = TypeTag.LEASE

    @outside_only
    def hold(
        self: Leases[DatabaseBase | AsyncDatabase[Any]],
        run_id: RunLike,
        name: str,
        *,
        timeout: float | None = None,
        slots: int = 1,
        lease: float | timedelta | None = None,
    ) -> Block[Lease]:
        """Hold a lease for a `with` block: wait for it, and give it back at the end of the block.

            with db.leases.hold(run_id, "leader", timeout=30) as lease:
                with db.begin(run_id) as txn:
                    txn.leases.require(lease)
                    txn.put("plan", ["think"])

        The end of the block raises LeaseLost if the lease was lost meanwhile. Arguments as for `acquire`. It is
        `async with` on an asynchronous database. Call `hold` for each `with` statement: what it returns is not a
        lock that threads share.
        """
        leases: Any = self
        work = Acquisition(self._handle, RunId.of(run_id), name, slots, lease, timeout)
        pid = os.getpid()

        def end(held: Lease, error: BaseException | None) -> Any:
            holding.forget(held)
            if pid != os.getpid():
                return None  # a forked child leaves the block too, but holds nothing
            return carry_out(leases._handle, held.run_id, _give_back(held))

        return Block(work.carry_out, end, lambda held: f"lease {held.name!r} was lost")

    @overload
    def acquire(
        self: Leases[DatabaseBase],
        run_id: RunLike,
        name: str,
        *,
        timeout: float | None = None,
        slots: int = 1,
        lease: float | timedelta | None = None,
    ) -> Lease: ...
    @overload
    def acquire(
        self: Leases[AsyncDatabase[Any]],
        run_id: RunLike,
        name: str,
        *,
        timeout: float | None = None,
        slots: int = 1,
        lease: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, Lease]: ...
    @outside_only
    def acquire(
        self: Leases[Any],
        run_id: RunLike,
        name: str,
        *,
        timeout: float | None = None,
        slots: int = 1,
        lease: float | timedelta | None = None,
    ) -> Any:
        """Wait until this process holds a lease. It goes by `release`, with the open database, or with the process.

            lease = db.leases.acquire(run_id, "gpu", slots=4, lease=60)

        Args:
          run_id: the run that it is in.
          name: text of 1 to 1024 bytes in UTF-8.
          timeout: seconds to wait for it; None: for ever; 0: take it only if it is free.
          slots: how many may hold it at once. Every caller has to name the same number.
          lease: seconds after which it is lost if it was not extended; None: it has no such limit.

        Raises:
          TransactionTimeout: it was not free in time.
          TransactionStateError: this thread (or task) holds it already, and could wait for itself.
          InvalidArgumentError: a holder has named another number of slots.
        """
        return Acquisition(self._handle, RunId.of(run_id), name, slots, lease, timeout).carry_out()

    @operation
    def release(self, lease: Lease) -> None:
        """Give a lease back. Inside, it is given back by the commit.

        Example:
          db.leases.release(run_id, lease)

        Raises:
          LeaseLost: it is no longer held.
        """
        claim, _ = self._claim_of(lease)
        self.space.delete(claim)

    @operation
    def extend(self, lease: Lease, seconds: float | timedelta) -> None:
        """Let a lease run out `seconds` from now. Its token stays; it now goes with the process that calls this.

        Example:
          db.leases.extend(run_id, lease, 60)

        Raises:
          LeaseLost: it is no longer held.
        """
        limit = checked_lease(seconds)
        if limit is None:
            raise InvalidArgumentError("seconds must be a number, got None", hint="extend(run_id, lease, 60)")
        claim, (slots, nonce, pid, _) = self._claim_of(lease)
        self.space.put(claim, [slots, nonce, pid, lease.token], ttl=limit, ephemeral=True)

    @reader
    def require(self, lease: Lease) -> None:
        """Inside: let the transaction commit only if the lease is held at that point of the commit order.

        Outside it says only that the lease was held a moment ago.

        Example:
          db.leases.require(run_id, lease)

        Raises:
          LeaseLost: it is no longer held.
        """
        self._claim_of(lease)

    @reader
    def is_held(self, lease: Lease) -> bool:
        """Whether the lease is still held.

        Example:
          if db.leases.is_held(run_id, lease): ...
        """
        try:
            self._claim_of(lease)
        except LeaseLost:
            return False
        return True

    @reader
    def holders(self, name: str) -> _Holders:
        """The holders of a lease, by slot.

        Example:
          for holder in db.leases.holders(run_id, "gpu"): print(holder.pid)
        """
        return [_holder(key, row) for key, row in self.space.scan(layout.lease_claims(name))]

    @reader
    def list(self) -> _Holders:
        """The holders of all leases of the run, by name and slot.

        Example:
          names = {holder.name for holder in db.leases.list(run_id)}
        """
        found = [_holder(key, row) for key, row in self.space.scan(layout.LEASE_CLAIM)]
        return sorted(found, key=lambda holder: (holder.name, holder.slot))

    @reader
    def waiting(self, name: str) -> int:
        """How many callers wait for a lease.

        Example:
          length = db.leases.waiting(run_id, "gpu")
        """
        return self.space.count(layout.lease_tickets(name))

    def _claim_of(self, lease: Lease) -> tuple[bytes, _Values]:
        """The key and the value of the claim of a lease that is held. Enters the read set under every isolation."""
        if not isinstance(lease, Lease):
            raise InvalidArgumentError(
                f"a Lease is needed, got {type(lease).__name__}", hint="with db.leases.hold(...) as lease"
            )
        if not is_in_run(self.space, lease.run_id):
            raise InvalidArgumentError(
                f"the lease is one of run {lease.run_id}, not of {self.space.run_id}",
                hint="name the run that it was acquired in; inside: txn.for_run(lease.run_id).leases",
            )
        found = claim_of(self.space, lease)
        if found is None:
            raise _lost(lease)
        return found


def _give_back(lease: Lease) -> Work[None]:
    """The end of a hold. Without a coordinator it is done later: others wait for it."""

    def release(txn: Any) -> None:
        Leases(txn).release(lease)

    def release_if_held(txn: Any) -> None:
        if Leases(txn).is_held(lease):
            Leases(txn).release(lease)

    try:
        yield Transact(release)
    except LeaseLost:
        raise
    except BaseException:
        yield CleanUp(release_if_held)
        raise


def _holder(key: Any, row: Any) -> LeaseHolder:
    slots, _, pid, token = row.value
    return LeaseHolder(
        layout.lease_name(key),
        layout.lease_slot(key),
        slots,
        token or row.version,
        pid,
        row.timestamp.astimezone(UTC),
        row.expires_at,
    )


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"lease {lease.name!r} is no longer held under token {lease.token}",
        name=lease.name,
        token=lease.token,
    )
