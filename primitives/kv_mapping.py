"""A run's keys and values as a dictionary: `db.kv.mapping(run_id)`."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from .extension import RunLike

__all__ = ["KVMapping"]

UserKey: TypeAlias = str | bytes
R = TypeVar("R")
_MISSING: Any = object()


class KeyOperations(Protocol):
    """The operations of a `KVStore` inside one transaction that a mapping is made of."""

    space: Any

    def get(self, key: UserKey, default: Any = None) -> Any:
        """The value of a key, or `default`."""

    def put(self, key: UserKey, value: Any) -> object:
        """Set a key."""

    def delete(self, key: UserKey) -> object:
        """Delete a key."""

    def list_with_values(self, *, limit: int, reverse: bool) -> Iterable[tuple[str, Any]]:
        """Keys with their values, in key order."""


class KVMapping(MutableMapping[str, Any]):
    """A run's keys and values as a dictionary that lives in the database.

    Each call is one transaction (or part of yours): `update`, `pop`, `popitem`, `setdefault` and `clear` are atomic.
    Iteration is in byte order over one snapshot. `len` walks all keys.
    """

    __slots__ = ("_run", "_store")

    def __init__(self, store: Any, *run_id: RunLike) -> None:
        self._store = store  # a KVStore; without `run_id`, one inside a transaction
        self._run = run_id

    def _atomically(self, fn: Callable[[KeyOperations], R]) -> R:
        result: R = self._store.transaction(*self._run, fn) if self._run else fn(self._store)
        return result

    def __getitem__(self, key: UserKey) -> Any:
        value = self._store.get(*self._run, key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: UserKey, value: Any) -> None:
        self._store.put(*self._run, key, value)

    def __delitem__(self, key: UserKey) -> None:
        if not self._store.delete(*self._run, key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes) and bool(key) and bool(self._store.exists(*self._run, key))

    def __iter__(self) -> Iterator[str]:
        keys: Iterator[str] = self._store.keys(*self._run)
        return keys

    def __len__(self) -> int:
        size: int = self._store.count(*self._run)
        return size

    def items(self) -> ItemsView[str, Any]:
        """Keys with values; iterating reads both from one snapshot."""
        return _Items(self)

    def update(self, *others: Any, **named: Any) -> None:
        """Set several keys in one transaction."""
        self._store.put_many(*self._run, dict(*others, **named))

    def pop(self, key: UserKey, default: Any = _MISSING) -> Any:
        """Remove a key and return its value, or `default`."""

        def take(kv: KeyOperations) -> Any:
            value = kv.get(key, _MISSING)
            if value is not _MISSING:
                kv.delete(key)
            return value

        value = self._atomically(take)
        if value is not _MISSING:
            return value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the last key and its value."""

        def take(kv: KeyOperations) -> tuple[str, Any] | None:
            for key, value in kv.list_with_values(limit=1, reverse=True):
                kv.delete(key)
                return key, value
            return None

        item = self._atomically(take)
        if item is None:
            raise KeyError("popitem of an empty mapping")
        return item

    def setdefault(self, key: UserKey, default: Any = None) -> Any:
        """The value of a key, which is set to `default` first if it is absent."""

        def ensure(kv: KeyOperations) -> Any:
            value = kv.get(key, _MISSING)
            if value is _MISSING:
                kv.put(key, default)
                return default
            return value

        return self._atomically(ensure)

    def clear(self) -> None:
        """Remove every key in one transaction.

        It is one entry of the commit however many keys there are, so it delays no other commit. Their memory
        is given back in the background, in time proportional to their number.
        """
        self._atomically(lambda kv: kv.space.delete_range())

    def __repr__(self) -> str:
        run = f"run={self._run[0]} " if self._run else ""
        return f"<KVMapping {run}of {self._store!r}>"


class _Items(ItemsView[str, Any]):
    """Pairs from one scan instead of a lookup for each key."""

    def __init__(self, mapping: KVMapping) -> None:
        super().__init__(mapping)
        self._source = mapping

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        rows = self._source._store.scan(*self._source._run)
        return ((key, found.value) for key, found in rows)
