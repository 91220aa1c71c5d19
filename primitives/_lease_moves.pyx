"""What happens at every hold of a lease: a free slot is looked for, and the claim of a holder is read. Compiled, since a
hold that nobody waits for is two commits of a few microseconds. `lease_acquisition.py` and `leases.py` have the rest.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcmp

from ..engine.model._records cimport VersionedValue
from ..engine.transaction._scan cimport ROWS_ITEMS, ROWS_KEYS, new_scan
from ..engine.transaction._space cimport Space

from ..engine.model.errors import InvalidArgumentError
from ..engine.model.keys import successor
from . import layout

cdef object lease_slot = layout.lease_slot, lease_claim = layout.lease_claim

cdef uint64_t nonce_base = 0, nonce_count = 0


def _renew():
    global nonce_base
    nonce_base = int.from_bytes(os.urandom(8), "little")


_renew()
os.register_at_fork(after_in_child=_renew)


def new_nonce():
    """Eight bytes that name a hold: a random number of this process, which counts up."""
    global nonce_count
    nonce_count += 1
    return (<uint64_t>(nonce_base + nonce_count)).to_bytes(8, "little")


def last_ticket(Space space not None, bytes tickets not None, bytes end=None):
    """The last ticket in line, or the last one before `end`; None: there is none. It enters the read set."""
    cdef bytes low = space.prefix + tickets
    cdef bytes high = successor(low) if end is None else space.prefix + end
    for key in new_scan(space.core, low, high, <unsigned int>PyBytes_GET_SIZE(space.prefix), 1, True, ROWS_KEYS, True):
        return key
    return None


def free_slot(Space space not None, str name, bytes claims not None, long slots):
    """The first of `slots` slots that nobody holds; None: all are held. The holders enter the read set.

    Raises:
      InvalidArgumentError: a holder has named another number of slots.
    """
    cdef bytes low = space.prefix + claims
    cdef VersionedValue row
    cdef long slot, free = 0
    for key, found in new_scan(space.core, low, successor(low), <unsigned int>PyBytes_GET_SIZE(space.prefix), None, False,
                               ROWS_ITEMS, True):
        row = found
        held = row.value[0]
        if held != slots:
            raise InvalidArgumentError(
                f"lease {name!r} is held with slots={held}, and is asked for with slots={slots}",
                hint="all who share a lease name the same number of slots",
                details={"held": held, "asked": slots},
            )
        # In order of slots, so the first gap is the first number that does not follow the one before.
        slot = lease_slot(key)
        if slot == free:
            free += 1
    return free if free < slots else None


def claim_of(Space space not None, lease):
    """The key and the value of the claim by which a lease is held; None: it is not. It enters the read set always."""
    cdef bytes key = lease_claim(lease.name, lease.slot)
    value = space.get_checked(key)
    return None if value is None or value[1] != lease.nonce else (key, value)


def is_in_run(Space space not None, run_id):
    """Whether the space is a part of this run."""
    cdef bytes raw = run_id.bytes
    cdef Py_ssize_t size = PyBytes_GET_SIZE(space.prefix)
    # A prefix ends in 16 bytes of run id and one of tag.
    return PyBytes_GET_SIZE(raw) == 16 and memcmp(
        PyBytes_AS_STRING(space.prefix) + size - 17, PyBytes_AS_STRING(raw), 16) == 0
