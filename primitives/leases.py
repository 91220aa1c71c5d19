"""Leases: one holder at a time, or `slots` of them, who loses what it holds when its process ends.

1. A holder is a key, the claim. Every claim that is made or given back writes that key, so the commit order has at
   most one holder of a slot at each of its points, whatever the isolation.
2. Claims and tickets are session-bound: those of a process that ended are deleted in one commit.
3. Who finds the lease taken, or somebody waiting, takes a ticket whose number is above those of all waiters. Only the
   first in line claims; each of the others waits for the one before it. So an end of a hold wakes one waiter.
4. A claim is known by its nonce, its token is the version of the commit that made it. A commit that requires the lease
   reads the claim, so it conflicts if the claim was changed before it in the order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from ..engine.model.errors import (
    CommitOutcomeUnknown,
    InvalidArgumentError,
    LeaseLost,
    TransactionStateError,
    TransactionTimeout,
)
from ..engine.model.public_types import RunId, TransactionStatus, TypeTag
from ..engine.transaction.watch import wait_deadline
from . import holding, layout
from .blocks import Block
from .extension import (
    DatabaseBase,
    H_co,
    Primitive,
    RunLike,
    Space,
    operation,
    reader,
)
from .work import CleanUp, Transact, Work, carry_out

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase
    from .handles import Transaction

__all__ = ["Lease", "LeaseHolder", "Leases"]

SLOTS_MAX = 4096
_TICKET_GRACE = (
    5.0  # a ticket outlives its waiter's timeout by so much, then somebody who was stopped leaves the line
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was acquired. Plain data: it can be sent to another process, whose commits it fences as well.

    Attributes:
      run_id: the run that it is in.
      name: of the lease.
      slot: which of its slots.
      slots: how many there are.
      token: the fencing token, a version: that of a later holder is greater.
      nonce: names this hold.
    """

    run_id: RunId
    name: str
    slot: int
    slots: int
    token: int
    nonce: bytes

    def __repr__(self) -> str:
        return f"Lease({self.name!r}, slot {self.slot} of {self.slots}, token={self.token})"


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who holds a slot of a lease.

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
        `async with` on an asynchronous database.
        """
        _refuse_inside(self, "hold")
        leases: Any = self
        work = _Acquisition(self._handle, RunId.of(run_id), name, slots, lease, timeout)
        pid = os.getpid()

        def end(held: Lease, error: BaseException | None) -> Any:
            holding.forget(held)
            if pid != os.getpid():
                return None  # a forked child leaves the block too, but holds nothing
            return leases.release(held.run_id, held)

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
          slots: how many may hold it at once. All who hold it have to name the same number.
          lease: seconds after which it is lost if it was not extended; None: it has no such limit.

        Raises:
          TransactionTimeout: it was not free in time.
          TransactionStateError: this thread (or task) holds it already, and would wait for itself.
          InvalidArgumentError: a holder has named another number of slots.
        """
        _refuse_inside(self, "acquire")
        return _Acquisition(self._handle, RunId.of(run_id), name, slots, lease, timeout).carry_out()

    @operation
    def release(self, lease: Lease) -> None:
        """Give a lease back. Inside, it is given back by the commit.

        Example:
          db.leases.release(run_id, lease)

        Raises:
          LeaseLost: it was not held any more.
        """
        claim, _ = self._claim_of(lease)
        self.space.delete(claim)

    @operation
    def extend(self, lease: Lease, seconds: float | timedelta) -> None:
        """Let a lease run out `seconds` from now. Its token stays; it now goes with the process that calls this.

        Example:
          db.leases.extend(run_id, lease, 60)

        Raises:
          LeaseLost: it is not held any more.
        """
        limit = _checked_lease(seconds)
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
          LeaseLost: it is not held any more.
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
        """Who holds a lease, by slot.

        Example:
          for holder in db.leases.holders(run_id, "gpu"): print(holder.pid)
        """
        return [_holder(key, row) for key, row in self.space.scan(layout.lease_claims(name))]

    @reader
    def list(self) -> _Holders:
        """Who holds any lease of the run, by name and slot.

        Example:
          names = {holder.name for holder in db.leases.list(run_id)}
        """
        found = [_holder(key, row) for key, row in self.space.scan(layout.LEASE_CLAIM)]
        return sorted(found, key=lambda holder: (holder.name, holder.slot))

    @reader
    def waiting(self, name: str) -> int:
        """How many wait for a lease.

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
        if lease.run_id != self.space.run_id:
            raise InvalidArgumentError(
                f"the lease is one of run {lease.run_id}, not of {self.space.run_id}",
                hint="name the run that it was acquired in; inside: txn.for_run(lease.run_id).leases",
            )
        claim = layout.lease_claim(lease.name, lease.slot)
        value = self.space.get_checked(claim)
        if value is None or value[1] != lease.nonce:
            raise _lost(lease)
        return claim, value


class _Acquisition:
    """One `acquire`.

    Args:
      db: the database.
      lease: seconds until the lease runs out; None: never.
    """

    def __init__(
        self,
        db: Any,
        run_id: RunId,
        name: str,
        slots: int,
        lease: float | timedelta | None,
        timeout: float | None,
    ) -> None:
        self.db = db
        self.run_id = run_id
        self.name = name
        self.slots = _checked_slots(slots)
        self.limit = _checked_lease(lease)
        self.timeout = timeout
        wait_deadline(timeout)
        self.claims = layout.lease_claims(name)
        self.tickets = layout.lease_tickets(name)
        self.nonce = b""
        self.ticket: bytes | None = None
        self.unknown = False  # the outcome of a commit
        self.wrote = False  # an attempt has written a ticket or a claim, whether it was committed or not
        self.transaction: Transaction | None = None

    def carry_out(self) -> Any:
        """Wait for the lease."""
        return carry_out(self.db, self.run_id, self._work())

    def _work(self) -> Work[Lease]:
        key = (id(self.db.handle), self.db.current_namespace, self.run_id, self.name, holding.whoever_calls())
        self._refuse_nested(key)
        self.nonce = os.urandom(8)
        deadline = wait_deadline(self.timeout)
        try:
            slot = yield Transact(self._in_space(self._arrive), 0)
            while slot is None:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                slot = yield Transact(self._in_space(self._attend), left)
        except BaseException as error:
            # Leave nothing behind. What cannot be cleared now goes with the open database.
            if self.wrote:
                txn = self.transaction
                under_way = txn is not None and txn.status is TransactionStatus.VALIDATING
                self.unknown = under_way or isinstance(error, CommitOutcomeUnknown)
                yield CleanUp(self._in_space(self._withdraw))
            if isinstance(error, TransactionTimeout):
                raise self._not_free() from None
            raise
        assert self.transaction is not None
        token = self.transaction.receipt.version
        lease = Lease(self.run_id, self.name, slot, self.slots, token, self.nonce)
        holding.remember(key, lease)
        return lease

    def _in_space(self, step: Callable[[Space], Any]) -> Callable[[Transaction], Any]:
        def attempt(txn: Transaction) -> Any:
            self.transaction = txn
            return step(txn.space(TypeTag.LEASE, raw=True))

        return attempt

    def _arrive(self, space: Space) -> int | None:
        """Claim a free slot if nobody waits, else take a ticket."""
        last = next(iter(space.keys(self.tickets, limit=1, reverse=True)), None)
        slot = self._free_slot(space) if last is None else None
        if slot is not None:
            self._claim(space, slot)
            return slot
        if self.timeout == 0:
            raise self._not_free()
        number = 0 if last is None else layout.lease_ticket_number(last) + 1
        self.ticket = layout.lease_ticket(self.name, number)
        ttl = None if self.timeout is None else self.timeout + _TICKET_GRACE
        space.put(self.ticket, self.nonce, ttl=ttl, ephemeral=True)
        self.wrote = True
        return None

    def _attend(self, space: Space) -> int | None:
        """Claim a free slot if this ticket is the first, else wait for the one before it, or for a slot."""
        assert self.ticket is not None
        if space.get(self.ticket) != self.nonce:
            # The coordinator took this process for dead, or a stop outlasted the ticket: begin at the end of the line.
            return self._arrive(space)
        before = next(iter(space.keys(self.tickets, end=self.ticket, limit=1, reverse=True)), None)
        slot = self._free_slot(space) if before is None else None
        if slot is None:
            assert self.transaction is not None
            self.transaction.wait()
        space.delete(self.ticket)
        self._claim(space, slot)
        return slot

    def _free_slot(self, space: Space) -> int | None:
        taken = set()
        for key, row in space.scan(self.claims):
            if row.value[0] != self.slots:
                raise InvalidArgumentError(
                    f"lease {self.name!r} is held with slots={row.value[0]}, and is asked for with slots={self.slots}",
                    hint="all who share a lease name the same number of slots",
                    details={"held": row.value[0], "asked": self.slots},
                )
            taken.add(layout.lease_slot(key))
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def _claim(self, space: Space, slot: int) -> None:
        value = [self.slots, self.nonce, os.getpid(), 0]
        space.put(layout.lease_claim(self.name, slot), value, ttl=self.limit, ephemeral=True)
        self.wrote = True

    def _withdraw(self, space: Space) -> None:
        """Remove the ticket, and a claim whose commit was not seen to succeed.

        A commit of either that is still under way has read the line, so it conflicts with a ticket written here.
        """
        if self.unknown:
            last = next(iter(space.keys(self.tickets, limit=1, reverse=True)), None)
            number = 0 if last is None else layout.lease_ticket_number(last) + 1
            space.put(layout.lease_ticket(self.name, number), b"", ttl=0.001, ephemeral=True)
        if self.ticket is not None and space.get(self.ticket) == self.nonce:
            space.delete(self.ticket)
        for key, row in space.scan(self.claims):
            if row.value[1] == self.nonce:
                space.delete(key)

    def _refuse_nested(self, key: Any) -> None:
        lease = holding.held(key)
        if lease is None:
            return
        claim = self.db.space(self.run_id, TypeTag.LEASE, raw=True).get(
            layout.lease_claim(self.name, lease.slot)
        )
        if claim is not None and claim[1] == lease.nonce:
            raise TransactionStateError(
                f"this thread holds lease {self.name!r} already, under token {lease.token}, and would wait for itself",
                hint="pass the Lease on instead of holding it again, or use another name",
                details={"name": self.name, "token": lease.token},
            )
        holding.forget(lease)

    def _not_free(self) -> TransactionTimeout:
        holders = [holder.pid for holder in self.db.leases.holders(self.run_id, self.name)]
        return TransactionTimeout(
            f"lease {self.name!r} was not free within {self.timeout:g} s: "
            f"{len(holders)} of {self.slots} slots are held",
            hint="give it a longer timeout, or None to wait for ever; db.leases.holders says who holds it",
            details={"name": self.name, "slots": self.slots, "pids": holders, "timeout": self.timeout},
        )


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
        f"lease {lease.name!r} is not held under token {lease.token} any more",
        name=lease.name,
        token=lease.token,
    )


def _checked_slots(slots: object) -> int:
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= SLOTS_MAX:
        raise InvalidArgumentError(
            f"slots must be a whole number from 1 to {SLOTS_MAX}, got {slots!r}",
            hint="1 is an ordinary lease",
        )
    return slots


def _checked_lease(lease: object) -> float | None:
    """Seconds; None: no limit."""
    if lease is None:
        return None
    seconds = lease.total_seconds() if isinstance(lease, timedelta) else lease
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3.15e9:
        raise InvalidArgumentError(
            f"lease must be a positive number of seconds, got {lease!r}", hint="None: it has no time limit"
        )
    return float(seconds)


def _refuse_inside(leases: Leases[Any], call: str) -> None:
    if leases.inside:
        raise InvalidArgumentError(
            f"leases.{call} works outside a transaction only: its holder is known when the commit is",
            hint=f"db.leases.{call}(run_id, name), then txn.leases.require(lease)",
        )
