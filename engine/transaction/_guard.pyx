"""Which runs a commit may write to, by a rule of whoever opened the database.

The rule knows where the record of a run is, below the reserved run, and what it has to say (`guard.py`). This module
finds out what a transaction writes, reads those records in its snapshot, and puts them into its read set.

1. The version of each record that the rule approved is validated with the commit, under every isolation and for blind
   commits too. So the run was as the rule wants it at the commit's point in the order, not only when we looked.
2. A record that the transaction itself writes is judged as it was and as it will be.
3. The reserved run is exempt: the records are in it.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject

from ..commit._wire cimport OP_PUT
from ..store._reader cimport Found
from ._core cimport Effect, TransactionCore

from ..model.keys import RunId
from ..model.public_types import RESERVED_RUN

cdef enum:
    RUN_SIZE = 16

cdef bytes RESERVED_ID = RESERVED_RUN.bytes


cdef dict written_runs(TransactionCore txn):
    """{run: whether more is done to it than to delete all of it} of what the transaction writes."""
    cdef dict runs = {}
    cdef Py_ssize_t first = PyBytes_GET_SIZE(txn.guard.base), last = first + RUN_SIZE
    if txn.cleared is not None:
        for start, end in txn.cleared:
            run = start[first:last]
            whole = PyBytes_GET_SIZE(start) == last and end == start + b"\xff"
            runs[run] = runs.get(run, False) or not whole
    for keys in (txn.effects, txn.checks):
        if keys is not None:
            for key in keys:
                runs[key[first:last]] = True
    runs.pop(RESERVED_ID, None)
    return runs


cdef dict admit(TransactionCore txn):
    """Ask the rule about every run that is written to; {stored key: (run, version)} of the records it went by.

    Records that the transaction writes itself are not among them. REQUIRES: the transaction has a snapshot.

    Raises:
      Whatever the rule raises to refuse.
    """
    cdef Found found
    cdef dict records = {}
    cdef bytes key
    cdef Effect own
    cdef int status
    txn.require_alive()
    for run, writes in written_runs(txn).items():
        key = txn.guard.base + RESERVED_ID + txn.guard.rule.record_key(run)
        status = txn.lookup(key, False, &found)
        before = txn.value_of(&found) if status else None
        own = None if txn.effects is None else txn.effects.get(key)
        if own is None:
            after = before
            records[key] = (run, found.version)
        else:
            after = txn.own_value(key, own, NULL) if own.code == OP_PUT else None
        txn.guard.rule.check(RunId(bytes=run), before, after, writes)
        if txn.reads is None:
            txn.reads = {}
        txn.reads.setdefault(key, found.version)
    return records


cdef bint records_moved(TransactionCore txn, dict records, object conflict) except -1:
    """Whether a record has another version by now than `admit` found. The transaction is over and holds no snapshot.

    Raises:
      Whatever the rule raises about the run as it is now, caused by `conflict`.
    """
    cdef Found found
    cdef bint moved = False
    cdef TransactionCore now = TransactionCore.__new__(TransactionCore)
    now.handle = txn.handle
    now.codec = txn.codec
    now.read_only = True
    now.open(txn.handle.attachment())
    for key, (run, version) in records.items():
        status = now.lookup(key, False, &found)
        if found.version == version:
            continue
        moved = True
        record = now.value_of(&found) if status else None
        try:
            txn.guard.rule.check(RunId(bytes=run), record, record, True)
        except Exception as refused:
            raise refused from conflict
    return moved
