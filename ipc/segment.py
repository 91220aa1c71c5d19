"""POSIX shared memory segments: create exclusively, preallocate, attach with checks, map, unlink.

The coordinator creates and unlinks; workers attach. Nothing here knows what a segment holds.

Invariants:
1. A segment is created exclusively (O_EXCL, mode 0600, no symbolic link followed): a planted name is refused.
2. Before a segment is mapped, its owner, mode and size are checked on the open descriptor, not by name.
3. Every page that is written was preallocated: running out of shared memory is `ShmFullError`, never a
   SIGBUS. Creation preallocates the whole segment unless told otherwise (a store grows by
   `store_preallocate`). What does not fit into the machine's memory is refused before it is tried, because
   the kernel would grant it: /dev/shm may be larger than the memory, and then some process gets killed.
4. Descriptors are close-on-exec. An unlinked segment stays usable for all who have it mapped.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable
from typing import Final, NoReturn

import posix_ipc

from .errors import (
    AddressSpaceError,
    SegmentError,
    SegmentExistsError,
    SegmentForeignError,
    SegmentMissingError,
    ShmFullError,
)
from .layout import SHM_PREFIX

SHM_DIRECTORY: Final = "/dev/shm"
SEGMENT_MODE: Final = 0o600
# A fallocate that a signal interrupts undoes itself: short steps make progress whatever the signals.
PREALLOCATE_STEP: Final = 16 * 1024 * 1024

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Segment:
    """One mapped segment. Made by `create_segment` and `attach_segment`.

    Attributes:
      name: with the leading slash.
      size: bytes.
      map: the mapping; read-only if attached so.
      fd: descriptor of the segment, -1 once closed.
    """

    def __init__(self, name: str, fd: int, mapping: mmap.mmap, size: int) -> None:
        self.name = name
        self.fd = fd
        self.map = mapping
        self.size = size
        self._found = os.fstat(fd)

    def close_fd(self) -> None:
        """Give up the descriptor; the mapping stays. Idempotent."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def close(self) -> None:
        """Unmap and close. Idempotent.

        Raises:
          BufferError: somebody still holds a view of the mapping (a channel, a memoryview): close that first.
        """
        self.map.close()
        self.close_fd()

    def is_named(self) -> bool:
        """Whether the name still leads to this segment, and was not removed or replaced.

        REQUIRES: it is mapped.
        """
        found = segment_stat(self.name)
        return found is not None and os.path.samestat(found, self._found)

    def unlink(self) -> bool:
        """Remove the name; mappings live on. Returns whether the name was there."""
        return unlink_segment(self.name)

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create_segment(
    name: str, size: int, *, preallocate: int | None = None, on_named: Callable[[], None] | None = None
) -> Segment:
    """Create, size, preallocate and map a segment, filled with zeros.

    Blocks while the kernel zeroes the preallocated pages.

    Args:
      name: with the leading slash.
      size: bytes; the part beyond `preallocate` stays sparse.
      preallocate: bytes to reserve at once; None: all.
      on_named: called while the segment has its name and not a byte yet; for failpoints.

    Raises:
      SegmentExistsError: the name is taken (also by a planted link).
      ShmFullError: shared memory, or RLIMIT_FSIZE, has no room. Nothing is left behind.
      AddressSpaceError: it cannot be mapped. Nothing is left behind.
      SegmentError: no descriptors left, or the name is invalid.
    """
    fd = _open(name, posix_ipc.O_CREX, read_only=False)
    try:
        # The umask may have taken bits away.
        os.fchmod(fd, SEGMENT_MODE)
        if on_named is not None:
            on_named()
        _truncate(name, fd, size)
        store_preallocate(fd, 0, size if preallocate is None else min(preallocate, size), name=name)
        return Segment(name, fd, _map(name, fd, size, writable=True), size)
    except BaseException:
        os.close(fd)
        unlink_segment(name)
        raise


def attach_segment(
    name: str, *, writable: bool, size: int | None = None, owner_uid: int | None = None
) -> Segment:
    """Open, check and map an existing segment.

    Args:
      name: with the leading slash.
      writable: map read-write; otherwise no write through the mapping is possible.
      size: bytes it must have; None: whatever it has.
      owner_uid: user who must own it; None: this process's effective user.

    Raises:
      SegmentMissingError: no such name.
      SegmentForeignError: another owner, a mode that lets others in, or not a regular segment.
      SegmentError: another size, or no descriptors left.
      AddressSpaceError: it cannot be mapped.
    """
    fd = _open(name, 0, read_only=not writable)
    try:
        found = _checked_size(name, os.fstat(fd), size, os.geteuid() if owner_uid is None else owner_uid)
        return Segment(name, fd, _map(name, fd, found, writable=writable), found)
    except BaseException:
        os.close(fd)
        raise


def poke_segment(name: str, offset: int, data: bytes) -> bool:
    """Write bytes into a segment by its descriptor: needs no address space, and cannot end in SIGBUS.

    Returns:
      False if there is nothing to write to: no such name, a segment that ends before, or a page never
      allocated while shared memory is full (so nobody has seen it).

    Raises:
      SegmentForeignError: as `attach_segment`.
      SegmentError: no descriptors left.
    """
    try:
        fd = _open(name, 0, read_only=False)
    except SegmentMissingError:
        return False
    try:
        found = os.fstat(fd)
        if found.st_size < offset + len(data):
            return False
        _checked_size(name, found, None, os.geteuid())
        return os.pwrite(fd, data, offset) == len(data)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        _raise_os_error(name, error, f"writing at {offset}")
    finally:
        os.close(fd)


def peek_segment(name: str, offset: int, size: int) -> bytes:
    """Read bytes of a segment by its descriptor.

    Returns:
      b"" if there is nothing to read: no such name, or a segment that ends before. One whose creator was killed while
      making it has no bytes at all.

    Raises:
      SegmentForeignError: as `attach_segment`.
      SegmentError: no descriptors left.
    """
    try:
        fd = _open(name, 0, read_only=True)
    except SegmentMissingError:
        return b""
    try:
        found = os.fstat(fd)
        # First, as in `poke_segment`: below, a segment without bytes is an error.
        if found.st_size < offset + size:
            return b""
        _checked_size(name, found, None, os.geteuid())
        data = os.pread(fd, size, offset)
        return data if len(data) == size else b""
    except OSError as error:
        _raise_os_error(name, error, f"reading at {offset}")
    finally:
        os.close(fd)


def store_preallocate(fd: int, offset: int, size: int, *, name: str = "") -> None:
    """Reserve the pages of [offset, offset + size) so that touching them cannot fail.

    Pages already there keep their content. On an error a part may stay reserved.

    Raises:
      ShmFullError: no room in shared memory, or beyond RLIMIT_FSIZE.
    """
    end = offset + size
    position = offset
    free = shm_free_bytes()
    if size > free:
        raise ShmFullError(
            f"segment {name}: {SHM_DIRECTORY} and memory have {free} bytes free, {size} are needed",
            details={"name": name, "errno": errno.ENOSPC, "free": free, "needed": size},
        )
    while position < end:
        step = min(PREALLOCATE_STEP, end - position)
        try:
            os.posix_fallocate(fd, position, step)
        except OSError as error:
            _raise_os_error(name, error, f"reserving bytes {position}..{position + step} of {end}")
        position += step


def unlink_segment(name: str) -> bool:
    """Remove a segment's name. Returns whether it was there."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError as error:
        raise SegmentForeignError(f"segment {name} cannot be unlinked by user {os.geteuid()}") from error
    return True


def list_segments(database: str = "") -> list[str]:
    """Names (leading slash, sorted) of this machine's occamdb segments, of one database prefix if given."""
    prefix = f"{SHM_PREFIX}{database}-" if database else SHM_PREFIX
    try:
        found = os.listdir(SHM_DIRECTORY)
    except FileNotFoundError:
        return []
    return sorted(f"/{name}" for name in found if name.startswith(prefix))


def segment_stat(name: str) -> os.stat_result | None:
    """`lstat` of a segment by name, None if it is gone."""
    try:
        return os.lstat(os.path.join(SHM_DIRECTORY, name.removeprefix("/")))
    except FileNotFoundError:
        return None


def shm_free_bytes() -> int:
    """Bytes of shared memory that can still be allocated: room in /dev/shm, and memory behind it."""
    state = os.statvfs(SHM_DIRECTORY)
    return min(state.f_bavail * state.f_frsize, _memory_available())


def _memory_available() -> int:
    """Bytes the kernel can provide without killing anybody, swap included."""
    found = {}
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            field, _, rest = line.partition(b":")
            if field in (b"MemAvailable", b"SwapFree"):
                found[field] = int(rest.split()[0]) * 1024
    return found.get(b"MemAvailable", sys.maxsize) + found.get(b"SwapFree", 0)


# ---- system calls -----------------------------------------------------------------------------------


def _open(name: str, flags: int, *, read_only: bool) -> int:
    """shm_open; glibc adds O_NOFOLLOW and O_CLOEXEC."""
    try:
        # size=0 leaves the segment's size alone.
        return int(posix_ipc.SharedMemory(name, flags, mode=SEGMENT_MODE, size=0, read_only=read_only).fd)
    except posix_ipc.ExistentialError as error:
        if flags:
            raise SegmentExistsError(f"segment {name} exists") from error
        raise SegmentMissingError(f"there is no segment {name}") from error
    except posix_ipc.PermissionsError as error:
        raise SegmentForeignError(f"segment {name} is not open to user {os.geteuid()}") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SegmentForeignError(f"segment {name} is a symbolic link") from error
        _raise_os_error(name, error, "opening it")
    except ValueError as error:
        raise SegmentError(f"segment name {name!r} is invalid: {error}") from error


def _checked_size(name: str, found: os.stat_result, size: int | None, owner_uid: int) -> int:
    if not stat.S_ISREG(found.st_mode):
        raise SegmentForeignError(f"segment {name} is not a regular segment (mode {found.st_mode:o})")
    if found.st_uid != owner_uid:
        raise SegmentForeignError(f"segment {name} belongs to user {found.st_uid}, expected {owner_uid}")
    if found.st_mode & 0o077:
        raise SegmentForeignError(
            f"segment {name} has mode {stat.S_IMODE(found.st_mode):o}, expected {SEGMENT_MODE:o}"
        )
    if size is not None and found.st_size != size:
        raise SegmentError(f"segment {name} has {found.st_size} bytes, expected {size}")
    if found.st_size == 0:
        raise SegmentError(f"segment {name} is empty: its creator died while making it")
    return found.st_size


def _truncate(name: str, fd: int, size: int) -> None:
    if size <= 0:
        raise SegmentError(f"a segment cannot have {size} bytes")
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        _raise_os_error(name, error, f"sizing it to {size} bytes")
    except OverflowError as error:
        raise SegmentError(f"segment {name}: {size} bytes are more than a file can have") from error


def _map(name: str, fd: int, size: int, *, writable: bool) -> mmap.mmap:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection)
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EAGAIN):
            raise AddressSpaceError(
                f"segment {name}: no address space for {size} bytes", details={"name": name, "size": size}
            ) from error
        _raise_os_error(name, error, f"mapping {size} bytes")
    except (OverflowError, ValueError) as error:
        raise SegmentError(f"segment {name}: {size} bytes cannot be mapped: {error}") from error


def _raise_os_error(name: str, error: OSError, doing: str) -> NoReturn:
    """Turn an OSError of a segment call into the error that says what to do."""
    # posix_ipc reports these two without an errno.
    number = error.errno or (errno.ENFILE if "system" in str(error) else errno.EMFILE)
    details = {"name": name, "errno": number}
    if error.errno in _FULL:
        limit = "the file size limit (RLIMIT_FSIZE)" if error.errno == errno.EFBIG else SHM_DIRECTORY
        raise ShmFullError(
            f"segment {name}: {limit} has no room, {doing} ({shm_free_bytes()} bytes of shared memory free)",
            hint="raise `ulimit -f`" if error.errno == errno.EFBIG else "",
            details=details,
        ) from error
    hint = "raise `ulimit -n`" if number in _NO_DESCRIPTORS else ""
    reason = error.strerror or str(error)
    raise SegmentError(f"segment {name}: {reason}, {doing}", hint=hint, details=details) from error
