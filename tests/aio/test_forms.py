"""The asynchronous API: every operation of every primitive, each form of a transaction, and each wrong use of them."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import occamdb
import occamdb.aio
from occamdb import (
    AlreadyExistsError,
    CASConflict,
    InvalidArgumentError,
    NotAnIntegerError,
    ReadOnlyError,
    RetriesExhausted,
    RetryPolicy,
    RunId,
    Thought,
    TransactionStateError,
    TransactionStatus,
)
from occamdb.aio import AsyncDatabase, AsyncTransaction
from occamdb.primitives.extension import Primitive, answered, operation, register
from occamdb.primitives.operations import Operation, ReadOperation
from tests.support.aio import LoopFactory, open_async, run_in

Body = Any


def test_operations_of_the_database_itself(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            version = await db.put(run, "k", 1, ttl=60)
            assert db.get(run, "k") == 1 and db.exists(run, "k")
            assert await db.cas(run, "k", version, 2) > version
            with pytest.raises(CASConflict):
                await db.cas(run, "k", version, 3)
            assert await db.increment(run, "n", 5) == 5
            await db.put(run, "text", "t")
            with pytest.raises(NotAnIntegerError):
                await db.increment(run, "text")
            assert await db.delete(run, "text") is True
            assert await db.delete(run, "text") is False
            assert db.list(run) == ["k", "n"]
            assert [key for key, _ in db.scan(run)] == ["k", "n"]
            found = db.get_versioned(run, "k")
            assert found is not None and found.value == 2
            with db.snapshot(run) as view:
                assert view.get("n") == 5 and view.kv.get("n") == 5
            assert (await db.stats())["commits"] >= 4
            other = db.namespace(agent="b")
            await other.put(run, "k", "theirs")
            assert (db.get(run, "k"), other.get(run, "k")) == (2, "theirs")
            assert "AsyncDatabase" in repr(db)

    run_in(factory, main())


def test_primitives(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            await db.kv.put_many(run, {"a": 1, "b": 2})
            assert db.kv.get_many(run, ["a", "b"]) == {"a": 1, "b": 2}
            assert await db.kv.delete_many(run, ["a"]) == 1
            assert await db.kv.put_if_absent(run, "b", 3) is False
            assert await db.kv.transaction(run, lambda kv: kv.get("b")) == 2
            assert await db.cells.init(run, "c", "idle") > 0
            with pytest.raises(AlreadyExistsError):
                await db.cells.init(run, "c", "idle")
            assert await db.cells.transition(run, "c", lambda state: ("busy", state.value)) == "idle"
            assert db.cells.read(run, "c").value == "busy"
            assert await db.cells.delete(run, "c") is True
            event = await db.events.append(run, "t", {"n": 1})
            await db.events.append_many(run, iter([("t", {}), ("u", {})]))
            assert [e.sequence for e in db.events.iterate(run)] == [0, 1, 2] and event.sequence == 0
            assert db.events.verify_chain(run).is_valid
            trace = await db.traces.record(run, Thought("hm"))
            assert db.traces.get(run, trace) is not None
            async with db.traces.span(run, Thought("deep")) as span:
                inner = await db.traces.record(run, Thought("inner"))
                span.set_result(42)
            assert [t.id for t in db.traces.get_children(run, span.id)] == [inner]
            made = await db.runs.create_run("agent")
            assert db.runs.get_run(made.run_id) == made
            async with db.runs.start("block") as block:
                await db.put(block.run_id, "k", 1)
            assert db.runs.get_run(block.run_id).status == "completed"
            with pytest.raises(ValueError, match="oops"):
                async with db.runs.start("fails") as failing:
                    raise ValueError("oops")
            assert db.runs.get_run(failing.run_id).status == "failed"

    run_in(factory, main())


def test_every_operation_is_declared_once_and_says_whether_it_is_awaited() -> None:
    """A coroutine exactly where the types say so: for each operation of each primitive, by its decorator."""
    awaited: set[str] = set()
    plain: set[str] = set()
    for primitive in (
        occamdb.KVStore,
        occamdb.StateCell,
        occamdb.EventLog,
        occamdb.TraceStore,
        occamdb.RunIndex,
    ):
        for name, value in vars(primitive).items():
            if isinstance(value, Operation) and not name.startswith("_"):
                is_read = isinstance(value, ReadOperation) or type(value).__name__ == "IndexLookup"
                (plain if is_read else awaited).add(f"{primitive.name}.{name}")
    assert {"kv.put", "kv.delete", "cells.transition", "events.append", "runs.create_run"} <= awaited
    assert {"kv.get", "kv.keys", "cells.read", "events.iterate", "runs.get_run"} <= plain

    async def main() -> None:
        async with occamdb.aio.open_in_memory() as db:
            run = RunId.new()
            for name in awaited:
                primitive, _, method = name.partition(".")
                coroutine = _called(getattr(getattr(db, primitive), method), primitive, run)
                assert inspect.iscoroutine(coroutine), name
                coroutine.close()
            assert db.kv.list(run) == []  # what is not awaited does nothing

    asyncio.run(main())


def _called(method: Any, primitive: str, run: RunId) -> Any:
    """The operation with arguments that fit it."""
    given: dict[str, Any] = {
        "key": "k", "name": "n", "value": 1, "ttl": 5, "expected_version": 0, "keys": ["k"], "items": {"k": 1},
        "event_type": "t", "events": [("t", {})], "fn": lambda state: (state, 1), "trace": Thought("x"),
        "parent_id": RunId.new(), "trace_id": RunId.new(), "run_id": run, "status": "failed", "error": "e",
        "tags": ["x"], "metadata": {}, "prefix": "", "pairs": {"k": 1},
    }  # fmt: skip
    signature = inspect.signature(method)
    needed = [
        given[parameter.name]
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
    ]
    return method(*needed)


def test_transactions(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            async with db.begin(run) as txn:
                txn.put("a", 1)
                txn.kv.put("b", txn.get("a"))
                txn.events.append("both", {})
            assert txn.status is TransactionStatus.COMMITTED
            assert (await txn.outcome()) == txn.receipt
            with pytest.raises(ZeroDivisionError):
                async with db.begin(run) as txn:
                    txn.put("a", 1 / 0)
            assert await txn.outcome() is None
            txn = await db.begin(run)
            txn.put("a", 2)
            receipt = await txn.commit()
            assert receipt.version == txn.receipt.version and db.get(run, "a") == 2
            with pytest.raises(TransactionStateError):
                await txn.commit()
            with db.begin(run, read_only=True) as reading:
                assert reading.get("a") == 2
                with pytest.raises(ReadOnlyError):
                    reading.put("a", 3)
            async with db.begin(run, read_only=True) as reading:
                assert reading.kv.get("b") == 1
            assert await db.transaction(run, lambda txn: txn.get("a")) == 2

            async def slowly(txn: AsyncTransaction) -> str:
                await asyncio.sleep(0)
                txn.put("slow", True)
                return "done"

            assert await db.transaction(run, slowly) == "done" and db.get(run, "slow") is True

    run_in(factory, main())


def test_retries(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            await db.put(run, "n", 0)
            tries = []

            async def contended(txn: AsyncTransaction) -> int:
                found = txn.get("n")
                tries.append(found)
                if len(tries) < 3:
                    await db.put(run, "n", found + 10)
                txn.put("n", found + 1)
                return int(found)

            assert await db.transaction(run, contended) == 20 and db.get(run, "n") == 21

            async def never(txn: AsyncTransaction) -> None:
                await db.increment(run, "n")
                txn.put("n", txn.get("n"))

            def stale(txn: AsyncTransaction) -> Any:
                txn.get("n")
                return never(txn)

            with pytest.raises(RetriesExhausted):
                await db.transaction(run, stale, retry=RetryPolicy(max_attempts=3, max_backoff=0.001))

            numbers = []
            async for attempt in db.attempts(run):
                async with attempt as txn:
                    numbers.append(attempt.number)
                    value = txn.get("n")
                    if attempt.number < 3:
                        await db.put(run, "n", value + 1)
                    txn.put("n", value)
            assert numbers == [1, 2, 3]

            typed: AsyncDatabase = db

            @typed.transactional
            async def step(txn: AsyncTransaction, by: int) -> int:
                txn.put("n", txn.get("n") + by)
                return int(txn.get("n"))

            @typed.transactional(retry=RetryPolicy(max_attempts=50))
            def plain(txn: AsyncTransaction) -> int:
                return int(txn.get("n"))

            before = db.get(run, "n")
            assert await step(run, 5) == before + 5
            async with db.begin(run) as txn:
                assert await step(txn, 1) == before + 6
                assert plain(txn) == before + 6
            assert await plain(run) == before + 6

    run_in(factory, main())


def test_wrong_uses(run: RunId) -> None:
    def generator(txn: AsyncTransaction) -> Iterator[int]:
        yield 1

    async def main() -> None:
        opening = occamdb.aio.open_in_memory()
        with pytest.raises(AttributeError, match=r"await occamdb\.aio\.open"):
            opening.kv  # type: ignore[attr-defined]  # noqa: B018
        async with opening as db:
            with pytest.raises(InvalidArgumentError, match="async with"):
                with db.begin(run):  # type: ignore[attr-defined]
                    pass
            with pytest.raises(AttributeError, match=r"async with db\.begin"):
                db.begin(run).put("k", 1)  # type: ignore[attr-defined]
            with pytest.raises(InvalidArgumentError, match="async for"):
                for _ in db.attempts(run):  # type: ignore[attr-defined]
                    pass
            async for attempt in db.attempts(run):
                with pytest.raises(InvalidArgumentError, match="async with"):
                    with attempt:  # type: ignore[attr-defined]
                        pass
                async with attempt:
                    pass
            with pytest.raises(TransactionStateError, match="not entered"):
                async for _ in db.attempts(run):
                    pass
            txn = await db.begin(run)
            with pytest.raises(InvalidArgumentError, match="async with"):
                txn.__enter__()
            txn.abort()
            with pytest.raises(InvalidArgumentError, match="generator"):
                await db.transaction(run, generator)
            with pytest.raises(InvalidArgumentError, match="generator"):
                await db.transaction(run, lambda txn: generator(txn))
            with pytest.raises(InvalidArgumentError, match="callable"):
                await db.transaction(run, 5)  # type: ignore[call-overload]
            with pytest.raises(InvalidArgumentError, match="async with"):
                with db.runs.start("x"):  # type: ignore[attr-defined]
                    pass
            with pytest.raises(InvalidArgumentError, match="async with"):
                with db.traces.span(run, Thought("x")):
                    pass
            with pytest.raises(InvalidArgumentError, match="inside transactions only"):
                db.kv.mapping(run)  # type: ignore[misc]
            async with db.begin(run) as txn:
                txn.kv.mapping()["k"] = 1
            assert db.get(run, "k") == 1
            with pytest.raises(InvalidArgumentError, match="async_links"):
                occamdb.aio.open("x", async_links=0)

    asyncio.run(main())


def test_an_async_function_in_the_plain_api(run: RunId) -> None:
    async def fn(txn: occamdb.Transaction) -> int:
        return 1

    with occamdb.open_in_memory() as db:
        with pytest.raises(InvalidArgumentError, match=r"occamdb\.aio"):
            db.transaction(run, fn)  # type: ignore[unused-coroutine]
        with pytest.raises(InvalidArgumentError, match=r"occamdb\.aio"):
            db.transactional(fn)
        with pytest.raises(InvalidArgumentError, match=r"occamdb\.aio"):
            db.transaction(run, lambda txn: fn(txn))  # type: ignore[unused-coroutine]


@register
class Tally(Primitive[Any]):
    """A primitive of a user's own: written once, without a thought of event loops."""

    __slots__ = ()
    name = "tally_of_aio_tests"
    tag = 0x51

    @operation
    def bump(self, what: str) -> int:
        count = int(self.space.get(what, 0)) + 1
        self.space.put(what, count)
        return count

    @answered
    def gone(self, what: str) -> str:
        """The write in the middle of its body."""
        return "was there" if self.space.delete(what) else "was not"


def test_a_primitive_of_a_users_own(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            tally: Any = db.tally_of_aio_tests
            assert await tally.bump(run, "x") == 1
            assert await tally.bump(run, "x") == 2
            assert await tally.gone(run, "x") == "was there"
            assert await tally.gone(run, "x") == "was not"
            async with db.begin(run) as txn:
                assert txn.tally_of_aio_tests.bump("x") == 1
                assert txn.tally_of_aio_tests.gone("x") == "was there"

    run_in(factory, main())


def test_commits_in_memory_let_others_run(run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with occamdb.aio.open_in_memory() as db:
            done = asyncio.Event()
            asyncio.get_running_loop().call_soon(done.set)
            count = 0
            while not done.is_set():  # a loop that never yielded would go on for ever
                await db.put(run, "k", count)
                count += 1
                assert count < 1000

    run_in(factory, main())


@pytest.mark.by_default("shared")
def test_many_transactions_at_once(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:

            def move(txn: AsyncTransaction, number: int) -> None:
                txn.put(f"k{number}", txn.get(f"k{number}", 0) + 1)
                txn.kv.increment("sum")

            async def moved(number: int) -> None:
                await db.transaction(run, lambda txn: move(txn, number))

            for _ in range(2):
                await asyncio.gather(*[moved(number) for number in range(500)])
            assert db.get(run, "sum") == 1000
            assert all(db.get(run, f"k{number}") == 2 for number in range(500))

    run_in(factory, main())


@pytest.mark.by_default("shared")
def test_contended_transactions_at_once(opened: Any, run: RunId, factory: LoopFactory) -> None:
    async def main() -> None:
        async with opened() as db:
            policy = RetryPolicy(max_attempts=10_000, max_backoff=0.002)

            def bump(txn: AsyncTransaction) -> None:
                txn.put("n", txn.get("n", 0) + 1)

            await asyncio.gather(*[db.transaction(run, bump, retry=policy) for _ in range(100)])
            assert db.get(run, "n") == 100

    run_in(factory, main())


@pytest.mark.parametrize("size", [20_000, 2_000_000])
def test_large_values_stream_through_small_rings(
    size: int, database_path: Path, run: RunId, factory: LoopFactory
) -> None:
    async def main() -> None:
        async with open_async(database_path, async_links=3) as db:
            values = {f"k{number}": chr(97 + number) * size for number in range(6)}
            await asyncio.gather(*[db.put(run, key, value) for key, value in values.items()])
            assert {key: db.get(run, key) for key in values} == values

    run_in(factory, main())


def test_a_reading_transaction_is_entered_once(run: RunId, factory: LoopFactory) -> None:
    """A second snapshot in it would be pinned for ever."""

    async def main() -> None:
        async with occamdb.aio.open_in_memory() as db:
            reading = db.begin(run, read_only=True)
            with reading:
                with pytest.raises(TransactionStateError, match="entered once"):
                    reading.__enter__()

    run_in(factory, main())


def test_an_async_span_of_a_plain_database_says_what_to_write(run: RunId, factory: LoopFactory) -> None:
    async def main(db: occamdb.Database) -> None:
        with pytest.raises(InvalidArgumentError, match="nothing here is awaited"):
            async with db.traces.span(run, occamdb.Thought("hm")):
                pass

    with occamdb.open_in_memory() as db:
        run_in(factory, main(db))


def test_one_engine_in_both_forms(run: RunId, factory: LoopFactory) -> None:
    """What one form commits the other reads; closing the asynchronous one closes both."""
    db = occamdb.open_in_memory(
        default=lambda value: ("set", sorted(value)), restore=lambda _, value: set(value)
    )

    async def main() -> None:
        both = occamdb.aio.wrap(db)
        await both.put(run, "k", {1, 2})
        assert db.get(run, "k") == {1, 2}
        again = occamdb.aio.unwrap(both)
        again.put(run, "k", {3})
        assert both.get(run, "k") == {3}
        await both.close()

    run_in(factory, main())
    with pytest.raises(occamdb.DatabaseClosedError):
        db.get(run, "k")


@pytest.mark.parametrize("change", [occamdb.aio.wrap, occamdb.aio.unwrap])
def test_only_databases_change_their_form(change: Any) -> None:
    with pytest.raises(TypeError, match="expected a"):
        change("agents.db")
