"""The database directory: its files, and `meta`, which says whose it is and how it was left.

    LOCK                     held by the coordinator (ipc/lock.py)
    meta                     this module
    wal/<first version>.log  docs/log-format.md
    checkpoints/<version>.ckpt
    coordinator.json         pid and socket of the coordinator
    settings.toml            optional, by the user
    reserve                  space for a start on a full disk (reserve.py)

`prepare` and `read_meta` may be called by any process. Everything else is called by the coordinator alone,
while it holds LOCK.

Invariants:
1. `meta` is replaced atomically. When a directory is made, `meta` is written last: without it there is no
   database, and after a crash the next open makes everything again.
2. `incarnation` grows at every coordinator start, before anything else of the start is visible.
3. The fields on the log (`boot_id`, `log_first_version`, `durability`, `clean`) change only after recovery
   has repaired what the previous incarnation left. So a recovery that was killed half-way is judged like the
   first one.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import uuid
from dataclasses import dataclass, replace

from ..model.errors import CorruptionError, IncompatibleFormatError
from ..model.public_types import Durability
from . import failpoints
from ._crc32c import checksum
from .files import TEMPORARY_SUFFIX, Folder

__all__ = [
    "FORMAT_VERSION",
    "SOCKET_NAME",
    "DatabaseDirectory",
    "Meta",
    "current_boot_id",
    "read_meta",
    "socket_path",
]

SOCKET_NAME = "coordinator.sock"
FORMAT_VERSION = 3
# 1: values without extensions 1 to 16, and runs without entries by name. 2: no key is bound to a session. Both
# are read, and become 3 at the first start.
FORMATS_READ = (1, 2, 3)
META_SIZE = 128
_MAGIC = b"OCCAMDB\0"
_LAYOUT = struct.Struct("<8sII16sQIIQQQ16sq28xI")
# The number of a durability in `meta`. It belongs to the format, and does not depend on the order of the
# enum.
_DURABILITIES = (Durability.NONE, Durability.STANDARD, Durability.ALWAYS)
_NEVER = 255
_CLEAN = 1
assert _LAYOUT.size == META_SIZE
# What a start makes, or finds, before there is a meta file.
_OURS = frozenset(
    (
        "LOCK", "STARTER", "meta", "wal", "checkpoints", "reserve", "settings.toml", "coordinator.json",
        "coordinator.sock", "coordinator.log",
    )
)  # fmt: skip
# Of a fresh file system, and of version control that keeps an empty directory.
_HARMLESS = frozenset(("lost+found", ".gitignore", ".gitkeep"))
# Versions set aside for an incarnation that keeps no log: at a million commits a second, twelve days of them.
VERSION_RESERVE = 1 << 40


def socket_path(path: str) -> str:
    """Where the coordinator of the directory `path` listens."""
    return os.path.join(path, SOCKET_NAME)


@dataclass(frozen=True, slots=True)
class Meta:
    """The content of `meta`.

    Attributes:
      database_id: 16 random bytes, for ever.
      incarnation: number of the latest coordinator start.
      durability: of the last run that got past recovery; None before the first.
      clean: that run was stopped with everything in a checkpoint.
      log_first_version: a log segment beginning here or later must exist; 0 when there need be none.
      version_ceiling: without a log: no version above it was given out.
      boot_id: the boot of the machine during which the log was last written.
      created_at: ns since the epoch.
    """

    database_id: bytes
    incarnation: int = 0
    durability: Durability | None = None
    clean: bool = True
    log_first_version: int = 0
    version_ceiling: int = 0
    clean_version: int = 0
    boot_id: bytes = bytes(16)
    created_at: int = 0

    def encode(self) -> bytes:
        """The bytes of the file."""
        durability = _NEVER if self.durability is None else _DURABILITIES.index(self.durability)
        body = _LAYOUT.pack(
            _MAGIC, FORMAT_VERSION, META_SIZE, self.database_id, self.incarnation, durability,
            _CLEAN if self.clean else 0, self.log_first_version, self.version_ceiling, self.clean_version,
            self.boot_id, self.created_at, 0,
        )  # fmt: skip
        return body[:-4] + struct.pack("<I", checksum(body[:-4]))


def decode_meta(data: bytes, path: str) -> Meta:
    """Read the bytes of a `meta` file.

    Raises:
      IncompatibleFormatError: a later version of occamdb wrote it, or it is not a database.
      CorruptionError: it is damaged.
    """
    if data[:8] != _MAGIC and len(data) != META_SIZE and any(data):
        raise IncompatibleFormatError(
            f"{path} was not written by occamdb", hint="choose another directory", details={"file": path}
        )
    if len(data) < META_SIZE:
        raise CorruptionError(
            f"{path} has {len(data)} bytes, not {META_SIZE}",
            file=path,
            offset=len(data),
            expected=f"{META_SIZE} bytes",
        )
    found = checksum(data[: META_SIZE - 4])
    fields = _LAYOUT.unpack(data[:META_SIZE])
    if found != fields[-1] or fields[0] != _MAGIC:
        raise CorruptionError(
            f"{path} is damaged: checksum {found:#010x}, stored {fields[-1]:#010x}",
            file=path, offset=META_SIZE - 4, expected=f"checksum {found:#010x}",
        )  # fmt: skip
    if fields[1] not in FORMATS_READ:
        raise IncompatibleFormatError(
            f"{path} has format version {fields[1]}; this build reads {', '.join(map(str, FORMATS_READ))}",
            found=fields[1],
            supported=FORMAT_VERSION,
        )
    return Meta(
        database_id=fields[3],
        incarnation=fields[4],
        durability=None if fields[5] >= len(_DURABILITIES) else _DURABILITIES[fields[5]],
        clean=bool(fields[6] & _CLEAN),
        log_first_version=fields[7],
        version_ceiling=fields[8],
        clean_version=fields[9],
        boot_id=fields[10],
        created_at=fields[11],
    )


def read_meta(path: str | os.PathLike[str]) -> Meta | None:
    """The `meta` of the directory at `path`; None when there is no database. Any process, no lock needed."""
    try:
        with Folder(path) as folder:
            return decode_meta(folder.read("meta"), folder.file_path("meta"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def current_boot_id() -> bytes:
    """16 bytes that differ for every boot of the machine."""
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/kernel/random/boot_id") as file:
        return uuid.UUID(file.read().strip()).bytes
    # Unknown: then every recovery allows for a power loss.
    return os.urandom(16)


def _refuse_foreign(folder: Folder) -> None:
    """Refuse to make a database among other files: a mistyped path should not fill somebody's project."""
    names = folder.names()
    if "meta" in names:
        return
    foreign = [name for name in names if name.removesuffix(TEMPORARY_SUFFIX) not in _OURS | _HARMLESS]
    if foreign:
        raise IncompatibleFormatError(
            f"{folder.path} is not a database, and not empty: it holds {foreign[0]!r}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""),
            hint="name a new or an empty directory for a new database",
            details={"path": folder.path, "found": foreign[:10]},
        )


class DatabaseDirectory:
    """An opened database directory. The coordinator opens it after it has taken LOCK."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        """Open the directory and read its meta; make what is missing when it is new.

        Raises:
          FileNotFoundError: there is no database and `create` is False.
          CorruptionError: meta is damaged, or is missing where there is a log or a checkpoint.
          IncompatibleFormatError: another program's directory, or a later format.
          OSError: the directory cannot be read or made (permissions, read-only, too many open files).
        """
        self.folder = Folder(path, make=create)
        self.path = self.folder.path
        opened: list[Folder] = [self.folder]
        try:
            if "meta" not in self.folder.names():
                if not create:
                    raise FileNotFoundError(2, "No database in this directory", self.path)
                self._create()
            self.meta = decode_meta(self.folder.read("meta"), self.meta_path)
            for name in ("wal", "checkpoints"):
                self._require_folder(name)
                opened.append(Folder(os.path.join(self.path, name)))
        except BaseException:
            for folder in opened:
                folder.close()
            raise
        self.wal, self.checkpoints = opened[1], opened[2]

    @staticmethod
    def prepare(path: str | os.PathLike[str]) -> None:
        """Make the directory itself, so that LOCK can be taken in it. Any process.

        Raises:
          IncompatibleFormatError: it holds other files and no database. Nothing was written.
        """
        with Folder(path, make=True) as folder:
            _refuse_foreign(folder)

    def close(self) -> None:
        """Close the folders; nothing is written."""
        for folder in (self.folder, self.wal, self.checkpoints):
            folder.close()

    @property
    def meta_path(self) -> str:
        """Path of `meta`."""
        return self.folder.file_path("meta")

    @property
    def lock_path(self) -> str:
        """Path of the lock file."""
        return self.folder.file_path("LOCK")

    @property
    def database_id(self) -> bytes:
        """16 bytes."""
        return self.meta.database_id

    @property
    def incarnation(self) -> int:
        """Of the latest coordinator start: this one, after `begin_incarnation`."""
        return self.meta.incarnation

    def is_in_place(self) -> bool:
        """Whether the path still leads to this directory, which may have been moved, replaced or deleted.

        The open files are still written, wherever they are, while a process that opens the path finds another
        database.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self.folder.fd))

    def is_whole(self, lock_fd: int) -> bool:
        """Whether LOCK and the folders in it are those held open, and were not deleted or replaced.

        If they were, nothing more may be written: another coordinator may have made another database here.

        Args:
          lock_fd: descriptor of the LOCK that the caller holds.
        """
        held = {"LOCK": lock_fd, "wal": self.wal.fd, "checkpoints": self.checkpoints.fd}
        try:
            return all(
                os.path.samestat(os.stat(name, dir_fd=self.folder.fd), os.fstat(fd))
                for name, fd in held.items()
            )
        except OSError:
            return False

    def _require_folder(self, name: str) -> None:
        if not os.path.isdir(os.path.join(self.path, name)):
            raise CorruptionError(
                f"{self.path} has a meta file but no {name}/ folder",
                file=self.path,
                expected=f"folder {name}/",
            )

    def _create(self) -> None:
        """Make a new database here. If that is killed half-way, the next open does it again."""
        for name in ("wal", "checkpoints"):
            self.folder.make(name)
            with Folder(os.path.join(self.path, name)) as folder:
                found = [entry for entry in folder.names() if not entry.endswith(TEMPORARY_SUFFIX)]
            if found:
                raise CorruptionError(
                    f"{self.path} has {name}/{found[0]} but no meta file",
                    file=self.meta_path,
                    expected="a meta file",
                )
        # The folders must be on disk before the meta file that vouches for them.
        self.folder.sync()
        failpoints.hit("create.before_meta")
        meta = Meta(database_id=uuid.uuid4().bytes, created_at=time.time_ns())
        self.folder.replace("meta", meta.encode(), failpoint="meta")

    def _write(self, meta: Meta) -> None:
        self.folder.replace("meta", meta.encode(), failpoint="meta")
        self.meta = meta

    def begin_incarnation(self) -> int:
        """Count this coordinator start and return its number. Durable before it returns."""
        self._write(replace(self.meta, incarnation=self.meta.incarnation + 1))
        return self.meta.incarnation

    def note_running(self, durability: str, version: int, log_first_version: int) -> None:
        """Note that recovery is done and the log is open: the directory now belongs to this incarnation.

        Args:
          version: the version the database stands at.
          log_first_version: of the segment that was begun; 0 without a log.
        """
        unlogged = durability == Durability.NONE
        self._write(
            replace(
                self.meta,
                durability=Durability(durability),
                clean=False,
                clean_version=0,
                boot_id=current_boot_id(),
                log_first_version=0 if unlogged else log_first_version,
                version_ceiling=version + VERSION_RESERVE if unlogged else 0,
            )
        )

    def reserve_versions(self, version: int) -> None:
        """Without a log: set aside versions well beyond `version`. Cheap if that was done already.

        The control plane calls it now and then. The reserve lasts for days, so any period will do.
        """
        if (
            self.meta.durability == Durability.NONE
            and version + VERSION_RESERVE // 2 > self.meta.version_ceiling
        ):
            self._write(replace(self.meta, version_ceiling=version + VERSION_RESERVE))

    def note_clean_stop(self, version: int) -> None:
        """Note that everything up to `version` is in a checkpoint, and that no further commit follows."""
        ceiling = version if self.meta.durability == Durability.NONE else 0
        self._write(replace(self.meta, clean=True, clean_version=version, version_ceiling=ceiling))
