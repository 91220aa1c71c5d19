"""What the stores of peers share."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from occamdb.stress.bench.model import Unavailable

FILL_BATCH = 1000


def peer_module(name: str) -> Any:
    """The Python package of a peer.

    Raises:
      Unavailable: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unavailable(f"{name} is not installed (pip install 'occamdb[peers]')") from None


def batches(items: Iterable[tuple[str, Any]]) -> Iterable[list[tuple[str, Any]]]:
    """The items in lists of `FILL_BATCH`."""
    rest = iter(items)
    while batch := list(islice(rest, FILL_BATCH)):
        yield batch
