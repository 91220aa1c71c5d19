"""The public suite for LangGraph checkpointers, in full, and its contract of write ownership."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.report import ProgressCallbacks

import occamdb
from occamdb.plugins.langgraph import OccamSaver

CLAUSES = {
    "put": 17, "put_writes": 10, "get_tuple": 10, "list": 16, "delete_thread": 5,
    "copy_thread": 8, "delete_for_runs": 7, "prune": 8,
}  # fmt: skip


@checkpointer_test(name="OccamSaver")
async def occam_saver() -> AsyncGenerator[OccamSaver, None]:
    with occamdb.open_in_memory() as db:
        yield OccamSaver(db)


async def test_the_suite_of_langgraph_passes_in_full() -> None:
    errors: list[str] = []

    def note(capability: str, clause: str, passed: bool, error: str | None) -> None:
        if not passed:
            errors.append(f"{capability}.{clause}: {error}")

    report = await validate(occam_saver, progress=ProgressCallbacks(on_test_result=note))
    assert not errors, "\n".join(errors)
    assert report.passed_all() and report.passed_all_base()
    passed = {name: result.tests_passed for name, result in report.results.items()}
    print(
        f"langgraph-checkpoint-conformance: {sum(passed.values())} clauses passed of {sum(CLAUSES.values())}: {passed}"
    )
    assert all(passed[name] >= least for name, least in CLAUSES.items())
