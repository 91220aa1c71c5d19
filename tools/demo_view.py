"""The demo while it runs: a progress bar and a table of agents on a terminal, plain lines elsewhere.

It only reads: the shared progress cell and each agent's figures, by snapshots that cost the agents nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from occamdb.tools.demo_agent import FIGURES, NOTHING_DONE, PROGRESS, Figures, Plan
from occamdb.tools.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, Group

    from occamdb import Database

REFRESH_S = 0.2
LINE_INTERVAL_S = 2.0


class Watcher:
    """What is going on, read from the database.

    Args:
      db: the parent's own handle.
      plan: that of the agents.
    """

    def __init__(self, db: Database, plan: Plan) -> None:
        self.db = db
        self.plan = plan
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the agents were started."""
        return time.monotonic() - self.started

    def progress(self) -> tuple[int, int, str]:
        """Files and words so far, and the largest file."""
        state = self.db.cells.read(self.plan.shared, PROGRESS)
        done: dict[str, Any] = state.value if state else NOTHING_DONE
        return done["files"], done["words"], done["largest_file"]

    def agents(self) -> dict[str, Figures]:
        """The figures each agent has published, by its name."""
        children = sorted(
            self.db.runs.get_child_runs(self.plan.shared), key=lambda run: (len(run.name), run.name)
        )
        return {run.name: Figures(**self.db.kv.get(run.run_id, FIGURES, {})) for run in children}


def watch(watcher: Watcher, running: Callable[[float], bool], out: Console) -> None:
    """Show progress until `running` says that no agent is left.

    Args:
      watcher: where to look.
      running: waits for up to so many seconds for the agents; whether any still works.
      out: where to show it.
    """
    if out.is_terminal:
        _watch_live(watcher, running, out)
    else:
        _watch_lines(watcher, running, out)


def _watch_live(watcher: Watcher, running: Callable[[float], bool], out: Console) -> None:
    from rich.live import Live

    with Live(_panel(watcher), console=out, transient=True, auto_refresh=False) as live:
        while running(REFRESH_S):
            live.update(_panel(watcher), refresh=True)


def _watch_lines(watcher: Watcher, running: Callable[[float], bool], out: Console) -> None:
    while running(LINE_INTERVAL_S):
        files, words, _ = watcher.progress()
        total = sum(watcher.agents().values(), Figures())
        out.print(
            f"{watcher.seconds:5.1f} s  {files:,} of {len(watcher.plan.files):,} files, {words:,} words, "
            f"{total.commits:,} commits, {total.conflicts:,} conflicts"
        )


def _panel(watcher: Watcher) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    files, words, largest = watcher.progress()
    seconds, count = max(watcher.seconds, 0.001), len(watcher.plan.files)
    table = Table(box=None, pad_edge=False)
    for name in ("agent", "files", "words", "commits", "conflicts"):
        table.add_column(name, justify="left" if name == "agent" else "right", min_width=9)
    for name, figures in watcher.agents().items():
        numbers = (figures.files, figures.words, figures.commits, figures.conflicts)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return Group(
        ProgressBar(total=count, completed=files, width=60),
        Text(f"{files:,} of {count:,} files, {words:,} words ({words / seconds:,.0f}/s), {seconds:.0f} s"),
        Text(f"largest so far: {printable(largest)}", style="dim", overflow="ellipsis", no_wrap=True),
        table,
    )
