"""One small interface over occamdb and its peers, so that every side of a row does the same work.

Keys are the same text and values the same three-field dict on every side; peers store it as msgpack, as
occamdb does. Keys are encoded for each store before the clock runs. Durability has three levels:

    level      occamdb    LMDB         SQLite (WAL)         Redis                  survives
    none       none       sync=False   synchronous=OFF      appendonly no          the death of a worker
    standard   standard   sync=False   synchronous=NORMAL   appendfsync everysec   the death of every process
    always     always     sync=True    synchronous=FULL     appendfsync always     power loss
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgpack

from occamdb.stress.bench.model import OCCAM, Unavailable
from occamdb.stress.bench.peers import batches, peer_module
from occamdb.stress.bench.redis_store import RedisStore

RUN = uuid.UUID("0197c0de-0000-7000-8000-000000000001")
MAP_SIZE = 4 << 30


def key_name(index: int) -> str:
    """The same key for every store; 1,000 neighbours share a prefix of 14 characters."""
    return f"bench/item/{index // 1000:06d}/{index % 1000:03d}"


def key_prefix(group: int) -> str:
    """The prefix of 1,000 neighbouring keys."""
    return f"bench/item/{group:06d}/"


def value_of(index: int) -> dict[str, Any]:
    """A value of three fields."""
    return {"name": f"item number {index}", "count": index, "score": index * 0.5}


class Store(Protocol):
    """What the rows ask of a store. One process and thread uses an instance."""

    def open(self, path: Path, durability: str) -> None:
        """Open the database, creating it if it is not there."""

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Write many items, in large transactions; not measured."""

    def encode(self, key: str) -> Any:
        """The form in which this store wants keys."""

    def read_many(self, keys: Sequence[Any]) -> None:
        """Read keys in one transaction, decoding every value."""

    def update(self, key: Any) -> None:
        """Read a value, add one to its count and write it back, in one transaction."""

    def put(self, key: Any, value: Any) -> None:
        """Write one value in a transaction of its own."""

    def scan(self, prefix: Any) -> int:
        """Decode every value below a prefix in one transaction; returns their number."""

    def begin(self) -> None:
        """Begin and end a read transaction."""

    def close(self) -> None:
        """Close the database."""


class OccamStore:
    """occamdb through its public API."""

    def open(self, path: Path, durability: str) -> None:
        """Attach, starting a coordinator if none runs."""
        import occamdb

        self._db = occamdb.open(
            str(path / "occam"), durability=occamdb.Durability(durability), max_store_size=MAP_SIZE
        )

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Write in transactions of 1,000."""
        for batch in batches(items):
            with self._db.begin(RUN) as txn:
                for key, value in batch:
                    txn.put(key, value)

    def encode(self, key: str) -> str:
        """Keys stay text."""
        return key

    def read_many(self, keys: Sequence[str]) -> None:
        """A read-only transaction."""
        with self._db.begin(RUN, read_only=True) as txn:
            get = txn.get
            for key in keys:
                get(key)

    def update(self, key: str) -> None:
        """A serializable transaction with one read and one write."""
        with self._db.begin(RUN) as txn:
            value = txn.get(key)
            value["count"] += 1
            txn.put(key, value)

    def put(self, key: str, value: Any) -> None:
        """An implicit transaction."""
        self._db.put(RUN, key, value)

    def scan(self, prefix: str) -> int:
        """A read-only transaction with one scan."""
        count = 0
        with self._db.begin(RUN, read_only=True) as txn:
            for _ in txn.scan(prefix):
                count += 1
        return count

    def begin(self) -> None:
        """Pin and unpin a snapshot."""
        self._db.begin(RUN, read_only=True).abort()

    def close(self) -> None:
        """Detach."""
        self._db.close()


class LmdbStore:
    """LMDB through py-lmdb."""

    def open(self, path: Path, durability: str) -> None:
        """Open the environment with read-ahead as it comes."""
        lmdb = peer_module("lmdb")
        sync = durability == "always"
        self._env = lmdb.open(
            str(path / "lmdb"), map_size=MAP_SIZE, sync=sync, metasync=sync, max_readers=256
        )

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Write in transactions of 1,000."""
        for batch in batches(items):
            with self._env.begin(write=True) as txn:
                for key, value in batch:
                    txn.put(key.encode(), msgpack.packb(value))

    def encode(self, key: str) -> bytes:
        """Keys are bytes."""
        return key.encode()

    def read_many(self, keys: Sequence[bytes]) -> None:
        """A read transaction."""
        unpack = msgpack.unpackb
        with self._env.begin() as txn:
            get = txn.get
            for key in keys:
                unpack(get(key))

    def update(self, key: bytes) -> None:
        """A write transaction; LMDB admits one writer at a time."""
        with self._env.begin(write=True) as txn:
            value = msgpack.unpackb(txn.get(key))
            value["count"] += 1
            txn.put(key, msgpack.packb(value))

    def put(self, key: bytes, value: Any) -> None:
        """A write transaction with one put."""
        with self._env.begin(write=True) as txn:
            txn.put(key, msgpack.packb(value))

    def scan(self, prefix: bytes) -> int:
        """A cursor from the prefix on."""
        unpack, count = msgpack.unpackb, 0
        with self._env.begin() as txn:
            cursor = txn.cursor()
            cursor.set_range(prefix)
            for key, value in cursor:
                if not key.startswith(prefix):
                    break
                unpack(value)
                count += 1
        return count

    def begin(self) -> None:
        """Begin and abort a read transaction."""
        self._env.begin().abort()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


class SqliteStore:
    """SQLite in WAL mode through the standard library."""

    def open(self, path: Path, durability: str) -> None:
        """Open with a clustered key table and a long busy timeout."""
        path.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path / "sqlite.db", timeout=60, isolation_level=None)
        level = {"none": "OFF", "standard": "NORMAL", "always": "FULL"}[durability]
        for pragma in ("journal_mode=WAL", f"synchronous={level}", "mmap_size=1073741824"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.execute("CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Write in transactions of 1,000."""
        for batch in batches(items):
            self._db.execute("BEGIN IMMEDIATE")
            rows = [(key, msgpack.packb(value)) for key, value in batch]
            self._db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", rows)
            self._db.execute("COMMIT")

    def encode(self, key: str) -> str:
        """Keys are text."""
        return key

    def read_many(self, keys: Sequence[str]) -> None:
        """A deferred transaction of point reads."""
        execute, unpack = self._db.execute, msgpack.unpackb
        execute("BEGIN")
        for key in keys:
            unpack(execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()[0])
        execute("COMMIT")

    def update(self, key: str) -> None:
        """An immediate transaction, so that two writers wait instead of failing."""
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        value = msgpack.unpackb(execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()[0])
        value["count"] += 1
        execute("UPDATE kv SET value = ? WHERE key = ?", (msgpack.packb(value), key))
        execute("COMMIT")

    def put(self, key: str, value: Any) -> None:
        """An upsert in a transaction of its own."""
        self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, msgpack.packb(value)))

    def scan(self, prefix: str) -> int:
        """A range query."""
        unpack, count = msgpack.unpackb, 0
        query = "SELECT key, value FROM kv WHERE key >= ? AND key < ? ORDER BY key"
        for _, value in self._db.execute(query, (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))):
            unpack(value)
            count += 1
        return count

    def begin(self) -> None:
        """Begin and end a deferred transaction."""
        self._db.execute("BEGIN")
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


class DiskcacheStore:
    """diskcache, a key-value store over SQLite; it has no scans in key order."""

    def open(self, path: Path, durability: str) -> None:
        """Open without eviction."""
        if durability == "always":
            raise Unavailable("diskcache does not sync every commit")
        diskcache = peer_module("diskcache")
        self._cache = diskcache.Cache(str(path / "diskcache"), eviction_policy="none", size_limit=MAP_SIZE)

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Write in transactions of 1,000."""
        for batch in batches(items):
            with self._cache.transact():
                for key, value in batch:
                    self._cache[key] = msgpack.packb(value)

    def encode(self, key: str) -> str:
        """Keys are text."""
        return key

    def read_many(self, keys: Sequence[str]) -> None:
        """Point reads; diskcache has no read transaction."""
        unpack, cache = msgpack.unpackb, self._cache
        for key in keys:
            unpack(cache[key])

    def update(self, key: str) -> None:
        """A transaction of one read and one write."""
        with self._cache.transact():
            value = msgpack.unpackb(self._cache[key])
            value["count"] += 1
            self._cache[key] = msgpack.packb(value)

    def put(self, key: str, value: Any) -> None:
        """One set."""
        self._cache[key] = msgpack.packb(value)

    def scan(self, prefix: str) -> int:
        """Not offered."""
        raise Unavailable("diskcache has no scan in key order")

    def begin(self) -> None:
        """Not offered."""
        raise Unavailable("diskcache has no read transaction")

    def close(self) -> None:
        """Close it."""
        self._cache.close()


STORES: dict[str, type[Store]] = {
    OCCAM: OccamStore,
    "lmdb": LmdbStore,
    "sqlite": SqliteStore,
    "diskcache": DiskcacheStore,
    "redis": RedisStore,
}
PEERS = tuple(name for name in STORES if name != OCCAM)
