"""Types of what happens at every hold of a lease; see _lease_moves.pyx."""

from typing import Any, Protocol

from ..engine.model.public_types import RunId
from ..engine.transaction._transaction import Space

class _Lease(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def slot(self) -> int: ...
    @property
    def nonce(self) -> bytes: ...

def new_nonce() -> bytes:
    """Eight bytes that name a hold: a random number of this process, which counts up."""

def last_ticket(space: Space, tickets: bytes, end: bytes | None = None) -> bytes | None:
    """The last ticket in line, or the last one before `end`; None: there is none. It enters the read set."""

def free_slot(space: Space, name: str, claims: bytes, slots: int) -> int | None:
    """The first of `slots` slots that nobody holds; None: all are held. The holders enter the read set."""

def claim_of(space: Space, lease: _Lease) -> tuple[bytes, list[Any]] | None:
    """The key and the value of the claim by which a lease is held; None: it is not. It enters the read set always."""

def is_in_run(space: Space, run_id: RunId) -> bool:
    """Whether the space is a part of this run."""
