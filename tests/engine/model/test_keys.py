"""Keys: order, contiguity, prefix-freeness, round trips; run ids."""

import multiprocessing
import pickle
import threading
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.model.errors import CorruptionError, InvalidArgumentError, InvalidKeyError, KeyTooLarge
from occamdb.engine.model.keys import (
    PART_SIZE_MAX,
    Namespace,
    RunId,
    TypeTag,
    decode_key,
    decode_user_key,
    encode_key,
    encode_user_key,
    prefix_range,
    successor,
    tag_prefix,
)
from occamdb.engine.model.limits import PREFIX_SIZE_MAX

parts = st.one_of(
    st.just("default"),
    st.text(
        st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=16
    ).filter(lambda t: len(t.encode()) <= PART_SIZE_MAX),
)
run_ids = st.one_of(
    st.uuids().map(RunId.of), st.sampled_from([RunId(int=0), RunId(int=1), RunId(int=(1 << 128) - 1)])
)
tags = st.one_of(st.sampled_from(TypeTag), st.integers(0x10, 0xFF))
user_keys = st.one_of(st.text(min_size=1, max_size=20), st.binary(min_size=1, max_size=20))
namespaces = st.builds(Namespace, parts, parts, parts, run_ids)


def valid(key: str | bytes) -> bool:
    return isinstance(key, bytes) or not any("\ud800" <= c <= "\udfff" for c in key)


user_keys = user_keys.filter(valid)


def full(namespace: Namespace, tag: int, user_key: str | bytes) -> bytes:
    return encode_key(tag_prefix(namespace.prefix, tag), user_key)


@given(namespaces, tags, user_keys)
def test_round_trip(namespace: Namespace, tag: int, user_key: str | bytes) -> None:
    decoded = decode_key(full(namespace, tag, user_key))
    assert decoded.namespace == namespace and decoded.tag == tag
    assert encode_user_key(decoded.user_key) == encode_user_key(user_key)
    assert isinstance(decoded.namespace.run_id, RunId)


@given(st.tuples(namespaces, tags, user_keys), st.tuples(namespaces, tags, user_keys))
def test_byte_order_is_key_order(
    a: tuple[Namespace, int, str | bytes], b: tuple[Namespace, int, str | bytes]
) -> None:
    def order(item: tuple[Namespace, int, str | bytes]) -> tuple[object, ...]:
        namespace, tag, user_key = item
        names = (namespace.tenant, namespace.app, namespace.agent)
        encoded = tuple(b"" if name == "default" else name.encode() for name in names)
        assert namespace.run_id is not None
        return (*encoded, namespace.run_id.bytes, tag, encode_user_key(user_key))

    left, right = order(a), order(b)
    assert (full(*a) < full(*b)) == (left < right)
    assert (full(*a) == full(*b)) == (left == right)


@given(namespaces, st.tuples(namespaces, tags, user_keys))
def test_one_run_is_one_contiguous_range(
    namespace: Namespace, other: tuple[Namespace, int, str | bytes]
) -> None:
    start, end = namespace.range
    assert start <= full(namespace, other[1], other[2]) < end
    assert (start <= full(*other) < end) == (other[0] == namespace)


@given(namespaces, namespaces)
def test_no_run_prefix_is_a_prefix_of_another(a: Namespace, b: Namespace) -> None:
    assert a == b or not b.prefix.startswith(a.prefix)


@given(st.binary(max_size=6), st.binary(max_size=8))
def test_successor_ends_exactly_the_prefix(prefix: bytes, key: bytes) -> None:
    end = successor(prefix)
    inside = key >= prefix and (end is None or key < end)
    assert inside == key.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"", None), (b"\xff\xff", None), (b"a\xff", b"b"), (b"a\x00", b"a\x01")]
)
def test_successor_edges(prefix: bytes, end: bytes | None) -> None:
    assert successor(prefix) == end


def test_a_range_needs_an_end() -> None:
    with pytest.raises(InvalidArgumentError, match="no end"):
        prefix_range(b"\xff")


@given(st.text(min_size=1, max_size=20).filter(valid))
def test_text_and_its_utf8_are_the_same_key(text: str) -> None:
    assert encode_user_key(text) == encode_user_key(text.encode())
    assert decode_user_key(encode_user_key(text)) == text


@given(st.binary(min_size=1, max_size=20))
def test_bytes_that_are_not_utf8_are_escaped_and_go_back(raw: bytes) -> None:
    text = decode_user_key(raw)
    assert type(text) is str and encode_user_key(text) == raw


def test_escaped_bytes_are_surrogates_as_in_file_names() -> None:
    assert decode_user_key(b"\xff\x00") == "\udcff\x00"


def test_subclasses_of_str_are_keys() -> None:
    class Name(str):
        def encode(self, *args: Any, **kwargs: Any) -> bytes:
            return b"something else"

    raw = encode_user_key(Name("plain"))
    assert raw == b"plain" and type(raw) is bytes


@pytest.mark.parametrize("wrong", [1, None, 1.5, ["a"], bytearray(b"a"), memoryview(b"a"), uuid.UUID(int=1)])
def test_other_types_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidKeyError, match=f"got {type(wrong).__name__}"):
        encode_user_key(wrong)


@pytest.mark.parametrize("empty", ["", b""])
def test_empty_keys_are_refused(empty: str | bytes) -> None:
    with pytest.raises(InvalidKeyError, match="empty"):
        encode_user_key(empty)


def test_lone_surrogates_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidKeyError, match="position 1") as caught:
        encode_user_key("a\ud800" + "b" * 500)
    assert len(caught.value.message) < 300
    caught.value.message.encode()


def test_the_limit_is_exact_and_told() -> None:
    assert len(encode_user_key("é" * 50, 100)) == 100
    with pytest.raises(KeyTooLarge) as caught:
        encode_user_key("é" * 50 + "a", 100)
    assert (caught.value.size, caught.value.limit, caught.value.setting) == (101, 100, "key_size_max")


def test_default_parts_take_one_byte_each() -> None:
    assert Namespace().base == b"\x00\x00\x00"
    assert Namespace("t", "default", "a").base == b"t\x00\x00a\x00"


def test_the_longest_prefix_is_accounted_for() -> None:
    longest = Namespace("a" * 64, "b" * 64, "c" * 64, RunId.new())
    assert len(tag_prefix(longest.prefix, TypeTag.KV)) == PREFIX_SIZE_MAX
    decode_key(full(longest, TypeTag.KV, "k"))


@pytest.mark.parametrize("wrong", ["", "a\x00b", "a" * 65, "é" * 33, "\ud800", None, b"a", 3])
@pytest.mark.parametrize("name", ["tenant", "app", "agent"])
def test_namespace_parts_are_checked(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        Namespace(**{name: wrong})


def test_namespace_takes_runs_in_any_form() -> None:
    run = RunId.new()
    assert Namespace(run_id=run) == Namespace().for_run(str(run)) == Namespace().for_run(uuid.UUID(str(run)))
    assert pickle.loads(pickle.dumps(Namespace("t", run_id=run))) == Namespace("t", run_id=run)


@given(st.binary(max_size=60))
def test_any_bytes_decode_to_a_key_or_are_refused(data: bytes) -> None:
    try:
        decoded = decode_key(data)
    except CorruptionError as error:
        assert error.expected
        return
    assert full(decoded.namespace, decoded.tag, decoded.user_key) == data


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\x00\x00\x00",
        b"\x00\x00\x00" + bytes(17),
        b"default\x00\x00\x00" + bytes(18),
        b"\xff\x00\x00\x00" + bytes(18),
    ],
)
def test_malformed_keys_say_what_was_expected(damaged: bytes) -> None:
    with pytest.raises(CorruptionError, match="malformed key"):
        decode_key(damaged)


# --- Run ids -------------------------------------------------------------------------------------


def test_new_run_ids_are_version_7_and_dated() -> None:
    before = time.time_ns() // 1_000_000
    run = RunId.new()
    after = time.time_ns() // 1_000_000
    assert run.version == 7 and run.variant == uuid.RFC_4122
    assert before - 1 <= run.int >> 80 <= after + 1


def test_new_run_ids_sort_by_age() -> None:
    runs = [RunId.new() for _ in range(5_000)]
    assert runs == sorted(runs) and len(set(runs)) == len(runs)
    assert [r.bytes for r in runs] == sorted(r.bytes for r in runs)


def test_new_run_ids_sort_even_when_the_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = RunId.new()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    runs = [newest, *(RunId.new() for _ in range(5_000))]
    assert runs == sorted(runs) and len(set(runs)) == len(runs)


def test_threads_never_make_the_same_run_id() -> None:
    made: list[list[RunId]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda m=m: m.extend(RunId.new() for _ in range(2_000))) for m in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run for runs in made for run in runs}) == 8_000
    assert all(runs == sorted(runs) for runs in made)


def test_forked_children_make_other_run_ids() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        runs = pool.map(_new_runs, [200] * 4)
    assert len({run for some in runs for run in some}) == 800


def _new_runs(count: int) -> list[RunId]:
    return [RunId.new() for _ in range(count)]


@given(st.uuids())
def test_run_ids_equal_their_uuid(value: uuid.UUID) -> None:
    run = RunId.of(value)
    assert run == value and hash(run) == hash(value) and type(run) is RunId
    assert RunId.of(str(value)) == RunId.of(run) == run == pickle.loads(pickle.dumps(run))
    assert RunId.of(run) is run and type(pickle.loads(pickle.dumps(run))) is RunId
    assert repr(run) == f"RunId('{value}')"


@pytest.mark.parametrize("wrong", ["", "nonsense", "1234", 5, None, b"0" * 16, 1.5])
def test_what_is_no_run_id(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        RunId.of(wrong)
    assert caught.value.hint
