"""The settings and their defaults: keywords of `open` win over `settings.toml` in the database directory.

1. A `Settings` that exists is valid and complete.
2. The settings of the running coordinator are in force. A worker that attaches and asks for others gets an
   error (`require_match`); it is never silently given something else.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from .errors import SettingsError, SettingsMismatchError
from .limits import GIB, KIB, MIB, Limits, check_number, check_size

__all__ = ["SETTINGS_FILE", "Settings", "load_settings", "setting_names"]

SETTINGS_FILE = "settings.toml"

_DAY = 86_400.0
_WATCH_HISTORY_MIN = 64 * KIB


def _size(default: int, low: int, high: int, *, power_of_two: bool = False) -> Any:
    return field(
        default=default,
        metadata={"kind": "size", "low": low, "high": high, "power_of_two": power_of_two},
    )


def _seconds(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"kind": "seconds", "low": low, "high": high})


def _count(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"kind": "count", "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of a database. Sizes in bytes (or text such as "64MiB"), times in seconds.

    Attributes:
      max_store_size: the most shared memory commits may fill (`StoreFullError` beyond); recovering a full
        store may take up to a quarter and 4 MiB more.
      ring_size: of each of a connection's two rings; larger requests stream through in pieces.
      request_memory_max: private memory of the coordinator in which requests larger than 1 MiB are received,
        all connections together. Further ones wait in their rings; a single request may always take what it
        needs.
      wal_segment_size: a log file this long is closed and the next begun.
      checkpoint_bytes: a checkpoint is made when the log has grown by this much since the last one.
      checkpoint_interval: a checkpoint is also made when this long passed since the last and something was
        written; 0: never for that reason.
      sync_interval: how soon after a commit `fdatasync` follows, with durability "standard".
      snapshot_max_age: an older snapshot may be revoked (`SnapshotExpired`).
      idle_timeout: an auto-started coordinator ends this long after its last worker left.
      session_grace: how long the session of an open database, whose ephemeral keys it keeps, outlives the loss of its
        last connection while its process is alive; also how long it may take to come back to a new coordinator.
      channel_count_max: the most connections of workers at once.
      watch_history: of the ring of recent changes, which `watch` and the waits read: on top of `max_store_size`; a
        power of two from 64 KiB, or 0 for none.
      limits: the sizes of keys, values and transactions; their names are settings too.
    """

    # A ref in the store has 32 bits and counts units of 16 bytes, so it can address 64 GiB.
    max_store_size: int = _size(4 * GIB, 1 * MIB, 64 * GIB - 16)
    ring_size: int = _size(256 * KIB, 4 * KIB, 64 * MIB, power_of_two=True)
    request_memory_max: int = _size(256 * MIB, 1 * MIB, 64 * GIB)
    wal_segment_size: int = _size(64 * MIB, 16 * KIB, 4 * GIB)
    checkpoint_bytes: int = _size(256 * MIB, 64 * KIB, 1024 * GIB)
    checkpoint_interval: float = _seconds(300.0, 0.0, 30 * _DAY)
    sync_interval: float = _seconds(0.1, 0.001, 60.0)
    snapshot_max_age: float = _seconds(300.0, 0.05, 30 * _DAY)
    idle_timeout: float = _seconds(10.0, 0.0, 365 * _DAY)
    session_grace: float = _seconds(5.0, 0.05, 3600.0)
    channel_count_max: int = _count(256, 1, 4096)
    watch_history: int = _size(16 * MIB, 0, GIB, power_of_two=True)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for item in fields(self):
            if item.metadata:
                checked = _check(item.name, getattr(self, item.name), item.metadata)
                object.__setattr__(self, item.name, checked)
        if 0 < self.watch_history < _WATCH_HISTORY_MIN:
            check_size("watch_history", self.watch_history, _WATCH_HISTORY_MIN, GIB)
        if not isinstance(self.limits, Limits):
            raise SettingsError(
                f"limits must be a Limits, got {type(self.limits).__name__}",
                setting="limits",
                hint="limits=occamdb.Limits(key_size_max=...), or key_size_max=... itself",
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Build settings from names and values, the limits' names among them (or in a nested "limits").

        Raises:
          SettingsError: an unknown name (with the nearest known one), or a value that is not allowed.
        """
        return _merge(cls(), values)

    @classmethod
    def asked(cls, values: Mapping[str, Any], others: Iterable[str] = ()) -> dict[str, Any]:
        """The given settings by flat name, checked: those in "limits" by their own names.

        Args:
          others: names that stand beside the settings where they are given; an unknown name may be meant to be one.

        Raises:
          SettingsError: as `of`.
        """
        known = setting_names()
        for name in _flat(values):
            if name not in known:
                raise _unknown(name, (*known, *others))
        checked = cls.of(values).as_dict()
        return {name: checked[name] for name in _flat(values)}

    def changed(self, **values: Any) -> Settings:
        """These settings with some of them replaced; limits by their own names."""
        return _merge(self, values)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, flat, limits included: what `of` reads back, fit for a control frame."""
        flat = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "limits"}
        return flat | asdict(self.limits)

    def require_match(self, asked: Mapping[str, Any]) -> None:
        """Check that these settings, those of the running coordinator, are the ones asked for.

        Args:
          asked: the keywords given at `open`; what is not among them does not matter.

        Raises:
          SettingsMismatchError: some differ; names all of them.
          SettingsError: one is unknown or not allowed.
        """
        wanted, running = _merge(self, asked).as_dict(), self.as_dict()
        differing = [name for name, value in wanted.items() if value != running[name]]
        if differing:
            shown = ", ".join(f"{n} is {running[n]!r}, asked for {wanted[n]!r}" for n in differing)
            raise SettingsMismatchError(
                f"the running coordinator has other settings: {shown}",
                setting=differing[0],
                hint=f"leave them out, or `occamdb stop` the database first and change {SETTINGS_FILE}",
                details={n: {"running": running[n], "asked": wanted[n]} for n in differing},
            )


def _check(name: str, value: Any, rule: Mapping[str, Any]) -> float:
    if rule["kind"] == "size":
        return check_size(name, value, rule["low"], rule["high"], power_of_two=rule["power_of_two"])
    return check_number(name, value, rule["low"], rule["high"], whole=rule["kind"] == "count")


def setting_names() -> tuple[str, ...]:
    """Every name `open` and `settings.toml` accept."""
    return tuple(Settings().as_dict())


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by flat name. A limit given by its own name wins over one in a `Limits`, but not over a
    table."""
    flat = dict(values)
    nested = flat.pop("limits", None)
    if nested is None:
        return flat
    if isinstance(nested, Limits):
        return asdict(nested) | flat
    if isinstance(nested, Mapping):
        return flat | dict(nested)
    raise SettingsError(
        f"limits must be a table or a Limits, got {nested!r}",
        setting="limits",
        hint="limits=occamdb.Limits(key_size_max=...), or key_size_max=... itself",
    )


def _merge(base: Settings, values: Mapping[str, Any]) -> Settings:
    flat = _flat(values)
    limit_names = {item.name for item in fields(Limits)}
    known = setting_names()
    for name in flat:
        if name not in known:
            raise _unknown(name, known)
    limits = {name: flat.pop(name) for name in list(flat) if name in limit_names}
    return replace(base, **flat, limits=replace(base.limits, **limits))


def _unknown(name: str, known: tuple[str, ...]) -> SettingsError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(known)}"
    return SettingsError(f"unknown setting {name!r}", setting=name, hint=hint)


def load_settings(
    directory: str | PathLike[str] | None = None, inherited: Mapping[str, Any] | None = None, **keywords: Any
) -> Settings:
    """Read `settings.toml` of a database directory, if there is one, with keywords winning over it.

    Args:
      directory: the database; None for one in memory.
      inherited: what holds where neither the file nor a keyword says anything.
      keywords: settings by name; None means "not given".

    Raises:
      SettingsError: an unknown name, a value that is not allowed, or a file that is not TOML; names the file.
    """
    settings = Settings.of(inherited or {})
    if directory is not None:
        settings = _read_file(Path(directory) / SETTINGS_FILE, settings)
    return _merge(settings, {name: value for name, value in keywords.items() if value is not None})


def _read_file(path: Path, base: Settings) -> Settings:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return base
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} is not valid TOML: {error}", hint="correct the file", details={"file": str(path)}
        ) from error
    try:
        return _merge(base, table)
    except SettingsError as error:
        raise SettingsError(
            f"{path}: {error.message}",
            setting=error.setting,
            hint=error.hint,
            details={**error.details, "file": str(path)},
        ) from None
