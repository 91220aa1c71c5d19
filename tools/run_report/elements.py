"""HTML elements. Text is escaped unless it is `Markup`, which only this module and the pictures make."""

from __future__ import annotations

from collections.abc import Iterable

from occamdb.tools.pictures import xml_lines, xml_text

__all__ = ["Markup", "element", "opening", "rows", "table"]


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: str) -> Markup:
    """An element with what is in it. An attribute's `_` is `-`, and one at its end is left out (`class_`)."""
    inside = "".join(each if isinstance(each, Markup) else xml_lines(each) for each in content)
    return Markup(f"{opening(name, **attributes)}{inside}</{name}>")


def opening(name: str, /, **attributes: str) -> Markup:
    """The opening tag alone."""
    shown = (
        f' {each.rstrip("_").replace("_", "-")}="{xml_text(value)}"' for each, value in attributes.items()
    )
    return Markup(f"<{name}{''.join(shown)}>")


def table(titles: Iterable[str], body: Iterable[Iterable[str]]) -> Markup:
    """A table with a row of titles."""
    head = element("tr", *(element("th", title) for title in titles))
    lines = "".join(element("tr", *(element("td", cell) for cell in row)) + "\n" for row in body)
    return Markup(f'<div class="wide"><table>{head}\n{lines}</table></div>\n')


def rows(facts: Iterable[tuple[str, str]]) -> Markup:
    """Names and facts as a table of two columns; facts that are empty are left out."""
    lines = (element("tr", element("th", name), element("td", fact)) for name, fact in facts if fact)
    return Markup(f"<table>{''.join(lines)}</table>\n")
