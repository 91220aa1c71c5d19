"""Writers, followers that rebuild the state from the feed, and waiters, all in one run.

Of four workers two write, one follows and one waits. A follower checks its state against snapshots at drawn moments,
leaves it in a file now and then, and goes on from a file that another one left, which may have been killed since.
Waiters sleep until a key is written, a queue has an item, or a log has an event. A witness beside them notices a
wake-up that is lost.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING

from occamdb.engine.model.errors import InvalidArgumentError, WatchLagged
from occamdb.ipc.errors import OccamError
from occamdb.stress.workloads.base import RUN, Counts, Problem, Workload, between
from occamdb.stress.workloads.followed import GROUP_SIZE, FollowedState, commits_up_to, in_commits
from occamdb.stress.workloads.waiters import TOKENS, wait_step

if TYPE_CHECKING:
    from pathlib import Path

    import occamdb
    from occamdb.engine.transaction.watch import Change, Watch
    from occamdb.stress.worker import Context, Outcome, Settings

PREFIXES = ("", "", "k/", "group/", "ttl/")
WIDE = 600  # keys that are deleted as a range, more than the engine deletes key by key
LARGE = "x" * 70_000  # a value that the ring of changes does not hold itself
FOLLOW_SECONDS = 0.05
COMMITS_A_STEP = 50
CATCH_UP_SECONDS = 60.0


class Followers(Workload):
    """Change many kinds of keys; follow them; wait for them."""

    name = "followers"
    summary = "followers rebuild the state from the feed, waiters sleep; nothing missed, no wake-up lost"
    counters = (
        "posted",
        "taken",
        "followed",
        "compared",
        "resumed",
        "lagged",
        "woken",
        "idle",
        "late",
        "lag_most",
    )
    keys = 32

    def prepare(self, db: occamdb.Database, settings: Settings) -> None:
        """The run starts empty."""

    def step(self, context: Context) -> None:
        """Write, follow or wait, by the worker's number."""
        (_write, _follow, _write, wait_step)[context.worker % 4](context)

    def verify(self, context: Context, counts: Counts, tallies: list[Counts]) -> list[Problem]:
        """Every state that was left leads to the present one; and the queue's items add up."""
        problems: list[Problem] = []
        with context.db.begin(RUN, read_only=True) as txn:
            left = sum(1 for _ in txn.scan("inbox/"))
        slack = counts["unresolved"]
        problems += between(
            "what was posted, less what was taken and what is left,",
            counts["posted"] - counts["taken"] - left,
            -slack,
            slack,
        )
        for path in _left_states(context):
            problems += _verify_state(context, path)
        return problems

    def account(self, counts: Counts, tallies: list[Counts]) -> list[str]:
        """What followers and waiters did."""
        lag = max((one["lag_most"] for one in tallies), default=0)
        return [
            f"{counts['followed']:,} commits followed, {counts['compared']:,} comparisons with snapshots, "
            f"{counts['resumed']:,} watches begun, {counts['lagged']:,} lagged; at most {lag:,} versions behind",
            f"{counts['woken']:,} waits ended by a change ({counts['late']:,} late), {counts['idle']:,} by time",
        ]


# ---- writing ----------------------------------------------------------------------------------------------


def _write(context: Context) -> None:
    """One transaction that changes something."""
    dice, keys = context.dice, context.settings.keys
    token = {"t": f"{context.worker}-{context.next_count()}"}
    some = [f"k/{number}" for number in dice.sample(range(keys), dice.choice((1, 1, 3)))]
    count = f"count/{dice.randrange(keys)}"
    group = f"group/{dice.randrange(4)}"
    kind = dice.random()

    def body(txn: occamdb.Transaction) -> bool:
        if kind < 0.35:
            for key in some:
                txn.put(key, token)
            txn.add(count)
        elif kind < 0.50:
            for key in some:
                txn.delete(key)
        elif kind < 0.65:
            ttl = dice.uniform(0.01, 0.5)
            until = time.time_ns() + int(ttl * 1e9)
            txn.put(f"ttl/{dice.randrange(keys)}", {**token, "until": until}, ttl=ttl)
        elif kind < 0.68:
            txn.delete(f"ttl/{dice.randrange(keys)}")
        elif kind < 0.80:
            for number in range(GROUP_SIZE):
                txn.put(f"{group}/{number}", token)
        elif kind < 0.85:
            txn.delete_range(f"{group}/")
        elif kind < 0.93:
            txn.put(f"token/{dice.randrange(TOKENS)}", token)
        elif kind < 0.96:
            txn.events.append("token", token)
        elif kind < 0.97:
            txn.put(some[0], LARGE)
        elif kind < 0.972:
            for number in range(WIDE):
                txn.put(f"wide/{number:03d}", token)
        elif kind < 0.974:
            txn.delete_range("wide/")
        elif not txn.exists(own := f"inbox/{context.worker}"):
            txn.put(own, token)
            return True
        return False

    context.attempt(body, sums_of=lambda posted: {"posted": 1} if posted else {})


# ---- following --------------------------------------------------------------------------------------------


class _Follower:
    """A state, and the watch that it grows by."""

    def __init__(self, context: Context, state: FollowedState) -> None:
        self.context = context
        self.state = state
        self.watch: Watch = context.db.watch(RUN, state.prefix, since=state.version, timeout=FOLLOW_SECONDS)
        self.stood = state.version
        self.caught_up = False
        context.tally.add("resumed")

    def take(self, commits: list[list[Change]]) -> None:
        """Apply commits."""
        for commit in commits:
            for wrong in self.state.apply(commit):
                self.context.problem(f"the feed: {wrong}")
        self.context.tally.add("followed", len(commits))
        stands = self.watch.version
        if stands < self.stood:
            self.context.problem(f"watch.version went from {self.stood} back to {stands}")
        self.stood = stands

    def follow(self) -> None:
        """Read for a while, commit by commit."""
        for commit in islice(self.watch.commits(), COMMITS_A_STEP):
            self.take([commit])

    def follow_one(self) -> None:
        """Read one change, and the rest of its commit after it."""
        for change in self.watch:
            commit = [change]
            if self.watch.version < change.version:
                commit += next(self.watch.commits())
            self.take([commit])
            return

    def catch_up(self, snapshot: FollowedState) -> None:
        """Come to the version of a snapshot, compare with it, and go on with what came after it."""
        self._note_lag(snapshot.version - self.watch.version)
        commits = commits_up_to(self.watch, snapshot.version, CATCH_UP_SECONDS)
        if self.watch.version < snapshot.version:
            self.context.problem(f"the feed ends at {self.watch.version}, before {snapshot.version}")
        self.take([commit for commit in commits if commit[0].version <= snapshot.version])
        if self.state.version > snapshot.version:
            self.context.problem(f"a new snapshot has version {snapshot.version} after {self.state.version}")
        for wrong in self.state.differences(snapshot)[:3]:
            self.context.problem(f"at version {snapshot.version}: {wrong}")
        self.context.tally.add("compared")
        self.take([commit for commit in commits if commit[0].version > snapshot.version])
        self.caught_up = True

    def _note_lag(self, lag: int) -> None:
        """How far it fell behind since it was last up to date."""
        most = self.context.state.get("lag_most", 0)
        if self.caught_up and lag > most:
            self.context.state["lag_most"] = lag
            self.context.tally.add("lag_most", lag - most)

    def leave(self, path: Path) -> None:
        """Stop, and leave the state in a file."""
        # Nothing of the prefix was changed between the last commit and where the watch stands.
        self.state.version = self.watch.version
        self.close()
        self.state.save(path)

    def close(self) -> None:
        """Stop."""
        self.watch.close()


def _follow(context: Context) -> None:
    """Follow for a while in one of several ways."""
    dice = context.dice
    draw = dice.random()
    follower: _Follower | None = context.state.get("follower")
    try:
        if follower is None:
            follower = context.state["follower"] = _begin(context)
        if draw < 0.4:
            follower.follow()
        elif draw < 0.5:
            follower.follow_one()
        elif draw < 0.65:
            follower.take(in_commits(follower.watch.ready()))
        elif draw < 0.93:
            snapshot = _snapshot(context, follower.state.prefix)
            if snapshot is not None:
                follower.catch_up(snapshot)
        else:
            follower.leave(_state_path(context))
            del context.state["follower"]
    except WatchLagged as lag:
        if not lag.since < lag.oldest:
            context.problem(
                f"lagged, though {lag.oldest} is the oldest version and {lag.since} the last seen"
            )
        context.tally.add("lagged")
        _drop(context)
        context.state["anew"] = True
    except InvalidArgumentError as error:
        context.problem(f"a version that was seen is not taken: {error}")
        _drop(context)
        context.state["anew"] = True
    except OccamError as error:
        context.tally.add("begun")
        context.failed(error)
        _drop(context)
        context.state["anew"] = True


def _drop(context: Context) -> None:
    follower = context.state.pop("follower", None)
    if follower is not None:
        follower.close()


def _begin(context: Context) -> _Follower:
    """Go on from a file, from a snapshot, or from the beginning of everything."""
    states = _left_states(context)
    if not context.state.pop("anew", False):
        if states and context.dice.random() < 0.9:
            return _Follower(context, FollowedState.load(context.dice.choice(states)))
        if context.dice.random() < 0.3:
            return _Follower(context, FollowedState())
    prefix = context.dice.choice(PREFIXES)
    snapshot = _snapshot(context, prefix)
    return _Follower(context, snapshot or FollowedState(prefix))


def _snapshot(context: Context, prefix: str) -> FollowedState | None:
    outcome: Outcome = context.attempt(lambda txn: FollowedState.of_snapshot(txn, prefix), read_only=True)
    return outcome.result if outcome.ok else None


def _state_path(context: Context) -> Path:
    return context.place.directory / f"{context.worker:04d}.state"


def _left_states(context: Context) -> list[Path]:
    return sorted(context.place.directory.glob("*.state"))


def _verify_state(context: Context, path: Path) -> list[Problem]:
    """Whether the feed leads from a state that was left to the present one."""
    problems: list[Problem] = []
    state = FollowedState.load(path)
    with context.db.begin(RUN, read_only=True) as txn:
        snapshot = FollowedState.of_snapshot(txn, state.prefix)
    try:
        with context.db.watch(RUN, state.prefix, since=state.version) as watch:
            for commit in commits_up_to(watch, snapshot.version, CATCH_UP_SECONDS):
                # Keys may expire while this is done, in commits after the snapshot.
                if commit[0].version <= snapshot.version:
                    problems += [Problem(f"{path.name}: the feed: {wrong}") for wrong in state.apply(commit)]
            if watch.version < snapshot.version:
                problems.append(
                    Problem(f"{path.name}: the feed ends at {watch.version}, before {snapshot.version}")
                )
    except WatchLagged:
        return problems
    problems += [Problem(f"{path.name}: at the end {wrong}") for wrong in state.differences(snapshot)]
    return problems[:5]
