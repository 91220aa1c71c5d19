"""The steps of workers that wait: for the next version of a key, for an item of a queue, for an event.

A witness beside each wait notices a wake-up that is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from occamdb.engine.model.errors import TransactionTimeout
from occamdb.ipc.errors import OccamError
from occamdb.stress.workloads.base import RUN
from occamdb.stress.workloads.witness import Witness

if TYPE_CHECKING:
    import occamdb
    from occamdb.stress.worker import Context

TOKENS = 4  # keys that writers write for waiters
WAIT_SECONDS = 2.0


def wait_step(context: Context) -> None:
    """Wait for something in one of several ways."""
    draw = context.dice.random()
    context.tally.add("begun")
    try:
        if draw < 0.4:
            _wait_for_token(context)
        elif draw < 0.7:
            _take_item(context)
        elif draw < 0.8:
            _wait_for_either(context)
        else:
            _wait_for_event(context)
        context.tally.add("woken")
    except TransactionTimeout:
        context.tally.add("idle")
    except OccamError as error:
        context.state.pop("events", None)
        context.failed(error)
        return
    context.tally.add("ok")


@contextlib.contextmanager
def _witnessed(context: Context, witness: Witness, what: str) -> Iterator[None]:
    try:
        with witness:
            yield
    finally:
        if witness.late:
            context.tally.add("late")
        if witness.lost:
            context.problem(f"a wait for {what} went on for {witness.looks} looks that found it")


def _wait_for_token(context: Context) -> None:
    """`kv.wait` for the next version of a key."""
    db, key = context.db, f"token/{context.dice.randrange(TOKENS)}"
    seen: dict[str, int] = context.state.setdefault("tokens", {})
    last = seen.get(key, 0)

    def arrived() -> bool:
        found = db.kv.get_versioned(RUN, key)
        return found is not None and found.version > last

    with _witnessed(context, Witness(arrived), key):
        found = db.kv.wait(RUN, key, after_version=last, timeout=WAIT_SECONDS)
    if found.version <= last:
        context.problem(f"{key}: version {found.version} came after {last}")
    seen[key] = found.version


def _take_item(context: Context) -> None:
    """`txn.wait` for an item of a queue, which is taken out."""

    def take(txn: occamdb.Transaction) -> Any:
        for key, item in txn.scan("inbox/", limit=1):
            txn.delete(key)
            return item.value
        return txn.wait()

    context.db.transaction(RUN, take, timeout=WAIT_SECONDS)
    context.tally.add("taken")


def _wait_for_either(context: Context) -> None:
    """`txn.wait` for a key that was absent, or for another value of one that was there."""
    key = f"k/{context.dice.randrange(context.settings.keys)}"
    first: list[Any] = []

    def look(txn: occamdb.Transaction) -> Any:
        found = [row.version if (row := txn.get_versioned(name)) else 0 for name in (key, "token/0")]
        if not first:
            first.extend(found)
        if found == first:
            txn.wait()
        return found

    def arrived() -> bool:
        with context.db.begin(RUN, read_only=True) as txn:
            rows = [txn.get_versioned(name) for name in (key, "token/0")]
        return bool(first) and [row.version if row else 0 for row in rows] != first

    with _witnessed(context, Witness(arrived), f"{key} or token/0"):
        context.db.transaction(RUN, look, timeout=WAIT_SECONDS)


def _wait_for_event(context: Context) -> None:
    """The next event of a log, without a gap and without a repetition."""
    db, last = context.db, context.state.get("sequence", -1)
    events = context.state.get("events")
    if events is None:
        events = context.state["events"] = db.events.follow(RUN, after=last, timeout=WAIT_SECONDS)
    with _witnessed(context, Witness(lambda: db.events.read(RUN, last + 1) is not None), f"event {last + 1}"):
        event = next(events, None)
    if event is None:
        del context.state["events"]
        raise TransactionTimeout("no event came")
    if event.sequence != last + 1:
        context.problem(f"event {event.sequence} came after {last}")
    context.state["sequence"] = event.sequence
