"""Rule 8 of the contract: changes come once and in order while others commit, and who waits is woken."""

import threading
import time

import pytest

from occamdb.engine.remote.backend import Backend, CommitOfChanges
from tests.support.backends import Kind, commit, deleting, deleting_range, end_of, key_in, putting


def follow(
    backend: Backend, base: bytes, since: int, until: threading.Event, limit: int
) -> list[CommitOfChanges]:
    """Every commit after `since`, as they come, and those that are left when `until` is set."""
    found: list[CommitOfChanges] = []
    while True:
        is_over = until.is_set()
        newest = backend.newest()
        while since < newest:
            page = backend.changes(key_in(base, ""), end_of(key_in(base, "")), since, limit, values=True)
            assert since < page.reached
            assert all(since < one.version <= page.reached for one in page.commits)
            found += page.commits
            since = page.reached
        if is_over:
            return found
        backend.wait(since, 0.2)


@pytest.mark.parametrize("limit", [1, 50])
def test_a_follower_gets_every_commit_once_while_many_write(kind: Kind, base: bytes, limit: int) -> None:
    writers = [kind.open(base) for _ in range(3)]
    follower = kind.open(base)
    since = follower.newest()
    acknowledged: dict[int, set[bytes]] = {}
    over = threading.Event()
    found: list[CommitOfChanges] = []

    def write(number: int, backend: Backend) -> None:
        for count in range(30):
            keys = {key_in(base, f"{number}/{count}/{part}") for part in range(1 + count % 3)}
            acknowledged[commit(backend, *(putting(key, count) for key in sorted(keys))).version] = keys

    def read() -> None:
        found.extend(follow(follower, base, since, over, limit))

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(writers)]
    reader = threading.Thread(target=read)
    for thread in [*threads, reader]:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    reader.join()
    versions = [one.version for one in found]
    assert versions == sorted(acknowledged), "each commit once, in order, and no other"
    assert {one.version: {change.key for change in one.changes} for one in found} == acknowledged


def test_changes_are_those_of_the_range_and_without_values_when_none_are_asked_for(
    backend: Backend, base: bytes
) -> None:
    inside, outside = key_in(base, "b1"), key_in(base, "c")
    since = backend.newest()
    versions = [
        commit(backend, putting(inside, "v"), putting(outside, "v")).version,
        commit(backend, putting(outside, "w")).version,
        commit(backend, deleting(inside)).version,
        commit(backend, putting(inside, "x")).version,
        commit(backend, deleting_range(key_in(base, "b"), key_in(base, "c"))).version,
    ]
    for values in (True, False):
        page = backend.changes(key_in(base, "b"), key_in(base, "c"), since, 100, values=values)
        assert page.reached >= versions[-1]
        assert [(one.version, [(c.kind, c.key) for c in one.changes]) for one in page.commits] == [
            (versions[0], [("put", inside)]),
            (versions[2], [("delete", inside)]),
            (versions[3], [("put", inside)]),
            (versions[4], [("delete", inside)]),
        ]
        there = [c.value is not None for one in page.commits for c in one.changes]
        assert there == [values, False, values, False]
    everything = backend.changes(base, None, since, 100, values=False)
    assert [one.version for one in everything.commits] == versions


def test_wait_is_woken_by_another_client_and_ends_in_time(kind: Kind, base: bytes) -> None:
    waiter, writer = kind.open(base), kind.open(base)
    since = waiter.newest()
    began = time.monotonic()
    assert waiter.wait(since, 0.2) is False
    assert 0.15 < time.monotonic() - began < 10
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(waiter.wait(since, 60)))
    thread.start()
    began = time.monotonic()
    commit(writer, putting(key_in(base, "k"), 1))
    thread.join(30)
    assert woken == [True] and time.monotonic() - began < 30
    assert waiter.wait(since, 60) is True  # there is one already
