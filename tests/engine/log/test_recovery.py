"""What was committed comes back exactly, however often the database is recovered and in whatever pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from occamdb.engine.disk.directory import DatabaseDirectory
from occamdb.engine.log._scratch import ScratchStore
from occamdb.engine.log.recovery import VERSION_SKIP, recover
from occamdb.engine.log.wal_format import Delete, Write
from occamdb.engine.log.wal_reader import read_log
from occamdb.engine.model.errors import StoreFullError
from tests.support.log_driver import (
    OTHER_BOOT,
    Database,
    Model,
    Operation,
    checkpoints,
    content,
    fingerprint,
    memory_directory,
    segments,
    write,
)

KEY = st.sampled_from([b"a", b"b", b"c", b"d", b"e" * 60])
OPERATION: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("write"), KEY, st.binary(max_size=1500), st.sampled_from([0, 10**18])),
    st.tuples(
        st.just("bound_write"),
        KEY,
        st.binary(max_size=300),
        st.sampled_from([0, 10**18]),
        st.integers(1, 2**63),
    ),
    st.tuples(st.just("delete"), KEY, st.just(0)),
    st.tuples(st.just("delete_range"), KEY, KEY),
)
STEP = st.one_of(
    st.lists(OPERATION, min_size=1, max_size=4),
    st.sampled_from(["flush", "sync", "kill", "close", "checkpoint"]),
)


@given(steps=st.lists(STEP, max_size=30))
def test_any_life_comes_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[Operation] | str]
) -> None:
    """Commits, kills, clean closes, checkpoints and rotations in any order, against a dict."""
    with memory_directory(tmp_path_factory.mktemp("life")) as parent:
        live(parent / "db", steps)


def live(path: Path, steps: list[list[Operation] | str]) -> None:
    database = Database(path, segment_size=4096)
    flushed, pending, outcomes = Model(), Model(), {}
    for step in [*steps, "kill"]:
        if isinstance(step, list):
            session = 1 + len(step) % 3
            version = database.encode(step, session=session)
            pending.apply(version, version * 10, step)
            outcomes[session] = (version, version)
        else:
            database.flush(sync=step == "sync")
            flushed = Model(dict(pending.rows), dict(pending.bindings))
        if step in ("kill", "close", "checkpoint"):
            last = database.version
            database.kill() if step == "kill" else database.close()
            database = Database(path, segment_size=4096)
            assert database.store.rows() == flushed.listing()
            assert database.store.bindings() == flushed.bindings
            assert database.store.check() is None
            assert (database.version, database.result.outcomes) == (last, outcomes)
            assert not database.result.warnings
            if step == "checkpoint":
                database.checkpoint()
    database.kill()


def test_two_recoveries_are_identical(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    for number in range(300):
        database.encode([write(b"%d" % (number % 90), b"v" * number), ("delete", b"%d" % (number % 7), 0)])
    database.flush()
    database.kill()
    stores = []
    for _ in range(2):
        directory = DatabaseDirectory(path)
        store = ScratchStore(directory.database_id, 1 << 22)
        recover(directory, store.loader(), repair_disk=False)
        directory.close()
        stores.append(store)
    assert stores[0].rows() == stores[1].rows()
    # Not only the rows: indices, towers, allocation, all of it but the header's clock-free counters too.
    assert bytes(stores[0].mapping) == bytes(stores[1].mapping)


def test_versions_timestamps_and_expiry_survive_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    database.encode([write(b"b", b"", 10**18)], timestamp=123456789)
    database.encode([write(b"a", b"\0" * 5000)], timestamp=5)
    database.flush()
    database.kill()
    database = Database(path)
    database.checkpoint()
    database.kill()
    result, rows = content(path)
    assert (result.checkpoint_version, result.entries_replayed) == (2, 0)
    assert rows == [(b"a", b"\0" * 5000, 2, 5, 0), (b"b", b"", 1, 123456789, 10**18)]


def test_expiry_deletes_keep_what_they_removed(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    database.commit([write(b"k", b"v", 5)])
    database.commit([("delete", b"k", 1)], session=0)
    database.kill()
    with_log = Database(path, durability=None)
    entries = [found.entry for found in read_log(with_log.directory)]
    assert Delete(2, 1, b"k") in entries and Write(1, 5, b"k", b"v") in entries
    with_log.close()
    result, rows = content(path)
    assert rows == [] and result.version == 2
    assert result.outcomes == {1: (1, 1)}, "session 0 is the coordinator itself"


def test_many_sessions(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    for number in range(5000):
        database.encode([write(b"k")], session=(number % 3000 + 1) << 40)
    database.flush()
    database.kill()
    expected = {((n % 3000) + 1) << 40: (n + 1, n + 1) for n in range(5000)}
    database = Database(path)
    assert database.result.outcomes == expected
    database.checkpoint()
    database.kill()
    result, _ = content(path)
    assert (result.outcomes, result.transactions_replayed) == (expected, 0)


def test_bounded_log_and_two_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "db"
    for run in range(6):
        database = Database(path, segment_size=4096)
        database.checkpoint()
        for number in range(40):
            database.commit([write(b"key %d" % number, b"%d" % run * 400)])
        database.kill()
        assert len(checkpoints(path)) == min(run + 1, 2)
        older = int(checkpoints(path)[0].name[:20])
        assert run < 2 or int(segments(path)[0].name[:20]) > older - 40
    assert len(segments(path)) < 20


def test_checkpoint_that_is_no_longer_wanted(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    for number in range(2000):
        database.encode([write(b"%06d" % number, b"v" * 300)])
    database.flush()
    database.kill()
    database = Database(tmp_path / "db", durability=None)
    before = fingerprint(tmp_path / "db")
    calls = []

    def revoked() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the pin is gone")

    with pytest.raises(RuntimeError, match="the pin is gone"):
        database.checkpoint(revoked)
    assert fingerprint(tmp_path / "db") == before
    database.close()


def test_store_too_small(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    for number in range(3000):
        database.encode([write(b"%d" % number, b"v" * 1000)])
    database.flush()
    before = database.store
    database.kill()
    for with_checkpoint in (False, True):
        if with_checkpoint:
            again = Database(tmp_path / "db", durability=None)
            again.checkpoint()
            again.close()
        directory = DatabaseDirectory(tmp_path / "db")
        store = ScratchStore(directory.database_id, 1 << 20)
        with pytest.raises(StoreFullError, match="max_store_size"):
            recover(directory, store.loader())
        directory.close()
    assert before.key_count == 0
    assert content(tmp_path / "db")[0].version == 3000


def test_progress_is_reported(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    database.commit([write(b"a")])
    database.kill()
    database = Database(tmp_path / "db")
    database.checkpoint()
    database.commit([write(b"b")])
    database.kill()
    seen: list[tuple[str, int, int]] = []
    Database(tmp_path / "db", progress=lambda stage, done, total: seen.append((stage, done, total))).kill()
    assert {stage for stage, _, _ in seen} == {"checkpoint check", "checkpoint load", "log"}
    assert all(0 < done <= total for _, done, total in seen)


# --- M8: versions ---------------------------------------------------------------------------------------------------


def test_without_a_log_versions_are_not_reused_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "db"
    seen = 0
    for _ in range(3):
        database = Database(path, durability="none")
        assert database.result.version > seen or seen == 0
        # The run gives out versions of which nothing is left.
        seen = database.result.version + 1_000_000
        database.directory.reserve_versions(seen)
        database.kill()
    database = Database(path, durability="none")
    assert database.result.version > seen


def test_without_a_log_a_clean_stop_skips_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path, durability="none")
    database.directory.note_clean_stop(database.result.version)
    database.close()
    assert Database(path, durability="none").result.version == 0


def test_reserve_follows_a_run_that_outlasts_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", durability="none")
    database.directory.reserve_versions(10)
    ceiling = database.directory.meta.version_ceiling
    database.directory.reserve_versions(ceiling - 1)
    assert database.directory.meta.version_ceiling > ceiling
    database.kill()
    assert Database(tmp_path / "db").result.version > ceiling


@pytest.mark.parametrize("durability", ["standard", "always"])
def test_after_a_power_loss_versions_are_skipped(tmp_path: Path, durability: str) -> None:
    """With "always" too: the removal of an expired key is published before it is on disk."""
    path = tmp_path / "db"
    database = Database(path, durability=durability)
    for number in range(5):
        database.commit([write(b"%d" % number)])
    database.kill()
    same_boot = content(path)[0]
    assert (same_boot.version, same_boot.log_version) == (5, 5)
    database = Database(path, boot_id=OTHER_BOOT)
    assert (database.result.version, database.result.log_version) == (5 + VERSION_SKIP, 5)
    assert any("skipped" in warning for warning in database.result.warnings)
    # A start without a commit must not forget the skip, nor must a checkpoint taken there.
    database.checkpoint()
    database.kill()
    database = Database(path)
    assert database.version == 5 + VERSION_SKIP
    assert database.commit([write(b"after")]) == 6 + VERSION_SKIP
    database.kill()
    assert [row[0] for row in content(path)[1]] == [b"0", b"1", b"2", b"3", b"4", b"after"]
    # The older way, without the checkpoint, leads to the same state.
    for file in checkpoints(path):
        file.unlink()
    assert content(path)[0].version == 6 + VERSION_SKIP


def test_from_log_to_none_and_back(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    database.commit([write(b"logged")])
    database.close()
    database = Database(path, durability="none")
    assert (database.result.version, len(database.store.rows())) == (1, 1)
    database.checkpoint()
    database.directory.note_clean_stop(1)
    database.close()
    database = Database(path)
    assert database.commit([write(b"logged again")]) == 2
    database.kill()
    assert [row[0] for row in content(path)[1]] == [b"logged", b"logged again"]
