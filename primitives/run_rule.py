"""The rule behind `open(..., strict_runs=True)`: only runs that are active in the index are written to."""

from __future__ import annotations

from typing import Any

from ..engine.model.errors import RunNotActive
from ..engine.model.public_types import RunId, TypeTag
from . import layout
from .run_types import STATUS, STATUS_NUMBERED, RunStatus

__all__ = ["ActiveRuns"]

_INDEX = bytes((TypeTag.RUN,))
_FINAL = "it takes no more data; create a new run for it, with parent= this one if they belong together"


class ActiveRuns:
    """Lets a commit write to a run that is active before it, becomes active with it, or is created by it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "strict_runs=True"

    def record_key(self, run: bytes, /) -> bytes:
        """Where the index has the metadata of a run."""
        return _INDEX + layout.run(run)

    def check(self, run_id: RunId, before: Any, after: Any, writes: bool, /) -> None:
        """Refuse writes to a run that is not active, and to one that the same commit deletes.

        A run that is in the index neither before nor after may be deleted as a whole: nothing is left of it.

        Raises:
          RunNotActive: names the state of the run.
        """
        if after is None:
            if writes:
                raise _refusal(run_id, None, deleted=before is not None)
        elif before is not None and RunStatus.ACTIVE not in (_status(before), _status(after)):
            raise _refusal(run_id, _status(before))


def _status(record: Any) -> RunStatus:
    return STATUS_NUMBERED[record[STATUS]]


def _refusal(run_id: RunId, status: RunStatus | None, *, deleted: bool = False) -> RunNotActive:
    if deleted:
        return RunNotActive(
            f"run {run_id} is deleted by the transaction that writes to it",
            run_id=run_id,
            hint="write first, or leave the run alone after delete_run",
        )
    if status is None:
        return RunNotActive(
            f"run {run_id} is not in the index of runs",
            run_id=run_id,
            hint="create it: db.runs.create_run(name, run_id=...) or db.runs.get_or_create(name); or correct the id",
        )
    hint = "db.runs.resume_run(run_id) makes it active" if status is RunStatus.PAUSED else _FINAL
    return RunNotActive(f"run {run_id} is {status}", run_id=run_id, status=str(status), hint=hint)
