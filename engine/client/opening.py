"""Opening databases: `open` for a directory that many processes share, `open_in_memory` for one process."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

from ..model.errors import InvalidArgumentError
from ..model.keys import Namespace
from ..model.limits import TIMEOUT_MAX
from ..model.public_types import Durability, Isolation, IsolationName
from ..model.settings import Settings
from ..model.values import Codec
from ..remote.urls import is_url
from ..transaction.database import Database
from ..transaction.engine_handle import EngineHandle
from ..transaction.guard import RunRule
from .local_handle import LocalHandle
from .main_module import refuse_in_rerun_main
from .shared_handle import open_handle

__all__ = ["open_database", "open_in_memory"]

D = TypeVar("D", bound=Database[Any])

_STARTS = ("auto", "never")
# What `open` and `open_in_memory` take beside the settings.
_KEYWORDS = (
    "durability", "isolation", "start", "timeout", "tenant", "app", "agent", "default", "restore", "strict_runs",
)  # fmt: skip


def open_database(
    database: type[D],
    path: str | os.PathLike[str],
    *,
    durability: str = "standard",
    isolation: IsolationName = "serializable",
    start: str = "auto",
    timeout: float = 10.0,
    tenant: str = "default",
    app: str = "default",
    agent: str = "default",
    codec: Codec | None = None,
    run_rule: RunRule | None = None,
    **settings: Any,
) -> D:
    """Open the database in the directory `path`. Attaches to its coordinator, and starts one if none runs.

    A URL opens a database on a server: "postgresql://user@host1,host2/app", "etcd://host1:2379,host2:2379/prefix".

    Any number of processes may open the same directory. The result may be used from several threads, goes
    through fork, and pickles as a way to attach.

    Args:
      database: the class of the result.
      path: the database directory; made when missing.
      durability: what an acknowledged commit survives: "none" the death of workers, "standard" kill -9 of
        every process, "always" power loss.
      isolation: of transactions that do not say: "serializable" or "snapshot".
      start: "auto" starts a coordinator when there is none, now and after it died; "never" waits until one
        runs.
      timeout: seconds to wait for a coordinator, and for its answer to a commit.
      tenant, app, agent: the namespace whose runs this database shows.
      codec: how values are stored; None: without hooks for types of the user's own.
      run_rule: which runs may be written to; None: all.
      settings: by name, over `settings.toml` in the directory: see `occamdb.Settings`.

    Raises:
      CoordinatorUnavailable: none could be started or reached in time.
      SettingsMismatchError: the running coordinator has other settings than those given here.
      CorruptionError, IncompatibleFormatError: what is on disk cannot be opened; nothing was changed.
      StoreFullError: there is not enough shared memory.
      InvalidArgumentError, SettingsError: an argument is wrong.
    """
    refuse_in_rerun_main()
    _check_choice("durability", durability, Durability)
    _check_choice("isolation", isolation, Isolation)
    _check_choice("start", start, _STARTS)
    namespace = Namespace(tenant, app, agent)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise InvalidArgumentError(
            f"timeout = {timeout!r} is not a positive number of seconds", hint="the default is 10"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    seconds = float(min(timeout, TIMEOUT_MAX))
    handle: EngineHandle
    if is_url(path):
        from ..remote.opening import open_server  # here: a program without a server does not import it

        handle = open_server(os.fspath(path), namespace.base, str(durability), seconds, given)
    else:
        # Names and ranges are checked here, where the caller can see the error, and not only by the coordinator.
        asked = Settings.asked(given, _KEYWORDS)
        handle = open_handle(_directory(path), str(durability), asked, start, seconds)
    try:
        return database(handle, isolation, namespace, codec, run_rule)
    except BaseException:
        handle.close()
        raise


def open_in_memory(
    database: type[D],
    *,
    isolation: IsolationName = "serializable",
    tenant: str = "default",
    app: str = "default",
    agent: str = "default",
    codec: Codec | None = None,
    run_rule: RunRule | None = None,
    **settings: Any,
) -> D:
    """A database in this process alone: no files, no coordinator, the same semantics.

    Args:
      database: the class of the result.
      isolation, tenant, app, agent, codec, run_rule: as for `open`.
      settings: the sizes and limits among `occamdb.Settings`.

    Raises:
      StoreFullError: `max_store_size` cannot be mapped.
    """
    refuse_in_rerun_main()
    namespace = Namespace(tenant, app, agent)
    values = {name: value for name, value in settings.items() if value is not None}
    handle = LocalHandle(Settings.of(Settings.asked(values, _KEYWORDS)))
    try:
        return database(handle, isolation, namespace, codec, run_rule)
    except BaseException:
        handle.close()
        raise


def _check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    names = [str(choice) for choice in allowed]
    if value not in names:
        raise InvalidArgumentError(
            f"{name} = {value!r} is unknown", hint=f"choose one of {', '.join(map(repr, names))}"
        )


def _directory(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(path)
    except TypeError:
        raise InvalidArgumentError(
            f"path must be a path, got {type(path).__name__}", hint="a str or a pathlib.Path"
        ) from None
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{text!r} is not a usable path", hint="name a directory")
    if text == ":memory:":
        raise InvalidArgumentError(
            "a database in memory is not opened by a path, and ':memory:' would be a directory of that name",
            hint="occamdb.open_in_memory(), or './:memory:' for that directory",
        )
    try:
        return os.path.abspath(text)
    except FileNotFoundError:
        raise InvalidArgumentError(
            f"the path {text!r} is relative, and the working directory of this process is gone",
            hint="name the directory by an absolute path",
        ) from None
