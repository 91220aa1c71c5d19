"""A server that was promoted: versions jump, lost snapshots expire, and watchers learn it.

Promotion is told by the timeline of the log. Here the head row is given another one, as if it came from another server.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest

from occamdb.engine.commit.messages import Op, OpCode, Request, RequestFlags, Status, encode_request
from occamdb.engine.model.errors import SnapshotExpired, WatchLagged
from occamdb.engine.remote.postgres import open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend
from tests.support.one_postgres import OnePostgres

BASE = b"\0\0\0"
KEY = BASE + b"key"
JUMP = 2**32


@pytest.fixture
def backend(url: str) -> Iterator[PostgresBackend]:
    opened = open_backend(url, BASE, timeout=5, durability="none")
    yield opened
    opened.close()


def put(backend: PostgresBackend, value: bytes, start: int | None = None) -> Status:
    flags = RequestFlags.BLIND if start is None else RequestFlags.NONE
    request = Request(0, start or 0, 0, (Op(OpCode.PUT, KEY, value),), flags=flags)
    return backend.commit(encode_request(request), None).reply.status


def promote(server: OnePostgres, schema: str) -> None:
    with server.connect() as admin:
        admin.execute(f"update {schema}.head set timeline = timeline + 7")


def test_a_commit_after_a_promotion_jumps(backend: PostgresBackend, server: OnePostgres, schema: str) -> None:
    put(backend, b"\x01")
    before = backend.begin([KEY])
    promote(server, schema)
    put(backend, b"\x02")
    after = backend.begin([KEY])
    assert after.version == before.version + JUMP + 1
    assert after.rows[0] is not None
    assert after.rows[0].value == b"\x02"
    assert backend.read([KEY], before.version) == before.rows, "what survived can be read as before"


def test_begin_notices_it_and_says_so(
    backend: PostgresBackend, server: OnePostgres, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(backend, b"\x01")
    first = backend.begin()
    assert backend.incarnation == 1
    promote(server, schema)
    with caplog.at_level(logging.WARNING, "occamdb"):
        assert backend.begin([KEY]).version == first.version + JUMP
        backend.begin()
    assert backend.incarnation == 2
    assert len([record for record in caplog.records if "lost" in record.message]) == 1


def test_snapshots_and_writes_of_lost_versions_are_refused(
    backend: PostgresBackend, server: OnePostgres, schema: str
) -> None:
    put(backend, b"\x01")
    survived = backend.newest()
    put(backend, b"\x02")
    lost = backend.newest()
    with server.connect() as admin:  # the newest commit never reached the standby
        admin.execute(f"update {schema}.now set version = {survived}")
        admin.execute(f"update {schema}.head set version = {survived}")
        admin.execute(f"delete from {schema}.change where version > {survived}")
        admin.execute(f"delete from {schema}.old")
        with pytest.raises(SnapshotExpired):
            backend.read([KEY], lost)
        promote(server, schema)
    assert backend.begin().version == survived + JUMP
    for call in (
        lambda: backend.read([KEY], lost),
        lambda: backend.scan(BASE, b"\xff", lost, 5),
        lambda: put(backend, b"\x03", lost),
    ):
        with pytest.raises(SnapshotExpired):
            call()
    with pytest.raises(WatchLagged):
        backend.changes(BASE, None, lost, 10, values=True)
    assert put(backend, b"\x03", survived) is Status.COMMITTED
    assert [c.version for c in backend.changes(BASE, None, survived, 10, values=True).commits] == [
        survived + JUMP + 1
    ]


def test_no_version_is_given_out_twice_over_several_promotions(
    backend: PostgresBackend, server: OnePostgres, schema: str
) -> None:
    seen = []
    for _ in range(4):
        put(backend, b"\x01")
        seen.append(backend.newest())
        promote(server, schema)
    assert all(later >= earlier + JUMP for earlier, later in itertools.pairwise(seen))
    with pytest.raises(SnapshotExpired):
        backend.read([KEY], seen[1] + 5)
    backend.begin()
    assert backend.incarnation == 5
