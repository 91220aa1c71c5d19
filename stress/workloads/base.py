"""What a workload is: it prepares a database, takes steps in workers, and verifies an invariant at the end.

Rules for all of them:
1. `step` makes one or a few transactions through the context, which counts outcomes and never raises for them.
2. `verify` runs when no worker does and must allow for transactions of unknown outcome, one for each worker
   that was killed; it may not assume that every worker ended by itself.
3. Everything drawn comes from the context's dice, so a seed and a worker number give the same requests.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context, Settings

Counts = dict[str, int]


class Problem(str):
    """A broken promise in words; `lost` is how many acknowledged commits it shows to be gone."""

    lost: int = 0

    def losing(self, count: int) -> Problem:
        """The same problem with its losses."""
        self.lost = count
        return self


RUN = uuid.UUID("0197c0de-0000-7000-8000-00000000057e")  # the run all workloads but `agents` work in


class Workload:
    """Base of all workloads; instances hold no state of a run."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    counters: ClassVar[tuple[str, ...]] = ()
    history_kind: ClassVar[str] = ""
    keys: ClassVar[int] = 16  # the default number of keys, which sets the contention

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """Write what the workers expect to find. Called once, before any worker starts."""

    def step(self, context: Context) -> None:
        """Do a little work in a worker."""
        raise NotImplementedError

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Read everything back; returns the broken promises, in words."""
        raise NotImplementedError

    def account(self, counts: Counts, tallies: list[Counts]) -> list[str]:
        """Figures of its own for the account of a run, a line each."""
        return []


def between(what: str, found: int, least: int, most: int) -> list[Problem]:
    """A problem unless `least <= found <= most`; what falls short of `least` counts as lost."""
    if least <= found <= most:
        return []
    text = f"{what} is {found:,}, expected {least:,}" + (f" to {most:,}" if most != least else "")
    return [Problem(text).losing(max(0, least - found))]
