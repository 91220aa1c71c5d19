"""The demo kills one of its agents half-way, and tells who took its work over.

The agent names itself, since only a transaction knows which file is the first of the second half: see demo_agent.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from occamdb.tools.demo_agent import TAKEN_OVER, VICTIM, Plan

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from occamdb import Database

KILLED = "killed"


@dataclass(frozen=True)
class Takeover:
    """What became of the batch of the agent that was killed.

    Attributes:
      victim, successor: the numbers of the agents.
      batch: which one.
      done, files: how many of its files were indexed when the agent was killed, and how many it has.
      delay: from just before the kill until the batch was taken over.
    """

    victim: int
    successor: int
    batch: int
    done: int
    files: int
    delay: timedelta

    def __str__(self) -> str:
        milliseconds = self.delay.total_seconds() * 1000
        return (
            f"indexer-{self.victim} was killed with {self.done} of the {self.files} files of batch {self.batch} "
            f"done; indexer-{self.successor} had it {milliseconds:,.0f} ms later and indexed the rest"
        )


class Killer:
    """Kills the agent that waits for it.

    Args:
      db: the parent's own handle.
      plan: that of the agents.

    Attributes:
      victim: what the agent said of itself; None: it was not killed yet.
    """

    def __init__(self, db: Database, plan: Plan) -> None:
        self._db = db
        self._plan = plan
        self.victim: dict[str, Any] | None = None

    @property
    def news(self) -> str:
        """What to tell of it. REQUIRES: it was killed."""
        assert self.victim is not None
        return f"indexer-{self.victim['agent']} (pid {self.victim['pid']}) was killed on purpose, half-way"

    def killed(self, process: SpawnProcess) -> bool:
        """Whether the process was killed here."""
        return self.victim is not None and process.pid == self.victim["pid"]

    def look(self, processes: list[SpawnProcess]) -> bool:
        """Kill the agent if there is one that waits for it. Whether it was killed in this call."""
        if not self._plan.kills or self.victim is not None:
            return False
        victim = self._db.kv.get(self._plan.shared, VICTIM)
        if victim is None:
            return False
        self.victim = victim
        self._db.events.append(
            self._plan.shared, KILLED, {"agent": victim["agent"], "batch": victim["batch"]}
        )
        for process in processes:
            if process.pid == victim["pid"]:
                process.kill()  # SIGKILL: it can clear nothing up
                process.join()
        self._db.runs.fail_run(victim["run"], "killed on purpose, half-way")
        return True


def takeover(db: Database, plan: Plan) -> Takeover | None:
    """Who took over from the agent that was killed, by the shared event log; None: nobody did."""
    killed = db.events.read_by_type(plan.shared, KILLED, limit=1)
    if not killed:
        return None
    batch = killed[0].payload["batch"]
    for taken in db.events.read_by_type(plan.shared, TAKEN_OVER):
        if taken.payload["batch"] == batch:
            return Takeover(
                victim=killed[0].payload["agent"],
                successor=taken.payload["agent"],
                batch=batch,
                done=taken.payload["done"],
                files=taken.payload["files"],
                delay=taken.timestamp - killed[0].timestamp,
            )
    return None
