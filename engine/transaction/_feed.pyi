"""Types of the feed; see _feed.pyx."""

from typing import final

from ._view import StoreAttachment

@final
class ChangeFeed:
    """Committed changes of a key range, in commit order, without waiting."""

    def __init__(
        self,
        attachment: StoreAttachment,
        since: int,
        start: bytes,
        end: bytes | None = None,
        *,
        bare: bool = False,
    ) -> None: ...
    @property
    def attachment(self) -> StoreAttachment: ...
    @property
    def version(self) -> int: ...
    @property
    def current(self) -> bool: ...
    def skip_to(self, version: int) -> None: ...
    def poll_keys(self) -> list[tuple[bytes, bytes | None]]: ...
    def poll(
        self, entries_max: int = 4096
    ) -> list[tuple[int, int, list[tuple[str, bytes, bytes | None]]]]: ...
