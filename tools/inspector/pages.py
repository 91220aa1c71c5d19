"""Templates, and what they have at hand.

Every expression of a template is escaped; there is no place in them where markup is taken from a value, except what
`occamdb.tools.pictures` drew, which escapes by itself. `_finalized` bounds what a template that forgets to do so would
put out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from occamdb.tools.inspector import shown
from occamdb.tools.inspector.reading.traces import input_and_output
from occamdb.tools.pictures import CSS, sparkline_svg
from occamdb.tools.printable import without_controls

__all__ = ["render", "static_file"]

FOLDER = Path(__file__).parent
TEXT_MAX = 100_000
_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for name in shown.__all__:
        environment.filters[name] = getattr(shown, name)
    environment.globals["query"] = _query
    environment.globals["input_and_output"] = input_and_output
    environment.globals["sparkline"] = _sparkline
    return environment


def _finalized(value: Any) -> Any:
    """What stands on the page for the value of an expression."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    text = str(value)
    if len(text) > TEXT_MAX:
        text = f"{text[:TEXT_MAX]}… {len(text) - TEXT_MAX:,} more characters"
    return without_controls(text)


def _query(**parts: Any) -> str:
    """The query of an address, without the parts that are None or empty."""
    given = {name: value for name, value in parts.items() if value not in (None, "")}
    return "?" + urlencode(given, errors="replace") if given else ""


def _sparkline(values: Any, label: str = "") -> Markup:
    """A line that shows the last minutes."""
    return Markup(sparkline_svg(values, width=200, height=32, title=label))


def render(template: str, **values: Any) -> bytes:
    """A page."""
    # Lone surrogates, which UTF-8 has not got, were escaped by `_finalized`.
    return _environment().get_template(template).render(**values).encode("utf-8", "replace")


@cache
def _static() -> dict[str, tuple[bytes, str]]:
    found = {"pictures.css": (CSS.encode(), _KINDS[".css"])}
    for path in (FOLDER / "static").iterdir():
        if path.suffix in _KINDS:
            found[path.name] = (path.read_bytes(), _KINDS[path.suffix])
    return found


def static_file(name: str) -> tuple[bytes, str] | None:
    """The bytes and the media type of a style sheet or a script; None: there is none of that name."""
    return _static().get(name)
