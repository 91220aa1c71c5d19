"""What a read gives for a value of a user's type when the database has no `restore`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Unrestored"]


@dataclass(frozen=True, slots=True)
class Unrestored:
    """A value of a user's type, read by a database that was opened without a `restore` for it.

    Storing it again stores the same bytes.

    Attributes:
      name: what `default` called the type.
      data: what it made of the value.
    """

    name: str
    data: Any
