"""The protocol by which waiting workers are woken, as a plain model: every interleaving on memory with store buffers.

The steps are those of `_watchers.pyx` and `_watch_bell.pyx`, one for one. Each fence and each order that their
arguments need is taken away in turn, and the model then has to find a worker that sleeps for ever.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.interleavings import Program, explore

Steps = Generator[tuple[Any, ...], Any, None]
MEMORY = {"committed": 0, "slot": 0, "register": 0, "word": 0, "token": 0}


@dataclass(frozen=True)
class Protocol:
    """Which of the steps that the argument needs are taken."""

    registers_before_looking: bool = True
    commit_fence: bool = True
    token_before_sleep: bool = True
    arms_before_looking: bool = True
    word_before_token: bool = True
    keeps_new_tokens: bool = True
    publishes_before_waking: bool = True
    looks_after_nap: bool = True


def watcher(protocol: Protocol, commits: int, *, naps: int = 0) -> Program:
    """Waits until it has seen all commits, one sleep after the other; so many of the first ones are naps."""

    def register() -> Steps:
        yield "store", "slot", 1
        yield "add", "register", 1
        yield ("fence",)

    def run() -> Steps:
        if protocol.registers_before_looking:
            yield from register()
        elif (yield "load", "committed") == commits:
            return
        else:
            yield from register()
            seen = yield "load", "word"
            yield "store", "token", seen | 1
            yield ("fence",)
            yield "sleep", "word", seen
        napped = 0
        while True:
            if protocol.arms_before_looking:
                seen = yield "load", "word"
            if (yield "load", "committed") == commits:
                return
            if napped < naps:
                # However long it is: what others do meanwhile are other interleavings.
                napped += 1
                if protocol.looks_after_nap:
                    continue
                seen = yield "load", "word"
            if not protocol.arms_before_looking:
                seen = yield "load", "word"
            if protocol.token_before_sleep:
                yield "store", "token", seen | 1
                yield ("fence",)
            yield "sleep", "word", seen
            yield "store", "token", 0

    return run


def commit_thread(protocol: Protocol, commits: int) -> Program:
    """Publishes some commits, and wakes who is registered."""

    def wake() -> Steps:
        if not protocol.word_before_token:
            token = yield "load", "token"
        raised = yield "add", "word", 2
        if protocol.word_before_token:
            token = yield "load", "token"
        if token == 0 or (protocol.keeps_new_tokens and token == raised | 1):
            return
        if (yield "cas", "token", token, 0):
            yield "wake", "word"

    def run() -> Steps:
        known = table = 0
        for version in range(1, commits + 1):
            if not protocol.publishes_before_waking and table:
                yield from wake()
            yield "store", "committed", version
            if protocol.commit_fence:
                yield ("fence",)
            register = yield "load", "register"
            if register != known:
                known, table = register, (yield "load", "slot")
            if table and protocol.publishes_before_waking:
                yield from wake()

    return run


@pytest.mark.parametrize("commits", [1, 2])
@pytest.mark.parametrize("naps", [0, 1, 2])
def test_no_interleaving_loses_a_wake_up(commits: int, naps: int) -> None:
    protocol = Protocol()
    programs = [watcher(protocol, commits, naps=naps), commit_thread(protocol, commits)]
    states, stuck = explore(programs, MEMORY)
    assert stuck is None
    assert states > 100  # it did explore


@pytest.mark.parametrize(
    "missing",
    [
        "registers_before_looking",
        "commit_fence",
        "token_before_sleep",
        "arms_before_looking",
        "word_before_token",
        "keeps_new_tokens",
        "publishes_before_waking",
        "looks_after_nap",
    ],
)
def test_each_step_of_the_protocol_is_needed(missing: str) -> None:
    protocol = replace(Protocol(), **{missing: False})
    naps = int(missing == "looks_after_nap")
    programs = [watcher(protocol, 2, naps=naps), commit_thread(protocol, 2)]
    assert explore(programs, MEMORY)[1] is not None
