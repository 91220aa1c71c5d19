"""KVStore: keys and values of a run.

The engine's own `db.put/get/delete/cas/list` are the same operations on the same keys; this class adds what
takes more than one call. Keys are `str` or `bytes` ("a" and b"a" are one key) and come back as `str`. Bytes
that are not UTF-8 become lone surrogates in it, as in file names (`surrogateescape`); `raw=True` gives
`bytes`.

1. One user key is one stored key, under its own bytes: nothing else is kept.
2. `put`, `put_with_ttl` and `increment` read nothing: they never cause a read conflict, and outside a transaction they
   cannot conflict at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from datetime import timedelta
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from ..engine.model.errors import InvalidArgumentError
from ..engine.model.keys import decode_user_key
from ..engine.model.public_types import IsolationName, TypeTag, VersionedValue
from ..engine.model.retry_policy import RetryPolicy
from ..engine.transaction.attempts import refuse_lazy_function
from .extension import (
    DatabaseBase,
    H_co,
    Primitive,
    RunLike,
    TransactionBase,
    answered,
    blind,
    checked_version,
    operation,
    pairs,
    reader,
    single,
    waiting,
)
from .kv_mapping import KVMapping
from .ranges import RangeOperation
from .wrong_calls import WrongCallError, explaining

if TYPE_CHECKING:
    from ..engine.transaction.async_database import AsyncDatabase

__all__ = ["KVStore", "KVTransaction"]

UserKey: TypeAlias = str | bytes
R = TypeVar("R")
_MISSING: Any = object()

# Inside KVStore the name `list` is an operation.
_Texts: TypeAlias = list[str]
_Raws: TypeAlias = list[bytes]
_TextPairs: TypeAlias = list[tuple[str, Any]]
_RawPairs: TypeAlias = list[tuple[bytes, Any]]
_TextRows: TypeAlias = Iterator[tuple[str, VersionedValue]]
_RawRows: TypeAlias = Iterator[tuple[bytes, VersionedValue]]


class KVStore(Primitive[H_co]):
    """Values by key: `db.kv.put(run_id, "k", 1)`, or `txn.kv.put("k", 1)` inside a transaction."""

    __slots__ = ()
    name = "kv"
    tag = TypeTag.KV
    raw = False

    @single
    def get(self, key: UserKey, default: Any = None) -> Any:
        """The value of a key, or `default` when it is absent.

        Example:
          db.kv.get(run_id, "plan", [])
        """
        return self.space.get(key, default)

    @single
    def get_versioned(self, key: UserKey) -> VersionedValue | None:
        """The value with its version, its time of writing and its expiry; None when absent.

        Example:
          version = db.kv.get_versioned(run_id, "plan").version
        """
        return self.space.get_versioned(key)

    @blind
    def put(
        self, key: UserKey, value: Any, *, ttl: float | timedelta | None = None, ephemeral: bool = False
    ) -> None:
        """Set a key, with a time to live (seconds) if given. Outside: returns the new version.

        With `ephemeral` the key goes when this open database does, by `close` or by the death of its process.

        Example:
          db.kv.put(run_id, "plan", ["think"], ttl=3600)
        """
        return self.space.put(key, value, ttl=ttl, ephemeral=ephemeral)

    @blind
    def put_with_ttl(self, key: UserKey, value: Any, ttl: float | timedelta) -> None:
        """Set a key that is absent again `ttl` (seconds, or a timedelta) from now. Outside: returns the new version.

        Example:
          db.kv.put_with_ttl(run_id, "lease", "worker 3", 30)
        """
        if ttl is None:
            raise InvalidArgumentError("put_with_ttl needs a ttl", hint="use put for a key without expiry")
        return self.space.put(key, value, ttl=ttl)

    @reader
    def ttl(self, key: UserKey) -> float | None:
        """Seconds until the key expires; None when it does not expire or is absent.

        Example:
          seconds = db.kv.ttl(run_id, "lease")
        """
        found = self.space.get_versioned(key)
        if found is None or not found.expires_at_ns:
            return None
        return max(0.0, (found.expires_at_ns - self.now_us * 1000) / 1e9)

    @answered
    def delete(self, key: UserKey) -> bool:
        """Remove a key; returns whether it was there.

        Example:
          was_there = db.kv.delete(run_id, "plan")
        """
        return self.space.delete(key)

    @single
    def exists(self, key: UserKey) -> bool:
        """Whether the key is there.

        Example:
          if db.kv.exists(run_id, "plan"): ...
        """
        return self.space.exists(key)

    @waiting
    def wait(self, key: UserKey, *, after_version: int = 0, timeout: float | None = None) -> VersionedValue:
        """Wait until the key is there with a version above `after_version`, and return it.

        Example:
          plan = db.kv.wait(run_id, "plan", after_version=plan.version, timeout=30)

        Args:
          key: the key.
          after_version: the version that was seen last; 0: wait until the key is there.
          timeout: outside only; seconds to wait, None: for ever.

        Raises:
          TransactionTimeout: it was not written in time.
        """
        seen = checked_version(after_version)
        found = self.space.get_versioned(key)
        if found is None or found.version <= seen:
            self._wait(timeout)
        return found

    @RangeOperation[Iterator[str], Iterator[bytes]].of
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
        """The keys with a prefix, in byte order, fetched page by page while iterated. Arguments as for `list`.

        Example:
          for key in db.kv.keys(run_id, "task/"): ...
        """
        return self.space.keys(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)

    @RangeOperation[_TextRows, _RawRows].of
    def scan(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> _TextRows | _RawRows:
        """Like `keys`, each with its value, version, time of writing and expiry.

        Example:
          for key, found in db.kv.scan(run_id, "task/"): print(key, found.value, found.version)
        """
        return self.space.scan(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)

    @RangeOperation[_Texts, _Raws].of
    def list(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> _Texts | _Raws:
        """The keys with a prefix, in byte order, as a list; `keys` gives them one by one.

        Example:
          names = db.kv.list(run_id, "task/", limit=100)

        Args:
          prefix: what the keys begin with; everything when empty.
          start: the first key that may come.
          end: the first key that may not.
          limit: at most so many.
          reverse: from the last to the first.
          raw: the keys as bytes.
        """
        return [*self.space.keys(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)]

    @RangeOperation[_TextPairs, _RawPairs].of
    def list_with_values(
        self,
        prefix: UserKey = "",
        *,
        start: UserKey | None = None,
        end: UserKey | None = None,
        limit: int | None = None,
        reverse: bool = False,
        raw: bool = False,
    ) -> _TextPairs | _RawPairs:
        """Like `list`, each key with its value; `scan` gives them one by one, with their versions.

        Example:
          rows = db.kv.list_with_values(run_id, "task/")
        """
        rows = self.space.scan(prefix, start=start, end=end, limit=limit, reverse=reverse, raw=raw)
        return [(key, found.value) for key, found in rows]

    @single
    def count(self, prefix: UserKey = "", *, start: UserKey | None = None, end: UserKey | None = None) -> int:
        """How many keys have a prefix, from `start` up to but not including `end`. Walks them: O(count).

        Example:
          open_tasks = db.kv.count(run_id, "task/")
        """
        return self.space.count(prefix, start=start, end=end)

    @reader
    def get_many(self, keys: Iterable[UserKey]) -> dict[str, Any]:
        """The values of several keys, by key as text, from one snapshot; absent ones are left out.

        Example:
          values = db.kv.get_many(run_id, ["a", "b"])
        """
        found = {}
        names = [*_keys(keys, "get_many")]
        self.space.fetch(names)
        for key in names:
            value = self.space.get(key, _MISSING)
            if value is not _MISSING:
                found[decode_user_key(key) if isinstance(key, bytes) else key] = value
        return found

    @operation
    def put_many(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[UserKey, Any]],
        *,
        ttl: float | timedelta | None = None,
    ) -> None:
        """Set several keys: all of them or none.

        Example:
          db.kv.put_many(run_id, {"a": 1, "b": 2})
        """
        for key, value in items.items() if isinstance(items, Mapping) else pairs(items, "put_many"):
            self.space.put(key, value, ttl=ttl)

    @operation
    def delete_many(self, keys: Iterable[UserKey]) -> int:
        """Remove several keys: all of them or none; returns how many were there.

        Example:
          removed = db.kv.delete_many(run_id, ["a", "b"])
        """
        return sum([self.space.delete(key) for key in _keys(keys, "delete_many")])

    @blind
    def cas(
        self,
        key: UserKey,
        expected_version: int,
        value: Any,
        *,
        ttl: float | timedelta | None = None,
        ephemeral: bool = False,
    ) -> None:
        """Set a key if it still has the expected version (0: if it is absent).

        Outside: returns the new version, and raises at once. Inside: the commit decides.

        Example:
          db.kv.cas(run_id, "plan", found.version, ["act"])

        Raises:
          CASConflict: it has another version.
        """
        return self.space.cas(key, expected_version, value, ttl=ttl, ephemeral=ephemeral)

    @operation
    def put_if_absent(
        self, key: UserKey, value: Any, *, ttl: float | timedelta | None = None, ephemeral: bool = False
    ) -> bool:
        """Set a key that is absent; returns whether this call set it.

        Example:
          mine = db.kv.put_if_absent(run_id, "lease", "worker 3", ttl=30)
        """
        if self.space.exists(key):
            return False
        self.space.put(key, value, ttl=ttl, ephemeral=ephemeral)
        return True

    @blind
    def increment(
        self, key: UserKey, by: int = 1, *, at_most: int | None = None, at_least: int | None = None
    ) -> None:
        """Add to an integer when the commit is applied; an absent key counts as 0.

        Reads nothing, so increments never conflict with one another. Outside: returns the new value. Inside: None; a
        later read in the transaction sees the sum, and is then in the read set.

        Example:
          tokens = db.kv.increment(run_id, "tokens", 512, at_most=100_000)

        Args:
          key: the key.
          by: what to add; may be negative.
          at_most, at_least: the bounds of the sum, decided in the order of commits: many callers that spend from one
            budget never overspend it, and do not conflict.

        Raises:
          NotAnIntegerError: the key holds something else; nothing was changed.
          IntegerOverflowError: the sum does not fit 64 bits; nothing was changed.
          BoundReached: the sum would pass a bound; nothing was changed, and inside nothing of the transaction.
        """
        return self.space.add(key, by, at_most=at_most, at_least=at_least)

    @overload
    def transaction(
        self: KVStore[AsyncDatabase[Any]],
        run_id: RunLike,
        fn: Callable[[KVTransaction], Awaitable[R]],
        *,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def transaction(
        self: KVStore[AsyncDatabase[Any]],
        run_id: RunLike,
        fn: Callable[[KVTransaction], R],
        *,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def transaction(
        self: KVStore[DatabaseBase],
        run_id: RunLike,
        fn: Callable[[KVTransaction], R],
        *,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> R: ...
    def transaction(
        self: KVStore[Any],
        run_id: RunLike,
        fn: Callable[[KVTransaction], R],
        *,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        isolation: IsolationName | None = None,
    ) -> Any:
        """Call `fn(kv)` in one transaction, retried on conflict; returns what it returned.

        Example:
          db.kv.transaction(run_id, lambda kv: kv.put("b", kv.get("a")))
        """
        handle: Any = self._handle
        if isinstance(handle, DatabaseBase):
            refuse_lazy_function(fn)
        return handle.transaction(
            run_id,
            lambda txn: fn(KVTransaction(txn)),
            retry=retry or RetryPolicy(),
            timeout=timeout,
            isolation=isolation,
        )

    if not TYPE_CHECKING:  # the form outside alone: inside a transaction `txn.kv` is what `fn` would get
        transaction = explaining(transaction, described=signature(transaction))

    @overload
    def mapping(self: KVStore[DatabaseBase], run_id: RunLike, /) -> KVMapping: ...
    @overload
    def mapping(self: KVStore[TransactionBase]) -> KVMapping: ...
    def mapping(self: KVStore[Any], *run_id: Any) -> KVMapping:
        """The run's keys as a `MutableMapping`; inside a transaction, of its run.

        Example:
          plans = db.kv.mapping(run_id); plans["a"] = 1
        """
        if not self.inside and not isinstance(self._handle, DatabaseBase):
            raise InvalidArgumentError(
                "a mapping cannot wait for its commits: an asynchronous database has it inside transactions only",
                hint="async with db.begin(run_id) as txn: txn.kv.mapping()[key] = value",
            )
        if len(run_id) != (not self.inside):
            form = "txn.kv.mapping()" if self.inside else "db.kv.mapping(run_id)"
            raise WrongCallError(f"{form} is the form, got {len(run_id)} arguments", hint=form)
        return KVMapping(self, *run_id)


class KVTransaction(KVStore[TransactionBase]):
    """The key-value side of one transaction, as `db.kv.transaction` hands it to its function."""

    __slots__ = ()


def _keys(keys: Iterable[UserKey], what: str) -> Iterable[UserKey]:
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise InvalidArgumentError(
            f"{what} takes several keys, got {type(keys).__name__}", hint=f"{what}([key])"
        )
    return keys
