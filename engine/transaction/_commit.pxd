"""From a transaction's state to its one outcome; see _commit.pyx."""

from ._core cimport TransactionCore

from ._answer cimport Answer

# Does everything at once. The three below are its parts, for a commit whose answer is awaited.
cdef object commit_transaction(TransactionCore txn, bint durable)
# The request, which the caller has to send now; None when there is nothing to send, and the transaction is done.
cdef bytearray prepare_commit(TransactionCore txn, bint durable)
# Takes over the answer: a CommitReceipt, or the error of a refused commit. None: the transaction is active, and
# has to be prepared and sent again.
cdef object accept_answer(TransactionCore txn, bytearray request, Answer answer)
# Takes over what the handle raised instead of an answer.
cdef int give_up(TransactionCore txn, object error) except -1
cdef object require_log(TransactionCore txn)
cdef tuple find_conflicts(TransactionCore txn)
# Ends the transaction's turn, if it has one. Raises no OccamError.
cdef int leave_turn(TransactionCore txn) except -1
