"""Files and folders of a database for Python code: the only Python caller of open, write, fsync and rename.

Every call goes through `_files`, so failpoints and the trace see it. A `Folder` holds its directory open. It
still means the same directory after that was renamed, and names are always relative to it.

Invariants:
1. `replace` leaves either the whole old or the whole new file under the name, whatever happens in between.
2. A name made, replaced or removed is durable only after `Folder.sync`; each method says whether it syncs.
"""

from __future__ import annotations

import contextlib
import os

from . import _files, failpoints

__all__ = ["TEMPORARY_SUFFIX", "File", "Folder"]

TEMPORARY_SUFFIX = ".new"
AT_FDCWD = -100


class File:
    """One open file. Close it, or use it as a context manager."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str, flags: int = os.O_RDONLY) -> File:
        """Open a file by its path."""
        try:
            return cls(_files.open_at(AT_FDCWD, os.fsencode(path), flags), path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; closing twice does nothing."""
        if self.fd >= 0:
            _files.close(self.fd)
            self.fd = -1

    def size(self) -> int:
        """Its length in bytes."""
        return _files.size(self.fd)

    def read(self, count: int, offset: int = 0) -> bytes:
        """Up to `count` bytes at `offset`; fewer only at the end of the file."""
        return _files.read_at(self.fd, count, offset)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """All of `data` at `offset`, or OSError with perhaps a part of it written. On disk after `sync`."""
        _files.write_at(self.fd, data, offset)

    def truncate(self, size: int) -> None:
        """Cut or extend it with zeros. Durable after `sync`."""
        _files.truncate(self.fd, size)

    def sync(self) -> None:
        """fsync: content and length are on disk. Never call it again after it failed."""
        _files.sync(self.fd)


class Folder:
    """One open directory. Names given to its methods are single path components."""

    def __init__(self, path: str | os.PathLike[str], *, make: bool = False) -> None:
        """Open it; with `make`, make it and its missing parents first (the new names are synced)."""
        self.path = os.path.abspath(path)
        self.fd = -1
        if make:
            _make_folders(self.path)
        self.fd = _files.open_at(AT_FDCWD, os.fsencode(self.path), os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; closing twice does nothing."""
        if self.fd >= 0:
            _files.close(self.fd)
            self.fd = -1

    def file_path(self, name: str) -> str:
        """The path of a file in it, for messages."""
        return os.path.join(self.path, name)

    def names(self) -> list[str]:
        """What is in it, sorted."""
        return sorted(os.listdir(self.fd))

    def open(self, name: str, flags: int = os.O_RDONLY) -> File:
        """Open a file in it."""
        try:
            return File(_files.open_at(self.fd, os.fsencode(name), flags), self.file_path(name))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.file_path(name)) from None

    def duplicate(self) -> int:
        """A new descriptor of the directory, for compiled code that keeps it."""
        return _files.open_at(self.fd, b".", os.O_RDONLY | os.O_DIRECTORY)

    def read(self, name: str) -> bytes:
        """The whole content of a small file."""
        with self.open(name) as file:
            return file.read(file.size())

    def replace(self, name: str, data: bytes, *, failpoint: str | None = None) -> None:
        """Put `data` under `name` atomically and durably: temporary file, fsync, rename, fsync of the folder.

        Args:
          failpoint: prefix of the failpoints `.before_rename` and `.after_rename` to pass.

        Raises:
          OSError: the old content is still there, unless the last sync failed: then either may be.
        """
        temporary = name + TEMPORARY_SUFFIX
        try:
            with self.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
                file.write(data, 0)
                # The name must not come to mean a file whose bytes are not on disk.
                file.sync()
            if failpoint:
                failpoints.hit(f"{failpoint}.before_rename")
            self.rename(temporary, name)
        except OSError:
            with contextlib.suppress(OSError):
                self.remove(temporary)
            raise
        if failpoint:
            failpoints.hit(f"{failpoint}.after_rename")
        # Without this a power loss may bring the old name back.
        self.sync()

    def rename(self, old: str, new: str) -> None:
        """Rename within the folder; durable after `sync`."""
        _files.rename(self.fd, os.fsencode(old), os.fsencode(new))

    def remove(self, name: str) -> None:
        """Remove a file; durable after `sync`."""
        _files.unlink(self.fd, os.fsencode(name))

    def make(self, name: str) -> None:
        """Make a folder in it unless it is there; durable after `sync`."""
        with contextlib.suppress(FileExistsError):
            _files.mkdir(self.fd, os.fsencode(name))

    def sync(self) -> None:
        """fsync of the directory: names made, replaced and removed so far are on disk."""
        _files.sync_directory(self.fd)


def _make_folders(path: str) -> None:
    """Like mkdir -p, each new name synced in its parent."""
    if os.path.isdir(path):
        return
    parent, name = os.path.split(path)
    _make_folders(parent)
    with Folder(parent) as folder:
        folder.make(name)
        # Everything synced below is lost if this name is.
        folder.sync()
