"""KVStore, EventLog and StateCell against plain models, in and out of transactions."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from occamdb.engine.model.errors import AlreadyExistsError, ConflictError, NotAnIntegerError, NotFoundError
from occamdb.primitives import ChainVerification
from tests.support.engines import Engine
from tests.support.state_machines import Machine, run_machine

keys = st.sampled_from(["a", "ab", "b", "é", "\x00", "z" * 40])
prefixes = st.sampled_from(["", "a", "z", "q"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
payloads = st.dictionaries(
    st.text(max_size=3), values.filter(lambda value: not has_infinity(value)), max_size=3
)


def has_infinity(value: Any) -> bool:
    if isinstance(value, float):
        return value in (float("inf"), float("-inf"))
    if isinstance(value, dict):
        return any(map(has_infinity, value.values()))
    return isinstance(value, list) and any(map(has_infinity, value))


def in_key_order(names: Any) -> list[str]:
    return sorted(names, key=lambda name: name.encode())


class KVMachine(Machine):
    """The model is a dict."""

    primitive = "kv"

    def empty_model(self) -> dict[str, Any]:
        return {}

    @rule(key=keys, value=values)
    def put(self, key: str, value: Any) -> None:
        self.call("put", key, value)
        self.model[key] = value

    @rule(items=st.dictionaries(keys, values, max_size=3))
    def put_many(self, items: dict[str, Any]) -> None:
        self.call("put_many", items)
        self.model.update(items)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.call("delete", key) == (self.model.pop(key, self) is not self)

    @rule(key=keys, value=values)
    def put_if_absent(self, key: str, value: Any) -> None:
        assert self.call("put_if_absent", key, value) == (key not in self.model)
        self.model.setdefault(key, value)

    @rule(key=keys, value=values, fresh=st.booleans())
    def cas(self, key: str, value: Any, fresh: bool) -> None:
        found = self.call("get_versioned", key)
        version = found.version if found else 0
        if not fresh and self.txn is None:
            with pytest.raises(ConflictError):
                self.call("cas", key, version + 1, value)
        elif self.txn is None:
            self.call("cas", key, version, value)
            self.model[key] = value

    @rule(key=keys, by=st.integers(-100, 100))
    def increment(self, key: str, by: int) -> None:
        old = self.model.get(key, 0)
        usable = type(old) is int and -(2**63) <= old + by < 2**64
        if usable:
            result = self.call("increment", key, by)
            assert result == (None if self.txn is not None else old + by)
            self.model[key] = old + by
        elif self.txn is None and type(old) is not int:
            with pytest.raises(NotAnIntegerError):
                self.call("increment", key, by)

    @rule(key=keys)
    def read(self, key: str) -> None:
        assert self.call("get", key, "none") == self.model.get(key, "none")
        assert self.call("exists", key) == (key in self.model)

    @rule(prefix=prefixes, limit=st.none() | st.integers(0, 3), reverse=st.booleans())
    def list_keys(self, prefix: str, limit: int | None, reverse: bool) -> None:
        expected = in_key_order(key for key in self.model if key.startswith(prefix))
        assert self.call("count", prefix) == len(expected)
        expected = expected[::-1] if reverse else expected
        listed = self.call("list_with_values", prefix, limit=limit, reverse=reverse)
        assert listed == [(key, self.model[key]) for key in expected[:limit]]
        assert self.call("list", prefix, limit=limit, reverse=reverse) == expected[:limit]

    @rule(wanted=st.lists(keys))
    def get_many(self, wanted: list[str]) -> None:
        assert self.call("get_many", wanted) == {key: self.model[key] for key in wanted if key in self.model}

    def check_all(self) -> None:
        assert dict(self.db.kv.mapping(self.run_id)) == self.committed


class EventMachine(Machine):
    """The model is a list of (type, payload)."""

    primitive = "events"

    def empty_model(self) -> list[tuple[str, dict[str, Any]]]:
        return []

    @rule(kind=keys, payload=payloads)
    def append(self, kind: str, payload: dict[str, Any]) -> None:
        event = self.call("append", kind, payload)
        assert event.sequence == len(self.model)
        self.model.append((kind, payload))

    @rule(events=st.lists(st.tuples(keys, payloads), max_size=4))
    def append_many(self, events: list[tuple[str, dict[str, Any]]]) -> None:
        assert len(self.call("append_many", events)) == len(events)
        self.model.extend(events)

    @rule(start=st.integers(0, 12), end=st.none() | st.integers(0, 12))
    def read_range(self, start: int, end: int | None) -> None:
        found = self.call("read_range", start, end)
        assert [(event.event_type, event.payload) for event in found] == self.model[start:end]
        assert [event.sequence for event in found] == list(range(len(self.model)))[start:end]

    @rule(kind=keys, start=st.integers(0, 8), limit=st.none() | st.integers(0, 3))
    def read_by_type(self, kind: str, start: int, limit: int | None) -> None:
        found = self.call("read_by_type", kind, start=start, limit=limit)
        positions = [at for at, (name, _) in enumerate(self.model) if name == kind and at >= start]
        assert [event.sequence for event in found] == positions[:limit]

    @rule()
    def head(self) -> None:
        head = self.call("head")
        assert self.call("len") == len(self.model)
        assert (head is None) == (not self.model)
        if head is not None:
            assert (head.event_type, head.payload) == self.model[-1]
            assert head == self.call("read", len(self.model) - 1)

    @rule()
    def verify(self) -> None:
        assert self.call("verify_chain") == ChainVerification(True, len(self.model))

    def check_all(self) -> None:
        stored = [(event.event_type, event.payload) for event in self.db.events.iterate(self.run_id)]
        assert stored == self.committed


class CellMachine(Machine):
    """The model is a dict of values; the highest version ever seen of each cell may only be passed."""

    primitive = "cells"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.versions: dict[str, int] = {}

    def empty_model(self) -> dict[str, Any]:
        return {}

    @rule(name=keys, value=values)
    def init(self, name: str, value: Any) -> None:
        if name not in self.model:
            self.call("init", name, value)
            self.model[name] = value
            return
        with pytest.raises(AlreadyExistsError):
            self.call("init", name, value)

    @rule(name=keys, value=values)
    def set(self, name: str, value: Any) -> None:
        self.call("set", name, value)
        self.model[name] = value

    @rule(name=keys)
    def delete(self, name: str) -> None:
        assert self.call("delete", name) == (self.model.pop(name, self) is not self)

    @rule(name=keys, value=values)
    def cas(self, name: str, value: Any) -> None:
        state = self.call("read", name)
        self.call("cas", name, state.version if state else 0, value)
        self.model[name] = value

    @rule(name=keys, value=values)
    def transition(self, name: str, value: Any) -> None:
        if name in self.model:
            assert self.call("transition", name, lambda state: (value, state.value)) == self.model[name]
            self.model[name] = value
            return
        with pytest.raises(NotFoundError):
            self.call("transition", name, lambda state: (value, None))

    @rule(name=keys)
    def read(self, name: str) -> None:
        state = self.call("read", name)
        assert self.call("exists", name) == (name in self.model) == (state is not None)
        if state is not None:
            assert state.value == self.model[name]
        committed = self.db.cells.read(self.run_id, name)
        if committed is not None:
            assert committed.version >= self.versions.get(name, 0)
            self.versions[name] = committed.version

    @rule(prefix=prefixes)
    def list_names(self, prefix: str) -> None:
        expected = in_key_order(name for name in self.model if name.startswith(prefix))
        assert self.call("list", prefix) == expected

    def check_all(self) -> None:
        states = {name: self.db.cells.read(self.run_id, name) for name in self.db.cells.list(self.run_id)}
        assert {name: state and state.value for name, state in states.items()} == self.committed


@pytest.mark.by_default("memory")
@pytest.mark.parametrize("machine", [KVMachine, EventMachine, CellMachine])
def test_any_sequence_of_calls_agrees_with_the_model(machine: type[Machine], engine: Engine) -> None:
    run_machine(machine, engine)
