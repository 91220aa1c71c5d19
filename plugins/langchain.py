"""LangChain's key-value store and its cache of answers, shared by any number of processes.

    import occamdb
    from langchain_core.globals import set_llm_cache
    from occamdb.plugins.langchain import OccamCache, OccamKVStore

    with occamdb.open("agents.db") as db:
        store = OccamKVStore(db)
        store.mset([("a", b"1"), ("b", b"2")])
        set_llm_cache(OccamCache(db, ttl=3600))

Each is a run of its own. See docs/plugins/langchain.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeAlias, TypeVar

from occamdb import RunId, Transaction
from occamdb.aio import AsyncTransaction

from ._gate import ISOLATION, Gate
from ._support import AnyDatabase, Engine, WithEngine, missing_extra, run_named, warn_if_newer

try:
    from langchain_core.caches import BaseCache
    from langchain_core.messages import message_to_dict, messages_from_dict
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
    from langchain_core.stores import BaseStore
except ImportError as error:
    missing_extra("langchain", error)

__all__ = ["OccamCache", "OccamKVStore"]

V = TypeVar("V")
Txn: TypeAlias = Transaction | AsyncTransaction

warn_if_newer("langchain-core", "1.8")

_PAGE = 1000
_CLASSES: dict[str, type[Generation]] = {
    each.__name__: each for each in (Generation, ChatGeneration, GenerationChunk, ChatGenerationChunk)
}


class _Named(WithEngine):
    """What both have: a database, and a run of a kind and a name.

    The key "name" of the run is written with its entry among the runs, in the transaction of the first write.
    """

    def __init__(self, kind: str, db: AnyDatabase, name: str, ttl: float | timedelta | None) -> None:
        self._kind, self._name, self._ttl = kind, name, ttl
        self._run: RunId = run_named(kind, name)
        self.engine, self._gate = Engine(db), Gate()

    def _put_all(self, txn: Txn, pairs: Sequence[tuple[str, Any]]) -> None:
        if txn.get("name") is None:
            txn.runs.get_or_create(
                f"{self._kind}/{self._name}", tags=[self._kind], metadata={"name": self._name}
            )
            txn.put("name", self._name)
        for key, value in pairs:
            txn.put(key, value, ttl=self._ttl)

    def _write(self, pairs: Sequence[tuple[str, Any]]) -> None:
        self.engine.db.transaction(self._run, lambda txn: self._put_all(txn, pairs), isolation=ISOLATION)

    async def _awrite(self, pairs: Sequence[tuple[str, Any]]) -> None:
        change = self.engine.aio.transaction
        await self._gate.through(
            change, self._run, lambda txn: self._put_all(txn, pairs), isolation=ISOLATION
        )


# --- Keys and values -----------------------------------------------------------------------------


def _stored(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key must be a str, got {type(key).__name__}: {key!r}")
    return f"item/{key}"


class OccamKVStore(_Named, BaseStore[str, V], Generic[V]):
    """A `BaseStore` (and so a `ByteStore`): a call sets, gets or deletes all of its keys at once, or none.

    Args:
      db: an open database, or the path of one, which is then closed by `close`.
      name: of the store: a database can hold several.
      ttl: how many seconds a value lives after it was set; None: until it is deleted.
    """

    def __init__(
        self, db: AnyDatabase, *, name: str = "default", ttl: float | timedelta | None = None
    ) -> None:
        super().__init__("langchain-store", db, name, ttl)

    def mget(self, keys: Sequence[str]) -> list[V | None]:
        """The values of keys, from one snapshot; None for each that is absent."""
        wanted = [_stored(key) for key in keys]
        with self.engine.db.begin(self._run, read_only=True) as txn:
            return [txn.get(key) for key in wanted]

    async def amget(self, keys: Sequence[str]) -> list[V | None]:
        """`mget` in an event loop."""
        wanted = [_stored(key) for key in keys]
        async with self.engine.aio.begin(self._run, read_only=True) as txn:
            return [txn.get(key) for key in wanted]

    def mset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """Set keys: all of them in one commit."""
        pairs = [(_stored(key), value) for key, value in key_value_pairs]
        if pairs:
            self._write(pairs)

    async def amset(self, key_value_pairs: Sequence[tuple[str, V]]) -> None:
        """`mset` in an event loop."""
        pairs = [(_stored(key), value) for key, value in key_value_pairs]
        if pairs:
            await self._awrite(pairs)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys in one commit. Those that are absent are no error."""
        self.engine.db.kv.delete_many(self._run, [_stored(key) for key in keys])

    async def amdelete(self, keys: Sequence[str]) -> None:
        """`mdelete` in an event loop."""
        doomed = [_stored(key) for key in keys]
        await self._gate.through(self.engine.aio.kv.delete_many, self._run, doomed)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys with a prefix, in the order of their bytes. No snapshot is held between pages of them."""
        start = wanted = _stored(prefix or "")
        while True:
            with self.engine.db.begin(self._run, read_only=True) as txn:
                page = list(txn.keys(wanted, start=start, limit=_PAGE))
            yield from (key.removeprefix("item/") for key in page)
            if len(page) < _PAGE:
                return
            start = f"{page[-1]}\0"

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """`yield_keys` in an event loop."""
        start = wanted = _stored(prefix or "")
        while True:
            async with self.engine.aio.begin(self._run, read_only=True) as txn:
                page = list(txn.keys(wanted, start=start, limit=_PAGE))
            for key in page:
                yield key.removeprefix("item/")
            if len(page) < _PAGE:
                return
            start = f"{page[-1]}\0"


# --- Answers of models ---------------------------------------------------------------------------


class OccamCache(_Named, BaseCache):
    """A cache of what models answered.

    Args:
      db: an open database, or the path of one, which is then closed by `close`.
      name: of the cache: a database can hold several.
      ttl: how many seconds an answer is used; None: until `clear`.
    """

    def __init__(
        self, db: AnyDatabase, *, name: str = "default", ttl: float | timedelta | None = None
    ) -> None:
        super().__init__("langchain-cache", db, name, ttl)

    def lookup(self, prompt: str, llm_string: str) -> Sequence[Generation] | None:
        """What a model answered to a prompt; None if that is not known."""
        return _answers(self.engine.db.get(self._run, _question(prompt, llm_string)))

    async def alookup(self, prompt: str, llm_string: str) -> Sequence[Generation] | None:
        """`lookup` in an event loop."""
        async with self.engine.aio.begin(self._run, read_only=True) as txn:
            return _answers(txn.get(_question(prompt, llm_string)))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep what a model answered."""
        pairs = [(_question(prompt, llm_string), [_record(each) for each in return_val])]
        self._write(pairs)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """`update` in an event loop."""
        pairs = [(_question(prompt, llm_string), [_record(each) for each in return_val])]
        await self._awrite(pairs)

    def clear(self, **kwargs: Any) -> None:
        """Forget all answers, in one commit."""
        self.engine.db.runs.delete_run(self._run)

    async def aclear(self, **kwargs: Any) -> None:
        """`clear` in an event loop."""
        await self.engine.aio.runs.delete_run(self._run)


def _question(prompt: str, llm_string: str) -> str:
    """The key of an answer: prompts are longer than keys may be."""
    digest = hashlib.sha256(f"{len(prompt)}:".encode())
    for text in (prompt, llm_string):
        digest.update(text.encode("utf-8", "surrogatepass"))
    return f"answer/{digest.hexdigest()}"


def _record(answer: Generation) -> dict[str, Any]:
    kind = type(answer).__name__
    if _CLASSES.get(kind) is not type(answer):
        raise TypeError(f"a cache keeps {', '.join(_CLASSES)}, not {kind}")
    record: dict[str, Any] = {"class": kind, "info": answer.generation_info}
    if isinstance(answer, ChatGeneration):
        return {**record, "message": message_to_dict(answer.message)}
    return {**record, "text": answer.text}


def _answers(records: list[dict[str, Any]] | None) -> Sequence[Generation] | None:
    if records is None:
        return None
    found = []
    for record in records:
        given: dict[str, Any] = {"generation_info": record["info"]}
        if "message" in record:
            (given["message"],) = messages_from_dict([record["message"]])
        else:
            given["text"] = record["text"]
        found.append(_CLASSES[record["class"]](**given))
    return found
