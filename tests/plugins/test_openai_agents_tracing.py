"""Traces of the OpenAI Agents SDK: what its agents report is a tree in the database, also if they are killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    Runner,
    add_trace_processor,
    custom_span,
    function_tool,
    generation_span,
    set_trace_processors,
    trace,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tracing import function_span, guardrail_span
from agents.tracing.processor_interface import TracingProcessor

import occamdb
from occamdb import Custom, Database, RunId, RunStatus, ToolCall, TraceTree
from occamdb.plugins.openai_agents import OccamSession, OccamTracing
from tests.support.processes import Peer, Worker
from tests.support.shell import Shell

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def db() -> Iterator[Database]:
    with occamdb.open_in_memory() as database:
        yield database


@pytest.fixture
def tracing(db: Database) -> Iterator[OccamTracing]:
    """The processor that all traces of the test go to."""
    processor = OccamTracing(db)
    set_trace_processors([processor])
    yield processor
    set_trace_processors([])
    processor.shutdown()


def an_agent() -> Agent[Any]:
    @function_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        with custom_span("lookup", {"city": city}):
            return f"rain in {city}"

    call = [function_call("weather", {"city": "Oslo"}, call_id="c1")]
    model = ScriptedModel([call, [assistant_message("Rain.")]], emit_traces=True)
    return Agent(name="Ada", model=model, tools=[weather])


def the_tree(db: Database) -> TraceTree:
    """The only tree of the only trace."""
    (run,) = db.runs.query_runs(tag="openai-trace")
    (root,) = db.traces.get_roots(run)
    return db.traces.get_tree(run, root.id)


def outline(tree: TraceTree) -> Any:
    """The types of a tree: a name, or a name with what is below it."""
    name = tree.trace.type_name
    return name if not tree.children else {name: [outline(child) for child in tree.children]}


def named(db: Database, name: str) -> Any:
    """The only record of a type."""
    (run,) = db.runs.query_runs(tag="openai-trace")
    (found,) = db.traces.query_by_type(run, name)
    return found


# --- Agents ---

OUTLINE = {
    "workflow": [
        {
            "task": [
                {
                    "agent": [
                        {"turn": ["generation", {"ToolCall": ["lookup"]}]},
                        {"turn": ["generation"]},
                    ]
                }
            ]
        }
    ]
}


async def test_a_run_of_an_agent_is_a_tree(db: Database, tracing: OccamTracing) -> None:
    with trace("Weather", group_id="conversation 7", metadata={"user": "ada"}) as current:
        await Runner.run(an_agent(), "How is it in Oslo?", session=OccamSession(db, "conversation 7"))
    tracing.force_flush()
    tree = the_tree(db)
    assert outline(tree) == OUTLINE
    assert all(each.status == "completed" and each.duration_ms is not None for _, each in tree.walk())

    (run,) = db.runs.query_runs(tag="openai-group/conversation 7")
    assert run.run_id == tracing.run_of(current.trace_id)
    assert run.status is RunStatus.COMPLETED
    assert run.metadata == {
        "id": current.trace_id,
        "workflow_name": "Weather",
        "group_id": "conversation 7",
        "metadata": {"user": "ada"},
    }
    call = named(db, "ToolCall")
    assert call.trace_type.tool == "weather"
    assert call.result == {"input": '{"city":"Oslo"}', "output": "rain in Oslo"}
    assert call.metadata["span_id"].startswith("span_") and call.metadata["started_at"]
    assert named(db, "lookup").trace_type == Custom("lookup", {"city": "Oslo"})
    assert named(db, "agent").trace_type.data["name"] == "Ada"


def run_an_agent(peer: Peer, path: str) -> None:
    set_trace_processors([tracing := OccamTracing(path)])
    asyncio.run(Runner.run(an_agent(), "How is it in Oslo?"))
    tracing.shutdown()


def test_the_command_shows_the_tree_of_another_process(
    database_path: Path, start: Callable[..., Worker], capsys: pytest.CaptureFixture[str]
) -> None:
    with occamdb.open(database_path) as db:
        start(run_an_agent, str(database_path), method="spawn").result()
        shell = Shell(database_path, capsys)
        (run,) = shell.lines("runs", "DB", "--tag", "openai-trace", "--json")
        assert run["name"].startswith("openai-trace/trace_") and run["status"] == "completed"
        lines = shell("traces", "DB", run["run_id"], "--tree").splitlines()
        assert [line.split("\t")[0].split("(")[0].split(" {")[0] for line in lines] == [
            "workflow",
            "└── task",
            "    └── agent",
            "        ├── turn",
            "        │   ├── generation",
            "        │   └── ToolCall weather",
            "        │       └── lookup",
            "        └── turn",
            "            └── generation",
        ]
        assert outline(the_tree(db)) == OUTLINE


async def test_agents_at_once_have_trees_of_their_own(db: Database, tracing: OccamTracing) -> None:
    await asyncio.gather(*(Runner.run(an_agent(), str(number)) for number in range(10)))
    tracing.force_flush()
    runs = db.runs.query_runs(tag="openai-trace", status="completed")
    assert len(runs) == 10
    for run in runs:
        (root,) = db.traces.get_roots(run)
        assert outline(db.traces.get_tree(run, root.id)) == OUTLINE


async def test_a_tool_that_fails(db: Database, tracing: OccamTracing) -> None:
    @function_tool(failure_error_function=None)
    def broken() -> str:
        """It does not work."""
        raise OSError("no such file")

    model = ScriptedModel([[function_call("broken", {}, call_id="c1")]])
    with pytest.raises(Exception, match="no such file"):
        await Runner.run(Agent(name="Ada", model=model, tools=[broken]), "Try")
    tracing.force_flush()
    call = named(db, "ToolCall")
    assert call.status == "failed" and "no such file" in call.error
    assert all(not each.is_open for _, each in the_tree(db).walk())


# --- Open, killed, forked ---


def test_a_span_is_open_until_it_ends(db: Database, tracing: OccamTracing) -> None:
    with trace("Work") as current, generation_span(model="m1", input=[{"role": "user"}]) as span:
        tracing.force_flush()
        assert [each.status for _, each in the_tree(db).walk()] == ["open", "open"]
        assert db.runs.get_run(tracing.run_of(current.trace_id)).status is RunStatus.ACTIVE  # type: ignore[union-attr]
        span.span_data.output = [{"role": "assistant"}]
    tracing.force_flush()
    assert [each.status for _, each in the_tree(db).walk()] == ["completed", "completed"]
    ended = named(db, "generation")
    assert ended.trace_type.data == {"model": "m1", "input": [{"role": "user"}]}
    assert ended.result == {"output": [{"role": "assistant"}]}, (
        "what was said at the beginning is not repeated"
    )


def stop_in_a_tool(peer: Peer, path: str) -> None:
    set_trace_processors([tracing := OccamTracing(path)])
    with trace("Work"), function_span("slow"), custom_span("deep"):
        tracing.force_flush()
        peer.say("working")
        peer.hear()


def test_a_killed_process_leaves_its_spans_open(database_path: Path, start: Callable[..., Worker]) -> None:
    with occamdb.open(database_path) as db:
        worker = start(stop_in_a_tool, str(database_path))
        assert worker.hear() == "working"
        os.kill(worker.pid, signal.SIGKILL)
        worker.process.join(60)
        assert outline(the_tree(db)) == {"workflow": [{"ToolCall": ["deep"]}]}
        assert [each.status for _, each in the_tree(db).walk()] == ["open"] * 3


def test_a_program_that_ends_writes_what_is_left(tmp_path: Path, database_path: Path) -> None:
    """The SDK shuts its processors down at the end of the process."""
    program = """
        import sys
        from agents import set_trace_processors, trace, custom_span
        from occamdb.plugins.openai_agents import OccamTracing

        set_trace_processors([OccamTracing(sys.argv[1])])
        with trace("Work"):
            for number in range(500):
                with custom_span(f"step {number}"):
                    pass
        """
    with occamdb.open(database_path) as db:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-c", textwrap.dedent(program), str(database_path)]
        subprocess.run(command, env=environment, check=True, timeout=120)
        tree = the_tree(db)
        assert [child.trace.type_name for child in tree.children] == [f"step {n}" for n in range(500)]
        assert all(each.status == "completed" for _, each in tree.walk())


def test_a_forked_child_writes_its_own_steps_alone(database_path: Path) -> None:
    with occamdb.open(database_path) as db:
        tracing = OccamTracing(db)
        set_trace_processors([tracing])
        try:
            with trace("Parent") as parent:
                pid = os.fork()
                if pid == 0:
                    with trace("Child"):
                        pass
                    tracing.force_flush()
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
            tracing.force_flush()
            runs = db.runs.query_runs(tag="openai-trace")
            assert sorted(run.metadata["workflow_name"] for run in runs) == ["Child", "Parent"]
            assert len(db.traces.get_roots(tracing.run_of(parent.trace_id))) == 1
        finally:
            set_trace_processors([])
            tracing.shutdown()


# --- Odd reports ---


class Odd:
    """Something that is not plain data."""

    def __repr__(self) -> str:
        return "an odd thing"


def test_anything_that_a_span_says_is_stored_as_plain_data(db: Database, tracing: OccamTracing) -> None:
    data: dict[Any, Any] = {
        "odd": Odd(),
        7: (1, 2),
        "big": 1 << 70,
        "lone": "\ud800",
        "bytes": b"x",
        "nested": [{"a": {1, 2}}],
        "float": 1.5,
    }
    with trace("Odd"):
        with custom_span("odd", data):
            pass
        with guardrail_span("polite") as guard:
            guard.span_data.triggered = True
            guard.set_error({"message": "refused", "data": {"odd": Odd()}})
    tracing.force_flush()
    assert named(db, "odd").trace_type.data == {
        "odd": "an odd thing",
        "7": [1, 2],
        "big": str(1 << 70),
        "lone": "?",
        "bytes": "b'x'",
        "nested": [{"a": "{1, 2}"}],
        "float": 1.5,
    }
    guardrail = named(db, "guardrail")
    assert guardrail.error == 'refused {"odd": "an odd thing"}' and guardrail.result == {"triggered": True}


def test_a_trace_that_goes_on_is_written_to_the_same_run(db: Database, tracing: OccamTracing) -> None:
    trace_id = "trace_" + "0" * 32
    for name in ("first", "second"):
        with trace("Work", trace_id=trace_id), custom_span(name):
            pass
    tracing.force_flush()
    run = tracing.run_of(trace_id)
    roots = db.traces.get_roots(run)
    below = [outline(db.traces.get_tree(run, root.id)) for root in roots]
    assert below == [{"workflow": ["first"]}, {"workflow": ["second"]}]


def test_spans_end_in_any_order(db: Database, tracing: OccamTracing) -> None:
    with trace("Work"):
        outer = custom_span("outer")
        outer.start(mark_as_current=True)
        inner = custom_span("inner")
        inner.start()
        outer.finish(reset_current=True)
    inner.finish()  # after its trace
    inner.finish()
    tracing.force_flush()
    assert outline(the_tree(db)) == {"workflow": [{"outer": ["inner"]}]}
    assert all(each.status == "completed" for _, each in the_tree(db).walk())
    assert tracing._trees == {}, "nothing is kept of traces that have ended"


# --- What must not disturb an agent ---


class Gate:
    """A database whose transactions wait at a gate, as they do while a coordinator is stopped."""

    def __init__(self, tracing: OccamTracing, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.waits = threading.Event(), threading.Event()
        inner = tracing._write_together

        def write(batch: Any) -> None:
            self.waits.set()
            assert self.gate.wait(60)
            inner(batch)

        monkeypatch.setattr(tracing, "_write_together", write)


async def test_an_agent_does_not_wait_for_its_traces(
    db: Database, tracing: OccamTracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tracing, monkeypatch)
    await Runner.run(an_agent(), "How is it in Oslo?")
    assert gate.waits.wait(60) and db.runs.list_runs() == []
    gate.gate.set()
    tracing.force_flush()
    assert outline(the_tree(db)) == OUTLINE


def test_new_spans_are_left_out_while_too_much_waits(
    db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracing = OccamTracing(db, pending_max=10)
    gate = Gate(tracing, monkeypatch)
    set_trace_processors([tracing])
    with trace("Much"):
        assert gate.waits.wait(60)
        for number in range(100):
            with custom_span(f"step {number}"), custom_span("below"):
                pass
    assert "10 steps wait to be written" in caplog.text
    gate.gate.set()
    tracing.force_flush()
    with trace("Later"):
        pass
    tracing.force_flush()
    trees = [
        outline(db.traces.get_tree(run, root.id))
        for run in db.runs.query_runs(tag="openai-trace", status="completed")
        for root in db.traces.get_roots(run)
    ]
    assert trees[1] == "workflow" and 1 <= len(trees[0]["workflow"]) < 100
    set_trace_processors([])
    tracing.shutdown()


async def test_an_agent_goes_on_when_the_database_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    db = occamdb.open_in_memory()
    tracing = OccamTracing(db)
    set_trace_processors([tracing])
    db.close()
    result = await Runner.run(an_agent(), "How is it in Oslo?")
    assert result.final_output == "Rain."
    tracing.force_flush()
    assert "were not written" in caplog.text
    set_trace_processors([])
    tracing.shutdown()


def test_a_step_that_cannot_be_written_is_left_out_alone(
    database_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with occamdb.open(database_path, value_size_max="64KiB") as db:
        tracing = OccamTracing(db)
        set_trace_processors([tracing])
        with trace("Work"):
            with custom_span("large", {"text": "x" * 100_000}), custom_span("below"):
                pass
            with custom_span("small"):
                pass
        tracing.force_flush()
        assert outline(the_tree(db)) == {"workflow": ["below", "small"]}
        assert all(not each.is_open for _, each in the_tree(db).walk())
        assert caplog.text.count("were not written: 1 (") == 1
        set_trace_processors([])
        tracing.shutdown()


@pytest.mark.parametrize(
    "error",
    [
        occamdb.CoordinatorUnavailable("none"),
        occamdb.CommitOutcomeUnknown("?"),
        occamdb.StoreFullError("full"),
    ],
)
def test_a_database_that_takes_nothing_is_asked_once_a_batch(
    db: Database,
    tracing: OccamTracing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: occamdb.OccamError,
) -> None:
    """A coordinator that is away costs seconds a call, and a commit of unknown outcome may have happened."""
    batches: list[int] = []
    gate = threading.Event()

    def refuse(batch: Any) -> None:
        assert gate.wait(60)
        batches.append(len(batch))
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(tracing, "_write_together", refuse)
        with trace("Lost"):
            for _ in range(100):
                with custom_span("step"):
                    pass
        gate.set()
        tracing.force_flush()
    assert sum(batches) == 202 and len(batches) <= 2, "each step was tried once"
    assert caplog.text.count("were not written") == len(batches)
    with trace("Later"):
        pass
    tracing.force_flush()
    assert outline(the_tree(db)) == "workflow"


def test_reports_that_make_no_sense_are_logged(
    db: Database, tracing: OccamTracing, caplog: pytest.LogCaptureFixture
) -> None:
    nothing: Any = None
    with caplog.at_level(logging.ERROR):
        for call in (
            tracing.on_trace_start,
            tracing.on_span_start,
            tracing.on_span_end,
            tracing.on_trace_end,
        ):
            call(nothing)
    assert caplog.text.count("could not be traced") == 4
    tracing.force_flush()
    assert db.runs.list_runs() == []


def test_after_a_shutdown_nothing_is_written(database_path: Path) -> None:
    tracing = OccamTracing(database_path)
    assert isinstance(tracing, TracingProcessor)
    set_trace_processors([])
    add_trace_processor(tracing)
    with trace("Before"):
        pass
    tracing.shutdown()
    tracing.shutdown()
    with trace("After"):
        pass
    tracing.force_flush()
    set_trace_processors([])
    with occamdb.open(database_path) as db:
        assert [run.metadata["workflow_name"] for run in db.runs.list_runs()] == ["Before"]
        assert isinstance(tracing.run_of("trace_1"), RunId)


def test_tools_are_tool_calls(db: Database, tracing: OccamTracing) -> None:
    output: Any = Odd()
    with trace("Work"), function_span("add", input='{"a": 1}', output=output):
        pass
    tracing.force_flush()
    call = named(db, "ToolCall")
    assert call.trace_type == ToolCall("add", '{"a": 1}', {"output": "an odd thing"}, call.duration_ms)
