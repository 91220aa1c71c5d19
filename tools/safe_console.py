"""rich's console without control characters in what it shows. Imported when a command prints: rich is slow to load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from occamdb.tools.printable import without_controls

__all__ = ["SafeConsole"]


class SafeConsole(Console):
    """Escapes them after layout and before styles, so that styles are the only control sequences it writes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's, with safe text."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(without_controls(text), style)


def make_console(**options: Any) -> Console:
    """A console as every command uses it."""
    return SafeConsole(highlight=False, soft_wrap=True, **options)
