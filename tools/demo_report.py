"""The end of the demo: what the database holds, compared with a plain recount, and every chain verified.

Everything here is read from the database or counted again from the files; nothing is taken from the agents' word.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from occamdb.tools import corpus
from occamdb.tools.demo_agent import FIGURES, PROGRESS, WORD, Figures, Plan

if TYPE_CHECKING:
    from rich.console import Console

    from occamdb import Database
    from occamdb.primitives import ChainVerification, RunMetadata, TraceTree
    from occamdb.tools.demo_kill import Takeover

TOP_WORDS = 12


@dataclass(frozen=True)
class Report:
    """What came out.

    Attributes:
      files, words: by the shared progress cell.
      index: the word counts in the shared run.
      recount: the same by one plain process.
      figures: of each agent, by the name of its run.
      chains: the verification of each run's event log, by the name of the run.
      busiest: the agent that indexed the most files.
      tree: what that one did.
      seconds: how long the agents took.
      kills: an agent was to be killed.
      takeover: who took its work over; None: nobody did.
    """

    files: int
    words: int
    index: Counter[str]
    recount: Counter[str]
    figures: dict[str, Figures]
    chains: dict[str, ChainVerification]
    busiest: str
    tree: TraceTree | None
    seconds: float
    kills: bool
    takeover: Takeover | None

    @property
    def total(self) -> Figures:
        """All agents together."""
        return sum(self.figures.values(), Figures())

    @property
    def faults(self) -> list[str]:
        """What is not as it must be; empty when all is well."""
        found = [f"{name}: {chain.error}" for name, chain in self.chains.items() if not chain.is_valid]
        if self.index != self.recount:
            found.append(f"the index differs from the recount: {_differences(self.index, self.recount)}")
        if self.words != self.recount.total():
            found.append(f"the progress cell says {self.words:,} words, the recount {self.recount.total():,}")
        if self.total.files != self.files:
            found.append(f"the progress cell says {self.files:,} files, the agents {self.total.files:,}")
        if self.kills and self.takeover is None:
            found.append("no agent was killed, or nobody took its work over")
        return found


def gather(db: Database, plan: Plan, recount: Counter[str], seconds: float) -> Report:
    """Read the results of agents that are over, from one snapshot for each run."""
    from occamdb.tools.demo_kill import takeover

    progress = db.cells.read(plan.shared, PROGRESS)
    done: dict[str, Any] = progress.value if progress else {"files": 0, "words": 0}
    agents = sorted(db.runs.get_child_runs(plan.shared), key=lambda run: (len(run.name), run.name))
    figures = {run.name: Figures(**db.kv.get(run.run_id, FIGURES, {})) for run in agents}
    chains = {run.name: db.events.verify_chain(run.run_id) for run in agents}
    chains["shared index"] = db.events.verify_chain(plan.shared)
    busiest = max(agents, key=lambda run: figures[run.name].files, default=None)
    return Report(
        files=done["files"],
        words=done["words"],
        index=read_index(db, plan),
        recount=recount,
        figures=figures,
        chains=chains,
        busiest=busiest.name if busiest else "",
        tree=_tree_of(db, busiest) if busiest else None,
        seconds=seconds,
        kills=plan.kills,
        takeover=takeover(db, plan),
    )


def read_index(db: Database, plan: Plan) -> Counter[str]:
    """The shared word counts, from one snapshot."""
    rows = db.kv.scan(plan.shared, WORD)
    return Counter({str(key)[len(WORD) :]: found.value for key, found in rows})


def _tree_of(db: Database, run: RunMetadata) -> TraceTree | None:
    roots = db.traces.get_roots(run.run_id, limit=1)
    return db.traces.get_tree(run.run_id, roots[0].id) if roots else None


def recounted(plan: Plan) -> Counter[str]:
    """The plain count: one process, no database."""
    return corpus.count_all(plan.directory, plan.files)


def _differences(index: Counter[str], recount: Counter[str]) -> str:
    wrong = sorted(word for word in index.keys() | recount.keys() if index[word] != recount[word])
    shown = ", ".join(f"{word!r} {index[word]:,} instead of {recount[word]:,}" for word in wrong[:5])
    return f"{len(wrong):,} words, {shown}"


def show(report: Report, out: Console) -> None:
    """Print it."""
    from rich.table import Table

    from occamdb.tools import trace_view

    if report.tree is not None:
        out.print(f"\n[bold]What {report.busiest} did[/] ({report.tree.size:,} traces)")
        trace_view.show(report.tree, out, children_max=3)
    table = Table(title="Agents", title_justify="left", box=None, pad_edge=False)
    for name in ("agent", "files", "words", "updates", "commits", "taken over", "conflicts", "retries"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for name, figures in [*report.figures.items(), ("together", report.total)]:
        numbers = (figures.files, figures.words, figures.key_updates, figures.commits)
        fights = (figures.taken_over, figures.conflicts, figures.retries)
        table.add_row(name, *(f"{number:,}" for number in (*numbers, *fights)))
    out.print()
    out.print(table)
    top = ", ".join(f"{word} {count:,}" for word, count in report.index.most_common(TOP_WORDS))
    out.print(f"\n[bold]Top words[/] {top}")
    _show_verdict(report, out)


def _show_verdict(report: Report, out: Console) -> None:
    total, seconds = report.total, max(report.seconds, 1e-9)
    out.print(
        f"[bold]Indexed[/] {report.files:,} files, {report.words:,} words, {len(report.index):,} distinct, "
        f"in {report.seconds:.1f} s"
    )
    out.print(
        f"[bold]Commits[/] {total.commits:,} ({total.commits / seconds:,.0f}/s), carrying {total.key_updates:,} key "
        f"updates ({total.key_updates / seconds:,.0f}/s); {total.conflicts:,} conflicts, {total.retries:,} retries"
    )
    if report.takeover is not None:
        out.print(f"[bold]Takeover[/] {report.takeover}")
    length = sum(chain.length for chain in report.chains.values())
    if all(chain.is_valid for chain in report.chains.values()):
        out.print(f"[bold]Chains[/]  {len(report.chains)} event logs, {length:,} events: [green]all valid[/]")
    if report.index == report.recount:
        out.print(
            f"[bold]Recount[/] by one plain process: {report.recount.total():,} words: [green]exactly equal[/]"
        )
    for fault in report.faults:
        out.print("[bold red]WRONG[/]", fault, markup=True)
