"""Reading a store from Python."""

from typing_extensions import Buffer

class StoreReader:
    """Reads a store from Python, for tests and tools. Holds no pin."""

    def __init__(self, buffer: Buffer) -> None: ...
    def get(self, key: bytes, version: int) -> tuple[int, bytes, int, int] | None: ...
    def page(
        self,
        start: bytes,
        end: bytes | None,
        version: int,
        count_max: int,
        start_exclusive: bool = False,
        reverse: bool = False,
    ) -> tuple[list[tuple[bytes, bytes, int]], bytes | None]: ...
    def scan(
        self,
        version: int,
        start: bytes = b"",
        end: bytes | None = None,
        reverse: bool = False,
        page_rows: int = 100,
    ) -> list[tuple[bytes, bytes, int]]: ...
    def pin(self, slots: memoryview, index: int) -> int: ...
    @property
    def committed_version(self) -> int: ...
