"""Values beyond JSON's: UUIDs, decimals, dates, times, durations, and classes of the user's own."""

import datetime as dt
import enum
import pickle
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import occamdb
from occamdb import RunId, ToolCall, Unrestored, ValueEncodingError, value_hooks
from occamdb.engine.model.errors import CorruptionError, InvalidArgumentError
from occamdb.engine.model.values import DEPTH_MAX, Codec, decode_value, encode_value, explain
from tests.conftest import stop_coordinator


@dataclass(frozen=True)
class Point:
    """A class of the user's own."""

    x: int
    y: Any
    size: int = field(init=False, default=0)


class Colour(enum.Enum):
    """Another one."""

    RED = "r"
    BLUE = "b"


class Model:
    """What occamdb sees of a pydantic model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        """Its fields."""
        return {"name": self.name}

    @classmethod
    def model_validate(cls, data: dict[str, Any]) -> "Model":
        """Made of its fields."""
        return cls(**data)


HOOKS = value_hooks(Point, Colour, Model)
CODEC = Codec(**HOOKS)

rare = (
    st.uuids()
    | st.uuids().map(lambda value: RunId(int=value.int))
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.times()
    | st.timedeltas()
)
values = st.recursive(
    rare | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


@given(values)
def test_what_comes_back_is_equal_and_of_the_same_types(value: Any) -> None:
    back = decode_value(encode_value(value))
    assert back == value
    assert repr(back) == repr(value)
    assert "changed" in explain(value).message  # that is, nothing in it is refused


@given(rare)
def test_the_bytes_are_a_msgpack_extension(value: Any) -> None:
    found = msgpack.unpackb(encode_value(value))
    assert isinstance(found, msgpack.ExtType)
    assert encode_value(value) == msgpack.packb(found)


def test_numbers_of_extensions_are_fixed() -> None:
    run = RunId(int=5)
    expected = {
        1: (UUID(int=5), bytes(15) + b"\x05"),
        2: (Decimal("-1.50"), b"-1.50"),
        3: (dt.date(2026, 11, 28), (739948).to_bytes(4, "big")),
        4: (dt.time(1, 2, 3, 4), (3_723_000_004).to_bytes(8, "big")),
        5: (dt.timedelta(-1, 2, 3), b"\xff\xff\xff\xff\0\0\0\x02\0\0\0\x03"),
        6: (run, bytes(15) + b"\x05"),
        16: (Unrestored("Point", 1), msgpack.packb(["Point", 1])),
    }
    for number, (value, body) in expected.items():
        assert msgpack.unpackb(encode_value(value)) == msgpack.ExtType(number, body)


def test_a_not_a_number_decimal_comes_back() -> None:
    assert str(decode_value(encode_value(Decimal("sNaN")))) == "sNaN"


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb(msgpack.ExtType(number, body))
        for number, body in [
            (1, b"short"), (2, b"abc"), (2, b"\xff"), (3, bytes(4)), (3, b"\xff" * 4), (4, b"\xff" * 8),
            (5, b"\x7f" * 12), (5, b""), (7, b"unknown"),
            (16, b""), (16, b"\x01"), (16, msgpack.packb([1, 2])), (16, msgpack.packb(["a"])),
            (16, msgpack.packb(["a", 1]) + b"\x01"), (16, b"\x92\xa1a"),
        ]
    ],
)  # fmt: skip
def test_damaged_extensions_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError):
        decode_value(data)
    with pytest.raises(CorruptionError):
        decode_value(data[:-1])


# --- Hooks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [Point(1, [2]), Point(1, Point(2, Colour.BLUE)), Colour.RED, [{"a": Colour.RED}]]
)
def test_classes_of_the_users_own_come_back(value: Any) -> None:
    assert CODEC.decode(CODEC.encode(value)) == value


def test_fields_that_the_constructor_does_not_take_come_back() -> None:
    value = Point(1, 2)
    object.__setattr__(value, "size", 9)
    assert CODEC.decode(CODEC.encode(value)).size == 9


def test_a_pydantic_model_comes_back() -> None:
    back = CODEC.decode(CODEC.encode([Model("ann")]))
    assert type(back[0]) is Model and back[0].name == "ann"


def test_without_restore_the_value_is_shown_as_stored_and_can_be_stored_again() -> None:
    stored = CODEC.encode({"p": Point(1, [2])})
    shown = decode_value(stored)
    assert shown == {"p": Unrestored("Point", {"x": 1, "y": [2], "size": 0})}
    assert encode_value(shown) == stored


def test_an_unknown_class_is_named_when_it_is_read() -> None:
    with pytest.raises(ValueEncodingError, match="'Point'"):
        Codec(**value_hooks(Colour)).decode(CODEC.encode(Point(1, 2)))


def test_what_the_hook_does_not_know_is_refused_with_its_path() -> None:
    with pytest.raises(ValueEncodingError) as caught:
        CODEC.encode({"a": [Point(1, object())]})
    assert caught.value.path == 'value["a"][0]["y"]'
    assert "value_hooks" in caught.value.hint


@pytest.mark.parametrize("wrong", ["text", ("a",), ("a", 1, 2), (1, 2), ["a", 1]])
def test_a_hook_that_returns_something_else_is_told_so(wrong: Any) -> None:
    with pytest.raises(ValueEncodingError, match="returned"):
        Codec(default=lambda value: wrong).encode(object())


def test_what_a_hook_raises_goes_to_the_caller() -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Codec(default=broken).encode([object()])
    with pytest.raises(ZeroDivisionError):
        Codec(restore=broken).decode(CODEC.encode(Point(1, 2)))


def test_a_hook_that_never_ends_is_cut_off() -> None:
    with pytest.raises(ValueEncodingError, match=f"deeper than {DEPTH_MAX} levels"):
        Codec(default=lambda value: ("again", object())).encode(object())


def test_wrong_classes_and_hooks_are_refused() -> None:
    class Plain:
        pass

    for wrong in (Plain, 7, "Point"):
        with pytest.raises(InvalidArgumentError, match="not a dataclass"):
            value_hooks(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="two classes"):
        value_hooks(Point, type("Point", (), {"__qualname__": "Point", "model_validate": None}))
    with pytest.raises(InvalidArgumentError, match="must be a function"):
        occamdb.open_in_memory(default=7)  # type: ignore[arg-type]


def test_every_primitive_stores_them(run: RunId) -> None:
    with occamdb.open_in_memory(**HOOKS) as db:
        value = Point(1, {"u": UUID(int=1), "d": [Decimal("1.5"), dt.timedelta(1)]})
        db.kv.put(run, "k", value)
        assert db.kv.get(run, "k") == dict(db.kv.list_with_values(run))["k"] == value
        db.cells.set(run, "c", value)
        assert db.cells.transition(run, "c", lambda state: (state.value, state.value)) == value
        event = db.events.append(run, "e", {"p": value})
        assert db.events.read(run, 0) == event and event.payload == {"p": value}
        assert db.events.verify_chain(run).is_valid
        trace = db.traces.record(run, ToolCall("t", {"p": value}, result=value), metadata={"m": value})
        found = db.traces.get(run, trace)
        assert found is not None
        assert (found.trace_type, found.metadata) == (ToolCall("t", {"p": value}, result=value), {"m": value})
        assert db.traces.get_tree(run, trace).trace == found
        started = db.runs.create_run_with_options("r", metadata={"p": value})
        assert started.metadata == {"p": value} and db.runs.list_runs()[0].metadata == {"p": value}
        with db.begin(run) as txn:
            txn.put("own", value)
            assert txn.get("own") == value
        clone = db.snapshot(run).clone()
        assert clone.get("k") == pickle.loads(pickle.dumps(clone)).get("k") == value


def test_hooks_go_to_other_processes_with_the_database(database_path: Path, run: RunId) -> None:
    with occamdb.open(database_path, **HOOKS) as db:
        db.kv.put(run, "k", Point(1, Colour.RED))
        with pickle.loads(pickle.dumps(db)) as other:
            assert other.kv.get(run, "k") == Point(1, Colour.RED)
            assert other.namespace(app="b").codec is other.codec
    with occamdb.open(database_path) as plain:
        assert plain.kv.get(run, "k") == Unrestored(
            "Point", {"x": 1, "y": Unrestored("Colour", "r"), "size": 0}
        )
    stop_coordinator(database_path)
