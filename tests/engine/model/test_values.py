"""Values: exact round trips, msgpack as the model, refusals that name the path, damage that never crashes."""

import collections
import datetime as dt
import enum
import fractions
import math
import pickle
import struct
import sys
import threading
import zoneinfo
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from occamdb.engine.model.errors import CorruptionError, ValueEncodingError, ValueTooLarge
from occamdb.engine.model.public_types import CommitReceipt, VersionedValue
from occamdb.engine.model.values import DEPTH_MAX, decode_value, encode_value, explain

UTC = dt.UTC
offsets = st.integers(-1439, 1439).map(lambda m: dt.timezone(dt.timedelta(minutes=m)))
moments = st.datetimes(
    min_value=dt.datetime(1, 1, 3), max_value=dt.datetime(9999, 12, 29), timezones=st.just(UTC) | offsets
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
edges = [0, 127, 128, 255, 256, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
integers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from(
    edges + [-e - 1 for e in edges[:-3]] + [-32, -33]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    st.floats(),
    texts,
    st.binary(max_size=40),
    moments,
)
storable = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


class Point(NamedTuple):
    x: int
    y: int


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types all the way down; NaN is NaN and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, dt.datetime):
        return a == b and b.tzinfo is UTC
    return bool(a == b)


@given(storable)
@settings(max_examples=150)
def test_round_trip(value: Any) -> None:
    assert same(value, decode_value(encode_value(value)))


@given(storable)
@settings(max_examples=150)
def test_the_bytes_are_those_of_msgpack(value: Any) -> None:
    assert encode_value(value) == msgpack.packb(value, datetime=True)


@pytest.mark.parametrize("size", [31, 32, 255, 256, 65535, 65536])
@pytest.mark.parametrize("kind", ["text", "wide text", "bytes", "list", "dict"])
def test_every_width_of_header(size: int, kind: str) -> None:
    value: Any = {
        "text": "a" * size,
        "wide text": "é" * size,
        "bytes": b"\x00" * size,
        "list": [None] * size,
        "dict": {str(i): i for i in range(size)},
    }[kind]
    data = encode_value(value)
    assert data == msgpack.packb(value) and same(decode_value(data), value)


def test_what_comes_back_is_fresh() -> None:
    value = {"a": [1, {"b": 2}]}
    first, second = (decode_value(encode_value(value)) for _ in range(2))
    first["a"][1]["b"] = 3
    assert second == value == {"a": [1, {"b": 2}]}


def test_many_different_dict_keys_are_read_right_and_not_kept() -> None:
    """Short ASCII keys are kept for reuse, in a table of fixed size."""
    keys = [f"{prefix}{i}" for i in range(20_000) for prefix in ("k", "é")] + [""]
    data = [encode_value({key: 1}) for key in keys]
    before = sys.getallocatedblocks()
    for _ in range(2):
        assert all(decode_value(one) == {key: 1} for one, key in zip(data, keys, strict=True))
    assert sys.getallocatedblocks() - before < 2_000


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_any_buffer_is_decoded(buffer: Any) -> None:
    assert decode_value(buffer(encode_value([1, "a"]))) == [1, "a"]


def test_single_precision_floats_are_read() -> None:
    assert decode_value(b"\xca" + struct.pack(">f", 1.5)) == 1.5


# --- Datetimes -----------------------------------------------------------------------------------


def test_datetimes_keep_the_instant_not_the_zone() -> None:
    summer = dt.datetime(2026, 7, 1, 12, 0, 0, 123456, zoneinfo.ZoneInfo("Europe/Berlin"))
    back = decode_value(encode_value(summer))
    assert back == summer and back.tzinfo is UTC and back.hour == 10 and back.microsecond == 123456


def test_both_sides_of_a_fold_are_told_apart() -> None:
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    early, late = (dt.datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=zone) for fold in (0, 1))
    assert decode_value(encode_value(late)) - decode_value(encode_value(early)) == dt.timedelta(hours=1)


@pytest.mark.parametrize(
    "moment",
    [
        dt.datetime.min.replace(tzinfo=UTC),
        dt.datetime.max.replace(tzinfo=UTC),
        dt.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        dt.datetime(2106, 2, 7, 6, 28, 15, 0, UTC),
        dt.datetime(2106, 2, 7, 6, 28, 16, 0, UTC),
        dt.datetime(2514, 5, 30, 1, 53, 3, 999999, UTC),
        dt.datetime(2514, 5, 30, 1, 53, 4, 0, UTC),
    ],
)
def test_datetimes_at_the_edges_of_the_format(moment: dt.datetime) -> None:
    data = encode_value(moment)
    assert same(decode_value(data), moment) and data == msgpack.packb(moment, datetime=True)


# --- Refusals ------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, str, str, str]] = [
    ((1, 2), "value", "tuple is not storable", "use a list"),
    ({1}, "value", "set is not storable", "sorted"),
    (bytearray(b"a"), "value", "bytearray", "bytes"),
    (Colour.RED, "value", "Colour", ".value"),
    (Text("a"), "value", "Text", "str(...)"),
    (Point(1, 2), "value", "Point", "use a list"),
    (collections.OrderedDict(a=1), "value", "OrderedDict", "dict(...)"),
    (fractions.Fraction(1, 2), "value", "Fraction", "value_hooks"),
    (dt.time(1, tzinfo=dt.UTC), "value", "time zone", "store a datetime"),
    (1j, "value", "complex", "two floats"),
    (object(), "value", "object", "value_hooks"),
    (2**64, "value", "65 bits", "str or bytes"),
    (-(2**63) - 1, "value", "64 bits", "str or bytes"),
    ("a\ud800", "value", "surrogate at position 1", "use bytes"),
    (dt.datetime(2026, 1, 1), "value", "naive", "timezone.utc"),
    (dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-1))), "value", "9999", "within"),
    (dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))), "value", "years 1", "within"),
    ({"a": [0, 1, 2, (3,)]}, 'value["a"][3]', "tuple is not storable", "use a list"),
    ({"a": {1: 2}}, 'value["a"][1]', "a dict key must be str, got int", "str(key)"),
    ({"a": {None: 2}}, 'value["a"][None]', "got NoneType", "str(key)"),
    ({Text("a"): 1}, "value['a']", "got", "str(key)"),
    ({"\udfff": 1}, 'value["\\udfff"]', "surrogate", "use bytes"),
    ([{'q"uote': {1}}], 'value[0]["q\\"uote"]', "set", "list"),
]


@pytest.mark.parametrize(("value", "path", "problem", "hint"), REFUSED)
def test_refusals_name_path_problem_and_remedy(value: Any, path: str, problem: str, hint: str) -> None:
    with pytest.raises(ValueEncodingError) as caught:
        encode_value(value)
    error = caught.value
    assert (error.path, error.details["path"]) == (path, path)
    assert error.message.startswith(f"{path}: ") and problem in error.message and hint in error.hint
    error.message.encode()


def test_scalar_subclasses_such_as_those_of_numpy_are_told_how() -> None:
    class Float64(float):
        pass

    class Array:
        def tolist(self) -> list[int]:
            return [1]

    for value, hint in ((Float64(1.5), "float(...)"), (Array(), ".tolist()")):
        with pytest.raises(ValueEncodingError) as caught:
            encode_value({"x": value})
        assert hint in caught.value.hint and caught.value.path == 'value["x"]'


def test_what_converts_itself_is_told_how() -> None:
    class Model:
        def model_dump(self) -> dict[str, int]:
            return {}

    with pytest.raises(ValueEncodingError) as caught:
        encode_value([Model()])
    assert ".model_dump()" in caught.value.hint and caught.value.path == "value[0]"


unstorable = st.sampled_from([(1,), {1}, 2**64, "\ud800", dt.datetime(2026, 1, 1), Colour.RED, Text("a"), 1j])
mixed = st.recursive(
    scalars | unstorable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(mixed)
@settings(max_examples=150)
def test_whatever_is_refused_is_explained_and_nothing_else(value: Any) -> None:
    """The fast encoder and the slow explanation agree on what can be stored."""
    changed = "changed while it was encoded"
    try:
        encode_value(value)
    except ValueEncodingError as error:
        assert changed not in error.message
    else:
        assert changed in explain(value).message


def nested(levels: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"k": value}
    return value


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_depth_is_limited(kind: str) -> None:
    deepest = nested(DEPTH_MAX, kind)
    assert decode_value(encode_value(deepest)) == deepest
    with pytest.raises(ValueEncodingError, match=f"deeper than {DEPTH_MAX} levels"):
        encode_value(nested(DEPTH_MAX + 1, kind))


def test_enormous_depth_does_not_exhaust_the_stack() -> None:
    with pytest.raises(ValueEncodingError, match="levels"):
        encode_value(nested(100_000, "list"))
    with pytest.raises(CorruptionError, match="levels"):
        decode_value(b"\x91" * 1_000_000 + b"\xc0")


def test_cycles_are_found() -> None:
    ring: dict[str, Any] = {"a": [1]}
    ring["a"].append(ring)
    with pytest.raises(ValueEncodingError, match="contains itself") as caught:
        encode_value(ring)
    assert caught.value.path == 'value["a"][1]'


def test_the_same_list_twice_is_no_cycle() -> None:
    shared = [1]
    assert decode_value(encode_value([shared, shared, {"a": shared}])) == [[1], [1], {"a": [1]}]


class Zone(dt.tzinfo):
    def tzname(self, when: dt.datetime | None) -> str:
        return "a zone of the user's own making"

    def dst(self, when: dt.datetime | None) -> None:
        return None


class Meddler(Zone):
    """Changes the container it is in, while it is asked for its offset."""

    def __init__(self, victim: Any) -> None:
        self.victim = victim

    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        if isinstance(self.victim, list):
            self.victim.clear()
        else:
            keep = dict(list(self.victim.items())[:1])
            self.victim.clear()
            self.victim.update(keep | {f"new {i}": i for i in range(1_000)})
        return dt.timedelta(0)


@pytest.mark.parametrize("kind", [list, dict])
def test_a_value_that_changes_while_it_is_encoded_is_refused(kind: Any) -> None:
    victim: Any = kind()
    moment = dt.datetime(2026, 1, 1, tzinfo=Meddler(victim))
    if kind is list:
        victim.extend([moment, 2, 3])
    else:
        victim.update({"a": moment, "b": 2, "c": 3})
    with pytest.raises(ValueEncodingError):
        encode_value(victim)


def test_an_error_in_a_tzinfo_comes_through() -> None:
    class Broken(Zone):
        def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
            raise RuntimeError("no offset today")

    with pytest.raises(RuntimeError, match="no offset today"):
        encode_value([dt.datetime(2026, 1, 1, tzinfo=Broken())])


@given(storable, st.integers(-3, 3))
def test_the_size_limit_is_exact(value: Any, slack: int) -> None:
    size = len(encode_value(value))
    limit = size + slack
    if slack >= 0:
        assert len(encode_value(value, limit)) == size
    else:
        with pytest.raises(ValueTooLarge) as caught:
            encode_value(value, limit)
        assert caught.value.limit == limit and limit < caught.value.size


@pytest.mark.parametrize(
    "value", ["a" * 5_000, b"a" * 5_000, ["abc"] * 5_000, {"a": "b" * 3_000, "c": "d" * 3_000}]
)
def test_large_values_stop_at_the_limit(value: Any) -> None:
    with pytest.raises(ValueTooLarge, match="more than the limit of 2,000") as caught:
        encode_value(value, 2_000)
    assert "value_size_max" in caught.value.hint


# --- Damage --------------------------------------------------------------------------------------


def msgpack_model(data: bytes) -> Iterator[Any]:
    """What the library makes of the bytes: one item if it accepts them, none otherwise."""
    try:
        yield msgpack.unpackb(data, timestamp=3, strict_map_key=True)
    except (ValueError, OverflowError, msgpack.exceptions.UnpackException):
        return


@given(st.binary(max_size=30))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff\xa0")
@example(b"\xdb\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff")
@settings(max_examples=300)
def test_any_bytes_are_a_value_or_an_error(data: bytes) -> None:
    try:
        value = decode_value(data)
    except CorruptionError as error:
        assert error.offset is not None and 0 <= error.offset <= len(data) and error.expected
        return
    model = list(msgpack_model(data))
    assert model and same(value, model[0])


@given(storable, st.data())
@settings(max_examples=120)
def test_a_changed_byte_is_a_value_or_an_error(value: Any, data: st.DataObject) -> None:
    damaged = bytearray(encode_value(value))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        again = decode_value(bytes(damaged))
    except CorruptionError:
        return
    assert same(again, decode_value(encode_value(again)))


@given(storable)
def test_every_truncation_and_every_surplus_is_an_error(value: Any) -> None:
    data = encode_value(value)
    for size in range(len(data)):
        with pytest.raises(CorruptionError):
            decode_value(data[:size])
    with pytest.raises(CorruptionError, match="the end of the value"):
        decode_value(data + b"\x00")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "a value"),
        (b"\xc1", "found 0xc1"),
        (b"\xd4\x01\x00", "extension type 1"),
        (b"\xd6\x01\x00\x00\x00\x00", "extension type 1"),
        (b"\xc7\x05\xff\x00\x00\x00\x00\x00", "4, 8 or 12"),
        (b"\xa1\xff", "UTF-8"),
        (b"\x81\x01\x01", "a dict key of text"),
        (b"\x81\xc0\x01", "a dict key of text"),
    ],
)
def test_damage_is_described(data: bytes, expected: str) -> None:
    with pytest.raises(CorruptionError, match=expected):
        decode_value(data)


def test_threads_encode_and_decode_at_the_same_time() -> None:
    failures: list[Any] = []

    def work(number: int) -> None:
        value = {"id": number, "items": ["é" * number, number * 1.5, None, b"x" * number * 50]}
        for _ in range(2_000):
            if not same(decode_value(encode_value(value)), value):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- Records -------------------------------------------------------------------------------------

NS = 1_767_225_600_123_456_789
MOMENT = dt.datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)


def test_versioned_value_has_times_in_both_forms() -> None:
    record = VersionedValue([1], 7, NS, NS + 1_000_000_000)
    assert (record.value, record.version, record.timestamp_ns) == ([1], 7, NS)
    assert record.timestamp == MOMENT and record.timestamp.tzinfo is UTC
    assert record.expires_at == MOMENT + dt.timedelta(seconds=1)
    assert VersionedValue(1, 2, NS).expires_at is None and VersionedValue(1, 2, NS).expires_at_ns == 0


in_64_bits = st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1), timezones=st.just(UTC) | offsets)


@given(in_64_bits, in_64_bits)
def test_versioned_value_takes_datetimes(written: dt.datetime, expires: dt.datetime) -> None:
    record = VersionedValue(None, 1, written, expires)
    assert record.timestamp == written
    assert record.expires_at_ns == 0 or record.expires_at == expires


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_timestamp_is_cut_down_to_the_microsecond(ns: int) -> None:
    epoch = dt.datetime(1970, 1, 1, tzinfo=UTC)
    assert VersionedValue(None, 0, ns).timestamp == epoch + dt.timedelta(microseconds=ns // 1_000)


def test_versioned_value_compares_hashes_and_pickles() -> None:
    record = VersionedValue({"a": 1}, 7, NS, NS + 1)
    again = pickle.loads(pickle.dumps(record))
    assert again == record and hash(again) == hash(record) and again is not record
    others = [
        VersionedValue({"a": 2}, 7, NS, NS + 1),
        VersionedValue({"a": 1}, 8, NS, NS + 1),
        VersionedValue({"a": 1}, 7, NS + 1, NS + 1),
        VersionedValue({"a": 1}, 7, NS, 0),
        ({"a": 1}, 7, NS, NS + 1),
    ]
    assert all(record != other for other in others)


def test_versioned_value_shows_itself_and_matches() -> None:
    record = VersionedValue("x", 7, NS)
    assert repr(record) == "VersionedValue('x', version=7, timestamp=2026-01-01T00:00:00.123456+00:00)"
    assert "expires_at=2026" in repr(VersionedValue("x", 7, NS, NS))
    match record:
        case VersionedValue(value, version):
            assert (value, version) == ("x", 7)


def test_records_are_read_only() -> None:
    record: Any = VersionedValue("x", 7, NS)
    with pytest.raises(AttributeError):
        record.version = 8
    receipt: Any = CommitReceipt(1, NS, "none")
    with pytest.raises(AttributeError):
        receipt.version = 8


@pytest.mark.parametrize("wrong", ["now", 1.5, dt.datetime(2026, 1, 1), dt.date(2026, 1, 1)])
def test_other_times_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="timestamp is nanoseconds"):
        VersionedValue(1, 1, wrong)


def test_times_beyond_64_bits_are_refused() -> None:
    with pytest.raises(OverflowError):
        VersionedValue(1, 1, dt.datetime(9999, 1, 1, tzinfo=UTC))
    with pytest.raises(OverflowError):
        VersionedValue(1, 1, 2**63)
    assert VersionedValue(1, 1, -1).timestamp_ns == -1


def test_commit_receipt() -> None:
    receipt = CommitReceipt(9, NS, "always", 3)
    assert (receipt.version, receipt.committed_at, receipt.durability, receipt.attempts) == (
        9,
        MOMENT,
        "always",
        3,
    )
    assert pickle.loads(pickle.dumps(receipt)) == receipt
    assert receipt != CommitReceipt(9, NS, "always", 2) and hash(receipt) == hash(
        CommitReceipt(9, NS, "always", 3)
    )
    assert repr(receipt).startswith(
        "CommitReceipt(version=9, committed_at=2026-01-01T00:00:00.123456+00:00, "
    )
    assert CommitReceipt(9, MOMENT, "none").attempts == 1
