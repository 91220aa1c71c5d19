"""What a server must do for the engine: the contract between `engine/remote` and each kind of server.

A backend serves one namespace (tenant, app and agent). It stores keys and values as the local engine does: a key
begins with the namespace, the run and the tag, and a value is encoded. It decodes neither, except for integers that
it adds to.

The rules. A backend that keeps them is serializable, and strictly so in real time:

1. **Order.** The commits of a namespace have one total order. Each one that changes something gets the next
   version, and every key that it writes carries that version. Numbers may be left out, but none is given out
   twice, also not after a failover that lost acknowledged commits.
2. **Snapshots.** `begin` names a version V and an expiry time T. What `read` and `scan` return at V never
   changes: for each key the newest record up to V, a value that has expired included, a delete not. When a
   read can no longer be answered exactly, it raises SnapshotExpired. A `begin` after an acknowledged commit
   has that commit in V.
3. **Expiry.** There is one clock, the server's, and it never goes back. The time by which a commit judges
   expiry is no earlier than that of the commit before it. T lies between: no earlier than the time by which
   commit V judged, and no later than the time by which commit V + 1 does. (Otherwise a snapshot could miss a
   key that V + 1 still saw.) The removal of an expired key is not a write: it gives the key no newer version,
   and conflicts with nothing by itself.
4. **Validation.** `commit` judges a request against the newest records, in its place in the order, exactly as
   `tests/support/conflict_model.py` says, and lists the conflicts in that order, at most CONFLICTS_LISTED_MAX
   of them. With JUDGE_ONLY it applies nothing.
5. **Effects.** Deleted ranges are applied first, then puts, deletes and increments in the order of the
   request. An increment adds to the newest committed integer, an absent or expired key counts as 0, and the
   value keeps its expiry time and session. A delete of a key that holds no value is no write: it leaves no
   record. A request is applied as a whole or not at all.
6. **One outcome.** A request that was sent has exactly one outcome, whatever is lost, repeated or arrives
   late. A backend names it by (session, sequence) on the server, and asks again by that name. Only when no
   server can be reached before the deadline does it raise CommitOutcomeUnknown, whose `txn_id` is that
   name.
7. **Sessions.** A key that a request binds (EPHEMERAL) carries the session. When the session ends, by `close`
   or because nothing was heard of it for its time to live by the server's clock, a commit deletes its keys.
   Nothing that the session sends afterwards is committed: the backend begins another session, and says so by
   its number.
8. **Changes.** `changes` gives every commit of a key range once, in order, or raises WatchLagged. `wait` may
   return too early, and never too late by more than its look interval: what it returns is a hint.
9. **Bounds.** What comes from the server is checked before it is followed: it may be damaged, or of another
   version.
10. **Threads and forks.** Any thread may call; several commits of one process travel together. A forked child
   makes connections of its own, and begins another session.

Errors are the engine's: ServerUnavailable when nothing was committed, CommitOutcomeUnknown when that is not known,
and the errors of limits with the name of the server's setting in the hint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

from ..commit.messages import Reply
from ..model.limits import Limits

__all__ = ["Backend", "Begun", "ChangedKey", "Changes", "CommitOfChanges", "Outcome", "Row"]


class Row(NamedTuple):
    """One record.

    Attributes:
      key: the stored key.
      value: encoded.
      version: of the commit that wrote it.
      timestamp: of that commit, by the server's clock, nanoseconds since the epoch.
      expires_at: nanoseconds since the epoch; 0: never.
      session: that the key is bound to; 0: none.
    """

    key: bytes
    value: bytes
    version: int
    timestamp: int
    expires_at: int = 0
    session: int = 0


class Begun(NamedTuple):
    """A snapshot.

    Attributes:
      version: V of rule 2.
      expiry_time: T of rule 3, nanoseconds since the epoch: what expires up to it is absent.
      clock: the server's clock: a time to live counts from it.
      rows: of the keys that were asked for, at V; None: there is no record, or it is a delete.
    """

    version: int
    expiry_time: int
    clock: int
    rows: Sequence[Row | None] = ()


class Outcome(NamedTuple):
    """What became of a commit request.

    Attributes:
      session, sequence: its name.
      reply: as the local engine would answer; its `sequence` is the one here.
      durability: what the server waited for before it acknowledged this commit: "none", "standard" or "always".
    """

    session: int
    sequence: int
    reply: Reply
    durability: str


class ChangedKey(NamedTuple):
    """A change as it is stored. `value` is None unless it is a put, and when no values were asked for."""

    kind: Literal["put", "delete", "expire"]
    key: bytes
    value: bytes | None


class CommitOfChanges(NamedTuple):
    """What one commit changed in a range; `committed_at` in nanoseconds since the epoch."""

    version: int
    committed_at: int
    changes: Sequence[ChangedKey]


class Changes(NamedTuple):
    """Some commits, oldest first, and the version up to which they are all that there are.

    Without commits that is the newest version: who waits for a change would sleep through those behind it.
    """

    commits: Sequence[CommitOfChanges]
    reached: int


class Backend(Protocol):
    """A server, as one namespace of it is used. The rules are those of this module.

    Attributes:
      engine: its kind, for messages: "postgres", "etcd".
      location: where it is, as `open` takes it and without secrets.
      limits: the largest key, value and transaction.
      durability: what an acknowledged commit survives, as the server says: "none", "standard" or "always".
      session: of this process, not 0.
      incarnation: grows when the server lost acknowledged commits.
    """

    engine: str
    location: str
    limits: Limits
    durability: str
    session: int
    incarnation: int

    def of(self, base: bytes) -> Backend:
        """The same server, session and connections for another namespace, whose stored keys begin with `base`."""

    def namespaces(self) -> Sequence[bytes]:
        """The namespaces in which something was written, in order, as stored keys begin with them."""

    def begin(self, keys: Sequence[bytes] = ()) -> Begun:
        """The newest snapshot, and some of its rows, in one round trip."""

    def read(self, keys: Sequence[bytes], version: int) -> Sequence[Row | None]:
        """The rows of some keys at a version, in the order of `keys`."""

    def scan(
        self, start: bytes, end: bytes, version: int, limit: int, *, reverse: bool = False
    ) -> tuple[Sequence[Row], bool]:
        """At most `limit` (from 1) rows with start <= key < end at a version, in key order, and whether that was all.

        When it was not all, the next page begins behind the last row; there is one then.
        """

    def commit(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        """Commit one request, which is encoded as docs/wire-format.md says, with a sequence of 0.

        Args:
          deadline: when to give up, on the clock of `time.monotonic`; None: the backend's own timeout.
          durable: acknowledge only when it survives the loss of power of a server.

        Raises:
          ServerUnavailable, TransactionTimeout: nothing was committed.
          CommitOutcomeUnknown: it may have been.
        """

    async def commit_async(self, request: bytes, deadline: float | None, *, durable: bool = False) -> Outcome:
        """`commit`, for a task. A task that is cancelled leaves the commit to its end."""

    async def begin_async(self) -> Begun:
        """`begin`, for a task."""

    def outcome(self, session: int, sequence: int) -> tuple[int, int] | None:
        """(version, committed_at) of a commit of ours; None: it was not committed, and never will be."""

    def newest(self) -> int:
        """The newest version."""

    def changes(self, start: bytes, end: bytes | None, since: int, limit: int, *, values: bool) -> Changes:
        """Commits after `since` that changed something in [start, end), about `limit` changes; `end` None: no bound.

        Raises:
          WatchLagged: some of them are no longer kept.
        """

    def wait(self, since: int, timeout: float) -> bool:
        """Sleep until there is a version after `since`, or `timeout` seconds have passed; whether there is one."""

    def keep_session(self) -> None:
        """Called before a commit that binds keys: from now on the session is kept alive."""

    def stats(self) -> dict[str, Any]:
        """Figures of the server and of this process, for `status` and `db.stats()`; plain data."""

    def close(self) -> None:
        """End the session and the connections, of every namespace. Closing twice is harmless."""
