"""Names that mean two things, ids that are not exactly ids, and arguments in every form of call."""

import uuid
from typing import Any

import pytest

from occamdb.engine.model.errors import InvalidArgumentError, NotFoundError
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.model.values import encode_value
from occamdb.primitives import Custom, Thought, ToolCall

ID = uuid.UUID("0198c0de-0000-7000-8000-00000000abcd")

# --- A Custom trace named like a built-in type ---


def contents(traces: list[Any]) -> list[Any]:
    return [trace.trace_type for trace in traces]


def test_a_name_finds_traces_of_the_type_and_custom_ones_of_that_name(do: Any) -> None:
    written = [
        Thought("a"),
        Custom("Thought", 1),
        ToolCall("t"),
        Thought("b"),
        Custom("Thought", 2),
        Custom("x"),
    ]
    for each in written:
        do.traces.record(each)
    thoughts = [each for each in written if isinstance(each, Thought)]
    named = [
        each
        for each in written
        if isinstance(each, Thought)
        or each == Custom("Thought", each.data if isinstance(each, Custom) else 0)
    ]
    assert contents(do.traces.query_by_type("Thought")) == named
    assert contents(do.traces.query_by_type("Thought", reverse=True)) == named[::-1]
    assert contents(do.traces.query_by_type("Thought", limit=2)) == named[:2]
    assert contents(do.traces.query_by_type("Thought", limit=3, reverse=True)) == named[::-1][:3]
    assert contents(do.traces.query_by_type(Thought)) == thoughts
    assert contents(do.traces.query_by_type("x")) == [Custom("x")]


def test_every_trace_is_found_by_its_type_name(do: Any) -> None:
    for each in (
        Thought("a"),
        Custom("Thought"),
        Custom("Custom"),
        Custom("Error"),
        Custom("mine"),
        ToolCall("t"),
    ):
        do.traces.record(each)
    for trace in do.traces.query_by_time():
        assert trace in do.traces.query_by_type(trace.type_name)
    assert len(do.traces.query_by_type("Custom")) == len(do.traces.query_by_type(Custom)) == 4


def test_such_a_name_is_a_filter_among_others(do: Any) -> None:
    for number in range(40):
        do.traces.record(Thought(str(number)), tags=["t"] if number % 10 == 0 else [])
        do.traces.record(Custom("Thought", number), tags=["t"] if number % 20 == 0 else [])
    everything = do.traces.query_by_time()
    tagged = [trace for trace in everything if "t" in trace.tags]
    assert do.traces.query("Thought", tag="t") == tagged
    middle = everything[len(everything) // 2].timestamp
    assert do.traces.query("Thought", start=middle) == [t for t in everything if t.timestamp >= middle]
    assert do.traces.query("Thought", end=middle) == [t for t in everything if t.timestamp < middle]


def test_traces_are_found_in_the_layout_that_is_on_disks(db: Any, run: RunId) -> None:
    """The keys byte by byte, as every version wrote them: a Custom trace is listed by kind and by name."""
    space = db.space(run, TypeTag.TRACE, raw=True)
    time_us = 1_700_000_000_000_000
    for number, (kind, fields) in enumerate([(4, ["hm", None]), (6, ["Thought", 5])]):
        raw = bytes(15) + bytes([number + 1])
        suffix = (time_us + number + 2**63).to_bytes(8, "big") + raw
        space.put(b"\x01" + raw, encode_value([kind, fields, time_us + number, raw, None, None, None]))
        space.put(b"\x02" + bytes([kind]) + suffix, None)
        space.put(b"\x05" + bytes(32) + suffix, None)
        space.put(b"\x06" + suffix, None)
        if kind == 6:
            space.put(b"\x03\x00\x07Thought" + suffix, None)
    assert contents(db.traces.query_by_type(run, "Thought")) == [Thought("hm"), Custom("Thought", 5)]
    assert contents(db.traces.query_by_type(run, Thought)) == [Thought("hm")]
    assert contents(db.traces.query_by_type(run, Custom)) == [Custom("Thought", 5)]


# --- What is not a type ---


@pytest.mark.parametrize("wrong", [[Thought], {}, {Thought}, bytearray(b"x"), [], 5, Thought("x"), int])
def test_what_is_no_trace_type_is_refused(do: Any, wrong: Any) -> None:
    for query in (do.traces.query_by_type, do.traces.query):
        with pytest.raises(InvalidArgumentError, match="a trace type is") as caught:
            query(wrong)
        assert caught.value.hint


@pytest.mark.parametrize("wrong", [[], {}, {1}, bytearray(b"x")])
def test_unhashable_arguments_are_refused(do: Any, wrong: Any) -> None:
    there = do.runs.create_run().run_id
    calls: list[Any] = [
        lambda: do.traces.record(wrong),
        lambda: do.traces.get(wrong),
        lambda: do.traces.query(tag=wrong),
        lambda: do.traces.query(tags=[wrong]),
        lambda: do.traces.query_by_tag(wrong),
        lambda: do.runs.query_runs(status=wrong),
        lambda: do.runs.query_runs(tag=wrong),
        lambda: do.runs.count(status=wrong),
        lambda: do.runs.update_status(there, wrong),
        lambda: do.runs.get_run(wrong),
        lambda: do.runs.add_tags(there, [wrong]),
        lambda: do.events.append(wrong, {}),
        lambda: do.events.read_by_type(wrong),
        lambda: do.cells.read(wrong),
        lambda: do.cells.init(wrong, 1),
        lambda: do.cells.transition(wrong, lambda state: (1, 1)),
        lambda: do.kv.get(wrong),
        lambda: do.kv.put(wrong, 1),
        lambda: do.kv.get_many([wrong]),
        lambda: do.kv.put_many([(wrong, 1)]),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert caught.value.hint, number


# --- Forms of `transition` ---


def add_one(state: Any) -> tuple[int, int]:
    return state.value + 1, state.value


def test_transition_takes_its_arguments_by_name(do: Any) -> None:
    do.cells.init("c", 1)
    assert do.cells.transition("c", add_one) == 1
    assert do.cells.transition("c", fn=add_one) == 2
    assert do.cells.transition(name="c", fn=add_one) == 3
    assert do.cells.transition(fn=add_one, name="c") == 4
    assert do.cells.read("c").value == 5


def test_transition_takes_the_run_by_name_too(db: Any, run: RunId) -> None:
    db.cells.init(run, "c", 1)
    assert db.cells.transition(run_id=run, name="c", fn=add_one) == 1


@pytest.mark.parametrize(
    ("args", "named", "what"),
    [
        (("c",), {}, "fn"),
        ((), {"name": "c"}, "fn"),
        ((), {"fn": add_one}, "name"),
        ((), {}, "name"),
        (("c", add_one, 3), {}, "too many"),
        (("c", add_one), {"name": "c"}, "name"),
        (("c", add_one), {"value": 3}, "value"),
        (("c", 5), {}, "function"),
        (("c", None), {}, "function"),
    ],
)
def test_a_wrong_form_of_transition_is_refused(do: Any, args: Any, named: Any, what: str) -> None:
    do.cells.init("c", 1)
    with pytest.raises(InvalidArgumentError, match=what) as caught:
        do.cells.transition(*args, **named)
    assert "transition(" in caught.value.hint
    assert do.cells.read("c").value == 1


def test_transition_without_a_run_says_that_the_run_comes_first(db: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        db.cells.transition("c", add_one)
    assert "run" in f"{caught.value.message} {caught.value.hint}"


# --- Ids ---

INEXACT = [
    "    " + ID.hex,
    ID.hex + "    ",
    ID.hex[:16] + "    " + ID.hex[16:],
    ID.hex[:-1] + "\n",
    ID.hex + "\n",
    str(ID) + "\n",
    "----" + ID.hex,
    ID.hex[:4] + "-" + ID.hex[4:16] + "---" + ID.hex[16:],
    "0x" + ID.hex[2:],
    "+" + ID.hex[1:],
    ID.hex[:3] + "_" + ID.hex[4:],
    ID.hex[:-1] + "٣",
    ID.hex[:-2] + "٣٤",
    str(ID).replace("-", "_"),
    str(ID)[:-1],
    ID.hex + "0",
]


@pytest.mark.parametrize("text", INEXACT)
def test_only_the_exact_text_of_an_id_is_one(do: Any, db: Any, text: str) -> None:
    calls: list[Any] = [
        lambda: do.traces.record_with_options(Thought("x"), id=text),
        lambda: do.traces.record_with_options(Thought("x"), parent_id=text),
        lambda: do.traces.get(text),
        lambda: do.traces.get_children(text),
        lambda: do.runs.get_run(text),
        lambda: do.runs.create_run_with_options(run_id=text),
        lambda: do.runs.create_run_with_options(parent=text),
        lambda: db.kv.put(text, "k", 1),
        lambda: db.begin(text),
        lambda: RunId.of(text),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError):
            call()
    assert do.traces.count() == 0


@pytest.mark.parametrize("text", [str(ID), ID.hex, str(ID).upper(), ID.hex.upper(), ID])
def test_every_exact_form_names_the_same(do: Any, db: Any, text: Any) -> None:
    assert do.traces.record_with_options(Thought("x"), id=text) == str(ID)
    assert do.traces.get(ID).id == do.traces.get(text).id
    assert RunId.of(text) == ID
    with pytest.raises(NotFoundError):
        do.runs.update_metadata(text, {})


@pytest.mark.parametrize("text", [f"{{{ID}}}", ID.urn])
def test_other_spellings_of_a_uuid_stay_run_ids(text: str) -> None:
    assert RunId.of(text) == ID
