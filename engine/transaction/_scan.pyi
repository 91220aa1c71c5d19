"""Types of ordered walks; see _scan.pyx."""

from typing import Generic, Self, TypeVar, final

_Row = TypeVar("_Row")

@final
class ScanIterator(Generic[_Row]):
    def __iter__(self) -> Self: ...
    def __next__(self) -> _Row: ...
    def close(self) -> None: ...
