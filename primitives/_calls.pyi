"""Types of the path of every call of an operation; see _calls.pyx."""

from collections.abc import Callable
from typing import Any

from ..engine.model.retry_policy import RetryPolicy

def shielded(
    function: Callable[..., Any],
    is_wrong: Callable[..., Exception | None],
    errors: tuple[type[Exception], ...],
) -> Callable[..., Any]:
    """`function(instance, ...)`. After one of `errors`, `is_wrong(error, instance, args, kwargs)` may give another."""

def in_transaction(body: Callable[..., Any], policy: RetryPolicy) -> Callable[..., Any]:
    """The form of an operation that is a transaction of its own, retried by `policy`: (facade, run_id, ...)."""
