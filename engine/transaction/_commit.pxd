"""From a transaction's state to its one outcome; see _commit.pyx."""

from ._core cimport TransactionCore

cdef object commit_transaction(TransactionCore txn, bint durable)
cdef object require_log(TransactionCore txn)
cdef tuple find_conflicts(TransactionCore txn)
# Ends the transaction's turn, if it has one. Raises no OccamError.
cdef int give_up_turn(TransactionCore txn) except -1
