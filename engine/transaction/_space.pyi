"""Types of one tag of one run in a transaction; see _space.pyx. Primitives build on it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from ..model._values import Codec
from ..model.keys import RunId
from ..model.values import VersionedValue
from ._scan import ScanIterator

_Key = str | bytes
_Ttl = float | timedelta | None

class Space:
    """One tag of one run inside a transaction: what every primitive is made of.

    Keys are the part after namespace, run and tag. They come back from scans as str, with `raw=True` and from a space
    made with `raw=True` as bytes.
    """

    @property
    def run_id(self) -> RunId: ...
    @property
    def tag(self) -> int: ...
    @property
    def codec(self) -> Codec: ...
    def get(self, key: _Key, default: Any = None, *, track: bool = True) -> Any: ...
    @property
    def is_far(self) -> bool: ...
    def fetch(self, keys: Iterable[str | bytes]) -> None: ...
    def get_checked(self, key: _Key, default: Any = None) -> Any: ...
    def get_versioned(self, key: _Key, *, track: bool = True) -> VersionedValue | None: ...
    def exists(self, key: _Key, *, track: bool = True) -> bool: ...
    def put(self, key: _Key, value: Any, *, ttl: _Ttl = None, ephemeral: bool = False) -> None: ...
    def delete(self, key: _Key) -> bool: ...
    def cas(
        self, key: _Key, expected_version: int, value: Any, *, ttl: _Ttl = None, ephemeral: bool = False
    ) -> None: ...
    def add(
        self, key: _Key, delta: int = 1, *, at_most: int | None = None, at_least: int | None = None
    ) -> None: ...
    def scan(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
        track: bool = True,
    ) -> ScanIterator[tuple[Any, VersionedValue]]: ...
    def keys(
        self,
        prefix: _Key = "",
        *,
        start: _Key | None = None,
        end: _Key | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
        track: bool = True,
    ) -> ScanIterator[Any]: ...
    def keys_checked(self, prefix: _Key = "") -> ScanIterator[Any]: ...
    def count(self, prefix: _Key = "", *, start: _Key | None = None, end: _Key | None = None) -> int: ...
    def delete_range(
        self, prefix: _Key = "", *, start: _Key | None = None, end: _Key | None = None
    ) -> None: ...
