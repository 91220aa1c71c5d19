"""Segments of dead incarnations go; those of the living, the unknown and other users stay."""

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

from occamdb.ipc import layout, stale
from occamdb.ipc.errors import SegmentError
from occamdb.ipc.process import identify, own_identity
from occamdb.ipc.segment import create_segment, list_segments, unlink_segment
from occamdb.ipc.stale import list_incarnations, remove_dead, remove_superseded
from tests.support.children import child, wait_until


@pytest.fixture
def database() -> Iterator[bytes]:
    database_id = uuid.uuid4().bytes
    yield database_id
    for name in list_segments(layout.database_prefix(database_id)):
        unlink_segment(name)


def make(database: bytes, incarnation: int, owner: tuple[int, int] | None) -> list[str]:
    """Segments as a coordinator makes them: doorbell with its note first, then the others."""
    names = [layout.bell_name(database, incarnation)]
    with create_segment(names[0], layout.BELL_SEGMENT_SIZE) as bell:
        if owner is not None:
            layout.write_bell_owner(memoryview(bell.map), *owner)
    names += [layout.store_name(database, incarnation), layout.channel_name(database, incarnation, 99)]
    for name in names[1:]:
        create_segment(name, 8192).close()
    return sorted(names)


def own() -> tuple[int, int]:
    identity = own_identity()
    return identity.pid, identity.start_time


def test_the_living_stay_and_the_dead_go(database: bytes) -> None:
    with child(signal.pause, check=False) as process:
        wait_until(lambda: process.state() == "S")
        identity = identify(process.pid)
        assert identity is not None
        dying = make(database, 1, (identity.pid, identity.start_time))
        living = make(database, 0xABC, own())
        assert remove_dead(database) == []
        process.kill()
    found = {incarnation.number: incarnation for incarnation in list_incarnations(database)}
    assert found[1].dead and not found[0xABC].dead
    assert found[1].names == tuple(dying) and found[1].owner == identity
    assert found[1].allocated_size >= 2 * 8192 + 4096
    assert sorted(remove_dead(database)) == dying
    assert list_segments(layout.database_prefix(database)) == living


def test_a_reused_pid_is_not_the_owner(database: bytes) -> None:
    pid, start_time = own()
    names = make(database, 1, (pid, start_time - 1))
    assert sorted(remove_dead(database)) == names


def test_what_cannot_be_retired_stays(database: bytes) -> None:
    pid, start_time = own()
    kept = make(database, 1, (pid, start_time - 1))
    removed = make(database, 2, (pid, start_time - 1))
    asked = []

    def retire(name: str) -> None:
        asked.append(name)
        if name == layout.store_name(database, 1):
            raise SegmentError("no descriptors left")

    assert sorted(remove_dead(database, retire=retire)) == removed
    assert list_segments(layout.database_prefix(database)) == kept
    assert set(removed) <= set(asked)


def test_one_without_owner_note_is_dead_only_when_old(
    database: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make(database, 1, None)
    assert remove_dead(database) == []
    monkeypatch.setattr(stale, "UNOWNED_AGE_MIN", -1.0)
    assert sorted(remove_dead(database)) == names


def test_under_the_lock_everything_but_the_own_incarnation_goes(database: bytes) -> None:
    other = uuid.uuid4().bytes
    kept = make(database, 7, None)
    gone = make(database, 6, own()) + make(database, 8, None)
    foreign = make(other, 6, None)
    try:
        assert sorted(remove_superseded(database, keep_incarnation=7)) == sorted(gone)
        assert list_segments(layout.database_prefix(database)) == kept
        assert list_segments(layout.database_prefix(other)) == foreign
        assert sorted(remove_superseded(database)) == kept
    finally:
        remove_superseded(other)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's segment")
def test_another_users_segments_are_reported_and_left(database: bytes) -> None:
    names = make(database, 1, None)
    for name in names:
        os.chown("/dev/shm" + name, 12345, -1)
    (incarnation,) = list_incarnations(database)
    assert incarnation.foreign
    assert remove_superseded(database) == []
    assert remove_dead(database) == []
    assert list_segments(layout.database_prefix(database)) == names


def test_names_that_are_not_ours_are_ignored(database: bytes) -> None:
    name = f"/occam-{layout.database_prefix(database)}-1-strange"
    with create_segment(name, 4096) as made:
        assert list_incarnations(database) == []
        assert remove_superseded(database) == []
        made.unlink()
