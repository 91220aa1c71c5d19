"""Committing a transaction; see _commit.pyx. Called from `_transaction.pyx` only."""

from collections.abc import Iterable
from typing import final

from ..commit.validation import Newest

@final
class NewestState:
    """The `VersionSource` of validation.py over what a reader can see."""

    def newest(self, key: bytes) -> Newest | None: ...
    def newest_in_range(self, start: bytes, end: bytes) -> Iterable[tuple[bytes, Newest]]: ...
