"""Errors for wrong calls of an operation: they say which form of the call was expected, and what it takes.

A correct call costs one more Python call; signatures are looked at only after a failure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar, cast
from uuid import UUID

from ..engine.model.errors import InvalidArgumentError
from ..engine.model.public_types import RunId
from ._calls import shielded

__all__ = ["WrongCallError", "explaining", "outside_only"]

F = TypeVar("F", bound=Callable[..., Any])


class WrongCallError(InvalidArgumentError, TypeError):
    """The arguments of a call do not fit the operation: one is unknown, missing or too many, or the run is not one."""


def explaining(function: Callable[..., Any], *, described: inspect.Signature) -> Callable[..., Any]:
    """`function(instance, ...)`, with a WrongCallError instead of Python's TypeError when the arguments do
    not fit.

    Args:
      described: what the user sees of it, with the instance first; `run_id` is the second where the run comes first.
    """

    def is_wrong(
        error: Exception, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> WrongCallError | None:
        if isinstance(error, WrongCallError):
            return None
        return _misfit(instance, function.__name__, described, args, kwargs)

    call = shielded(function, is_wrong, (TypeError, InvalidArgumentError))
    update_wrapper(call, function)
    call.__signature__ = described  # type: ignore[attr-defined]
    return call


def outside_only(method: F) -> F:
    """A method that is called on a database alone, with the run first; inside a transaction it is refused."""
    name, described = method.__name__, inspect.signature(method)
    facade, run, *given = described.parameters.values()
    positional = inspect.Parameter.POSITIONAL_ONLY
    checked = explaining(
        method,
        described=described.replace(
            parameters=[facade.replace(kind=positional), run.replace(kind=positional), *given]
        ),
    )

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.inside:
            raise InvalidArgumentError(
                f"txn.{self.name}.{name}: it works outside a transaction only",
                hint=f"db.{self.name}.{name}(run_id, {given[0].name}, ...)",
            )
        if "run_id" in kwargs and not args:
            args = (kwargs.pop("run_id"),)
        return checked(self, *args, **kwargs)

    update_wrapper(call, method)
    return cast(F, call)


def _misfit(
    instance: Any, name: str, described: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> WrongCallError | None:
    """What is wrong with the arguments; None when they fit."""
    parameters = [*described.parameters.values()][1:]
    run_first = bool(parameters) and parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY
    try:
        described.bind(instance, *args, **kwargs)
    except TypeError as misfit:
        problem = str(misfit)
    else:
        if not run_first:
            return None
        problem = ""
    owner = "txn" if instance.inside else "db"
    call = f"{owner}.{instance.name}.{name}"
    form = f"{call}({', '.join(_written(parameters))})"
    if run_first and (not args or not _is_run(args[0])):
        found = repr(args[0])[:80] if args else "nothing"
        problem = f"outside a transaction the run comes first, got {found}"
    elif not problem:
        return None
    elif instance.inside and args and isinstance(args[0], UUID):
        problem = "inside a transaction the run is given already"
    return WrongCallError(
        f"{call}: {problem}", hint=form, details={"arguments": [parameter.name for parameter in parameters]}
    )


def _is_run(given: object) -> bool:
    try:
        RunId.of(given)  # type: ignore[arg-type]
    except InvalidArgumentError:
        return False
    return True


def _written(parameters: list[inspect.Parameter]) -> list[str]:
    """The parameters as one writes them: without annotations."""
    written, keywords = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            written.append("*")
            keywords = True
        written.append(str(parameter.replace(annotation=parameter.empty)))
    return written
