"""A store for py-key-value, and so for what FastMCP keeps: OAuth clients and tokens, sessions, cached responses.

    import asyncio
    from occamdb.plugins.key_value import OccamKeyValueStore

    async def main() -> None:
        async with OccamKeyValueStore("agents.db") as store:
            await store.put("ada", {"plan": "think"}, collection="users", ttl=3600)
            print(await store.get("ada", collection="users"))

    asyncio.run(main())

1. A collection is a run of its own. It is created in the transaction that first writes to it.
2. Each operation is one transaction: `put_many`, `delete_many` and `put_if_absent` are all or nothing, and `get_many`
   reads one snapshot.
3. A time to live is the engine's own: the key is absent the moment it ends, in every process. The entry says the same
   moment again, which is what counts for times that are longer than the engine's longest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, SupportsFloat, TypeVar

import occamdb
import occamdb.aio
from occamdb import RunId
from occamdb.aio import AsyncDatabase, AsyncTransaction

from ._support import AnyDatabase, Engine, missing_extra, run_named, warn_if_newer

try:
    from key_value.aio.errors import (
        InvalidKeyError,
        InvalidTTLError,
        StoreConnectionError,
        ValueTooLargeError,
    )
    from key_value.aio.stores.base import (
        BaseContextManagerStore,
        BaseCullStore,
        BaseDestroyCollectionStore,
        BaseDestroyStore,
        BaseEnumerateCollectionsStore,
        BaseEnumerateKeysStore,
        ManagedEntry,
    )
except ImportError as error:
    missing_extra("key-value", error)

__all__ = ["OccamKeyValueStore"]

T = TypeVar("T")
KIND = "key-value"
TTL_MAX = 36_500 * 86_400.0  # what the engine takes; the entry's own expiry covers the rest
TTL_MIN = 1e-6
_COLLECTION = "collection"  # in the metadata of a run


class OccamKeyValueStore(
    BaseContextManagerStore,
    BaseDestroyStore,
    BaseDestroyCollectionStore,
    BaseEnumerateCollectionsStore,
    BaseEnumerateKeysStore,
    BaseCullStore,
):
    """Collections of JSON objects that many processes share.

    Args:
      db: an open database of either form, which stays its owner's to close; or a path, which is opened by the first
        operation and closed by `close` or at the end of `async with`.
      name: of this store; several stores of one database have collections of their own.
      default_collection: for calls that name none.
      seed: values to put when it is first used, by collection and key.

    Raises:
      TypeError: `db` or `name` is of another type.
    """

    def __init__(
        self,
        db: AnyDatabase,
        *,
        name: str = KIND,
        default_collection: str | None = None,
        seed: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    ) -> None:
        warn_if_newer("py-key-value-aio", "0.5")
        run_named("store", name)  # refuses what is not the name of one
        self._name = name
        self._path = db if isinstance(db, str | os.PathLike) else None
        self._given: AsyncDatabase | None = None if self._path is not None else Engine(db).aio
        super().__init__(
            client_provided_by_user=self._path is None,
            default_collection=default_collection,
            seed=seed,
            stable_api=True,
        )

    # --- The database ---

    async def _setup(self) -> None:
        if self._path is not None:
            self._given = await occamdb.aio.open(self._path)
            self._exit_stack.push_async_callback(self._closed)

    async def _closed(self) -> None:
        opened, self._given = self._given, None
        self._setup_complete = False  # the next operation opens it again
        if opened is not None:
            await opened.close()

    @property
    def _db(self) -> AsyncDatabase:
        if self._given is None:
            raise StoreConnectionError("the store was closed while an operation was under way")
        return self._given

    def _run(self, collection: str) -> RunId:
        with _as_theirs(collection):
            return run_named(self._name, collection)

    async def _change(self, collection: str, write: Callable[[AsyncTransaction], T]) -> T:
        """Commit what `write` does in the collection's run, and create the run if need be."""

        def create_and_write(txn: AsyncTransaction) -> T:
            txn.runs.get_or_create(
                f"{self._name}/{collection}", tags=[self._name], metadata={_COLLECTION: collection}
            )
            return write(txn)

        with _as_theirs(collection):
            return await self._db.transaction(self._run(collection), create_and_write)

    # --- Entries ---

    def _load(self, stored: Any) -> ManagedEntry | None:
        return None if stored is None else self._serialization_adapter.load_json(json_str=stored)

    async def _get_managed_entry(self, *, collection: str, key: str) -> ManagedEntry | None:
        with _as_theirs(collection, key):
            return self._load(self._db.kv.get(self._run(collection), key))

    async def _get_managed_entries(
        self, *, collection: str, keys: Sequence[str]
    ) -> list[ManagedEntry | None]:
        with _as_theirs(collection):
            found = self._db.kv.get_many(self._run(collection), keys)
        return [self._load(found.get(key)) for key in keys]

    async def _put_managed_entry(self, *, collection: str, key: str, managed_entry: ManagedEntry) -> None:
        text, ttl = self._serialization_adapter.dump_json(entry=managed_entry), _engine_ttl(managed_entry)
        await self._change(collection, lambda txn: txn.kv.put(key, text, ttl=ttl))

    async def _put_managed_entries(
        self,
        *,
        collection: str,
        keys: Sequence[str],
        managed_entries: Sequence[ManagedEntry],
        ttl: float | None,
        created_at: datetime,
        expires_at: datetime | None,
    ) -> None:
        rows = [
            (key, self._serialization_adapter.dump_json(entry=entry), _engine_ttl(entry))
            for key, entry in zip(keys, managed_entries, strict=True)
        ]

        def write(txn: AsyncTransaction) -> None:
            for key, text, seconds in rows:
                txn.kv.put(key, text, ttl=seconds)

        if rows:
            await self._change(collection, write)

    async def _delete_managed_entry(self, *, key: str, collection: str) -> bool:
        with _as_theirs(collection, key):
            return await self._db.kv.delete(self._run(collection), key)

    async def _delete_managed_entries(self, *, keys: Sequence[str], collection: str) -> int:
        with _as_theirs(collection):
            return await self._db.kv.delete_many(self._run(collection), keys)

    async def put_if_absent(
        self,
        key: str,
        value: Mapping[str, Any],
        *,
        collection: str | None = None,
        ttl: SupportsFloat | None = None,
    ) -> bool:
        """Put a value under a key that is absent or expired; gives whether this call put it.

        However many processes ask at once, one of them is told True.
        """
        collection = collection or self.default_collection
        await self.setup_collection(collection=collection)
        seconds = None if ttl is None else _checked_ttl(ttl)
        entry = _entry(value, seconds)
        text = self._serialization_adapter.dump_json(entry=entry)

        def write(txn: AsyncTransaction) -> bool:
            present = self._load(txn.kv.get(key))
            if present is not None and not present.is_expired:
                return False
            txn.kv.put(key, text, ttl=_engine_ttl(entry))
            return True

        return await self._change(collection, write)

    # --- Collections ---

    async def _get_collection_keys(self, *, collection: str, limit: int | None = None) -> list[str]:
        return self._db.kv.list(self._run(collection), limit=limit)

    async def _get_collection_names(self, *, limit: int | None = None) -> list[str]:
        runs = self._db.runs.query_runs(tag=self._name, limit=limit)
        return [run.metadata[_COLLECTION] for run in runs if _COLLECTION in run.metadata]

    async def _delete_collection(self, *, collection: str) -> bool:
        return await self._db.runs.delete_run(self._run(collection)) > 0

    async def _delete_store(self) -> bool:
        def delete(txn: AsyncTransaction) -> None:
            for run in txn.runs.query_runs(tag=self._name):
                txn.runs.delete_run(run)

        await self._db.transaction(self._run(self.default_collection), delete)
        return True

    async def _cull(self) -> None:
        """Remove what expired, and the runs of collections that are empty then: each in a transaction of its own."""
        for run in self._db.runs.query_runs(tag=self._name):
            await self._db.transaction(run, self._cull_collection)

    def _cull_collection(self, txn: AsyncTransaction) -> None:
        left = 0
        for key, stored in txn.kv.list_with_values():
            entry = self._load(stored)
            if entry is not None and entry.is_expired:
                txn.kv.delete(key)
            else:
                left += 1
        if not left:
            txn.runs.delete_run(txn.run_id)


def _checked_ttl(ttl: SupportsFloat) -> float:
    try:
        seconds = float(ttl)
    except (TypeError, ValueError):
        raise InvalidTTLError(ttl=ttl, extra_info={"type": type(ttl).__name__}) from None
    if isinstance(ttl, bool) or not seconds > 0:
        raise InvalidTTLError(ttl=ttl)
    return seconds


def _entry(value: Mapping[str, Any], seconds: float | None) -> ManagedEntry:
    if seconds is None:
        return ManagedEntry(value=value)
    return ManagedEntry.from_ttl(value=value, ttl=seconds)


def _engine_ttl(entry: ManagedEntry) -> float | None:
    seconds = entry.ttl
    return None if seconds is None else min(max(seconds, TTL_MIN), TTL_MAX)


@contextmanager
def _as_theirs(collection: str, key: str | None = None) -> Iterator[None]:
    """What occamdb raises, as the errors that users of py-key-value catch."""
    try:
        yield
    except (occamdb.InvalidKeyError, occamdb.KeyTooLarge) as error:
        raise InvalidKeyError(str(error), {_COLLECTION: collection, "key": key}) from error
    except occamdb.InvalidArgumentError as error:  # a collection that no run can be named after
        raise InvalidKeyError(str(error), {_COLLECTION: collection}) from error
    except occamdb.ValueTooLarge as error:
        raise ValueTooLargeError(error.size, error.limit, collection, key) from error
    except occamdb.CoordinatorUnavailable as error:
        raise StoreConnectionError(str(error)) from error
