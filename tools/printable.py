"""Stored text on a terminal: characters that move the cursor, break a line or reverse the writing become
escapes.

1. `printable` is the one definition of what is shown as it is. `markup` is the same for rich's markup.
2. Commands print through `console.echo`, `console.print_json` and `console.out()`/`console.err()` alone, and each of
   them applies it once more. So a command that forgets to call it can at worst let a newline through.
"""

from __future__ import annotations

import re

__all__ = ["escape_json", "markup", "printable", "without_controls"]

# C0 and C1 controls and DEL; line and paragraph separators; marks that change the direction of text; the byte order
# mark; half of a surrogate pair, which no terminal's encoding has; tags, which are letters that nobody sees.
_CONTROLS = (
    "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f"
)
_UNPRINTABLE = re.compile(f"[{_CONTROLS}]")
# What a program may print itself: the end of a line, and the space between two fields.
_UNPRINTABLE_IN_LINES = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def printable(text: str) -> str:
    """Stored text on one line, each control character as Python writes it: `\\n`, `\\x1b`, `\\u202e`."""
    return _UNPRINTABLE.sub(_escaped, text)


def markup(text: str) -> str:
    """`printable`, with what rich would take for markup escaped too."""
    from rich.markup import escape

    return escape(printable(text))


def without_controls(text: str) -> str:
    """Text of a command: as `printable`, but lines end where they do and tabs stay."""
    return _UNPRINTABLE_IN_LINES.sub(_escaped, text)


def escape_json(text: str) -> str:
    """JSON text of the same value without any control character but the newlines of its indentation."""
    # Anything else is inside a string, where \\uXXXX is the same character.
    return _UNPRINTABLE_IN_LINES.sub(_escaped_in_json, text)


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def _escaped_in_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
