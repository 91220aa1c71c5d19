"""Errors that the primitives raise; part of `errors.py`, which says what holds for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...ipc.errors import OccamError

if TYPE_CHECKING:
    from uuid import UUID

__all__ = [
    "AlreadyExistsError",
    "InvalidTransition",
    "LeaseLost",
    "NotFoundError",
    "RunNotActive",
    "StepFailed",
]


class InvalidTransition(OccamError):
    """A change of status that the state machine does not allow.

    Attributes:
      current: the status it is in.
      requested: the status asked for.
      allowed: the ones it may change to.
    """

    code = "occam.transition.invalid"

    def __init__(
        self,
        message: str = "",
        *,
        current: str = "",
        requested: str = "",
        allowed: Sequence[str] = (),
        hint: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        names = tuple(allowed)
        text = message or f"cannot go from {current} to {requested}"
        can = f"from {current} it can only become {', '.join(names)}" if names else f"{current} is final"
        merged = {"current": current, "requested": requested, "allowed": list(names), **(details or {})}
        super().__init__(text, hint=hint or can, details=merged)
        self.current = current
        self.requested = requested
        self.allowed = names


class RunNotActive(OccamError):
    """A commit would write to a run that is not active, on a database opened with `strict_runs`. Nothing was applied.

    Attributes:
      run_id: the run, None when unknown.
      status: what the index says of it; None: it has no such run.
    """

    code = "occam.run.not_active"

    def __init__(
        self,
        message: str,
        *,
        run_id: UUID | None = None,
        status: str | None = None,
        hint: str = "write to an active run: create one, or resume this one if it is paused",
    ) -> None:
        super().__init__(message, hint=hint, details={"run_id": run_id and str(run_id), "status": status})
        self.run_id = run_id
        self.status = status


class LeaseLost(OccamError):
    """A lease, or the claim of a task or a step, is no longer held: it ran out, or its process was taken for dead.

    Attributes:
      name: of what was held.
      token: the fencing token that it was held under.
    """

    code = "occam.lease.lost"

    def __init__(
        self,
        message: str,
        *,
        name: str = "",
        token: int = 0,
        hint: str = "stop this work: another holder may have begun it; a longer lease, or extend in time, keeps it",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details={"name": name, "token": token, **(details or {})})
        self.name = name
        self.token = token


class StepFailed(OccamError):
    """A step has failed as often as its retry policy allows, and is not run again.

    Attributes:
      name: of the step.
      attempts: how often it was run.
      error: what the last attempt raised, as text.
    """

    code = "occam.step.failed"

    def __init__(
        self,
        message: str = "",
        *,
        name: str = "",
        attempts: int = 0,
        error: str = "",
        hint: str = "db.steps.forget(run_id, name) lets it run again",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        text = message or f"step {name!r} failed {attempts} times, the last time with {error}"
        merged = {"name": name, "attempts": attempts, "error": error, **(details or {})}
        super().__init__(text, hint=hint, details=merged)
        self.name = name
        self.attempts = attempts
        self.error = error


class NotFoundError(OccamError):
    """Something that the call needs does not exist."""

    code = "occam.not_found"


class AlreadyExistsError(OccamError):
    """The call would create something that already exists."""

    code = "occam.already_exists"
