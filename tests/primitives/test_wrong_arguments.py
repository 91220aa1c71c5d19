"""Wrong arguments to a primitive: an error of occamdb's own that says what to do, and nothing written."""

from typing import Any

import pytest

from occamdb.engine.model.errors import InvalidArgumentError, OccamError, ValueEncodingError
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Custom, Decision, Error, Thought


@pytest.mark.parametrize("options", [None, 5, 1.5, True, "yes", {"a": 1}, {1, 2}])
def test_the_options_of_a_decision_are_a_list(do: Any, options: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="options are a list") as caught:
        do.traces.record(Decision("q", options=options))
    assert caught.value.hint
    assert do.traces.count() == 0


def test_the_options_of_a_decision_come_back_as_they_were(do: Any) -> None:
    for options in (["a", ["b"]], ("a", ["b"]), []):
        found = do.traces.get(do.traces.record(Decision("q", options=options)))
        assert found.trace_type.options == options


@pytest.mark.parametrize(
    "answer", ["on", {"phase": 1, "step": 2}, None, (1,), (1, 2, 3), [1, 2], "o", b"on"], ids=repr
)
def test_a_transition_returns_a_tuple_of_two(do: Any, answer: Any) -> None:
    do.cells.init("c", "idle")
    with pytest.raises(InvalidArgumentError, match="tuple") as caught:
        do.cells.transition("c", lambda state: answer)
    assert caught.value.hint
    assert do.cells.read("c").value == "idle"


async def _lazy(state: Any) -> Any:
    return 1, 2


@pytest.mark.parametrize("fn", [None, 5, _lazy])
def test_a_transition_takes_a_plain_function(do: Any, fn: Any) -> None:
    do.cells.init("c", "idle")
    with pytest.raises(InvalidArgumentError):
        do.cells.transition("c", fn)


def test_kv_transaction_takes_a_plain_function(db: Any, run: RunId) -> None:
    for fn in (None, _lazy):
        with pytest.raises(InvalidArgumentError):
            db.kv.transaction(run, fn)


def test_no_trace_no_type_and_no_run_are_not_every_one(do: Any) -> None:
    do.traces.record(Thought("root"))
    do.runs.create_run("r")
    with pytest.raises(InvalidArgumentError):
        do.traces.get_children(None)
    with pytest.raises(InvalidArgumentError):
        do.traces.query_by_type(None)
    with pytest.raises(OccamError):
        do.runs.get_child_runs(None)
    assert do.traces.get_children(RunId.new()) == []


@pytest.mark.parametrize("tag", [5, b"a", None])
def test_tags_and_names_are_text(do: Any, tag: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        do.traces.query_by_tag(tag)
    assert caught.value.hint
    with pytest.raises(InvalidArgumentError):
        do.traces.record(Custom(tag))
    if tag is not None:
        with pytest.raises(InvalidArgumentError):
            do.runs.query_runs(tag=tag)
        with pytest.raises(InvalidArgumentError):
            do.traces.query(tag=tag)


@pytest.mark.parametrize("items", [None, 5, "ab", [("a",)], [("a", 1, 2)], ["ab"], [5]], ids=repr)
def test_several_are_pairs(do: Any, items: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="put_many takes pairs"):
        do.kv.put_many(items)
    with pytest.raises(InvalidArgumentError, match="append_many takes pairs"):
        do.events.append_many(items)
    assert do.events.len() == 0


@pytest.mark.parametrize("keys", [None, 5, "ab", b"ab"])
def test_get_many_takes_several_keys(do: Any, keys: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="several keys"):
        do.kv.get_many(keys)


def test_a_run_that_cannot_be_stored_says_where(do: Any) -> None:
    with pytest.raises(ValueEncodingError) as caught:
        do.runs.create_run_with_options("n", metadata={"a": {"b": object()}})
    assert caught.value.path == 'metadata["a"]["b"]'
    with pytest.raises(ValueEncodingError) as caught:
        do.runs.create_run("\ud800")
    assert caught.value.path == "name"
    run_id = do.runs.create_run("good").run_id
    with pytest.raises(ValueEncodingError) as caught:
        do.runs.fail_run(run_id, "\ud800")
    assert caught.value.path == "error"


def test_an_error_that_is_caught_inside_leaves_nothing_to_commit(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        with pytest.raises(ValueEncodingError):
            txn.runs.create_run_with_options("n", tags=["t"], metadata={"a": object()})
        with pytest.raises(ValueEncodingError):
            txn.events.append_many([("a", {}), ("b", {"bad": object()})])
        with pytest.raises(ValueEncodingError):
            txn.traces.record(Error("e", message=object()), tags=["t"])  # type: ignore[arg-type]
    assert db.runs.list_runs() == [] and db.runs.query_runs(tag="t") == []
    assert db.events.len(run) == 0 and db.events.read_by_type(run, "a") == []
    assert db.events.verify_chain(run).is_valid
    assert db.traces.count(run) == 0 and db.traces.query_by_tag(run, "t") == []
