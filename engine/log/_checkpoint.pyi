from collections.abc import Iterable

from _typeshed import ReadableBuffer

from ._replay import Loader

FORMAT_VERSION: int
FORMATS_READ: tuple[int, ...]
MAGIC: bytes
HEADER_SIZE: int

class CheckpointWriter:
    position: int
    version: int
    rows: int
    def __init__(
        self,
        fd: int,
        database_id: bytes,
        incarnation: int,
        version: int,
        created_at: int,
        mapping: ReadableBuffer,
    ) -> None: ...
    def write_rows(self) -> bool: ...
    def write_outcomes(self, outcomes: Iterable[tuple[int, int, int]]) -> None: ...
    def finish(self, tombstone_horizon: int) -> None: ...

class CheckpointReader:
    size: int
    position: int
    tombstone_horizon: int
    complete: bool
    def __init__(self, fd: int, seed: int, version: int) -> None: ...
    def rewind(self) -> None: ...
    @property
    def reason(self) -> str: ...
    @property
    def row_count(self) -> int: ...
    @property
    def outcome_count(self) -> int: ...
    def read_blocks(self, loader: Loader | None, count_max: int) -> str: ...
