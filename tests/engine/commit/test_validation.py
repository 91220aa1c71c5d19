"""Validation rules against a source of versions that is a plain dict, and against brute force over a history."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.model.errors import CASConflict, ConflictError, ReadConflict, WriteConflict
from occamdb.engine.model.keys import Namespace, TypeTag, prefix_range, successor, tag_prefix
from occamdb.engine.model.public_types import RunId
from tests.support.conflict_model import (
    CONFLICTS_LISTED_MAX,
    CommitSets,
    Newest,
    VersionSource,
    validate_cas_set,
    validate_ranges,
    validate_read_set,
    validate_transaction,
    validate_write_set,
    version_now,
)

RUN = RunId.new()
PREFIX = tag_prefix(Namespace(run_id=RUN).prefix, TypeTag.KV)
NOW = 1_000


class Source:
    """Newest versions in a dict."""

    def __init__(self, records: dict[bytes, Newest]) -> None:
        self.records = records

    def newest(self, key: bytes) -> Newest | None:
        return self.records.get(key)

    def newest_in_range(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, Newest]]:
        return ((k, r) for k, r in sorted(self.records.items()) if start <= k < end)


def k(name: str) -> bytes:
    return PREFIX + name.encode()


@pytest.fixture
def source() -> VersionSource:
    return Source(
        {
            k("old"): Newest(3, 3),
            k("new"): Newest(8, 8),
            k("deleted"): Newest(0, 9),
            k("expired"): Newest(4, 4, NOW),
            k("expires later"): Newest(5, 5, NOW + 1),
            k("swept"): Newest(0, 4),  # expired and removed by the coordinator: nobody's write
        }
    )


@pytest.mark.parametrize(
    ("name", "version"),
    [("old", 3), ("deleted", 0), ("expired", 0), ("expires later", 5), ("swept", 0), ("never", 0)],
)
def test_version_now(source: VersionSource, name: str, version: int) -> None:
    assert version_now(source, k(name), NOW) == version


@pytest.mark.parametrize(
    ("name", "read_version", "found"),
    [
        ("old", 3, None),
        ("old", 2, 3),
        ("old", 0, 3),
        ("deleted", 0, None),
        ("deleted", 7, 0),
        ("expired", 0, None),
        ("expired", 4, 0),
        ("expires later", 5, None),
        ("never", 0, None),
        ("never", 1, 0),
    ],
)
def test_reads(source: VersionSource, name: str, read_version: int, found: int | None) -> None:
    expected = [] if found is None else [ReadConflict(name, read_version, found, None, RUN, TypeTag.KV)]
    assert list(validate_read_set(source, {k(name): read_version}, NOW)) == expected


@pytest.mark.parametrize(
    ("name", "expected_version", "found"),
    [
        ("old", 3, None),
        ("old", 0, 3),
        ("new", 8, None),
        ("deleted", 0, None),
        ("expired", 0, None),
        ("never", 2, 0),
    ],
)
def test_cas(source: VersionSource, name: str, expected_version: int, found: int | None) -> None:
    expected = [] if found is None else [CASConflict(name, expected_version, found, RUN, TypeTag.KV)]
    assert list(validate_cas_set(source, {k(name): expected_version}, NOW)) == expected


@pytest.mark.parametrize(
    ("name", "found"),
    [("old", None), ("new", 8), ("deleted", 9), ("expired", None), ("swept", None), ("never", None)],
)
def test_writes(source: VersionSource, name: str, found: int | None) -> None:
    expected = [] if found is None else [WriteConflict(name, 5, found, RUN, TypeTag.KV)]
    assert list(validate_write_set(source, [k(name)], 5)) == expected


def test_a_write_at_the_start_version_itself_is_seen_and_no_conflict(source: VersionSource) -> None:
    assert not list(validate_write_set(source, [k("new")], 8))
    assert list(validate_write_set(source, [k("new")], 7))


def test_ranges_see_deletes_and_end_before_their_end(source: VersionSource) -> None:
    assert list(validate_ranges(source, [(k("d"), k("e"))], 5)) == [
        ReadConflict("d", 5, 9, ("d", "e"), RUN, TypeTag.KV)
    ]
    assert not list(validate_ranges(source, [(k("e"), k("n")), (k("a"), k("deleted"))], 5))
    assert not list(validate_ranges(source, [prefix_range(PREFIX)], 9))


def test_a_scan_of_everything_is_reported_without_an_end(source: VersionSource) -> None:
    (conflict,) = validate_ranges(source, [prefix_range(PREFIX)], 8)
    assert conflict == ReadConflict("", 8, 9, ("", None), RUN, TypeTag.KV)


def test_a_cas_key_is_checked_by_its_version_alone(source: VersionSource) -> None:
    assert validate_transaction(source, CommitSets(2, NOW, cas={k("new"): 8})).ok
    assert not validate_transaction(source, CommitSets(2, NOW, cas={k("new"): 8}, writes={k("new")})).ok


def test_snapshot_isolation_checks_writes_and_cas_only(source: VersionSource) -> None:
    stale = CommitSets(5, NOW, {k("old"): 1}, [prefix_range(PREFIX)], {k("old"): 1}, {k("new")})
    kinds = [type(c) for c in validate_transaction(source, stale).conflicts]
    assert kinds == [ReadConflict, ReadConflict, CASConflict, WriteConflict]
    kinds = [type(c) for c in validate_transaction(source, stale, serializable=False).conflicts]
    assert kinds == [CASConflict, WriteConflict]


def test_a_blind_transaction_is_checked_by_nothing_but_cas(source: VersionSource) -> None:
    everything = [prefix_range(PREFIX)]
    assert validate_transaction(
        source, CommitSets(None, NOW, writes={k("new")}, deleted_ranges=everything)
    ).ok
    assert not validate_transaction(source, CommitSets(None, NOW, cas={k("new"): 1}, writes={k("new")})).ok


def test_deleted_ranges_are_checked_like_writes_at_any_isolation(source: VersionSource) -> None:
    sets = CommitSets(8, NOW, deleted_ranges=[prefix_range(PREFIX)])
    assert validate_transaction(source, sets, serializable=False).found == 1
    assert validate_transaction(source, CommitSets(9, NOW, deleted_ranges=[prefix_range(PREFIX)])).ok


@given(st.integers(0, 40))
def test_all_are_counted_and_the_first_listed(count: int) -> None:
    reads = {k(f"{i:02}"): 5 for i in range(count)}
    outcome = validate_transaction(Source({}), CommitSets(0, NOW, reads))
    assert outcome.found == count and outcome.ok == (count == 0)
    assert [c.key for c in outcome.conflicts] == [f"{i:02}" for i in range(min(count, CONFLICTS_LISTED_MAX))]
    error = outcome.error()
    assert isinstance(error, ConflictError) and error.conflicts_found == count


def test_keys_outside_any_run_are_shown_as_they_are() -> None:
    (conflict,) = validate_read_set(Source({}), {b"bare": 1}, NOW)
    assert conflict == ReadConflict("bare", 1, 0)
    (conflict,) = validate_ranges(Source({b"b": Newest(1, 1)}), [(b"a", b"\xff")], 0)
    assert conflict == ReadConflict("a", 0, 1, ("a", "\udcff"))


# --- Against brute force -------------------------------------------------------------------------

names = st.sampled_from([k(c) for c in "abcdef"])
commits = st.lists(st.dictionaries(names, st.booleans(), min_size=1, max_size=3), max_size=10)
bounds = st.tuples(names, names)


def replay(history: list[dict[bytes, bool]]) -> Source:
    """Commit number i writes version i + 1; True puts, False deletes."""
    records: dict[bytes, Newest] = {}
    for version, writes in enumerate(history, 1):
        for key, put in writes.items():
            records[key] = Newest(version if put else 0, version)
    return Source(records)


@given(commits, st.integers(0, 10), st.sets(names), st.lists(bounds, max_size=3), st.sets(names))
def test_conflicts_exactly_with_what_was_written_since_the_snapshot(
    history: list[dict[bytes, bool]],
    start_version: int,
    read: set[bytes],
    ranges: list[tuple[bytes, bytes]],
    writes: set[bytes],
) -> None:
    """A transaction that read at its snapshot conflicts exactly when later commits touched what it used."""
    start_version = min(start_version, len(history))
    before, later = replay(history[:start_version]), history[start_version:]
    touched = {key for commit in later for key in commit}
    reads = {key: version_now(before, key, NOW) for key in read}
    outcome = validate_transaction(replay(history), CommitSets(start_version, NOW, reads, ranges, {}, writes))

    now = replay(history)
    stale = {key for key in read if version_now(now, key, NOW) != reads[key]}
    assert stale <= touched
    hit = [r for r in ranges if any(r[0] <= key < r[1] for key in touched)]
    assert outcome.found == len(stale) + len(hit) + len(writes & touched)


@given(st.binary(max_size=4), st.binary(min_size=1, max_size=4))
def test_a_range_conflict_names_user_keys(start: bytes, end: bytes) -> None:
    (conflict,) = validate_ranges(
        Source({PREFIX + start: Newest(1, 1)}), [(PREFIX + start, PREFIX + start + end)], 0
    )
    assert conflict.range is not None and conflict.run_id == RUN

    def raw(key: str | None) -> bytes:
        return (key or "").encode("utf-8", "surrogateescape")

    assert (raw(conflict.range[0]), raw(conflict.range[1])) == (start, start + end)
    past = successor(PREFIX)
    assert past is not None
    (conflict,) = validate_ranges(Source({PREFIX + start: Newest(1, 1)}), [(PREFIX + start, past)], 0)
    assert conflict.range is not None and conflict.range[1] is None
