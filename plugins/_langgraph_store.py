"""LangGraph's `BaseStore`, its long-term memory, over a run of a database. Import it from `langgraph.py`.

A store is a run. Its keys are

    name                        the name of the store
    item/label/label/.../=key   [value, created, updated, minutes to live or None], times in microseconds

Labels hold no slash and no equals sign (they are escaped), so what follows the first equals sign is the key of the
item, and everything below a namespace has one prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn

from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)

from ._gate import ISOLATION, Gate
from ._langgraph_listing import field_of
from ._langgraph_threads import Txn
from ._support import AnyDatabase, Engine, WithEngine, run_named

__all__ = ["OccamStore"]

_KIND = "langgraph-store"
_ITEM = "item/"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ESCAPES = {"%": "%25", "/": "%2F", "=": "%3D"}
_ESCAPED = str.maketrans(_ESCAPES)

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, wanted: _equals(value, wanted),
    "$ne": lambda value, wanted: not _equals(value, wanted),
    "$gt": lambda value, wanted: _comparable(value, wanted) and value > wanted,
    "$gte": lambda value, wanted: _comparable(value, wanted) and value >= wanted,
    "$lt": lambda value, wanted: _comparable(value, wanted) and value < wanted,
    "$lte": lambda value, wanted: _comparable(value, wanted) and value <= wanted,
}


class OccamStore(WithEngine, BaseStore):
    """Long-term memory that any number of processes share. A batch of operations is one commit.

        store = OccamStore(db)
        store.put(("users", "ada"), "likes", {"what": "engines"})
        graph = builder.compile(checkpointer=OccamSaver(db), store=store)

    Items whose time to live has passed are absent at once, and need no sweeper. It has no vector search.

    Args:
      db: an open database, or the path of one, which is then closed by `close`.
      name: of the store: a database can hold several.
      ttl: how long items live by default, and whether reading an item lets it live longer.
      index: must be None.

    Raises:
      NotImplementedError: an index was configured.
    """

    supports_ttl = True

    def __init__(
        self,
        db: AnyDatabase,
        *,
        name: str = "default",
        ttl: TTLConfig | None = None,
        index: Mapping[str, Any] | None = None,
    ) -> None:
        if index is not None:
            _no_vectors("index")
        self.ttl_config = ttl
        self._name, self._run = name, run_named(_KIND, name)
        self.engine, self._gate = Engine(db), Gate()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Do several operations on one state of the store: what they read is the state before what they put.

        With a put among them it is one transaction. Without, nothing is committed, unless a read item lives longer by
        being read.
        """
        batch = _Batch(self._name, ops)
        if batch.puts:
            return self.engine.db.transaction(self._run, batch.change, isolation=ISOLATION)
        with self.engine.db.begin(self._run, read_only=True) as txn:
            results = batch.read(txn)
        if batch.read_again:
            self.engine.db.transaction(self._run, batch.refresh, isolation=ISOLATION)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` in an event loop."""
        batch = _Batch(self._name, ops)
        if batch.puts:
            return await self._gate.through(
                self.engine.aio.transaction, self._run, batch.change, isolation=ISOLATION
            )
        async with self.engine.aio.begin(self._run, read_only=True) as txn:
            results = batch.read(txn)
        if batch.read_again:
            await self._gate.through(
                self.engine.aio.transaction, self._run, batch.refresh, isolation=ISOLATION
            )
        return results


def _no_vectors(what: str) -> NoReturn:
    raise NotImplementedError(
        f"OccamStore has no vector search: leave {what} out. search(prefix, filter=...) finds items by their fields; "
        "for vectors use a store that has an index beside it"
    )


# --- One batch -----------------------------------------------------------------------------------


class _Batch:
    """The operations of one call.

    Attributes:
      puts: those that write.
      read_again: the keys of items that live longer because they were read.
    """

    def __init__(self, name: str, ops: Iterable[Op]) -> None:
        self._name = name
        self._ops = list(ops)
        for op in self._ops:
            _check(op)
        self.puts = [op for op in self._ops if isinstance(op, PutOp)]
        self.read_again: list[str] = []

    def change(self, txn: Txn) -> list[Result]:
        """All of it, as one transaction."""
        results = self.read(txn)
        self.refresh(txn)
        if txn.get("name") is None:
            txn.runs.get_or_create(f"{_KIND}/{self._name}", tags=[_KIND], metadata={"store": self._name})
            txn.put("name", self._name)
        for op in self.puts:
            _put(txn, op)
        return results

    def refresh(self, txn: Txn) -> None:
        """Let the items that were read live for their whole time again."""
        for key in self.read_again:
            row = txn.get(key)
            if row is not None and row[3] is not None:
                txn.put(key, row, ttl=row[3] * 60)

    def read(self, txn: Txn) -> list[Result]:
        """The results of all operations; None for those that write."""
        self.read_again = []
        return [self._answer(txn, op) for op in self._ops]

    def _answer(self, txn: Txn, op: Op) -> Result:
        if isinstance(op, GetOp):
            key = _key(op.namespace, op.key)
            row = txn.get(key)
            if row is None:
                return None
            self._was_read(key, row, op.refresh_ttl)
            return Item(namespace=op.namespace, key=op.key, **_fields(row))
        if isinstance(op, SearchOp):
            found = _found(txn, op)
            for each in found:
                self._was_read(each.stored_key, each.row, op.refresh_ttl)
            return [SearchItem(*_place(each.stored_key), **_fields(each.row)) for each in found]
        if isinstance(op, ListNamespacesOp):
            return _listed(txn, op)
        return None

    def _was_read(self, key: str, row: list[Any], refresh: bool) -> None:
        if refresh and row[3] is not None:
            self.read_again.append(key)


def _check(op: Op) -> None:
    """Refuse an operation that is none, or that this store does not have."""
    if not isinstance(op, GetOp | PutOp | SearchOp | ListNamespacesOp):
        raise ValueError(f"not an operation of a store: {op!r}")
    for labels in _label_groups(op):
        _check_labels(labels)
    if isinstance(op, GetOp | PutOp) and not isinstance(op.key, str):
        raise TypeError(f"the key of an item must be a str, got {type(op.key).__name__}: {op.key!r}")
    if isinstance(op, PutOp):
        if not op.namespace:
            raise ValueError("an item needs a namespace of at least one label")
        if op.value is not None and not isinstance(op.value, Mapping):
            raise TypeError(f"the value of an item must be a mapping, got {type(op.value).__name__}")
    if isinstance(op, SearchOp) and op.query is not None:
        _no_vectors("query")
    if isinstance(op, SearchOp | ListNamespacesOp) and min(op.limit, op.offset) < 0:
        raise ValueError(f"limit and offset must not be negative, got {op.limit} and {op.offset}")


def _label_groups(op: Op) -> Iterator[tuple[str, ...]]:
    if isinstance(op, SearchOp):
        yield op.namespace_prefix
    elif isinstance(op, ListNamespacesOp):
        yield from (tuple(condition.path) for condition in op.match_conditions or ())
    else:
        yield op.namespace


def _check_labels(labels: tuple[str, ...]) -> None:
    """LangGraph's rule, which only its newer versions have a function for."""
    for label in labels:
        if not isinstance(label, str):
            raise InvalidNamespaceError(f"a label must be a str, got {type(label).__name__} in {labels!r}")
        if not label or "." in label or "\0" in label:
            raise InvalidNamespaceError(f"a label is text without '.' and NUL, got {label!r} in {labels!r}")


# --- Items ---------------------------------------------------------------------------------------


def _prefix(namespace: Iterable[str]) -> str:
    return _ITEM + "".join(f"{label.translate(_ESCAPED)}/" for label in namespace)


def _key(namespace: Iterable[str], key: str) -> str:
    return f"{_prefix(namespace)}={key}"


def _namespace(stored: str) -> tuple[str, ...]:
    """The namespace that a stored key is in."""
    labels = stored[len(_ITEM) : stored.index("=")].split("/")[:-1]
    for plain, escape in reversed(_ESCAPES.items()):  # what an escape begins with is restored last
        labels = [label.replace(escape, plain) for label in labels]
    return tuple(labels)


def _place(stored: str) -> tuple[tuple[str, ...], str]:
    return _namespace(stored), stored[stored.index("=") + 1 :]


def _fields(row: list[Any]) -> dict[str, Any]:
    created, updated = (_EPOCH + timedelta(microseconds=at) for at in row[1:3])
    return {"value": row[0], "created_at": created, "updated_at": updated}


def _put(txn: Txn, op: PutOp) -> None:
    key = _key(op.namespace, op.key)
    if op.value is None:
        txn.delete(key)
        return
    now, old = time.time_ns() // 1000, txn.get(key)
    row = [dict(op.value), now if old is None else old[1], now, op.ttl]
    txn.put(key, row, ttl=None if op.ttl is None else op.ttl * 60)


# --- Searching -----------------------------------------------------------------------------------


class _Found(NamedTuple):
    stored_key: str
    row: list[Any]


def _found(txn: Txn, op: SearchOp) -> list[_Found]:
    """The items below a namespace that pass the filter, the latest update first."""
    wanted = (op.filter or {}).items()
    found = [
        _Found(key, item.value)
        for key, item in txn.scan(_prefix(op.namespace_prefix))
        if all(_passes(field_of(item.value[0], name), condition) for name, condition in wanted)
    ]
    found.sort(key=lambda each: each.row[2], reverse=True)
    return found[op.offset : op.offset + op.limit]


def _passes(value: Any, condition: Any) -> bool:
    """Whether a field passes a condition: operators, fields of its own, or a value that it equals."""
    if not isinstance(condition, dict):
        return _equals(value, condition)
    if any(name.startswith("$") for name in condition):
        for name in condition:
            if name not in _COMPARISONS:
                raise ValueError(
                    f"unknown operator {name!r} in a filter: use one of {', '.join(_COMPARISONS)}"
                )
        return all(_COMPARISONS[name](value, wanted) for name, wanted in condition.items())
    return isinstance(value, dict) and all(_passes(value.get(name), each) for name, each in condition.items())


def _equals(value: Any, wanted: Any) -> bool:
    """Equality as in JSON: a tuple is a list, and a number is not a truth value."""
    if isinstance(wanted, tuple):
        wanted = list(wanted)
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _comparable(value: Any, wanted: Any) -> bool:
    return any(
        isinstance(value, kind) and isinstance(wanted, kind) for kind in (int | float, str, bytes, datetime)
    )


# --- Namespaces ----------------------------------------------------------------------------------


def _listed(txn: Txn, op: ListNamespacesOp) -> list[tuple[str, ...]]:
    conditions = op.match_conditions or ()
    found = {
        namespace if op.max_depth is None else namespace[: op.max_depth]
        for namespace in _namespaces(txn, _common_prefix(conditions))
        if all(_matches(namespace, condition) for condition in conditions)
    }
    return sorted(found)[op.offset : op.offset + op.limit]


def _common_prefix(conditions: Iterable[MatchCondition]) -> str:
    """What all namespaces begin with that can match."""
    longest: list[str] = []
    for condition in conditions:
        if condition.match_type == "prefix":
            path = list(condition.path)
            fixed = path[: path.index("*")] if "*" in path else path
            longest = max(longest, fixed, key=len)
    return _prefix(longest)


def _namespaces(txn: Txn, prefix: str) -> Iterator[tuple[str, ...]]:
    """The namespaces that have items, with one key read of each."""
    start = prefix
    while True:
        first = next(iter(txn.keys(prefix, start=start, limit=1)), None)
        if first is None:
            return
        yield _namespace(first)
        # All items of a namespace have an equals sign behind its prefix, so this is behind all of them.
        start = first[: first.index("=")] + ">"


def _matches(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    path = tuple(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"match_type must be 'prefix' or 'suffix', got {condition.match_type!r}")
    if len(namespace) < len(path):
        return False
    part = (
        namespace[: len(path)]
        if condition.match_type == "prefix"
        else namespace[len(namespace) - len(path) :]
    )
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))
