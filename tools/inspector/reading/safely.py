"""Reading what may be damaged: the error of one record, or of one part of a page, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import occamdb

__all__ = ["PAGE_ROWS", "Part", "part"]

T = TypeVar("T")
PAGE_ROWS = 100


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """A part of a page.

    Attributes:
      value: what was read; None if that failed.
      error: why it could not be read, and what to do about it.
    """

    value: T | None
    error: str | None = None


def part(read: Callable[..., T], *args: Any, **options: Any) -> Part[T]:
    """Read a part of a page. An error of the database belongs to that part alone."""
    try:
        return Part(read(*args, **options))
    except occamdb.SnapshotExpired:
        raise  # then nothing of the page can be read
    except (occamdb.OccamError, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        return Part(None, problem(error))


def problem(error: Exception) -> str:
    """What an error says."""
    if isinstance(error, occamdb.OccamError):
        return f"{error.message} ({error.code})"
    return f"{type(error).__name__}: {error}"
