from datetime import datetime
from typing import Any, final

def encode(value: object, size_max: int) -> bytes: ...
def decode(data: bytes | bytearray | memoryview) -> Any: ...
@final
class VersionedValue:
    __match_args__ = ("value", "version", "timestamp", "expires_at")
    value: Any
    version: int
    timestamp_ns: int
    expires_at_ns: int
    def __init__(
        self,
        value: Any,
        version: int,
        timestamp: int | datetime = 0,
        expires_at: int | datetime | None = None,
    ) -> None: ...
    @property
    def timestamp(self) -> datetime: ...
    @property
    def expires_at(self) -> datetime | None: ...
    def __hash__(self) -> int: ...

@final
class CommitReceipt:
    __match_args__ = ("version", "committed_at", "durability", "attempts")
    version: int
    committed_at_ns: int
    durability: str
    attempts: int
    def __init__(self, version: int, committed_at: int | datetime, durability: str, attempts: int = 1) -> None: ...
    @property
    def committed_at(self) -> datetime: ...
    def __hash__(self) -> int: ...
