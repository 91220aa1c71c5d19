"""Types of a change; see _change.pyx."""

from datetime import datetime
from typing import Any, Literal, final

@final
class Change:
    """What a commit did to one key."""

    __match_args__ = ("key", "value", "version", "committed_at_ns", "kind")
    def __init__(
        self,
        key: str,
        value: Any,
        version: int,
        committed_at_ns: int,
        kind: Literal["put", "delete", "expire"],
    ) -> None: ...
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def version(self) -> int: ...
    @property
    def committed_at_ns(self) -> int: ...
    @property
    def kind(self) -> Literal["put", "delete", "expire"]: ...
    @property
    def committed_at(self) -> datetime: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
