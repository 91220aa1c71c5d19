from collections.abc import Iterable
from typing import Any, Literal

from ._entries import EntryBuffer

WriteOperation = tuple[Literal["write"], bytes, bytes, int]
BoundOperation = tuple[Literal["bound_write"], bytes, bytes, int, int]
DeleteOperation = tuple[Literal["delete"], bytes, int]
RangeOperation = tuple[Literal["delete_range"], bytes, bytes]

class WalAppender(EntryBuffer):
    def __init__(
        self,
        directory_fd: int,
        database_id: bytes,
        incarnation: int,
        version: int,
        previous_version: int,
        segment_size: int,
    ) -> None: ...
    def append_transaction(
        self,
        session: int,
        sequence: int,
        run_id: bytes,
        timestamp: int,
        version: int,
        operations: Iterable[WriteOperation | BoundOperation | DeleteOperation | RangeOperation],
    ) -> None: ...
    def flush_batch(self, sync: bool) -> None: ...
    def sync_in_background(self, wait: bool = False) -> None: ...
    def close(self) -> None: ...
    def abandon(self) -> None: ...
    def statistics(self) -> dict[str, Any]: ...
