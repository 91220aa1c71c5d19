"""Progress bars of long work, on a terminal only and on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from occamdb.tools import console

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars that vanish at the end; none where nobody would see them move."""
    from rich.progress import Progress

    out = console.err()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as progress:
        yield progress


def stages(progress: Progress) -> Callable[[str, int, int], None]:
    """A callback of recoveries and checks (stage, done, total) that draws one bar for each stage."""
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total)
        progress.update(tasks[stage], completed=done, total=total)

    return report
