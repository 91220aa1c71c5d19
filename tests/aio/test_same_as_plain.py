"""Whatever is done, the asynchronous database gives the results of the plain one, and raises what it raises."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import occamdb
import occamdb.aio
from occamdb import OccamError, RetryPolicy, RunId
from occamdb.aio import AsyncDatabase
from tests.support.engines import Engine
from tests.support.processes import stop_coordinator

KEYS = st.sampled_from(["a", "b", "c", ""])
VALUES = st.one_of(st.integers(-3, 3), st.text(max_size=2), st.none())
VERSIONS = st.sampled_from([0, "newest", 10**6])

CALL = st.one_of(
    st.tuples(st.just("kv.put"), KEYS, VALUES),
    st.tuples(st.just("kv.delete"), KEYS),
    st.tuples(st.just("kv.increment"), KEYS, st.integers(-2, 2**63)),
    st.tuples(st.just("kv.cas"), KEYS, VERSIONS, VALUES),
    st.tuples(st.just("kv.put_if_absent"), KEYS, VALUES),
    st.tuples(st.just("kv.delete_many"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("kv.get"), KEYS),
    st.tuples(st.just("kv.list")),
    st.tuples(st.just("kv.list_with_values")),
    st.tuples(st.just("cells.init"), KEYS, VALUES),
    st.tuples(st.just("cells.set"), KEYS, VALUES),
    st.tuples(st.just("cells.delete"), KEYS),
    st.tuples(st.just("cells.cas"), KEYS, VERSIONS, VALUES),
    st.tuples(st.just("events.append"), KEYS, st.dictionaries(KEYS, VALUES, max_size=1)),
    st.tuples(st.just("events.len")),
)
# A cas of a version that is not there never succeeds.
SOON = RetryPolicy(max_attempts=50, max_backoff=0.001)
INSIDE = st.tuples(st.just("transaction"), st.lists(CALL, max_size=4), st.booleans())
STEPS = st.lists(st.one_of(CALL, INSIDE), max_size=12)


def _call(owner: Any, run: tuple[RunId, ...], step: tuple[Any, ...]) -> Any:
    """One operation on a database (`run` has one) or in a transaction (`run` has none)."""
    name, *arguments = step
    primitive, _, method = name.partition(".")
    facade = getattr(owner, primitive)
    for index, argument in enumerate(arguments):
        if argument == "newest":
            read = facade.get_versioned if primitive == "kv" else facade.read
            found = read(*run, arguments[0])
            arguments[index] = 0 if found is None else found.version
    return getattr(facade, method)(*run, *arguments)


def _inside(txn: Any, steps: list[tuple[Any, ...]], fails: bool) -> list[Any]:
    results = [_shown(_call(txn, (), step)) for step in steps]
    if fails:
        raise ZeroDivisionError
    return results


def _shown(result: Any) -> Any:
    """What can be compared: events differ in their times and hashes."""
    return (result.sequence, result.event_type) if isinstance(result, occamdb.Event) else result


def plain(db: occamdb.Database, run: RunId, step: tuple[Any, ...]) -> Any:
    """The result of a step, or what it raised."""
    try:
        if step[0] == "transaction":
            return db.transaction(run, lambda txn: _inside(txn, step[1], step[2]), retry=SOON)
        return _shown(_call(db, (run,), step))
    except (OccamError, ZeroDivisionError) as error:
        return type(error), str(error)


async def awaited(db: AsyncDatabase, run: RunId, step: tuple[Any, ...]) -> Any:
    """The same of the asynchronous one."""
    try:
        if step[0] == "transaction":
            return await db.transaction(run, lambda txn: _inside(txn, step[1], step[2]), retry=SOON)
        result = _call(db, (run,), step)
        return _shown(await result if inspect.iscoroutine(result) else result)
    except (OccamError, ZeroDivisionError) as error:
        return type(error), str(error)


class Both:
    """A database of each form, with nothing in it, and the loop of the second."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.runner = asyncio.Runner()
        self.plain: Any = engine.database(directory, max_store_size="64MiB")
        self._opening = engine.opening(directory / "awaited")
        self.awaited: Any = self.runner.run(self._opening.__aenter__())

    def close(self) -> None:
        self.runner.run(self._opening.__aexit__(None, None, None))
        self.runner.close()
        self.engine.discard(self.plain)


@pytest.fixture(scope="module")
def both(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    directory = tmp_path_factory.mktemp("both")
    databases = Both(engine, directory)
    yield databases
    databases.close()
    for path in directory.iterdir():
        stop_coordinator(path)


@given(steps=STEPS)
def test_step_by_step(both: Both, steps: list[tuple[Any, ...]]) -> None:
    run = RunId.new()

    async def main() -> None:
        # Versions are those of the whole database: they move together.
        for step in steps:
            assert await awaited(both.awaited, run, step) == plain(both.plain, run, step)
        left = [(key, found.value) for key, found in both.awaited.kv.scan(run)]
        assert left == [(key, found.value) for key, found in both.plain.kv.scan(run)]

    both.runner.run(main())


@given(steps=STEPS)
def test_all_at_once_is_one_after_the_other_in_some_order(both: Both, steps: list[tuple[Any, ...]]) -> None:
    """Tasks that run together leave what some order of them would: here, sums and a log without gaps."""
    run = RunId.new()

    async def main() -> None:
        db = both.awaited
        tasks = [awaited(db, run, step) for step in steps]
        tasks += [awaited(db, run, ("events.append", "t", {})) for _ in range(5)]
        tasks += [awaited(db, run, ("kv.increment", "sum", 1)) for _ in range(5)]
        results = await asyncio.gather(*tasks)
        assert sorted(results[-5:]) == [1, 2, 3, 4, 5]
        sequences = [event.sequence for event in db.events.iterate(run)]
        assert sequences == list(range(len(sequences)))
        assert db.events.verify_chain(run).is_valid

    both.runner.run(main())
