"""Segments: exclusive, private, preallocated; every refusal is an error that leaves nothing behind."""

import ctypes
import errno
import mmap
import os
import resource
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from occamdb.ipc import segment
from occamdb.ipc.errors import (
    AddressSpaceError,
    SegmentError,
    SegmentExistsError,
    SegmentForeignError,
    SegmentMissingError,
    ShmFullError,
)
from occamdb.ipc.segment import attach_segment, create_segment, store_preallocate, unlink_segment
from tests.support.children import child

MIB = 1 << 20
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
MS_REC_PRIVATE = 0x4000 | 0x40000


@pytest.fixture
def name() -> Iterator[str]:
    found = f"/occam-test-{uuid.uuid4().hex}"
    yield found
    unlink_segment(found)


def path(name: str) -> Path:
    return Path(segment.SHM_DIRECTORY, name[1:])


def in_child(body: Callable[[], object]) -> None:
    """Run `body` where limits and mounts are its own."""
    with child(body):
        pass


def test_what_one_writes_the_other_reads(name: str) -> None:
    with create_segment(name, 10_000) as made:
        made.map[9_990:] = b"0123456789"
        with attach_segment(name, writable=True, size=10_000) as writer:
            assert writer.map[9_990:] == b"0123456789"
            writer.map[0] = 7
        with attach_segment(name, writable=False) as reader:
            assert reader.map[0] == 7 and reader.size == len(reader.map) == 10_000
            with pytest.raises(TypeError):
                reader.map[0] = 8
        assert made.unlink() and not made.unlink()
        made.map[1] = 9  # without its name a segment lives on
    assert not path(name).exists()


def test_a_segment_is_private_and_whole(name: str) -> None:
    before = os.umask(0)
    try:
        with create_segment(name, 5 * MIB) as made:
            found = os.fstat(made.fd)
            assert found.st_mode & 0o7777 == 0o600
            assert found.st_blocks * 512 >= 5 * MIB, "every page is reserved"
            assert not os.get_inheritable(made.fd)
    finally:
        os.umask(before)


def test_a_sparse_segment_grows_by_preallocation(name: str) -> None:
    with create_segment(name, 1 << 40, preallocate=MIB) as made:
        assert os.fstat(made.fd).st_blocks * 512 < 2 * MIB
        made.map[:3] = b"abc"
        store_preallocate(made.fd, 0, 4 * MIB)
        store_preallocate(made.fd, 1 << 30, MIB)
        assert os.fstat(made.fd).st_blocks * 512 >= 5 * MIB
        assert made.map[:3] == b"abc", "what was there stays"


def test_closing_waits_for_views(name: str) -> None:
    made = create_segment(name, 4096)
    with memoryview(made.map), pytest.raises(BufferError):
        made.close()
    made.close_fd()
    made.close()
    made.close()
    assert made.fd == -1


def test_an_existing_name_is_refused(name: str) -> None:
    with create_segment(name, 4096) as made:
        made.map[0] = 5
        with pytest.raises(SegmentExistsError):
            create_segment(name, 4096)
        assert made.map[0] == 5
        assert path(name).exists(), "a refused creation does not remove what it found"


def test_a_planted_link_is_refused_and_its_target_untouched(name: str, tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_bytes(b"precious" * 1024)
    path(name).symlink_to(target)
    with pytest.raises(SegmentExistsError):
        create_segment(name, 4096)
    with pytest.raises(SegmentForeignError):
        attach_segment(name, writable=True)
    assert target.read_bytes() == b"precious" * 1024


def test_a_missing_segment() -> None:
    with pytest.raises(SegmentMissingError):
        attach_segment("/occam-test-absent", writable=False)
    assert not unlink_segment("/occam-test-absent")


def test_attach_checks_owner_mode_and_size(name: str) -> None:
    with create_segment(name, 4096) as made:
        with pytest.raises(SegmentForeignError, match="belongs to user"):
            attach_segment(name, writable=True, owner_uid=os.geteuid() + 1)
        with pytest.raises(SegmentError, match="4096 bytes, expected 8192"):
            attach_segment(name, writable=True, size=8192)
        os.fchmod(made.fd, 0o640)
        with pytest.raises(SegmentForeignError, match="mode 640"):
            attach_segment(name, writable=True)
        os.fchmod(made.fd, 0o600)
        os.ftruncate(made.fd, 0)
        with pytest.raises(SegmentError, match="empty"):
            attach_segment(name, writable=True)


@pytest.mark.parametrize("bad", ["/occam-" + "x" * 300, "/a/b", ""])
def test_impossible_names(bad: str) -> None:
    with pytest.raises(SegmentError):
        create_segment(bad, 4096)


@pytest.mark.parametrize("size", [0, -1, 1 << 63, 1 << 70])
def test_impossible_sizes(name: str, size: int) -> None:
    with pytest.raises(SegmentError):
        create_segment(name, size, preallocate=0)
    assert not path(name).exists()


def test_memory_that_is_not_there_is_refused_before_it_is_tried(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would grant it and then kill somebody."""
    monkeypatch.setattr(segment, "_memory_available", lambda: MIB)
    with pytest.raises(ShmFullError) as caught:
        create_segment(name, 2 * MIB)
    assert caught.value.details["free"] == MIB and "max_store_size" in caught.value.hint
    assert not path(name).exists()


def test_available_memory_is_that_of_the_machine() -> None:
    assert 0 < segment.shm_free_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 4


def test_a_file_size_limit_is_a_clear_error(name: str) -> None:
    def body() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        with pytest.raises(ShmFullError, match="RLIMIT_FSIZE") as caught:
            create_segment(name, 2 * MIB)
        assert "ulimit -f" in caught.value.hint
        assert not path(name).exists()

    in_child(body)


def test_an_address_space_limit_is_a_clear_error(name: str) -> None:
    def body() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
        with pytest.raises(AddressSpaceError, match="no address space") as caught:
            create_segment(name, 1 << 33, preallocate=0)
        assert "RLIMIT_AS" in caught.value.hint
        assert not path(name).exists()

    in_child(body)


def test_no_descriptors_left_is_a_clear_error(name: str) -> None:
    def body() -> None:
        limit = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        with pytest.raises(SegmentError, match="files open") as caught:
            create_segment(name, 4096)
        assert "ulimit -n" in caught.value.hint

    in_child(body)


def mount_small_shm(size: int) -> None:
    """A /dev/shm of this process's own; raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNS if os.geteuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
    steps: list[Callable[[], int]] = [
        lambda: int(libc.unshare(flags)),
        lambda: int(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)),
        lambda: int(libc.mount(b"occam", b"/dev/shm", b"tmpfs", 0, b"size=%d" % size)),
    ]
    for step in steps:
        if step() != 0:
            raise OSError(ctypes.get_errno(), "a private /dev/shm is not allowed here")


def may_mount() -> bool:
    def body() -> None:
        mount_small_shm(MIB)

    try:
        with open(os.devnull, "w") as null:
            saved = os.dup(2)
            os.dup2(null.fileno(), 2)
            try:
                in_child(body)
            finally:
                os.dup2(saved, 2)
                os.close(saved)
    except AssertionError:
        return False
    return True


def test_a_full_tmpfs_is_an_error_and_never_sigbus(name: str) -> None:
    if not may_mount():
        pytest.skip("no private mounts for this user; RLIMIT_FSIZE covers the same path")

    def body() -> None:
        mount_small_shm(2 * MIB)
        with pytest.raises(ShmFullError):
            create_segment(name, 4 * MIB)
        assert not path(name).exists()
        with create_segment(name, 64 * MIB, preallocate=MIB) as store:
            store.map[:MIB] = b"x" * MIB
            with pytest.raises(ShmFullError, match="free"):
                store_preallocate(store.fd, MIB, 2 * MIB)
            # Room that statvfs still promised may be gone when it is asked for: the kernel's own answer counts.
            segment.shm_free_bytes = lambda: 1 << 40
            with pytest.raises(ShmFullError) as caught:
                store_preallocate(store.fd, MIB, 2 * MIB, name=name)
            assert caught.value.details["errno"] == errno.ENOSPC
            assert store.map[:MIB] == b"x" * MIB

    in_child(body)


def test_listing_finds_what_is_there(name: str) -> None:
    database = "0123456789abcdef"
    listed = f"/occam-{database}-1-c{uuid.uuid4().hex[:16]}"
    with create_segment(listed, mmap.PAGESIZE) as made:
        assert listed in segment.list_segments(database)
        assert listed in segment.list_segments()
        assert listed not in segment.list_segments("fedcba9876543210")
        made.unlink()
    assert listed not in segment.list_segments()
