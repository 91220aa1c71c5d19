"""Opening databases on servers: which kind of server a URL names, and what it needs to be installed.

A kind of server is a package beside this file with a function `open_backend`. A further one is a package and a line
in `_KINDS`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..model.errors import InvalidArgumentError, UnsupportedError
from .handle import RemoteHandle
from .urls import scheme_of

if TYPE_CHECKING:
    from .backend import Backend

__all__ = ["ServerOpener", "kind_of", "module_of", "open_server"]


@dataclass(frozen=True)
class _Kind:
    package: str  # beside this file
    extra: str  # of occamdb
    driver: (
        str  # the module whose absence means that the extra is not installed; none: it is in Python itself
    )


_POSTGRES = _Kind("postgres", "postgres", "psycopg")
_KINDS = {"postgresql": _POSTGRES, "postgres": _POSTGRES, "etcd": _Kind("etcd", "etcd", "")}


def kind_of(url: str) -> _Kind:
    """The kind of server that a URL names.

    Raises:
      InvalidArgumentError: it is none that there is.
    """
    scheme = scheme_of(url)
    kind = _KINDS.get(scheme)
    if kind is None:
        likely = difflib.get_close_matches(scheme, _KINDS, 1)
        meant = f"did you mean {likely[0]}://? " if likely else ""
        raise InvalidArgumentError(
            f"{scheme}:// is not a kind of server that occamdb knows",
            hint=f"{meant}Servers are postgresql://… and etcd://…; a directory of that name is ./{scheme}:…",
        )
    return kind


def module_of(url: str) -> Any:
    """The package for the server that a URL names.

    Raises:
      InvalidArgumentError: there is no such kind of server.
      UnsupportedError: its driver is not installed.
    """
    kind = kind_of(url)
    try:
        return import_module(f"{__package__}.{kind.package}")
    except ModuleNotFoundError as error:
        if not kind.driver or (error.name or "").partition(".")[0] != kind.driver:
            raise
        raise UnsupportedError(
            f"databases on {kind.package} need the package {kind.driver}, which is not installed",
            hint=f"pip install 'occamdb[{kind.extra}]'",
        ) from error


@dataclass(frozen=True)
class ServerOpener:
    """Opens backends of one server, also in another process. Its URL may hold a password, so it does not show it."""

    url: str = field(repr=False)
    durability: str
    timeout: float
    settings: Mapping[str, Any]

    def __call__(self, base: bytes) -> Backend:
        backend: Backend = module_of(self.url).open_backend(
            self.url, base, timeout=self.timeout, durability=self.durability, **self.settings
        )
        return backend


def open_server(
    url: str | os.PathLike[str], base: bytes, durability: str, timeout: float, settings: Mapping[str, Any]
) -> RemoteHandle:
    """One namespace of the server that a URL names.

    Args:
      base: what its stored keys begin with.
      durability, timeout: as for `open`.
      settings: those that the caller gave, by name.
    """
    return RemoteHandle(ServerOpener(os.fspath(url), durability, timeout, dict(settings)), base)
