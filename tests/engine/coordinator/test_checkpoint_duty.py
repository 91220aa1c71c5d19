"""How much of its time a checkpoint in the background works."""

from types import SimpleNamespace
from typing import Any, cast

from occamdb.engine.coordinator.durable_state import DurableState
from occamdb.engine.model.settings import Settings

MIB = 1 << 20


def test_a_checkpoint_far_behind_the_log_works_harder() -> None:
    """If no coordinator lived to finish one, the log and each recovery would grow without bound."""
    core = SimpleNamespace(log_bytes=0, log_poisoned=False)
    directory = SimpleNamespace(meta=SimpleNamespace(durability="standard"))
    state = DurableState(
        cast(Any, directory), cast(Any, core), Settings(checkpoint_bytes=MIB), "standard", None
    )
    usual = state._duty()
    core.log_bytes = 2 * MIB
    assert state._duty() == usual < 0.5
    core.log_bytes = 16 * MIB
    assert usual < state._duty() < 1
