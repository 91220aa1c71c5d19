"""Many at once: commits of threads and tasks travel together, and what they do is as if one came after the other."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from occamdb.engine.commit.messages import Op, OpCode, OpFlags, Request, RequestFlags, Status, encode_request
from occamdb.engine.model.errors import ProtocolError
from occamdb.engine.model.values import decode_value, encode_value
from occamdb.engine.remote.postgres import open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend

BASE = b"\0\0\0"
TOTAL = BASE + b"total"


@pytest.fixture
def backend(url: str) -> Iterator[PostgresBackend]:
    opened = open_backend(url, BASE, timeout=20, durability="none")
    yield opened
    opened.close()


def in_threads(count: int, call: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            call(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def adding(key: bytes, by: int = 1) -> bytes:
    add = Op(OpCode.ADD, key, argument=by, flags=OpFlags.WANT_RESULT)
    return encode_request(Request(0, ops=(add,), flags=RequestFlags.BLIND))


def value_of(backend: PostgresBackend, key: bytes) -> Any:
    row = backend.begin([key]).rows[0]
    return None if row is None else decode_value(row.value)


def test_threads_that_add_get_every_sum_once(backend: PostgresBackend) -> None:
    sums: list[int] = []
    versions: list[int] = []

    def add(_: int) -> None:
        for _ in range(20):
            reply = backend.commit(adding(TOTAL), None).reply
            assert reply.status is Status.COMMITTED
            sums.append(reply.results[0].value)
            versions.append(reply.commit_version)

    in_threads(10, add)
    assert sorted(sums) == list(range(1, 201))
    assert [total for _, total in sorted(zip(versions, sums, strict=True))] == list(range(1, 201))
    assert len(set(versions)) == 200


def test_tasks_travel_together(backend: PostgresBackend) -> None:
    async def main() -> list[int]:
        outcomes = await asyncio.gather(*(backend.commit_async(adding(TOTAL), None) for _ in range(100)))
        begun = await asyncio.gather(*(backend.begin_async() for _ in range(20)))
        assert {snapshot.version for snapshot in begun} == {100}
        return [outcome.reply.results[0].value for outcome in outcomes]

    assert sorted(asyncio.run(main())) == list(range(1, 101))
    assert backend.stats()["batches"] < 30


def test_a_task_that_is_cancelled_leaves_the_others_alone(backend: PostgresBackend) -> None:
    async def main() -> None:
        tasks = [asyncio.ensure_future(backend.commit_async(adding(TOTAL), None)) for _ in range(10)]
        beginning = [asyncio.ensure_future(backend.begin_async()) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        beginning[0].cancel()
        found = await asyncio.gather(*tasks, *beginning, return_exceptions=True)
        lost = [one for one in found if isinstance(one, BaseException)]
        assert len(lost) == 2
        assert all(isinstance(one, asyncio.CancelledError) for one in lost)

    backend.newest()  # from now on a commit is sent in the first step of its task
    asyncio.run(main())
    assert value_of(backend, TOTAL) == 10, "a commit that was sent goes to its end"


def test_a_refused_one_does_not_disturb_those_that_travel_with_it(backend: PostgresBackend) -> None:
    backend.commit(
        encode_request(Request(0, ops=(Op(OpCode.PUT, BASE + b"text", b"\xa1x"),), flags=RequestFlags.BLIND)),
        None,
    )
    statuses: list[Status] = []

    async def main() -> None:
        keys = [BASE + b"text" if index % 5 == 0 else TOTAL for index in range(50)]
        outcomes = await asyncio.gather(*(backend.commit_async(adding(key), None) for key in keys))
        statuses.extend(outcome.reply.status for outcome in outcomes)

    asyncio.run(main())
    assert statuses.count(Status.NOT_AN_INTEGER) == 10
    assert value_of(backend, TOTAL) == statuses.count(Status.COMMITTED) == 40


def move(backend: PostgresBackend, rng: random.Random, accounts: list[bytes]) -> None:
    """Move money between two accounts after a look at all of them: serializable, so the sum stays."""
    while True:
        begun = backend.begin(accounts)
        rows = [row for row in begun.rows if row is not None]
        held = {row.key: decode_value(row.value) for row in rows}
        assert sum(held.values()) == 100 * len(accounts), held
        source, target = rng.sample(accounts, 2)
        ops = [Op(OpCode.READ, row.key, argument=row.version) for row in rows]
        ops.append(Op(OpCode.PUT, source, encode_value(held[source] - 1)))
        ops.append(Op(OpCode.PUT, target, encode_value(held[target] + 1)))
        request = Request(0, begun.version, begun.expiry_time, tuple(ops))
        if backend.commit(encode_request(request), None).reply.status is Status.COMMITTED:
            return


def test_transfers_keep_the_sum(backend: PostgresBackend) -> None:
    accounts = [BASE + b"account%d" % number for number in range(6)]
    puts = tuple(Op(OpCode.PUT, key, encode_value(100)) for key in accounts)
    backend.commit(encode_request(Request(0, ops=puts, flags=RequestFlags.BLIND)), None)

    def work(index: int) -> None:
        rng = random.Random(index)
        for _ in range(10):
            move(backend, rng, accounts)

    in_threads(6, work)
    assert sum(value_of(backend, key) for key in accounts) == 600


def _add_in_process(url: str, count: int) -> None:
    backend = open_backend(url, BASE, timeout=20, durability="none")
    for _ in range(count):
        assert backend.commit(adding(TOTAL), None).reply.status is Status.COMMITTED
    backend.close()


def test_processes_add_to_one_counter(url: str, backend: PostgresBackend) -> None:
    backend.begin()
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_in_process, args=(url, 50)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
        process.close()
    assert value_of(backend, TOTAL) == 150
    assert backend.newest() == 150


def test_namespaces_have_versions_of_their_own(backend: PostgresBackend) -> None:
    other = backend.of(b"other\0\0\0")
    assert backend.of(b"other\0\0\0") is other
    backend.commit(adding(TOTAL), None)
    assert (backend.newest(), other.newest()) == (1, 0)
    assert backend.namespaces() == [BASE]
    other.commit(adding(b"other\0\0\0k"), None)
    assert backend.namespaces() == sorted([BASE, b"other\0\0\0"])


def test_a_key_of_another_namespace_is_refused(backend: PostgresBackend) -> None:
    with pytest.raises(ProtocolError):
        backend.commit(adding(b"other\0\0\0k"), None)
