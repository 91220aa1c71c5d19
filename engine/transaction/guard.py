"""What a rule about the runs that may be written to has to offer; `_guard.pyx` applies it at every commit."""

from __future__ import annotations

from typing import Any, Protocol

from ..model.public_types import RunId

__all__ = ["RunRule"]


class RunRule(Protocol):
    """Decides by a record of each run, kept below the reserved run of the namespace.

    Called in the thread that commits. A rule has no state of its own that changes, and pickles with its database.
    """

    def record_key(self, run: bytes, /) -> bytes:
        """Tag and user key of the record of a run, in the reserved run."""

    def check(self, run_id: RunId, before: Any, after: Any, writes: bool, /) -> None:
        """Raise if a commit may not do this to a run.

        Args:
          before: the value of its record, None if there is none.
          after: the value that the commit leaves there: the same, unless it writes the record itself.
          writes: whether the commit does more to the run than to delete all of it.
        """
