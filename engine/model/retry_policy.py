"""The retry policy: how often a conflicting transaction is tried again, and after which pauses.

The pauses grow exponentially and are drawn with full jitter: each is uniform between 0 and the current bound
(Brooker, "Exponential Backoff and Jitter", 2015), which spreads contenders out best for the work they do.

Why these defaults. A commit takes microseconds, so the first pauses do too: up to 20 us, doubling to at
most 50 ms. When N workers compete for one key, each round of the commit order has exactly one winner (the
first committer), so an attempt succeeds with a probability of about 1/N, and backing off raises it. Even
without backing off, one of 16 workers fails 1,000 times in a row with a probability of (15/16)**1000, below
1e-28. So 1,000 attempts are not used up by bad luck, but only when something makes success impossible. They
are also bounded in time: about 25 s of pauses.

A long transaction among short ones can lose every time, however often it tries. So after three losses it asks for a
turn (engine/commit/README.md), and then commits with the next attempt. A turn keeps others waiting, and an attempt that
loses by chance alone usually wins the next time: hence not at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import InvalidArgumentError

__all__ = ["NO_RETRY", "RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try a conflicting transaction again. Immutable, pickles, shared freely.

    Attributes:
      max_attempts: how often it is tried in all, the first time included; then `RetriesExhausted`.
      initial_backoff: the longest first pause, in seconds.
      max_backoff: the longest pause ever, in seconds.
      multiplier: how much the bound grows from one pause to the next.
      jitter: the part of each pause that is drawn at random: 1 all of it, 0 none.
      turn_after: how often it may lose before it gets a turn: while it has one, for at most 20 ms, commits that would
        invalidate it wait. None: never.
    """

    max_attempts: int = 1_000
    initial_backoff: float = 20e-6
    max_backoff: float = 0.05
    multiplier: float = 2.0
    jitter: float = 1.0
    turn_after: int | None = 3

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int):
            raise _wrong("max_attempts", attempts, "a whole number")
        _check("max_attempts", attempts, 1, 1e9)
        _check("initial_backoff", self.initial_backoff, 0.0, 3600.0)
        _check("max_backoff", self.max_backoff, 0.0, 3600.0)
        _check("multiplier", self.multiplier, 1.0, 1000.0)
        _check("jitter", self.jitter, 0.0, 1.0)
        turn_after = self.turn_after
        if turn_after is not None:
            if isinstance(turn_after, bool) or not isinstance(turn_after, int):
                raise _wrong("turn_after", turn_after, "a whole number, or None")
            _check("turn_after", turn_after, 1, 1e9)
        if self.initial_backoff > self.max_backoff:
            raise InvalidArgumentError(
                f"initial_backoff = {self.initial_backoff} s is more than max_backoff = {self.max_backoff} s",
                hint="lower initial_backoff or raise max_backoff",
            )

    def delays(self, rng: random.Random | None = None) -> Iterator[float]:
        """The pauses between the attempts, in seconds: `max_attempts - 1` of them.

        Args:
          rng: where the jitter comes from; None: the module's own generator, reseeded in forked children.
        """
        draw = rng.random if rng is not None else random.random
        bound = self.initial_backoff
        for _ in range(self.max_attempts - 1):
            yield bound * (1.0 - self.jitter * draw())
            bound = min(bound * self.multiplier, self.max_backoff)


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number")
    if not low <= value <= high:  # also refuses NaN
        raise InvalidArgumentError(
            f"{name} = {value} is out of range: {low} to {high:g}",
            hint=f"choose {name} between {low} and {high:g}",
            details={"value": value, "min": low, "max": high},
        )


def _wrong(name: str, value: object, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{name} must be {wanted}, got {value!r}", hint=f"see RetryPolicy.{name}", details={"name": name}
    )


# One attempt: a conflict is raised as it is, inside RetriesExhausted.
NO_RETRY = RetryPolicy(max_attempts=1)
