"""Acquiring a lease: claiming a free slot, or waiting in line for one. README.md says why it is correct."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ..engine.model.errors import (
    CommitOutcomeUnknown,
    InvalidArgumentError,
    TransactionStateError,
    TransactionTimeout,
)
from ..engine.model.public_types import RunId, TransactionStatus, TypeTag
from ..engine.transaction.watch import wait_deadline
from . import holding, layout
from ._lease_moves import free_slot, last_ticket, new_nonce
from .extension import (
    Space,
)
from .work import CleanUp, Transact, Work, carry_out

if TYPE_CHECKING:
    from ..engine.transaction._transaction import TransactionBase

__all__ = ["Acquisition", "Lease", "checked_lease"]

SLOTS_MAX = 4096
LEASE_MAX = 3.15e9  # seconds, 100 years
# A ticket outlives its waiter's timeout by so many seconds. Then somebody who was stopped leaves the line.
_TICKET_GRACE = 5.0


class Lease(NamedTuple):
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


class Acquisition:
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
        self.name = name if type(name) is str else layout.lease_text(name)
        self.slots = checked_slots(slots)
        self.limit = checked_lease(lease)
        self.timeout = timeout
        wait_deadline(timeout)
        self.claims = layout.lease_claims(name)
        self.tickets = layout.lease_tickets(name)
        self.nonce = b""
        self.ticket: bytes | None = None
        self.unknown = False  # the outcome of a commit
        self.wrote = False  # an attempt has written a ticket or a claim, whether it was committed or not
        self.transaction: TransactionBase | None = None

    def carry_out(self) -> Any:
        """Wait for the lease."""
        return carry_out(self.db, self.run_id, self._work())

    def _work(self) -> Work[Lease]:
        key = (
            "lease",
            id(self.db.handle),
            self.db.current_namespace,
            self.run_id,
            self.name,
            holding.whoever_calls(),
        )
        self._refuse_nested(key)
        self.nonce = new_nonce()
        deadline = wait_deadline(self.timeout)
        try:
            slot = yield Transact(self._in_space(self._arrive))
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

    def _in_space(self, step: Callable[[Space], Any]) -> Callable[[TransactionBase], Any]:
        def attempt(txn: TransactionBase) -> Any:
            self.transaction = txn
            return step(txn.space(TypeTag.LEASE, raw=True))

        return attempt

    def _arrive(self, space: Space) -> int | None:
        """Claim a free slot if nobody waits, else take a ticket."""
        last = last_ticket(space, self.tickets)
        slot = free_slot(space, self.name, self.claims, self.slots) if last is None else None
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
        before = last_ticket(space, self.tickets, self.ticket)
        slot = free_slot(space, self.name, self.claims, self.slots) if before is None else None
        if slot is None:
            assert self.transaction is not None
            self.transaction.wait()
        space.delete(self.ticket)
        self._claim(space, slot)
        return slot

    def _claim(self, space: Space, slot: int) -> None:
        value = [self.slots, self.nonce, os.getpid(), 0]
        space.put(layout.lease_claim(self.name, slot), value, ttl=self.limit, ephemeral=True)
        self.wrote = True

    def _withdraw(self, space: Space) -> None:
        """Remove the ticket, and a claim whose commit was not seen to succeed.

        A commit of either that is still under way has read the line, so it conflicts with a ticket written here.
        """
        if self.unknown:
            last = last_ticket(space, self.tickets)
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
                f"this thread holds lease {self.name!r} already, under token {lease.token}, and could wait for itself",
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


def checked_slots(slots: object) -> int:
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= SLOTS_MAX:
        raise InvalidArgumentError(
            f"slots must be a whole number from 1 to {SLOTS_MAX}, got {slots!r}",
            hint="1 is an ordinary lease",
        )
    return slots


def checked_lease(lease: object) -> float | None:
    """Seconds; None: no limit."""
    if lease is None:
        return None
    seconds = lease.total_seconds() if isinstance(lease, timedelta) else lease
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= LEASE_MAX:
        raise InvalidArgumentError(
            f"lease must be a number of seconds above 0, at most {LEASE_MAX:,.0f}, got {lease!r}",
            hint="None: it has no time limit",
        )
    return float(seconds)
