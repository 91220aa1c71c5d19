"""A sixth primitive, written here: it needs one class and no change anywhere else."""

from typing import Any

import pytest

from occamdb.engine.model.errors import AlreadyExistsError, InvalidArgumentError
from occamdb.engine.model.public_types import RunId, TypeTag
from occamdb.primitives import (
    EventLog,
    KVStore,
    Leases,
    Primitive,
    RunIndex,
    StateCell,
    Steps,
    Tasks,
    TraceStore,
    blind,
    operation,
    reader,
    register,
    single,
    stream,
)
from occamdb.primitives.extension import DatabaseBase, H_co, RunLike, TransactionBase


@register
class Scoreboard(Primitive[H_co]):
    """Points by player: enough to use each kind of operation once."""

    __slots__ = ()
    name = "scores"
    tag = 0x20
    raw = False

    @blind
    def add(self, player: str, points: int) -> None:
        """Give points to a player."""
        return self.space.add(player, points)

    @single
    def of(self, player: str) -> int:
        """A player's points."""
        points: int = self.space.get(player, 0)
        return points

    @operation
    def move(self, giver: str, taker: str, points: int) -> int:
        """Take points from one and give them to another; what the giver has left."""
        left: int = self.space.get(giver, 0) - points
        if left < 0:
            raise InvalidArgumentError(f"{giver} has too few points", hint="move fewer")
        self.space.put(giver, left)
        self.space.put(taker, self.space.get(taker, 0) + points)
        return left

    @reader
    def best(self) -> str | None:
        """Who leads."""
        rows = [(found.value, player) for player, found in self.space.scan()]
        return max(rows)[1] if rows else None

    @stream
    def players(self) -> Any:
        """Their names."""
        return self.space.keys()


def test_it_is_on_databases_and_transactions(do: Any) -> None:
    do.scores.add("ann", 5)
    do.scores.add("bob", 3)
    assert do.scores.of("ann") == 5
    assert do.scores.move("ann", "bob", 4) == 1
    assert do.scores.best() == "bob"
    assert do.scores.players() == ["ann", "bob"]
    with pytest.raises(InvalidArgumentError):
        do.scores.move("ann", "bob", 100)


def test_its_operations_have_their_two_forms(db: Any, run: RunId) -> None:
    assert db.scores.add(run, "ann", 5) == 5
    with db.begin(run) as txn:
        assert txn.scores.add("ann", 5) is None
        assert txn.scores.of("ann") == 10
        txn.abort()
    assert db.scores.of(run, "ann") == 5
    assert Scoreboard(db).of(run, "ann") == 5


def test_it_commits_with_the_others(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        txn.scores.add("ann", 1)
        txn.kv.put("k", 1)
        event = txn.events.append("scored", {"player": "ann"})
    assert db.scores.of(run, "ann") == db.kv.get(run, "k") == 1
    assert db.events.read(run, event.sequence) == event


def test_its_keys_are_its_own(db: Any, run: RunId) -> None:
    db.scores.add(run, "same", 1)
    db.kv.put(run, "same", "kv")
    db.cells.set(run, "same", "cell")
    assert db.scores.of(run, "same") == 1
    assert (db.kv.get(run, "same"), db.cells.read(run, "same").value) == ("kv", "cell")
    db.runs.delete_run(run)
    assert db.scores.of(run, "same") == 0


def test_registering_twice() -> None:
    register(Scoreboard)
    with pytest.raises(AlreadyExistsError):

        @register
        class Impostor(Primitive[H_co]):
            name = "scores"
            tag = 0x11


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(AlreadyExistsError):

        @register
        class Bad(Primitive[H_co]):
            name = "commit"
            tag = 0x11


def test_the_built_in_ones_have_their_names_and_tags(db: Any, run: RunId) -> None:
    built_in: list[type[Any]] = [KVStore, EventLog, StateCell, TraceStore, RunIndex, Tasks, Leases, Steps]
    assert [cls.name for cls in built_in] == [
        "kv",
        "events",
        "cells",
        "traces",
        "runs",
        "tasks",
        "leases",
        "steps",
    ]
    assert [cls.tag for cls in built_in] == [*TypeTag]
    with db.begin(run) as txn:
        for cls in built_in:
            assert type(getattr(db, cls.name)) is cls
            assert type(getattr(txn, cls.name)) is cls


def test_facades_hold_nothing_but_their_handle(db: Any, run: RunId) -> None:
    with db.begin(run) as txn:
        for handle in (db, txn):
            for name in ("kv", "events", "cells", "traces", "runs", "tasks", "leases", "steps"):
                facade = getattr(handle, name)
                assert not hasattr(facade, "__dict__")
                assert facade._handle is handle


def test_operations_are_documented_on_the_class() -> None:
    for cls in (KVStore, EventLog, StateCell, TraceStore, RunIndex, Tasks, Leases, Steps):
        for name, method in vars(cls).items():
            if not name.startswith("_") and callable(getattr(method, "body", None)):
                assert method.__doc__, f"{cls.__name__}.{name}"


def typed_uses(db: DatabaseBase, txn: TransactionBase, run: RunLike) -> None:
    """Never called: mypy checks that both forms have their types, and that wrong calls are errors."""
    version: int = Scoreboard(db).add(run, "ann", 5)
    points: int = Scoreboard(txn).of("ann")
    left: int = Scoreboard(db).move(run, "ann", "bob", points + version)
    Scoreboard(txn).add("ann", left)
    Scoreboard(txn).add(run, "ann", 5)  # type: ignore[call-arg, arg-type]
    Scoreboard(db).of("ann", "bob", "carol")  # type: ignore[call-arg]
    Scoreboard(db).move(run, "ann", "bob", "many")  # type: ignore[arg-type]
