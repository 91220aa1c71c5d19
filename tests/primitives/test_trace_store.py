"""TraceStore: recording, every query and index, trees, ids."""

import os
import random
import uuid
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from occamdb.engine.model.errors import (
    AlreadyExistsError,
    CorruptionError,
    InvalidArgumentError,
    NotFoundError,
    ValueEncodingError,
)
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.engine.model.values import encode_value
from occamdb.primitives import Custom, Decision, Error, Query, Thought, ToolCall, Trace, layout, trace_queries
from occamdb.primitives.trace_ids import new_id
from occamdb.primitives.trace_records import fetch_trace
from occamdb.primitives.trace_types import id_bytes, id_text

EXAMPLES = [
    ToolCall("search", {"q": "x", "n": [1, 2]}, {"hits": 3}, 12.5),
    Decision("which?", ("a", "b"), "a", "it is first"),
    Query("sql", "select 1", [[1]]),
    Thought("hm", 0.5),
    Error("Timeout", "no answer", False),
    Custom("mine", {"anything": [None, b"x"]}),
]


def ids(traces: list[Trace]) -> list[str]:
    return [trace.id for trace in traces]


@pytest.mark.parametrize("what", EXAMPLES, ids=lambda what: type(what).__name__)
def test_each_type_comes_back(do: Any, what: Any) -> None:
    trace = do.traces.get(do.traces.record(what))
    assert trace.trace_type == what
    assert trace.type_name == ("mine" if isinstance(what, Custom) else type(what).__name__)
    assert (trace.parent_id, trace.root_id) == (None, trace.id)
    assert trace.timestamp.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "what", [ToolCall("t"), Decision("q"), Query("q"), Thought("t"), Error("e"), Custom("c")]
)
def test_defaults_come_back(do: Any, what: Any) -> None:
    trace = do.traces.get(do.traces.record(what))
    assert trace.trace_type == what
    assert (trace.tags, trace.metadata) == ((), {})


def test_tags_and_metadata(do: Any) -> None:
    trace = do.traces.get(do.traces.record(Thought("x"), tags=["b", "a", "b"], metadata={"n": [1]}))
    assert trace.tags == ("b", "a")
    assert trace.metadata == {"n": [1]}


def test_tags_may_come_from_an_iterator(do: Any) -> None:
    trace = do.traces.get(do.traces.record(Thought("x"), tags=(tag for tag in "ab")))
    assert trace.tags == ("a", "b")


def test_get_of_an_absent_trace(do: Any) -> None:
    assert do.traces.get(uuid.uuid4()) is None
    assert do.traces.count() == 0
    assert do.traces.get_roots() == []


def test_traces_are_frozen(do: Any) -> None:
    trace = do.traces.get(do.traces.record(Thought("x")))
    with pytest.raises(AttributeError):
        trace.parent_id = "x"
    with pytest.raises(AttributeError):
        trace.trace_type.content = "y"


def test_children(do: Any) -> None:
    root = do.traces.record(Thought("root"))
    children = [do.traces.record_child(root, Thought(f"{n}")) for n in range(3)]
    grandchild = do.traces.record_child(children[1], Thought("deep"), tags=["t"], metadata={"a": 1})
    assert ids(do.traces.get_children(root)) == children
    assert ids(do.traces.get_children(root, limit=2)) == children[:2]
    assert ids(do.traces.get_children(children[1])) == [grandchild]
    assert do.traces.get_children(grandchild) == []
    assert ids(do.traces.get_roots()) == [root]
    assert do.traces.get(grandchild).root_id == root
    assert do.traces.count() == 5


def test_the_parent_must_exist(do: Any, db: Any, run: RunId) -> None:
    elsewhere = db.traces.record(RunId.new(), Thought("in another run"))
    for missing in (str(uuid.uuid4()), elsewhere):
        with pytest.raises(NotFoundError) as caught:
            do.traces.record_child(missing, Thought("x"))
        assert missing in caught.value.message and caught.value.hint
        with pytest.raises(NotFoundError):
            do.traces.record_with_options(Thought("x"), parent_id=missing)
    with pytest.raises(NotFoundError):
        do.traces.get_tree(uuid.uuid4())
    assert do.traces.get_children(uuid.uuid4()) == do.traces.query(parent_id=uuid.uuid4()) == []
    assert do.traces.count() == 0


def test_parent_and_child_in_one_transaction(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        root = txn.traces.record(Thought("a"))
        child = txn.traces.record_child(root, Thought("b"))
        assert [trace.id for _, trace in txn.traces.get_tree(root).walk()] == [root, child]
    assert db.traces.get(run, child).parent_id == root


def test_record_with_options(do: Any) -> None:
    own = uuid.uuid4()
    root = do.traces.record_with_options(Thought("a"), id=own, tags=("x",), metadata={"k": 1})
    assert root == str(own)
    child = do.traces.record_with_options(Thought("b"), parent_id=own)
    assert do.traces.get(child).parent_id == root
    assert do.traces.get(own) == do.traces.get(str(own)) == do.traces.get(own.hex)
    with pytest.raises(AlreadyExistsError):
        do.traces.record_with_options(Thought("c"), id=own)
    assert do.traces.count() == 2


def test_query_by_type(do: Any) -> None:
    recorded = [do.traces.record(what) for what in EXAMPLES for _ in range(2)]
    for at, what in enumerate(EXAMPLES):
        expected = recorded[2 * at : 2 * at + 2]
        assert ids(do.traces.query_by_type(type(what))) == expected
        assert ids(do.traces.query_by_type(type(what).__name__)) == expected
        assert ids(do.traces.query_by_type(type(what), limit=1)) == expected[:1]
        assert ids(do.traces.query_by_type(type(what), reverse=True)) == expected[::-1]


def test_custom_traces_by_their_names(do: Any) -> None:
    one, other = do.traces.record(Custom("one")), do.traces.record(Custom("other"))
    assert ids(do.traces.query_by_type("one")) == [one]
    assert ids(do.traces.query_by_type(Custom)) == [one, other]
    assert do.traces.query_by_type("none") == []


def test_query_by_tag(do: Any) -> None:
    a = do.traces.record(Thought("1"), tags=["a", "ab"])
    b = do.traces.record(Thought("2"), tags=["ab"])
    assert ids(do.traces.query_by_tag("a")) == [a]
    assert ids(do.traces.query_by_tag("ab")) == [a, b]
    assert ids(do.traces.query_by_tag("ab", limit=1, reverse=True)) == [b]
    assert do.traces.query_by_tag("abc") == []


def test_query_by_time(do: Any) -> None:
    recorded = []
    for n in range(5):
        recorded.append(do.traces.get(do.traces.record(Thought(str(n)))))
        while datetime.now(UTC) <= recorded[-1].timestamp:
            pass
    times = [trace.timestamp for trace in recorded]
    assert do.traces.query_by_time() == recorded
    assert do.traces.query_by_time(times[1], times[3]) == recorded[1:3]
    assert do.traces.query_by_time(times[3]) == recorded[3:]
    assert do.traces.query_by_time(end=times[2]) == recorded[:2]
    assert do.traces.query_by_time(end=times[2], reverse=True, limit=1) == [recorded[1]]
    assert do.traces.query_by_time(times[3], times[1]) == []


def test_queries_combine_all_filters(do: Any) -> None:
    root = do.traces.record(Thought("root"))
    wanted = do.traces.record_child(root, ToolCall("t"), tags=["x", "y"])
    do.traces.record_child(root, ToolCall("t"), tags=["x"])
    do.traces.record_child(root, Thought("t"), tags=["x", "y"])
    do.traces.record(ToolCall("t"), tags=["x", "y"])
    when = do.traces.get(wanted).timestamp
    soon = when + timedelta(hours=1)
    found = do.traces.query(ToolCall, tags=["x", "y"], parent_id=root, start=when, end=soon)
    assert ids(found) == [wanted]
    assert ids(do.traces.query(ToolCall, tag="x", tags=["y"], parent_id=root)) == [wanted]
    assert do.traces.query(ToolCall, tags=["x", "y"], parent_id=root, start=soon) == []
    assert len(do.traces.query()) == 5
    assert len(do.traces.query(tag="x", limit=3)) == 3
    assert len(do.traces.query(ToolCall, tag="x", limit=2)) == 2
    assert do.traces.query(ToolCall, tag="x", limit=0) == []


@pytest.mark.parametrize("common", ["type", "tag"])
def test_the_planner_reads_the_short_index(
    db: Any, run: RunId, common: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever filter is rare, the answer is the same, and only as many records are read as the rare one has."""

    def fill(txn: Any) -> None:
        for n in range(300):
            rare = n % 100 == 0
            what = ToolCall("t") if rare and common == "tag" else Thought("t")
            txn.traces.record(what, tags=["x"] if common == "tag" or rare else [])
        txn.traces.record(ToolCall("both"), tags=["x"])

    db.transaction(run, fill)
    trace_type = ToolCall if common == "tag" else Thought
    reads = []

    def counted(space: Any, raw: bytes) -> bytes:
        reads.append(raw)
        return fetch_trace(space, raw)

    monkeypatch.setattr(trace_queries, "fetch_trace", counted)
    with db.begin(run) as txn:
        found = txn.traces.query(trace_type, tag="x")
    assert len(found) == (4 if common == "tag" else 3)
    assert len(reads) == 4


# --- Trees ---


def test_get_tree(do: Any) -> None:
    root = do.traces.record(Thought("root"))
    left, right = (do.traces.record_child(root, Thought(name)) for name in ("left", "right"))
    leaf = do.traces.record_child(left, Thought("leaf"))
    do.traces.record(Thought("another root"))
    tree = do.traces.get_tree(root)
    assert tree.trace.id == root
    assert [child.trace.id for child in tree.children] == [left, right]
    assert [(depth, trace.id) for depth, trace in tree.walk()] == [
        (0, root),
        (1, left),
        (2, leaf),
        (1, right),
    ]
    assert tree.size == 4
    branch = do.traces.get_tree(left)
    assert [(depth, trace.id) for depth, trace in branch.walk()] == [(0, left), (1, leaf)]
    assert do.traces.get_tree(leaf).size == 1


@pytest.mark.not_on(
    "etcd", "a commit has at most --max-txn-ops operations, 10,000 on the server of the tests"
)
def test_a_tree_deeper_than_the_recursion_limit(db: Any, run: RunId) -> None:
    def chain(txn: Any) -> tuple[str, str]:
        root = parent = txn.traces.record(Thought("0"))
        first = ""
        for n in range(1, 3000):
            parent = txn.traces.record_child(parent, Thought(str(n)))
            first = first or parent
        return root, first

    root, first = db.transaction(run, chain)
    assert [trace.trace_type.content for _, trace in db.traces.get_tree(run, root).walk()] == [
        str(n) for n in range(3000)
    ]
    assert db.traces.get_tree(run, first).size == 2999
    assert " 1 child>" in repr(db.traces.get_tree(run, root))


# --- What is refused ---


@pytest.mark.parametrize("bad", ["", "x", "0" * 31, "z" * 32, 5, None, uuid.UUID(int=0), b"x" * 16])
def test_a_wrong_id_is_refused(do: Any, bad: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        do.traces.get(bad)
    with pytest.raises(InvalidArgumentError):
        do.traces.record_child(bad, Thought("x"))


def test_wrong_arguments_are_refused(do: Any) -> None:
    calls: list[Any] = [
        lambda: do.traces.record("ToolCall"),
        lambda: do.traces.record(Thought),
        lambda: do.traces.record(Thought("x"), tags="abc"),
        lambda: do.traces.record(Thought("x"), tags=[5]),
        lambda: do.traces.record(Thought("x"), tags=5),
        lambda: do.traces.record(Thought("x"), tags=["\ud800"]),
        lambda: do.traces.record(Thought("x"), tags=[""]),
        lambda: do.traces.record(Thought("x"), metadata=[1]),
        lambda: do.traces.record(Custom("")),
        lambda: do.traces.query_by_type(5),
        lambda: do.traces.query_by_type(int),
        lambda: do.traces.query_by_time("yesterday"),
        lambda: do.traces.query_by_time(datetime(2024, 1, 1)),
        lambda: do.traces.query(tag="x", limit=-1),
        lambda: do.traces.query(tag="x", limit="3"),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as caught:
            call()
        assert caught.value.hint
    with pytest.raises(ValueEncodingError) as unstorable:
        do.traces.record(ToolCall("t", {"a": [{1, 2}]}))
    assert unstorable.value.path == 'args["a"][0]'
    assert unstorable.value.message.startswith('args["a"][0]: ')
    with pytest.raises(ValueEncodingError) as unstorable:
        do.traces.record(Thought("t"), metadata={"a": object()})
    assert unstorable.value.path == 'metadata["a"]'
    assert do.traces.count() == 0


@pytest.mark.parametrize("junk", [[99], b"", b"\xc1", None, 5, encode_value([1]), encode_value([0] * 7)])
def test_an_unreadable_record_is_corruption(db: Any, run: RunId, junk: Any) -> None:
    trace_id = db.traces.record(run, Thought("x"))
    with db.begin(run) as txn:
        txn.space(TypeTag.TRACE, raw=True).put(layout.trace(id_bytes(trace_id)), junk)
    if junk is not None:
        with pytest.raises(CorruptionError):
            db.traces.get(run, trace_id)
    with pytest.raises(CorruptionError):
        db.traces.query_by_type(run, Thought)


# --- Indices and ids ---


def test_every_index_entry_is_in_the_traces_own_transaction(db: Any, run: RunId) -> None:
    txn = db.begin(run)
    root = txn.traces.record(Thought("x"), tags=["a", "b"])
    txn.traces.record_child(root, Custom("c"), tags=["a"])
    assert txn.space(TypeTag.TRACE, raw=True).count() == 6 + 6
    txn.abort()
    assert db.space(run, TypeTag.TRACE, raw=True).count() == 0


def test_ids_are_time_ordered_uuids() -> None:
    made = [new_id(time_us) for time_us in (0, 1, 999, 1000, 1001, 1_700_000_000_000_000) for _ in range(50)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {uuid.UUID(bytes=raw).version for raw in made} == {7}
    assert {uuid.UUID(bytes=raw).variant for raw in made} == {uuid.RFC_4122}
    assert [id_bytes(id_text(raw)) for raw in made] == made


def test_ids_do_not_depend_on_the_users_random_seed() -> None:
    made = set()
    for _ in range(50):
        random.seed(7)
        made.add(new_id(1_700_000_000_000_000)[-5:])
    assert len(made) == 50


def test_ids_of_forked_processes_differ() -> None:
    """Both sides of a fork make ids at the same clock reading with the same count."""
    new_id(5)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that this process has threads
        pid = os.fork()
    if pid == 0:
        os.write(writer, b"".join(new_id(5) for _ in range(20)))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(pid, 0)
    assert len(theirs) == 20 * 16
    assert not {theirs[at : at + 16] for at in range(0, len(theirs), 16)} & {new_id(5) for _ in range(20)}


def test_recorded_ids_sort_in_the_order_of_recording(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        recorded = [txn.traces.record(Thought(str(n))) for n in range(100)]
    recorded += [db.traces.record(run, Thought("later"))]
    assert recorded == sorted(recorded) == ids(db.traces.query(run))
