"""EventLog: order, the hash chain and its verification, the type index, and the canonical encoding."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest

from occamdb.engine.model.errors import CorruptionError, InvalidArgumentError, ValueEncodingError
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.primitives import ChainVerification, Event, EventLog, layout


def test_append_returns_the_event(do: Any) -> None:
    before = datetime.now(UTC)
    first = do.events.append("started", {"b": 1, "a": [1.5, None, b"x"]})
    second = do.events.append("ended", {})
    assert isinstance(first, Event)
    assert (first.sequence, first.event_type, first.payload) == (
        0,
        "started",
        {"a": [1.5, None, b"x"], "b": 1},
    )
    assert before - timedelta(seconds=1) < first.timestamp <= datetime.now(UTC)
    assert first.prev_hash == bytes(32)
    assert second.prev_hash == first.hash
    assert do.events.read(0) == first
    assert do.events.read(1) == second


def test_append_many_is_in_order(do: Any) -> None:
    do.events.append("x", {})
    events = do.events.append_many(("t", {"n": n}) for n in range(5))
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert do.events.read_range(1) == events
    assert do.events.append_many([]) == []
    assert do.events.len() == 6


def test_an_empty_log(do: Any) -> None:
    assert do.events.len() == 0
    assert do.events.head() is None
    assert do.events.read(0) is None
    assert do.events.read_range(0, 10) == []
    assert do.events.read_by_type("t") == []
    assert do.events.verify_chain() == ChainVerification(True, 0)


def test_reading(do: Any) -> None:
    events = do.events.append_many([("t", {"n": n}) for n in range(10)])
    assert do.events.read(9) == events[9]
    assert do.events.read(10) is None
    assert do.events.read_range(2, 5) == events[2:5]
    assert do.events.read_range(5, 2) == []
    assert do.events.read_range(8, 100) == events[8:]
    assert do.events.iterate() == events
    assert do.events.iterate(3, 6) == events[3:6]
    assert do.events.head() == events[-1]
    assert do.events.len() == 10


def test_inside_it_is_a_sized_iterable(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        assert bool(txn.events)
        events = txn.events.append_many([("t", {}), ("u", {})])
        assert len(txn.events) == 2
        assert list(txn.events) == events


def test_iteration_streams_one_snapshot(db: Any, run: RunId) -> None:
    db.events.append_many(run, [("t", {"n": n}) for n in range(500)])
    stream = db.events.iterate(run)
    assert next(stream).sequence == 0
    db.events.append(run, "late", {})
    assert sum(1 for _ in stream) == 499


def test_read_by_type(do: Any) -> None:
    events = do.events.append_many([("even" if n % 2 == 0 else "odd", {"n": n}) for n in range(10)])
    assert do.events.read_by_type("even") == events[::2]
    assert do.events.read_by_type("odd", limit=2) == [events[1], events[3]]
    assert do.events.read_by_type("odd", start=4) == [events[5], events[7], events[9]]
    assert do.events.read_by_type("eve") == []


def test_types_that_are_prefixes_do_not_mix(do: Any) -> None:
    do.events.append_many([("a", {}), ("ab", {}), ("a\x00", {})])
    for name in ("a", "ab", "a\x00"):
        assert [event.event_type for event in do.events.read_by_type(name)] == [name]


def test_an_aborted_append_leaves_no_gap(db: Any, run: RunId) -> None:
    db.events.append(run, "t", {})
    txn = db.begin(run)
    assert txn.events.append("t", {}).sequence == 1
    txn.abort()
    assert db.events.append(run, "t", {}).sequence == 1
    assert db.events.verify_chain(run) == ChainVerification(True, 2)


def test_of_two_appends_at_once_the_second_is_retried(db: Any, run: RunId) -> None:
    tries = []

    def append(txn: Any) -> Event:
        event: Event = txn.events.append("slow", {})
        tries.append(event.sequence)
        if len(tries) == 1:
            db.events.append(run, "fast", {})
        return event

    assert db.transaction(run, append).sequence == 1
    assert tries == [0, 1]
    assert [event.event_type for event in db.events.iterate(run)] == ["fast", "slow"]
    assert db.events.verify_chain(run).is_valid


def test_an_iterator_is_read_once_and_survives_a_retry(db: Any, run: RunId) -> None:
    def events() -> Iterator[tuple[str, dict[str, Any]]]:
        yield "slow", {"n": 0}
        if db.events.len(run) == 0:
            db.events.append(run, "fast", {})
        yield "slow", {"n": 1}

    begun = db.begin(run)
    appended = db.events.append_many(run, events())
    assert [event.sequence for event in appended] == [1, 2]
    begun.abort()

    raced: list[Event] = []

    class Racing(EventLog[Any]):
        """Between the first attempt's read and its commit somebody appends."""

        __slots__ = ()

        def _append(self, events: Any) -> Any:
            appended = super()._append(events)
            if not raced:
                raced.append(db.events.append(run, "fast", {}))
            return appended

    appended = Racing(db).append_many(run, iter([("slow", {"n": 2}), ("slow", {"n": 3})]))
    assert [event.sequence for event in appended] == [4, 5]
    assert [event.payload for event in db.events.read_range(run, 4)] == [{"n": 2}, {"n": 3}]


# --- What may go in ---


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(do: Any, number: float) -> None:
    with pytest.raises(ValueEncodingError) as caught:
        do.events.append("t", {"a": [0.0, {"b": number}]})
    assert caught.value.path == 'value["a"][1]["b"]'
    assert caught.value.hint
    assert do.events.len() == 0


@pytest.mark.parametrize("payload", [None, [1], "text", 5])
def test_a_payload_is_a_dict(do: Any, payload: Any) -> None:
    with pytest.raises(ValueEncodingError, match="payload is a dict"):
        do.events.append("t", payload)


def test_a_payload_that_cannot_be_stored_names_its_place(do: Any) -> None:
    with pytest.raises(ValueEncodingError) as caught:
        do.events.append("t", {"z": 1, "a": {"b": {1, 2}}})
    assert caught.value.path == 'value["a"]["b"]'
    with pytest.raises(ValueEncodingError):
        do.events.append("t", {"a": {1: 2, "b": 3}})
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(ValueEncodingError):
        do.events.append("t", endless)
    assert do.events.len() == 0


def test_a_bad_event_among_many_appends_none(do: Any) -> None:
    with pytest.raises(ValueEncodingError):
        do.events.append_many([("t", {}), ("t", {"a": object()})])
    assert do.events.len() == 0


@pytest.mark.parametrize("event_type", ["", "x" * 1025, "\ud800", None, 5])
def test_a_wrong_type_is_refused(do: Any, event_type: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        do.events.append(event_type, {})
    assert do.events.len() == 0


@pytest.mark.parametrize("sequence", [-1, 1.0, None, True, 2**64])
def test_a_wrong_sequence_is_refused(do: Any, sequence: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        do.events.read(sequence)


def test_there_is_no_update_and_no_delete() -> None:
    from occamdb.primitives import EventLog

    assert not [name for name in vars(EventLog) if "update" in name or "delete" in name]


# --- The hash ---


def reference_hash(event: Event) -> bytes:
    """README.md's encoding by another implementation: msgpack the library, keys sorted here."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value)}
        return [ordered(item) for item in value] if isinstance(value, list) else value

    time_us = (event.timestamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    body = [event.sequence, event.event_type, ordered(event.payload), time_us, event.prev_hash]
    return hashlib.sha256(msgpack.packb(body, datetime=True, use_bin_type=True)).digest()


def test_the_hash_is_the_documented_one(do: Any) -> None:
    payloads: list[dict[str, Any]] = [
        {},
        {"z": 1, "a": {"y": [1, {"d": 1, "c": 2}], "x": -(2**63)}, "é": "ü", "big": 2**64 - 1},
        {"f": 0.1, "t": True, "n": None, "b": b"\x00\xff", "when": datetime(2024, 2, 29, 1, 2, 3, 4, UTC)},
    ]
    for event in do.events.append_many(("t", payload) for payload in payloads):
        assert event.hash == reference_hash(event)
        assert do.events.read(event.sequence).hash == event.hash


def test_equal_payloads_hash_alike(db: Any) -> None:
    from occamdb.primitives.event_log import canonical_encoding, canonical_payload

    def encoded(payload: dict[str, Any]) -> bytes:
        return canonical_encoding(0, "t", canonical_payload(payload), 0, bytes(32))

    when = datetime(2024, 1, 1, 12, tzinfo=UTC)
    one = {"a": 1, "b": {"c": when, "d": 2}}
    other = {"b": {"d": 2, "c": when.astimezone(timezone(timedelta(hours=3)))}, "a": 1}
    assert encoded(one) == encoded(other)
    assert encoded({"a": 1}) != encoded({"a": 1.0}) != encoded({"a": True})


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "from occamdb.primitives.event_log import canonical_encoding, canonical_payload;"
        "p = {k: {'x': 1, 'y': 2} for k in set('qwertyuiop')};"
        "print(canonical_encoding(7, 't', canonical_payload(p), 5, bytes(32)).hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# --- Verification finds damage ---


def damaged(db: Any, run: RunId, change: Any) -> ChainVerification:
    db.events.append_many(run, [("t", {"n": n}) for n in range(6)])
    assert db.events.verify_chain(run) == ChainVerification(True, 6)
    with db.begin(run) as txn:
        change(txn.space(TypeTag.EVENT, raw=True))
    verdict: ChainVerification = db.events.verify_chain(run)
    assert not verdict.is_valid
    assert verdict.error
    assert verdict.length == verdict.first_invalid
    return verdict


def flip_each_byte(stored: bytes) -> list[bytes]:
    return [stored[:at] + bytes((stored[at] ^ 1,)) + stored[at + 1 :] for at in range(len(stored))]


def test_verify_finds_a_changed_byte_anywhere(db: Any, run: RunId) -> None:
    db.events.append_many(run, [("t", {"n": n}) for n in range(3)])
    key = layout.event(1)
    stored = db.space(run, TypeTag.EVENT, raw=True).get(key)
    for changed in flip_each_byte(stored):
        with db.begin(run) as txn:
            txn.space(TypeTag.EVENT, raw=True).put(key, changed)
            assert txn.events.verify_chain().first_invalid == 1
            txn.abort()


def test_verify_finds_a_missing_event(db: Any, run: RunId) -> None:
    verdict = damaged(db, run, lambda space: space.delete(layout.event(2)))
    assert verdict.first_invalid == 2
    assert "missing" in (verdict.error or "")


def test_verify_finds_a_missing_first_event(db: Any, run: RunId) -> None:
    assert damaged(db, run, lambda space: space.delete(layout.event(0))).first_invalid == 0


def test_verify_finds_a_cut_off_tail(db: Any, run: RunId) -> None:
    verdict = damaged(db, run, lambda space: space.delete(layout.event(5)))
    assert verdict.first_invalid == 5
    assert "6 events" in (verdict.error or "")


def test_verify_finds_a_removed_log(db: Any, run: RunId) -> None:
    assert damaged(db, run, lambda space: space.delete_range(layout.EVENT)).first_invalid == 0


def test_verify_finds_an_event_past_the_head(db: Any, run: RunId) -> None:
    def shorten(space: Any) -> None:
        space.put(layout.EVENT_HEAD, [4, space.get(layout.event(3))[:32]])

    assert damaged(db, run, shorten).first_invalid == 4


def test_verify_finds_a_wrong_head_hash(db: Any, run: RunId) -> None:
    verdict = damaged(db, run, lambda space: space.put(layout.EVENT_HEAD, [6, bytes(32)]))
    assert verdict.first_invalid == 5


def test_verify_finds_swapped_events(db: Any, run: RunId) -> None:
    def swap(space: Any) -> None:
        two, three = space.get(layout.event(2)), space.get(layout.event(3))
        space.put(layout.event(2), three)
        space.put(layout.event(3), two)

    assert damaged(db, run, swap).first_invalid == 2


def test_verify_finds_a_rewritten_event(db: Any, run: RunId) -> None:
    """A forger who computes the hash of the changed event anew is found at the next one."""

    def rewrite(space: Any) -> None:
        body = space.get(layout.event(2))[32:].replace(b"\xa1n\x02", b"\xa1n\x07")
        space.put(layout.event(2), hashlib.sha256(body).digest() + body)

    verdict = damaged(db, run, rewrite)
    assert verdict.first_invalid == 3
    assert "follows" in (verdict.error or "")


@pytest.mark.parametrize("junk", [b"", b"short", 0, 5, hashlib.sha256(b"\xc1").digest() + b"\xc1"])
def test_verify_finds_junk(db: Any, run: RunId, junk: Any) -> None:
    assert damaged(db, run, lambda space: space.put(layout.event(2), junk)).first_invalid == 2
    with pytest.raises(CorruptionError):
        db.events.read(run, 2)
