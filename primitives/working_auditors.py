"""The auditors of leases and steps. Nothing in them follows from other keys, so nothing can be repaired."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..engine.model.errors import OccamError
from ..engine.transaction._transaction import Space
from . import layout
from .auditing import Fault
from .leases import Leases
from .steps import Steps

__all__ = ["audit_leases", "audit_steps"]

_STEP_STATES = 3
_NUMBER_SIZES = {layout.LEASE_CLAIM: 2, layout.LEASE_TICKET: 8}


def audit_leases(space: Space) -> Iterator[Fault]:
    """Every holder has a slot of its own within the number of slots, which all holders of a lease share.

    Holders and waiters are bound to a session.
    """
    name, shared = "", 0
    rows: Any = space.scan(b"")
    for key, row in rows:
        size = _NUMBER_SIZES.get(key[:1])
        if size is None or not _is_named(key, size):
            yield Fault(key, "a key that this version does not know")
            continue
        if not row.ephemeral:
            yield Fault(key, "a holder or waiter that is bound to no session: it would never go")
        if key[:1] != layout.LEASE_CLAIM:
            continue
        try:
            slots = _slots_of(row.value)
        except (OccamError, TypeError, ValueError) as error:
            yield Fault(key, f"unreadable: {error}")
            continue
        slot = layout.lease_slot(key)
        if slot >= slots:
            yield Fault(key, f"slot {slot} of a lease with {slots} slots")
        if layout.lease_name(key) != name:
            name, shared = layout.lease_name(key), slots
        elif slots != shared:
            yield Fault(key, f"a holder of lease {name!r} with {slots} slots beside one with {shared}")


def _is_named(key: bytes, number_size: int) -> bool:
    """Whether the key is a group, the size of a name, the name, and a number."""
    size = int.from_bytes(key[1:3], "big")
    if len(key) != 3 + size + number_size or size == 0:
        return False
    try:
        key[3 : 3 + size].decode()
    except UnicodeDecodeError:
        return False
    return True


def _slots_of(value: Any) -> int:
    slots, nonce, pid, token = value
    if not (type(slots) is int and type(nonce) is bytes and type(pid) is int and type(token) is int):
        raise TypeError(f"a holder is [slots, nonce, pid, token], found {value!r:.80}")
    return slots


def audit_steps(space: Space) -> Iterator[Fault]:
    """Every record is readable and agrees with itself; a claim of a step has a record that says so."""
    rows: Any = space.scan(b"")
    for key, row in rows:
        if key[:1] == layout.STEP:
            try:
                yield from _faults_of_step(key, row.value)
            except (OccamError, TypeError, ValueError) as error:
                yield Fault(key, f"unreadable: {error}")
        elif key[:1] == layout.STEP_CLAIM:
            record = space.get(layout.STEP + key[1:])
            if record is None or record[0] != 0:
                yield Fault(key, "somebody runs a step whose record does not say so")
            if not row.ephemeral:
                yield Fault(key, "the claim of a step is bound to no session: others would wait for ever")
        else:
            yield Fault(key, "a key that this version does not know")


def _faults_of_step(key: bytes, record: Any) -> Iterator[Fault]:
    state, function, attempts, _, began, ended = record
    if not (type(function) is str and type(attempts) is int and type(began) is int and type(ended) is int):
        raise TypeError(
            f"a record is [state, function, attempts, outcome, began, ended], found {record!r:.80}"
        )
    if state not in range(_STEP_STATES):
        yield Fault(key, f"a step in the unknown state {state!r}")
    if attempts < 1:
        yield Fault(key, f"a step after {attempts} attempts")
    if (ended == 0) != (state == 0):
        yield Fault(key, "a step that runs and has ended, or has an outcome and no end")


Leases.auditor = staticmethod(audit_leases)
Steps.auditor = staticmethod(audit_steps)
