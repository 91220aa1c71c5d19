"""A commit whose answer is awaited: encoded by one call, answered by a later one, in an event loop's thread.

1. It is the commit of `_commit.pyx` in two halves: `PendingCommit` is made where `commit_transaction` sends its request,
   and `accept` or `refuse` end it where that gets its answer. What each of them does to the transaction is the same.
2. From the moment it was sealed, `txn_id` names it, so that its outcome can be asked for whatever becomes of its task.
3. It ends once. A second answer is an error of the engine.
"""

cimport cython

from ...ipc._atomics cimport i64, u64
from ..commit._wire cimport RESULT_SIGNED
from ..model._records cimport make_receipt
from ._answer cimport Answer
from ._commit cimport accept_answer, give_up, prepare_commit, require_log
from ._core cimport STATE_ABORTED, STATE_ACTIVE, STATE_COMMITTED, STATE_VALIDATING, TransactionCore
from ._space cimport Space

from ..model.errors import ConflictError
from ._answer import seal


class DeferredCommit(BaseException):
    """Leaves an operation at its one write, with the commit that has to be awaited; never seen by users.

    Not an `Exception`: no handler in the operation may take it for a failure of the write.
    """

    def __init__(self, pending, space):
        super().__init__()
        self.pending = pending
        self.space = space


@cython.final
@cython.auto_pickle(False)
cdef class PendingCommit:
    """One commit request and what is to become of it."""

    def __cinit__(self):
        self.limit = 0.0

    def __init__(self):
        raise TypeError("a PendingCommit is not made directly: see stage_commit")

    @property
    def handle(self):
        """The engine that is to carry it out."""
        return self.core.handle

    @property
    def deadline(self):
        """The transaction's own, on the clock of time.monotonic; None: none."""
        return self.core.deadline_ns * 1e-9 if self.core.deadline_ns else None

    @property
    def turn(self):
        """What names its transaction if it asks for a turn; 0: it does not ask."""
        return self.core.turn

    @property
    def binds(self):
        """Whether it binds a key to the session of its handle."""
        return self.core.binds

    @property
    def name(self):
        """(session, sequence) once it was sealed; None before."""
        return (self.core.session, self.core.sequence) if self.core.sequence else None

    def seal(self, u64 session, u64 sequence, bint sync):
        """Name it, just before it is sent. Whether it asks for a sync."""
        self.core.session = session
        self.core.sequence = sequence
        return seal(self.request, sequence, sync)

    def unname(self):
        """It was not sent after all."""
        self.core.session = self.core.sequence = 0

    def accept(self, Answer answer not None):
        """Take over the engine's answer. Not `done` behind this: it has another request, which must be sent."""
        self.require_open()
        try:
            if accept_answer(self.core, self.request, answer) is None:
                self.unname()
                self.request = prepare_commit(self.core, self.durable)
                return
        except Exception as error:
            self.error = shown_error(error, self.wanted)
        self.end()

    def refuse(self, error not None):
        """Take over what the engine raised instead of answering."""
        self.require_open()
        give_up(self.core, error)
        self.error = error
        self.end()

    cdef int end(self) except -1:
        self.done = True
        self.core.pending = None        # the two refer to one another
        return 0

    cdef int require_open(self) except -1:
        if self.done:
            raise RuntimeError("a commit was answered twice")
        return 0

    def result(self):
        """What the caller is given, or the error it gets. REQUIRES: `done`."""
        if self.error is not None:
            raise self.error
        return committed_value(self.core, self.wanted)

    @property
    def failure(self):
        """The error that its caller gets; None: it gets a result, or there is no answer yet."""
        return self.error


cdef PendingCommit new_pending(TransactionCore core, bint durable, int wanted):
    """Raises what `commit_transaction` raises before it sends anything; the transaction is over then."""
    cdef PendingCommit pending = PendingCommit.__new__(PendingCommit)
    pending.core = core
    pending.durable = durable
    pending.wanted = wanted
    pending.request = prepare_commit(core, durable)
    pending.done = pending.request is None
    return pending


def stage_commit(Space txn not None, bint durable):
    """The commit of a transaction, ready to be sent, or done if there is nothing to send.

    Raises what `TransactionBase.commit` raises before it sends anything.
    """
    if durable:
        require_log(txn.core)
    cdef PendingCommit pending
    try:
        pending = new_pending(txn.core, durable, WANT_RECEIPT)
        if not pending.done:
            txn.core.pending = pending
        return pending
    except BaseException:
        if txn.core.state == STATE_ACTIVE:
            txn.core.finish(STATE_ABORTED)
        raise


def pending_of(Space txn not None):
    """The commit of a transaction while it is under way; None before and behind that."""
    return txn.core.pending


def engine_of(Space txn not None):
    """The handle that a transaction commits through."""
    return txn.core.handle


def learn_outcome(Space txn not None, bint committed, u64 version, i64 committed_at):
    """Note what became of a commit that ended without an answer, as the coordinator said later."""
    if txn.core.state != STATE_VALIDATING:
        return
    if committed:
        txn.core.receipt = make_receipt(version, committed_at, txn.core.handle.log_mode, txn.core.attempts)
    txn.core.finish(STATE_COMMITTED if committed else STATE_ABORTED)


cdef object committed_value(TransactionCore core, int wanted):
    """What a commit that happened gives its caller."""
    if wanted == WANT_RECEIPT:
        return core.receipt
    if wanted == WANT_REMOVED:
        return core.result != 0
    if wanted == WANT_SUM:
        return <i64>core.result if core.result_kind == RESULT_SIGNED else core.result
    return core.receipt.version


cdef object shown_error(object error, int wanted):
    """The error that the caller of an operation gets."""
    if wanted == WANT_SWAPPED and type(error) is ConflictError:
        if len(error.conflicts) == 1 and isinstance(error.conflicts[0], ConflictError):
            return error.conflicts[0]
    return error
