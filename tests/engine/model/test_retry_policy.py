"""Retry policy: bounds, growth, jitter, validation."""

import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.model.errors import InvalidArgumentError
from occamdb.engine.model.retry_policy import NO_RETRY, RetryPolicy

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 60),
    initial_backoff=st.floats(0, 0.01),
    max_backoff=st.floats(0.01, 2),
    multiplier=st.floats(1, 10),
    jitter=st.floats(0, 1),
)


@given(policies, st.randoms(use_true_random=False))
def test_one_pause_fewer_than_attempts_and_all_bounded(policy: RetryPolicy, rng: random.Random) -> None:
    delays = list(policy.delays(rng))
    assert len(delays) == policy.max_attempts - 1
    bound = policy.initial_backoff
    for delay in delays:
        assert bound * (1 - policy.jitter) * 0.999999 <= delay <= bound <= policy.max_backoff
        bound = min(bound * policy.multiplier, policy.max_backoff)


def test_without_jitter_the_pauses_grow_to_the_bound() -> None:
    policy = RetryPolicy(max_attempts=6, initial_backoff=1, max_backoff=5, multiplier=2, jitter=0)
    assert list(policy.delays()) == [1, 2, 4, 5, 5]


def test_full_jitter_spreads_over_the_whole_bound() -> None:
    policy = RetryPolicy(max_attempts=1001, initial_backoff=1, max_backoff=1)
    delays = list(policy.delays(random.Random(7)))
    assert min(delays) < 0.05 and max(delays) > 0.95
    assert sum(d < 0.5 for d in delays) in range(400, 600)


def test_the_same_generator_gives_the_same_pauses() -> None:
    policy = RetryPolicy()
    assert list(policy.delays(random.Random(3))) == list(policy.delays(random.Random(3)))


def test_defaults_begin_at_once_and_outlast_a_hot_key() -> None:
    policy = RetryPolicy()
    delays = list(policy.delays(random.Random(1)))
    assert delays[0] <= 20e-6 and max(delays) <= 0.05
    assert (15 / 16) ** policy.max_attempts < 1e-20


def test_no_retry() -> None:
    assert list(NO_RETRY.delays()) == []


def test_is_a_value() -> None:
    assert RetryPolicy(max_attempts=3) == pickle.loads(pickle.dumps(RetryPolicy(max_attempts=3)))
    assert len({RetryPolicy(), RetryPolicy()}) == 1
    with pytest.raises(AttributeError):
        RetryPolicy().jitter = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": 2.5},
        {"max_attempts": True},
        {"max_attempts": None},
        {"initial_backoff": -1},
        {"initial_backoff": "1"},
        {"initial_backoff": 1.0, "max_backoff": 0.5},
        {"max_backoff": float("inf")},
        {"max_backoff": float("nan")},
        {"multiplier": 0.5},
        {"jitter": 1.5},
        {"jitter": False},
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))) as caught:
        RetryPolicy(**wrong)
    assert caught.value.hint
