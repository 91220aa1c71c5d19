"""The workload of followers: clean on the engine, and it notices a feed that is wrong and a wake-up that is lost."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import occamdb
from occamdb.engine.transaction import watch as watch_module
from occamdb.engine.transaction._change import Change
from occamdb.engine.transaction.feeds import feed_of
from occamdb.engine.transaction.waiting import WaitHub
from occamdb.stress.campaigns import chaos
from occamdb.stress.campaigns.chaos import CHOICES, chaos_campaign
from occamdb.stress.runner import VERIFIER, run_workload
from occamdb.stress.tally import Tally, totals
from occamdb.stress.worker import Context, Place, Settings
from occamdb.stress.workloads import followers, get_workload, waiters, witness
from occamdb.stress.workloads.followed import FollowedState
from tests.support.databases import memory_database

WRITER, FOLLOWER, WAITER = 0, 1, 3
Commits = list[tuple[int, int, list[Change]]]


class Stage:
    """Workers of the workload that take turns in this process."""

    def __init__(self, db: occamdb.Database, directory: Path):
        self.db, self.directory = db, directory
        self.workload = get_workload("followers")
        self.settings = Settings(keys=8)
        self.contexts = {worker: self.context(worker) for worker in (WRITER, FOLLOWER, WAITER)}

    def context(self, worker: int) -> Context:
        place = Place(self.directory, worker)
        return Context(self.db, self.settings, place, Tally(place.tally, self.workload.counters), None)

    def follow(self, rounds: int) -> None:
        for _ in range(rounds):
            for _ in range(10):
                self.workload.step(self.contexts[WRITER])
            self.workload.step(self.contexts[FOLLOWER])

    def said(self) -> str:
        """The problems that workers noted, and those found at the end."""
        lines = [path.read_text() for path in self.directory.glob("*.errors")]
        tallies = [context.tally.read() for context in self.contexts.values()]
        lines += self.workload.verify(self.context(VERIFIER), totals(tallies), tallies)
        return "\n".join(lines)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # Nobody writes while a follower waits in this process.
    monkeypatch.setattr(followers, "FOLLOW_SECONDS", 0.004)
    with memory_database() as db:
        yield Stage(db, tmp_path)


def test_it_is_clean_and_compares(stage: Stage) -> None:
    stage.follow(150)
    assert stage.said() == ""
    counts = stage.contexts[FOLLOWER].tally.read()
    assert counts["compared"] > 10 and counts["resumed"] > 5 and counts["followed"] > 200


class BrokenFeed:
    """A feed whose commits pass through a function, every 20th at least."""

    def __init__(self, breaks: Callable[[Commits], Commits], *args: Any, **kwargs: Any):
        self._feed = feed_of(*args, **kwargs)
        self._breaks = breaks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def poll(self) -> Commits:
        return self._breaks(self._feed.poll())


def drop_a_change(commits: Commits) -> Commits:
    return [(v, t, changes[:-1] if v % 5 == 0 and len(changes) > 1 else changes) for v, t, changes in commits]


def drop_a_commit(commits: Commits) -> Commits:
    return [commit for commit in commits if commit[0] % 50]


def repeat_a_commit(commits: Commits) -> Commits:
    return [commit for commit in commits for _ in range(1 if commit[0] % 50 else 2)]


def split_a_commit(commits: Commits) -> Commits:
    found: Commits = []
    for version, time, changes in commits:
        half = len(changes) // 2
        found += [(version, time, part) for part in (changes[:half], changes[half:]) if part]
    return found


def swap_commits(commits: Commits) -> Commits:
    return [*commits[1::-1], *commits[2:]]


def changed(change: Change, value: Any, kind: Literal["put", "delete", "expire"]) -> Change:
    return Change(change.key, value, change.version, change.committed_at_ns, kind)


def call_a_delete_an_expiry(commits: Commits) -> Commits:
    return [
        (v, t, [changed(c, c.value, "expire" if c.kind == "delete" else c.kind) for c in changes])
        for v, t, changes in commits
    ]


def give_an_older_value(commits: Commits) -> Commits:
    """Every put of a commit gets the value of the first."""
    return [
        (v, t, [changed(c, changes[0].value if c.kind == "put" else None, c.kind) for c in changes])
        for v, t, changes in commits
    ]


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (drop_a_change, "of 5 keys of group"),
        # Which check comes first depends on the commit that is missing.
        (drop_a_commit, "by the feed and|which was not there|went from"),
        (repeat_a_commit, "came after"),
        (split_a_commit, "of 5 keys of group"),
        (swap_commits, "came after"),
        (call_a_delete_an_expiry, "it has no TTL"),
        (give_an_older_value, "went from"),
    ],
)
def test_a_broken_feed_is_found(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Commits], Commits],
    words: str,
) -> None:
    monkeypatch.setattr(watch_module, "feed_of", lambda *args, **kwargs: BrokenFeed(breaks, *args, **kwargs))
    stage.follow(60)
    assert re.search(words, stage.said())


def test_a_lost_wake_up_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaitHub, "_dispatch", lambda hub: None)
    monkeypatch.setattr(witness, "LOOK_SECONDS", 0.004)
    monkeypatch.setattr(waiters, "WAIT_SECONDS", 1.0)
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.01):
            stage.workload.step(stage.contexts[WRITER])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            stage.workload.step(stage.contexts[WAITER])
            if stage.contexts[WAITER].tally.get("problems"):
                break
    finally:
        over.set()
        writer.join()
    assert "looks that found it" in stage.said()


def test_a_state_left_by_a_killed_follower_is_taken_up(stage: Stage) -> None:
    stage.follow(100)
    paths = list(stage.directory.glob("*.state"))
    assert paths
    state = FollowedState.load(paths[0])
    assert 0 < state.version <= stage.db.begin(occamdb.RunId(int=1), read_only=True).start_version
    # A draft that its writer did not finish is not a state.
    paths[0].with_suffix(".draft").write_text('["", 12')
    stage.contexts[5] = stage.context(5)
    for _ in range(20):
        stage.workload.step(stage.contexts[WRITER])
        stage.workload.step(stage.contexts[5])
    assert stage.contexts[5].tally.get("resumed") > 0
    assert stage.said() == ""


def test_a_short_run_with_a_coordinator_is_clean(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path / "db"), workers=4, seconds=1.2, keys=8)
    result = run_workload("followers", settings, tmp_path / "files")
    assert result.valid, result.text()
    assert result.counts["compared"] and result.counts["woken"]


def test_it_survives_kills_of_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "FAULT_PAUSE", 0.15)
    verdict = chaos_campaign(
        0.05,
        tmp_path,
        seed=2,
        workloads=["followers"],
        faults=["kill-worker", "kill-coordinator", "stop-worker"],
    )
    assert verdict.valid, verdict.text()
    assert verdict.kills > 2 and verdict.transactions > 100


def test_chaos_draws_it() -> None:
    assert "followers" in CHOICES
