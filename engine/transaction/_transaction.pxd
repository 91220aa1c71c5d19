"""The faces of a transaction; see _transaction.pyx."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ..model._values cimport Codec
from ._core cimport RunGuard, TransactionCore
from ._pending cimport PendingCommit
from ._space cimport Space
from ._view cimport SnapshotSource


cdef class TransactionBase(Space):
    cdef DatabaseBase db


cdef class ImplicitSpace:
    cdef DatabaseBase db
    cdef bytes prefix
    cdef bint raw
    cdef bint deferred              # writes raise DeferredCommit instead of waiting for their commit
    cdef PendingCommit answered     # what the write was answered, when it is called again behind that
    cdef Space reading(self)
    cdef object ended(self, Space space, int wanted)
    cdef Space writing(self, object ttl=*)


cdef class DatabaseBase:
    cdef readonly object handle
    cdef readonly Codec codec       # of the values
    cdef type transaction_type      # its `transaction_class`, looked up once
    cdef readonly object namespace_
    cdef SnapshotSource current
    cdef i64 next_look              # at which the handle is asked whether `current` will do, though it seems so
    cdef bytes base                 # encoded namespace
    cdef object last_run            # of `last_prefix`
    cdef bytes last_prefix
    cdef dict prefixes              # id(run) -> (run, prefix of its KV tag)
    cdef RunGuard guard             # None: writes to any run are let through
    cdef bint serializable          # unless `begin` says otherwise
    cdef bint deferred              # its `awaits_commits`, looked up once
    cdef u64 key_size_max
    cdef u64 value_size_max
    cdef u64 transaction_size_max
    cdef SnapshotSource attach(self)
    cdef bytes kv_prefix(self, object run)
    cdef bytes tag_prefix(self, object run, object tag)
    cdef TransactionCore new_core(self, bytes prefix)
    cdef TransactionCore new_reader(self, bytes prefix)
