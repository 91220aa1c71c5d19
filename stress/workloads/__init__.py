"""The workloads, by name. Each lives in a module of its own; `base.Workload` says what one is."""

from __future__ import annotations

from occamdb.stress.workloads.agents import Agents
from occamdb.stress.workloads.bank import Bank
from occamdb.stress.workloads.base import Workload
from occamdb.stress.workloads.counter import Counter, Increment
from occamdb.stress.workloads.event_log import EventLogWriters
from occamdb.stress.workloads.expiry import Expiry
from occamdb.stress.workloads.followers import Followers
from occamdb.stress.workloads.large_runs import LargeRuns
from occamdb.stress.workloads.leases import LeaseHolders
from occamdb.stress.workloads.ledger import Ledger
from occamdb.stress.workloads.list_append import ListAppendWorkload
from occamdb.stress.workloads.phantoms import Phantoms
from occamdb.stress.workloads.register import RegisterWorkload
from occamdb.stress.workloads.starvation import Starvation
from occamdb.stress.workloads.steps import Pipelines
from occamdb.stress.workloads.task_queue import TaskQueue
from occamdb.stress.workloads.tasks import Tasks
from occamdb.stress.workloads.write_skew import WriteSkew
from occamdb.stress.workloads.ycsb import ycsb_workloads

__all__ = ["WORKLOADS", "Workload", "get_workload"]

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Counter(),
        Increment(),
        Bank(),
        ListAppendWorkload(),
        RegisterWorkload(),
        WriteSkew(),
        Phantoms(),
        TaskQueue(),
        Tasks(),
        EventLogWriters(),
        Agents(),
        Ledger(),
        Expiry(),
        LargeRuns(),
        LeaseHolders(),
        Pipelines(),
        Starvation(),
        Followers(),
        *ycsb_workloads(),
    )
}


def get_workload(name: str) -> Workload:
    """The workload of that name.

    Raises:
      KeyError: there is none; the message lists them all.
    """
    if name not in WORKLOADS:
        raise KeyError(f"no workload is called {name!r}; known: {', '.join(WORKLOADS)}")
    return WORKLOADS[name]
