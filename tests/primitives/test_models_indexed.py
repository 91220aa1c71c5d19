"""TraceStore and RunIndex, the two with indices, against plain models, in and out of transactions."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from occamdb.engine.model.errors import InvalidTransition
from occamdb.engine.model.public_types import RunId
from occamdb.primitives import Custom, Error, RunStatus, Thought, ToolCall
from tests.primitives.test_run_index import ALLOWED
from tests.support.engines import Engine
from tests.support.state_machines import Machine, run_machine

tags = st.lists(st.sampled_from(["x", "y", "xy"]), max_size=3, unique=True)
a_tag = st.sampled_from(["x", "y", "xy", "none"])
picks = st.integers(0, 10**6)
trace_types = st.sampled_from(
    [Thought("t"), ToolCall("t", {"a": 1}), Error("e"), Custom("one"), Custom("two")]
)
type_names = st.sampled_from(["Thought", "ToolCall", "Error", "Custom", "one", "two", "Query"])
limits = st.none() | st.integers(0, 4)


@dataclass
class TraceModel:
    parent: str | None
    what: Any
    tags: list[str]

    def is_a(self, name: str) -> bool:
        return name == type(self.what).__name__ or (isinstance(self.what, Custom) and self.what.name == name)


class TraceMachine(Machine):
    """The model is a dict by id in the order of recording, which is the order of time."""

    primitive = "traces"

    def empty_model(self) -> dict[str, TraceModel]:
        return {}

    def some_id(self, pick: int) -> str | None:
        return list(self.model)[pick % len(self.model)] if self.model else None

    def matching(self, **wanted: Any) -> list[str]:
        return [
            trace_id
            for trace_id, trace in self.model.items()
            if ("name" not in wanted or trace.is_a(wanted["name"]))
            and ("tag" not in wanted or wanted["tag"] in trace.tags)
            and ("parent" not in wanted or trace.parent == wanted["parent"])
        ]

    @rule(what=trace_types, labels=tags, pick=st.none() | picks)
    def record(self, what: Any, labels: list[str], pick: int | None) -> None:
        parent = None if pick is None else self.some_id(pick)
        if parent is None:
            trace_id = self.call("record", what, tags=labels)
        else:
            trace_id = self.call("record_child", parent, what, tags=labels)
        assert trace_id not in self.model
        self.model[trace_id] = TraceModel(parent, what, labels)

    @rule(pick=picks)
    def get(self, pick: int) -> None:
        trace_id = self.some_id(pick)
        if trace_id is not None:
            trace, expected = self.call("get", trace_id), self.model[trace_id]
            assert (trace.id, trace.parent_id, trace.trace_type) == (trace_id, expected.parent, expected.what)
            assert list(trace.tags) == expected.tags

    @rule(name=type_names, tag=a_tag, limit=limits, reverse=st.booleans())
    def query_one(self, name: str, tag: str, limit: int | None, reverse: bool) -> None:
        for method, argument, wanted in (
            ("query_by_type", name, {"name": name}),
            ("query_by_tag", tag, {"tag": tag}),
        ):
            expected = self.matching(**wanted)
            expected = expected[::-1] if reverse else expected
            found = self.call(method, argument, limit=limit, reverse=reverse)
            assert [trace.id for trace in found] == expected[:limit]

    @precondition(lambda self: self.model)
    @rule(name=type_names, tag=a_tag, pick=picks, limit=limits)
    def query_all(self, name: str, tag: str, pick: int, limit: int | None) -> None:
        parent = self.some_id(pick)
        found = self.call("query", name, tag=tag, parent_id=parent, limit=limit)
        assert [trace.id for trace in found] == self.matching(name=name, tag=tag, parent=parent)[:limit]
        found = self.call("query", name, tags=[tag], limit=limit)
        assert [trace.id for trace in found] == self.matching(name=name, tag=tag)[:limit]

    @precondition(lambda self: self.model)
    @rule(first=picks, last=picks)
    def query_time(self, first: int, last: int) -> None:
        start, end = (self.call("get", self.some_id(pick)).timestamp for pick in (first, last))
        times = {trace_id: self.call("get", trace_id).timestamp for trace_id in self.model}
        found = self.call("query_by_time", start, end)
        assert [trace.id for trace in found] == [each for each, time in times.items() if start <= time < end]

    @rule(pick=picks)
    def tree(self, pick: int) -> None:
        assert [trace.id for trace in self.call("get_roots")] == self.matching(parent=None)
        assert self.call("count") == len(self.model)
        trace_id = self.some_id(pick)
        if trace_id is not None:
            found = [(depth, trace.id) for depth, trace in self.call("get_tree", trace_id).walk()]
            assert found == self.expected_tree(trace_id, 0)
            children = [trace.id for trace in self.call("get_children", trace_id)]
            assert children == self.matching(parent=trace_id)

    def expected_tree(self, trace_id: str, depth: int) -> list[tuple[int, str]]:
        below = [self.expected_tree(child, depth + 1) for child in self.matching(parent=trace_id)]
        return [(depth, trace_id), *(item for part in below for item in part)]

    def check_all(self) -> None:
        assert [trace.id for trace in self.db.traces.query(self.run_id)] == list(self.committed)


@dataclass
class RunModel:
    parent: RunId | None
    status: str = "active"
    tags: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


class RunMachine(Machine):
    """The model is a dict by id in the order of creation, and what data each run has."""

    primitive = "runs"

    def empty_model(self) -> dict[RunId, RunModel]:
        return {}

    def some_id(self, pick: int) -> RunId:
        known: RunId = list(self.model)[pick % len(self.model)]
        return known

    @rule(labels=tags, pick=st.none() | picks)
    def create(self, labels: list[str], pick: int | None) -> None:
        parent = None if pick is None or not self.model else self.some_id(pick)
        created = self.call("create_run_with_options", "n", parent=parent, tags=labels)
        self.model[created.run_id] = RunModel(parent, tags=labels)

    @precondition(lambda self: self.model)
    @rule(pick=picks, status=st.sampled_from(RunStatus))
    def change_status(self, pick: int, status: RunStatus) -> None:
        run_id = self.some_id(pick)
        if (self.model[run_id].status, status.value) in ALLOWED:
            assert self.call("update_status", run_id, status).status is status
            self.model[run_id].status = status.value
            return
        with pytest.raises(InvalidTransition):
            self.call("update_status", run_id, status)

    @precondition(lambda self: self.model)
    @rule(pick=picks, labels=tags, add=st.booleans())
    def change_tags(self, pick: int, labels: list[str], add: bool) -> None:
        run_id = self.some_id(pick)
        old = self.model[run_id].tags
        new = (
            old + [tag for tag in labels if tag not in old]
            if add
            else [tag for tag in old if tag not in labels]
        )
        assert list(self.call("add_tags" if add else "remove_tags", run_id, labels).tags) == new
        self.model[run_id].tags = new

    @precondition(lambda self: self.model)
    @rule(pick=picks, metadata=st.dictionaries(a_tag, st.integers(0, 3), max_size=2), replace=st.booleans())
    def change_metadata(self, pick: int, metadata: dict[str, int], replace: bool) -> None:
        run_id = self.some_id(pick)
        new = metadata if replace else {**self.model[run_id].metadata, **metadata}
        assert self.call("update_metadata", run_id, metadata, replace=replace).metadata == new
        self.model[run_id].metadata = new

    @precondition(lambda self: self.model)
    @rule(pick=picks, cascade=st.booleans())
    def delete(self, pick: int, cascade: bool) -> None:
        run_id = self.some_id(pick)
        doomed = self.descendants(run_id) if cascade else {run_id}
        assert self.call("delete_run", run_id, cascade=cascade) == len(doomed)
        for each in doomed:
            del self.model[each]
        for run in self.model.values():
            run.parent = None if run.parent == run_id else run.parent

    def descendants(self, run_id: RunId) -> set[RunId]:
        found = {run_id}
        for each, run in self.model.items():  # parents come before their children
            if run.parent in found:
                found.add(each)
        return found

    @rule(
        status=st.none() | st.sampled_from(RunStatus),
        tag=st.none() | a_tag,
        pick=st.none() | picks,
        limit=limits,
    )
    def query(self, status: RunStatus | None, tag: str | None, pick: int | None, limit: int | None) -> None:
        parent = None if pick is None or not self.model else self.some_id(pick)
        expected = [
            run_id
            for run_id, run in self.model.items()
            if (status is None or run.status == status)
            and (tag is None or tag in run.tags)
            and (parent is None or run.parent == parent)
        ]
        found = self.call("query_runs", status=status, tag=tag, parent=parent, limit=limit)
        assert [run.run_id for run in found] == expected[:limit]

    @precondition(lambda self: self.model)
    @rule(pick=picks)
    def get(self, pick: int) -> None:
        run_id = self.some_id(pick)
        found, expected = self.call("get_run", run_id), self.model[run_id]
        assert (found.status, list(found.tags), found.metadata, found.parent_run_id) == (
            expected.status,
            expected.tags,
            expected.metadata,
            expected.parent,
        )
        children = [each for each, run in self.model.items() if run.parent == run_id]
        assert [run.run_id for run in self.call("get_child_runs", run_id)] == children

    def check_all(self) -> None:
        assert [run.run_id for run in self.db.runs.list_runs()] == list(self.committed)
        assert self.db.runs.count() == len(self.committed)


@pytest.mark.by_default("memory")
@pytest.mark.parametrize("machine", [TraceMachine, RunMachine])
def test_any_sequence_of_calls_agrees_with_the_model(machine: type[Machine], engine: Engine) -> None:
    run_machine(machine, engine)
