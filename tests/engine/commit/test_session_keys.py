"""Session-bound keys in the commit core: who binds, who unbinds, and the commits that end a session. No processes.

The model is the promise in plain Python: a key is bound by an ephemeral put and by nothing else, an increment keeps the
binding, every other write takes it away, and the end of a session deletes what is bound to it at that moment.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from occamdb._testing._store_reader import StoreReader
from occamdb.engine.commit._commit_core import CHANNEL_STATE_BROKEN
from occamdb.engine.commit.messages import ConflictKind, Op, OpCode, OpFlags, Status
from occamdb.engine.disk import failpoints
from occamdb.engine.log._scratch import ScratchStore
from occamdb.engine.log._wal_appender import WalAppender
from occamdb.engine.log.wal_format import BoundWrite, Delete, Entry, Write, decode_body
from tests.engine.commit.test_commit_core import DATABASE_ID, INT_7, PREFIX, RING_SIZE, Core, add, key, put

__all__ = ["make_core"]

KEYS = ("a", "b", "c")
SESSIONS = (1, 2)


@pytest.fixture
def make_core(tmp_path: Path) -> Iterator[Callable[..., Core]]:
    with cores(tmp_path) as make:
        yield make


@contextlib.contextmanager
def cores(folder: Path) -> Iterator[Callable[..., Core]]:
    """Makes cores whose channels have the sessions 1, 2, …; each is audited at the end."""
    made: list[Core] = []

    def make(channel_count: int = 2, **options: int) -> Core:
        made.append(Core(folder, channel_count, **options))
        return made[-1]

    try:
        yield make
    finally:
        for core in made:
            core.stop()
        failpoints.clear()
        for core in made:
            assert core.core.check() is None
            core.log.abandon()


def bound(name: str, value: bytes = INT_7, expires_at: int = 0) -> Op:
    return Op(OpCode.PUT, key(name), value, expires_at=expires_at, flags=OpFlags.EPHEMERAL)


def live_keys(core: Core) -> list[str]:
    rows = StoreReader(core.store).scan(core.core.committed_version)
    return [row[0].removeprefix(PREFIX).decode() for row in rows]


def commit(core: Core, channel: int, *ops: Op) -> Status:
    core.send(channel, *ops, blind=True)
    return core.receive(channel).status


# ---- against the model -------------------------------------------------------------------------------------------

WRITE = st.tuples(
    st.sampled_from(["put", "bind", "add", "cas", "delete", "range"]),
    st.sampled_from(SESSIONS),
    st.sampled_from(KEYS),
)
STEP = st.one_of(
    st.lists(WRITE, min_size=1, max_size=4), st.tuples(st.just("end"), st.sampled_from(SESSIONS))
)


class Model:
    """What is bound to whom."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}  # key -> session, 0 unbound

    def write(self, kind: str, session: int, name: str) -> None:
        match kind:
            case "put" | "cas":
                self.keys[name] = 0
            case "bind":
                self.keys[name] = session
            case "add":
                self.keys.setdefault(name, 0)
            case "delete":
                self.keys.pop(name, None)
            case "range":
                for each in [each for each in self.keys if each >= name]:
                    del self.keys[each]

    def end(self, session: int) -> int:
        """How many keys go."""
        gone = [name for name, owner in self.keys.items() if owner == session]
        for name in gone:
            del self.keys[name]
        return len(gone)


def op_of(kind: str, name: str) -> list[Op]:
    match kind:
        case "put":
            return [put(name, INT_7)]
        case "bind":
            return [bound(name)]
        case "add":
            return [add(name, 1)]
        case "cas":
            return [Op(OpCode.PUT, key(name), INT_7, flags=OpFlags.UNCHECKED)]
        case "delete":
            return [Op(OpCode.DELETE, key(name))]
    return [Op(OpCode.DELETE_RANGE, key(name), value=key("z"))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_the_core_binds_and_removes_as_the_model_does(
    steps: list[list[tuple[str, int, str]] | tuple[str, int]],
) -> None:
    """Transactions of two sessions and the ends of both; then the log gives the same keys and bindings."""
    with tempfile.TemporaryDirectory() as folder, cores(Path(folder)) as make:
        core, model = make(2), Model()
        core.run()
        for step in steps:
            if isinstance(step, tuple):
                removed = core.core.stats()["session_keys_removed"] + model.end(step[1])
                assert core.core.end_session(step[1])
                core.wait(lambda: not core.core.ending)
                assert core.core.stats()["session_keys_removed"] == removed
            else:
                for kind, session, name in step:
                    assert commit(core, session - 1, *op_of(kind, name)) is Status.COMMITTED
                    model.write(kind, session, name)
            assert live_keys(core) == sorted(model.keys)
            assert core.core.stats()["session_keys"] == sum(1 for owner in model.keys.values() if owner)
        core.stop()
        core.log.flush_batch(True)
        recovered = ScratchStore(DATABASE_ID, 64 << 20)
        replay(Path(folder), recovered)
        expected = {key(name): owner for name, owner in model.keys.items() if owner}
        assert recovered.bindings() == expected
        assert [row[0] for row in recovered.rows()] == [key(name) for name in sorted(model.keys)]
        assert recovered.check() is None


def replay(folder: Path, store: ScratchStore) -> None:
    """Put the only segment of a log into a store."""
    from occamdb.engine.log._replay import SegmentImage
    from occamdb.engine.log.wal_format import decode_header

    (path,) = folder.glob("*.log")
    seed = decode_header(path.read_bytes(), str(path)).crc
    fd = os.open(path, os.O_RDONLY)
    try:
        image = SegmentImage(fd, seed)
    finally:
        os.close(fd)
    loader = store.loader()
    state, version = loader.replay(image, 0, 0, 1 << 30)
    assert state == "end"
    loader.finish(version, 0)


# ---- single cases ------------------------------------------------------------------------------------------------


def test_the_session_is_that_of_the_channel_whatever_the_request_says(make_core: Callable[..., Core]) -> None:
    """The argument of a put is not looked at: nobody binds keys to another handle's session."""
    core = make_core(2)
    core.run()
    forged = Op(OpCode.PUT, key("a"), INT_7, argument=2, flags=OpFlags.EPHEMERAL)
    assert commit(core, 0, forged) is Status.COMMITTED
    assert core.core.end_session(2)
    core.wait(lambda: not core.core.ending)
    assert commit(core, 1, bound("b")) is Status.COMMITTED
    assert live_keys(core) == ["a", "b"]
    assert core.core.end_session(1)
    core.wait(lambda: live_keys(core) == ["b"])


def test_a_channel_of_a_handle_binds_to_the_session_of_the_handle(make_core: Callable[..., Core]) -> None:
    import mmap

    from occamdb.ipc import layout
    from occamdb.ipc._channel import ClientChannel

    core = make_core(3)
    core.run()
    core.core.close_channel(2)
    core.wait(lambda: core.core.channel_state(2) == 3)
    core.core.release_channel(2)
    core.channels[2].close()
    buffer = mmap.mmap(-1, layout.channel_size(RING_SIZE))
    assert core.core.open_channel(77, buffer, RING_SIZE, owner=1) == 2
    core.buffers.append(buffer)
    core.channels[2] = ClientChannel(buffer, core.bell, 0, ring_size=RING_SIZE)
    assert commit(core, 2, bound("extra")) is Status.COMMITTED
    assert commit(core, 1, bound("other")) is Status.COMMITTED
    assert core.core.end_session(1)
    core.wait(lambda: live_keys(core) == ["other"])


@pytest.mark.parametrize(
    "op",
    [
        Op(OpCode.DELETE, key("a"), flags=OpFlags.EPHEMERAL),
        Op(OpCode.ADD, key("a"), argument=1, flags=OpFlags.EPHEMERAL),
        Op(OpCode.READ, key("a"), flags=OpFlags.EPHEMERAL),
        Op(OpCode.DELETE_RANGE, key("a"), value=key("b"), flags=OpFlags.EPHEMERAL),
    ],
    ids=["delete", "add", "read", "delete range"],
)
def test_only_a_put_can_be_ephemeral(make_core: Callable[..., Core], op: Op) -> None:
    core = make_core(1)
    core.run()
    core.send(0, op, blind=True)
    core.wait(lambda: core.core.channel_state(0) == CHANNEL_STATE_BROKEN)
    assert core.core.committed_version == 0


def test_a_removal_is_a_write_for_whoever_read_the_key(make_core: Callable[..., Core]) -> None:
    core = make_core(2)
    core.run()
    assert commit(core, 0, bound("lock")) is Status.COMMITTED
    start = core.core.committed_version
    assert core.core.end_session(1)
    core.wait(lambda: live_keys(core) == [])
    # Without a pin its tombstone may be forgotten, so a write of any absent key would conflict too.
    other = Op(OpCode.PUT, key("x"), INT_7, flags=OpFlags.UNCHECKED)
    core.send(1, Op(OpCode.READ, key("lock"), argument=start), other, start_version=start)
    refused = core.receive(1)
    assert [(one.kind, one.found) for one in refused.conflicts] == [(ConflictKind.READ, 0)]
    core.send(1, Op(OpCode.RANGE, key("l"), value=key("m")), other, start_version=start)
    assert core.receive(1).conflicts[0].kind is ConflictKind.RANGE
    core.send(1, put("lock", INT_7), start_version=start)
    assert core.receive(1).conflicts[0].kind is ConflictKind.WRITE


def test_the_log_has_one_commit_of_the_coordinators_own(
    make_core: Callable[..., Core], tmp_path: Path
) -> None:
    core = make_core(2)
    core.run()
    assert commit(core, 0, bound("a"), put("b", INT_7), bound("c")) is Status.COMMITTED
    assert core.core.end_session(1)
    core.wait(lambda: live_keys(core) == ["b"])
    core.stop()
    (segment,) = tmp_path.glob("*.log")
    assert [(type(entry).__name__, getattr(entry, "session", None)) for entry in entries(segment)] == [
        ("BeginTxn", 1), ("BoundWrite", 1), ("Write", None), ("BoundWrite", 1), ("CommitTxn", 1),
        ("BeginTxn", 0), ("Delete", None), ("Delete", None), ("CommitTxn", 0),
    ]  # fmt: skip
    written = [entry for entry in entries(segment) if isinstance(entry, BoundWrite | Write | Delete)]
    assert [entry.key for entry in written] == [key(name) for name in ("a", "b", "c", "a", "c")]


def entries(segment: Path) -> list[Entry]:
    """Every entry of a segment, by its lengths."""
    data, position, found = segment.read_bytes(), 80, []
    while length := int.from_bytes(data[position : position + 4], "little"):
        found.append(decode_body(data[position + 8], data[position + 9 : position + 8 + length]))
        position += 8 + length
    return found


@pytest.mark.parametrize("failure", ["errno:ENOSPC@1", "errno:EIO@1*3"])
def test_a_removal_that_the_log_refuses_is_repeated(make_core: Callable[..., Core], failure: str) -> None:
    core = make_core(2)
    core.run()
    assert commit(core, 0, *(bound(f"k{number}") for number in range(20))) is Status.COMMITTED
    failpoints.set("wal.before_write", failure)
    assert core.core.end_session(1)
    core.wait(lambda: core.core.stats()["log_errors"] > 0)
    core.wait(lambda: live_keys(core) == [])
    assert core.core.stats()["session_keys_removed"] == 20
    assert core.core.stats()["session_keys"] == 0


def test_many_keys_go_in_several_commits_and_others_are_served_between_them(
    make_core: Callable[..., Core],
) -> None:
    """20,000 keys take three commits; a worker that commits meanwhile gets versions in between them."""
    core = make_core(2, store_size=64 << 20)
    core.run()
    for start in range(0, 20_000, 400):
        ops = [bound(f"{number:05}") for number in range(start, start + 400)]
        assert commit(core, 0, *ops) is Status.COMMITTED
    before = core.core.committed_version
    assert core.core.end_session(1)
    served = 0
    while core.core.stats()["session_keys_removed"] < 20_000:
        assert commit(core, 1, put("own", INT_7)) is Status.COMMITTED
        served += 1
    core.wait(lambda: live_keys(core) == (["own"] if served else []))
    assert core.core.committed_version == before + 3 + served


def test_the_keys_go_although_the_store_has_no_room_for_all_their_tombstones(
    make_core: Callable[..., Core],
) -> None:
    """The store is filled by the very session that ends: its removal is what makes room."""
    core = make_core(1, store_size=2 << 20)
    core.run()
    count = 0
    while commit(core, 0, bound(f"{count:06}")) is Status.COMMITTED:
        count += 1
    assert core.core.end_session(1)
    core.wait(lambda: core.core.stats()["session_keys_removed"] == count)
    assert live_keys(core) == []


def test_putting_one_key_again_and_again_takes_no_memory_for_ever(make_core: Callable[..., Core]) -> None:
    """Stale entries are dropped between batches; the last binding still counts."""
    core = make_core(2)
    core.run()
    for _ in range(60):
        assert commit(core, 0, *(bound(f"k{number}") for number in range(50))) is Status.COMMITTED
    assert core.core.bound_entries(1) <= 2 * 256
    assert core.core.end_session(1)
    core.wait(lambda: live_keys(core) == [])
    assert core.core.stats()["session_keys_removed"] == 50


def test_a_log_without_ephemeral_keys_has_no_new_entries(
    make_core: Callable[..., Core], tmp_path: Path
) -> None:
    """An ordinary key takes the bytes that it always took."""
    core = make_core(1)
    core.run()
    assert commit(core, 0, put("a", INT_7)) is Status.COMMITTED
    core.stop()
    (segment,) = tmp_path.glob("*.log")
    assert [type(entry).__name__ for entry in entries(segment)] == ["BeginTxn", "Write", "CommitTxn"]


def test_append_transaction_takes_bound_writes(tmp_path: Path) -> None:
    log = WalAppender(os.open(tmp_path, os.O_RDONLY), DATABASE_ID, 1, 0, 0, 1 << 20)
    log.append_transaction(9, 1, bytes(16), 5, 1, [("bound_write", b"k", b"v", 7, 9)])
    log.flush_batch(False)
    log.close()
    (segment,) = tmp_path.glob("*.log")
    assert entries(segment)[1] == BoundWrite(1, 7, 9, b"k", b"v")
