"""What became of a commit whose coordinator vanished before it answered.

The worker asks the next coordinator for the last outcome of its session. It sends the request again only if
that coordinator says that the commit never happened. This answer is final: the new coordinator has read the
old log and holds LOCK, so the old coordinator can no longer commit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from ...ipc.errors import ChannelBroken, ChannelTimeout, OccamError
from ..commit.messages import (
    REPLY_TURN,
    OpCode,
    OpFlags,
    Reply,
    ResultEntry,
    ResultKind,
    Status,
    decode_request,
)
from ..model.errors import CommitOutcomeUnknown, ForkedHandleError, TransactionTimeout
from ..model.public_types import Durability
from ..transaction._answer import Answer, seal
from .link import CoordinatorGone, Link

__all__ = ["Ask", "Links", "answer_of", "grants_turn", "is_stopping", "last_commit", "resolve"]

Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Links(Protocol):
    """Where links come from and go to: a `LinkPool`, or what stands between one and an event loop."""

    def attach(self, limit: float, *, session: int) -> Link:
        """One more link, which continues a session."""

    def forget(self, link: Link) -> None:
        """Stop committing through a link."""

    def give_back(self, link: Link) -> None:
        """Let others use a link again; one that was forgotten stays so."""


_STATUS = slice(4, 5)  # the low byte of a reply's status
_FLAGS = 6  # the low byte of a reply's flags
_STOPPING = bytes([Status.STOPPING])


def is_stopping(reply: bytes) -> bool:
    """Whether a coordinator that stops refused to take the request."""
    return reply[_STATUS] == _STOPPING


def grants_turn(reply: bytes) -> bool:
    """Whether the commit lost, and its transaction has a turn now."""
    return bool(reply[_FLAGS] & REPLY_TURN)


def answer_of(link: Link, sequence: int, reply: bytes | Reply, synced: bool) -> Answer:
    """The outcome of a commit through this link.

    Args:
      synced: whether the request asked for a sync. Without a log there is nothing to sync.
    """
    mode = link.log_mode
    return Answer(link.session, sequence, reply, "always" if synced and mode != Durability.NONE else mode)


def resolve(
    pool: Links,
    ask: Ask,
    link: Link,
    request: bytearray,
    sequence: int,
    limit: float,
    *,
    sent: bool,
) -> Answer:
    """Find out what became of a request whose coordinator vanished; send it again if it never happened.

    Args:
      ask: puts a question to the coordinator, see `EngineHandle.admin`.
      link: the link that the request went through; it is given up.
      request: as it was sent, sealed.
      limit: when to give up, on the clock of `time.monotonic`.
      sent: whether the request was published completely. If so, CommitOutcomeUnknown is the only error that
        is true.
    """
    if link.pid != os.getpid():
        # A signal handler forked: the commit and its session belong to the parent process.
        raise ForkedHandleError()
    session = link.session
    pool.forget(link)
    while True:
        try:
            again = pool.attach(limit, session=session)
        except Exception as error:
            if not sent:
                raise
            raise CommitOutcomeUnknown(
                f"the coordinator vanished during the commit, and no other could be asked: {error}",
                txn_id=(session, sequence),
            ) from error
        if again.session == session and again.terms.last_sequence == sequence:
            pool.give_back(again)
            reply = _recovered(ask, request, sequence, again.terms.last_version, limit)
            return answer_of(again, sequence, reply, seal(request, sequence, False))
        try:
            if again.session != session or again.sequence >= sequence:
                sequence = again.sequence + 1
                session = again.session
            synced = seal(request, sequence, False)
            again.sequence = sequence
            # The commit never happened, and this is final: see the module docstring.
            sent = False
            answer = again.exchange(request, max(0.001, limit - time.monotonic()), again.on_idle)
            if not is_stopping(answer):
                return answer_of(again, sequence, answer, synced)
            pool.forget(again)
        except CoordinatorGone:
            words, sent = again.last_words()
            if words is not None and not is_stopping(words):
                return answer_of(again, sequence, words, synced)
            pool.forget(again)
        except ChannelBroken:
            sent = not again.channel.closed
            pool.forget(again)
        except ChannelTimeout as error:
            if not error.sent:
                raise TransactionTimeout(
                    "the restarted coordinator took no request in time; nothing was committed"
                ) from None
            raise CommitOutcomeUnknown(
                "the restarted coordinator did not answer in time", txn_id=(session, sequence)
            ) from error
        finally:
            pool.give_back(again)


def last_commit(pool: Links, session: int, limit: float) -> tuple[int, int]:
    """(sequence, version) of the last commit of a session whose link was given up; (0, 0): it had none.

    Final: the coordinator serves what is complete in the session's old channel before it lets the session come back.
    """
    link = pool.attach(limit, session=session)
    try:
        return link.terms.last_sequence, link.terms.last_version
    finally:
        pool.give_back(link)


def _recovered(ask: Ask, request: bytearray, sequence: int, version: int, limit: float) -> Reply:
    """The lost reply, rebuilt. The commit is in the log, and so are its results."""
    decoded = decode_request(bytes(request))
    wanted = [i for i, op in enumerate(decoded.ops) if op.flags & OpFlags.WANT_RESULT]
    results: list[ResultEntry] = []
    committed_at = time.time_ns()
    if wanted:
        try:
            left = max(0.001, limit - time.monotonic())
            logged = ask({"kind": "logged_commit", "version": version, "timeout": left})
        except OccamError as error:
            raise CommitOutcomeUnknown(
                f"committed as version {version}, but its result could not be found out: {error}",
                hint="read the key again",
            ) from error
        committed_at = int(logged["committed_at"])
        written = {bytes(key): value for key, value in logged["writes"]}
        for index in wanted:
            results.append(_result(index, decoded.ops[index].code, written.get(decoded.ops[index].key)))
    return Reply(
        status=Status.COMMITTED,
        sequence=sequence,
        commit_version=version,
        committed_at=committed_at,
        results=tuple(results),
    )


def _result(index: int, code: OpCode, written: Any) -> ResultEntry:
    """The logged result: of a delete, whether the key existed (only then it is logged); of an add, the
    integer.
    """
    if code is OpCode.DELETE:
        return ResultEntry(index, ResultKind.EXISTED, 0 if written is None else 1)
    value = int(written)
    return ResultEntry(index, ResultKind.SIGNED if value < 0 else ResultKind.UNSIGNED, value)
