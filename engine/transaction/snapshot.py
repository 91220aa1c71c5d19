"""Read-only views of one run at one version.

`SharedSnapshotView` holds a pin in the shared store. Making one takes O(1), and reading it needs no
coordinator. It offers every read of a read-only transaction, primitives included. What it can see is not
reclaimed, so close it when done; one that is held too long is revoked (`SnapshotExpired`).
`ClonedSnapshotView` is a private copy. It pins nothing, lives as long as it is needed, and pickles.

1. Both show exactly the committed state at `version`, less what had expired when the view was made.
2. What they return is a fresh object each time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, overload, runtime_checkable

from ..model.errors import TransactionStateError
from ..model.key_types import UserKey
from ..model.keys import decode_user_key, encode_user_key
from ..model.public_types import RunId, VersionedValue
from ..model.values import Codec
from ._transaction import Space
from .extensions import Extensible, extension_names
from .transaction import Transaction

__all__ = ["ClonedSnapshotView", "SharedSnapshotView", "SnapshotView"]

_ANY_SIZE = 1 << 31  # a value that was stored may always be copied


@runtime_checkable
class SnapshotView(Protocol):
    """What every read-only view offers."""

    @property
    def version(self) -> int:
        """The version whose state it shows."""

    def get(self, key: UserKey, default: Any = None) -> Any:
        """The value of a key, `default` when absent."""

    def scan_prefix(self, prefix: UserKey = "") -> Iterator[tuple[str, VersionedValue]]:
        """(key, VersionedValue) of every key with the prefix, in key order."""


class SharedSnapshotView(Extensible):
    """A pinned view of the shared store; made by `db.snapshot(run_id)`. A context manager.

    Args:
      transaction: read-only, and used by this view alone.
    """

    __slots__ = ("_run_id", "_transaction", "_version")
    inner_names = Extensible.inner_names | {"space", "transaction"}

    def __init__(self, transaction: Transaction) -> None:
        self._transaction: Transaction | None = transaction
        self._version = transaction.start_version
        self._run_id = transaction.run_id

    @property
    def _open(self) -> Transaction:
        if self._transaction is None:
            raise TransactionStateError(
                "the snapshot is closed", hint="take a new one with db.snapshot(run_id)"
            )
        return self._transaction

    @property
    def version(self) -> int:
        """The version whose state it shows."""
        return self._version

    @property
    def run_id(self) -> RunId:
        """The run it shows."""
        return self._open.run_id

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._transaction is None

    @property
    def expired(self) -> bool:
        """Whether it was revoked: reads then raise SnapshotExpired."""
        return self._open.expired

    def get(self, key: UserKey, default: Any = None) -> Any:
        """The value of a key, `default` when absent."""
        return self._open.get(key, default)

    def get_versioned(self, key: UserKey) -> VersionedValue | None:
        """The value with version and times, None when absent."""
        return self._open.get_versioned(key)

    def exists(self, key: UserKey) -> bool:
        """Whether the key is there."""
        return self._open.exists(key)

    def scan_prefix(self, prefix: UserKey = "") -> Iterator[tuple[str, VersionedValue]]:
        """(key, VersionedValue) of every key with the prefix, in key order, read lazily."""
        return self._open.scan(prefix)

    @overload
    def scan(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[False] = False,
    ) -> Iterator[tuple[str, VersionedValue]]: ...
    @overload
    def scan(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[True],
    ) -> Iterator[tuple[bytes, VersionedValue]]: ...
    def scan(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> Iterator[tuple[str, VersionedValue]] | Iterator[tuple[bytes, VersionedValue]]:
        """Like `Transaction.scan`."""
        return self._open.scan(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)

    @overload
    def keys(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[False] = False,
    ) -> Iterator[str]: ...
    @overload
    def keys(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: Literal[True],
    ) -> Iterator[bytes]: ...
    def keys(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> Iterator[str] | Iterator[bytes]:
        """Like `Transaction.keys`: values are not decoded."""
        return self._open.keys(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)

    def count(self, prefix: UserKey = "", *, start: UserKey | None = None, end: UserKey | None = None) -> int:
        """How many keys a scan would give. O(n)."""
        return self._open.count(prefix, start=start, end=end)

    def space(self, tag: int, *, raw: bool = False) -> Space:
        """Another tag of the run, for primitives; it refuses writes."""
        return self._open.space(tag, raw=raw)

    def transaction(self) -> Transaction:
        """The read-only transaction behind the view."""
        return self._open

    if not TYPE_CHECKING:  # a type checker would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            # A registered primitive reads the snapshot through the transaction behind it.
            if name in extension_names():
                return getattr(self._open, name)
            return super().__getattr__(name)

    def clone(self, prefix: UserKey = "") -> ClonedSnapshotView:
        """A private copy of the keys with the prefix. O(n)."""
        return ClonedSnapshotView(self.version, self.scan_prefix(prefix), self._open.codec)

    def close(self) -> None:
        """Release the pin. Closing twice is harmless."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.__exit__(TransactionStateError, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "expired" if self.expired else "open"
        return f"<{type(self).__name__} {state} run={self._run_id} version={self._version}>"


class ClonedSnapshotView:
    """A private copy of part of a run. It holds encoded values, so each read gives a fresh object. It
    pickles.

    Args:
      version: of the state the rows come from.
      rows: (key, VersionedValue).
      codec: of the database they come from.
    """

    __slots__ = ("_codec", "_keys", "_rows", "_version")

    def __init__(
        self, version: int, rows: Iterator[tuple[str, VersionedValue]], codec: Codec | None = None
    ) -> None:
        self._version = version
        self._codec = codec or Codec()
        # By encoded key: keys are ordered by their bytes.
        self._rows = {
            encode_user_key(key): (
                self._codec.encode(row.value, _ANY_SIZE),
                row.version,
                row.timestamp_ns,
                row.expires_at_ns,
                row.session,
            )
            for key, row in rows
        }
        self._keys = sorted(self._rows)

    @property
    def version(self) -> int:
        """The version whose state it shows."""
        return self._version

    def get(self, key: UserKey, default: Any = None) -> Any:
        """The value of a key, `default` when absent."""
        row = self._rows.get(encode_user_key(key))
        return default if row is None else self._codec.decode(row[0])

    def get_versioned(self, key: UserKey) -> VersionedValue | None:
        """The value with version and times, None when absent."""
        row = self._rows.get(encode_user_key(key))
        return None if row is None else VersionedValue(self._codec.decode(row[0]), *row[1:])

    def scan_prefix(self, prefix: UserKey = "") -> Iterator[tuple[str, VersionedValue]]:
        """(key, VersionedValue) of every key with the prefix, in key order."""
        start = encode_user_key(prefix) if prefix else b""
        for position in range(bisect_left(self._keys, start), len(self._keys)):
            key = self._keys[position]
            if not key.startswith(start):
                return
            row = self._rows[key]
            yield decode_user_key(key), VersionedValue(self._codec.decode(row[0]), *row[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<ClonedSnapshotView version={self._version}, {len(self)} keys>"
