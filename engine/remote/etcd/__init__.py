"""A database on etcd: the contract of `remote/backend.py` over etcd's JSON gateway.

etcd orders and replicates. What conflicts is judged here, by the client that commits, under a comparison of the
namespace's head (records.py has the invariants).
"""

from __future__ import annotations

from typing import Any

from .backend import EtcdBackend

__all__ = ["EtcdBackend", "open_backend"]


def open_backend(
    url: str, base: bytes, *, timeout: float = 30.0, durability: str = "standard", **settings: Any
) -> EtcdBackend:
    """One namespace of the database that a URL names.

    Args:
      url: "etcd://h1:2379,h2:2379,h3:2379/prefix".
      base: what its stored keys begin with.
      timeout: seconds after which a call gives up.
      durability: what is wanted; etcd always gives "always".
      settings: see `EtcdSettings`.

    Raises:
      InvalidArgumentError, SettingsError: the URL or a setting is not possible.
      ServerUnavailable: no member answers.
      ServerSetupError: etcd is older than 3.4, refuses the user, or holds something else below the prefix.
    """
    return EtcdBackend.open(url, base, timeout, settings)
