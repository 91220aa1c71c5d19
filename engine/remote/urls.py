"""Telling a server from a directory. Every `open` asks, so nothing is imported here."""

from __future__ import annotations

import re

__all__ = ["is_url", "scheme_of"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(path: str) -> str:
    """The scheme of a URL, in small letters; "" if it is none."""
    found = _SCHEME.match(path)
    return found[1].lower() if found else ""


def is_url(path: object) -> bool:
    """Whether a path names a server: it begins with a scheme and `://`."""
    return isinstance(path, str) and scheme_of(path) != ""
