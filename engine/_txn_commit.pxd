"""From a transaction's state to its one outcome; see _txn_commit.pyx."""

from occamdb.engine._txn_core cimport TransactionCore

cdef object commit_transaction(TransactionCore txn, bint durable)
cdef object require_log(TransactionCore txn)
cdef object find_conflicts(TransactionCore txn)
