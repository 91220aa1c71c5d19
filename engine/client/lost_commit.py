"""A commit of an event loop whose link was lost, and the errors of commits that end without an answer."""

from __future__ import annotations

import time

from ..model.errors import CommitOutcomeUnknown, CoordinatorUnavailable, OccamError, TransactionTimeout
from ..transaction._answer import Answer
from ..transaction._pending import PendingCommit
from .link import Link
from .outcome import Ask, Links, answer_of, is_stopping, resolve

__all__ = [
    "LostCommit",
    "error_for_its_deadline",
    "no_thread_error",
    "too_late",
    "unknown_in_closed_loop",
]


class LostCommit:
    """A commit whose link was lost before its answer came.

    Args:
      synced: whether its request asks for a sync.
      sent: whether it may have happened; None: that depends on how the coordinator ended.
    """

    def __init__(self, link: Link, pending: PendingCommit, *, synced: bool, sent: bool | None) -> None:
        self._link = link
        self._sequence = link.sequence
        self._pending = pending
        self._synced = synced
        self._sent = sent

    def settle(self, links: Links, ask: Ask) -> Answer:
        """What became of it; as `SharedHandle.submit`, in a thread."""
        link, sequence, sent = self._link, self._sequence, self._sent
        if sent is None:
            words, sent = link.last_words()
            if words is not None and not is_stopping(words):
                return answer_of(link, sequence, words, self._synced)
        pending = self._pending
        return resolve(links, ask, link, pending.request, sequence, pending.limit, sent=sent)

    def nobody_asked(self, error: BaseException) -> OccamError:
        """What its caller is told when no thread could be started to settle it."""
        if self._sent is False:
            return no_thread_error(error)
        return CommitOutcomeUnknown(
            "the coordinator vanished during the commit, and no thread could be started to ask another one: "
            f"{error}",
            txn_id=self._pending.name,
        )


def no_thread_error(error: BaseException) -> CoordinatorUnavailable:
    """The error of a commit that was not sent, because no thread could be started to attach a link."""
    return CoordinatorUnavailable(
        f"no thread could be started to reach the coordinator: {error}; nothing was committed",
        hint="raise the limit of threads (ulimit -u, the pids of the control group), or end some",
    )


def too_late() -> TransactionTimeout:
    """The error of a commit whose deadline passed while it waited for a link."""
    return TransactionTimeout("the deadline passed before the commit was sent")


def error_for_its_deadline(pending: PendingCommit, error: BaseException) -> BaseException:
    """What the commit's own caller is told when no link could be attached."""
    passed = pending.deadline is not None and pending.deadline <= time.monotonic()
    if not passed or not isinstance(error, CoordinatorUnavailable):
        return error
    timeout = TransactionTimeout(
        f"the deadline passed while no coordinator could be reached; nothing was committed: {error.message}"
    )
    timeout.__cause__ = error
    return timeout


def unknown_in_closed_loop(pending: PendingCommit) -> CommitOutcomeUnknown:
    """The error of a commit that was sent, and whose loop runs no more."""
    return CommitOutcomeUnknown(
        "the event loop was closed before the answer came; the commit may have happened",
        hint="ask `await txn.outcome()`, or read what it wrote",
        txn_id=pending.name,
    )
