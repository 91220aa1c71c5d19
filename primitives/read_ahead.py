"""Reading many keys one after the other where each read may be a round trip to a server.

On the store of this machine a read takes less than a microsecond, and nothing is done ahead of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..engine.transaction._space import Space

__all__ = ["read_ahead"]

T = TypeVar("T")

_FIRST = 20  # a caller that stops early has not read much in vain
_MOST = 500


def read_ahead(space: Space, items: Iterable[T], key_of: Callable[[T], bytes]) -> Iterable[T]:
    """The same items, each given out when the key that the caller reads for it has been fetched, with many others.

    Args:
      items: for which the caller reads a key each.
      key_of: that key, without its prefix.
    """
    return _ahead(space, items, key_of) if space.is_far else items


def _ahead(space: Space, items: Iterable[T], key_of: Callable[[T], bytes]) -> Iterator[T]:
    source = iter(items)
    size = _FIRST
    while chunk := list(islice(source, size)):
        space.fetch([key_of(item) for item in chunk])
        yield from chunk
        size = min(size * 4, _MOST)
