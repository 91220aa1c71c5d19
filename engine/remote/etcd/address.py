"""Where the servers are and how to talk to them: the URL and the settings of `open`.

A password is never shown: not in `location`, nor in the `repr` of an address, nor in an error.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from ...model.errors import InvalidArgumentError, ServerSetupError, SettingsError
from ...model.limits import MIB, check_number, check_size

__all__ = ["Address", "EtcdSettings"]

DEFAULT_PORT = 2379
DEFAULT_PREFIX = "occamdb"


@dataclass(frozen=True)
class EtcdSettings:
    """Settings of a database on etcd, as keywords of `open`.

    Attributes:
      user, password: of etcd's own users; also from ETCDCTL_USER ("name" or "name:password") and ETCDCTL_PASSWORD.
      tls: whether to use TLS; given by a file, too.
      ca_file, cert_file, key_file: PEM files; also from ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY.
      call_timeout: after so many seconds without an answer a call goes to another member.
      session_grace: how many seconds the session of a process outlives its last sign of life; etcd rounds up to at
        least its election timeout.
      snapshot_max_age: seconds for which a snapshot stays readable and a watcher may lag, at least.
      compact: whether to compact etcd's history of older revisions, of the whole cluster.
      max_txn_ops, max_request_bytes: the servers' flags of these names; commits are combined up to them.
      key_size_max, value_size_max, transaction_size_max: as of every database; 0: as much as the server takes.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    call_timeout: float = 1.0
    session_grace: float = 10.0
    snapshot_max_age: float = 300.0
    compact: bool = True
    max_txn_ops: int = 128
    max_request_bytes: int = 3 * MIB // 2
    key_size_max: int = 0
    value_size_max: int = 0
    transaction_size_max: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EtcdSettings:
        """Settings by name, with those of the environment behind them.

        Raises:
          SettingsError: an unknown name, or a value that is not possible.
        """
        known = {item.name for item in fields(cls)}
        for name in given:
            if name not in known:
                raise SettingsError(
                    f"a database on etcd has no setting {name}",
                    setting=name,
                    hint="its settings are " + ", ".join(sorted(known)),
                )
        chosen = _environment() | {name: value for name, value in given.items() if value is not None}
        for name in ("user", "password", "ca_file", "cert_file", "key_file"):
            value = chosen.get(name, "")
            if not isinstance(value, (str, os.PathLike)):
                raise SettingsError(f"{name} must be text, got {type(value).__name__}", setting=name)
            chosen[name] = os.fspath(value)
        for name, low, high in (
            ("call_timeout", 0.05, 60.0),
            ("session_grace", 1.0, 3600.0),
            ("snapshot_max_age", 1.0, 30 * 86400.0),
        ):
            if name in chosen:
                chosen[name] = check_number(name, chosen[name], low, high, whole=False)
        if "max_txn_ops" in chosen:
            chosen["max_txn_ops"] = int(
                check_number("max_txn_ops", chosen["max_txn_ops"], 16, 1_000_000, whole=True)
            )
        if "max_request_bytes" in chosen:
            chosen["max_request_bytes"] = check_size(
                "max_request_bytes", chosen["max_request_bytes"], MIB // 16, 1024 * MIB
            )
        return cls(**chosen)


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    name, _, secret = os.environ.get("ETCDCTL_USER", "").partition(":")
    for setting, value in (
        ("user", name),
        ("password", os.environ.get("ETCDCTL_PASSWORD", secret)),
        ("ca_file", os.environ.get("ETCDCTL_CACERT", "")),
        ("cert_file", os.environ.get("ETCDCTL_CERT", "")),
        ("key_file", os.environ.get("ETCDCTL_KEY", "")),
    ):
        if value:
            found[setting] = value
    return found


@dataclass(frozen=True)
class Address:
    """The members of a cluster, and which of their keys are ours.

    Attributes:
      members: (host, port) of each.
      prefix: what all our keys in etcd begin with.
      settings: as given, with the user of the URL.
    """

    members: tuple[tuple[str, int], ...]
    prefix: bytes
    settings: EtcdSettings

    @classmethod
    def of(cls, url: str, given: Mapping[str, Any]) -> Address:
        """Read "etcd://user:password@host1:2379,host2,host3/prefix".

        Raises:
          InvalidArgumentError: it is not such a URL.
          SettingsError: see `EtcdSettings`.
        """
        parts = urlsplit(url)
        if parts.scheme.lower() != "etcd" or parts.query or parts.fragment:
            raise _not_a_url("it has the form etcd://host:port,host:port/prefix, without ? and #")
        login, _, hosts = parts.netloc.rpartition("@")
        members = tuple(_member(text) for text in hosts.split(",")) if hosts else ()
        if not members:
            raise _not_a_url("it names no host")
        if len(set(members)) != len(members):
            raise _not_a_url("it names a member twice")
        given = dict(given)
        if login:
            user, _, password = login.partition(":")
            given.setdefault("user", unquote(user))
            given.setdefault("password", unquote(password) or None)
        prefix = unquote(parts.path).strip("/") or DEFAULT_PREFIX
        return cls(members, prefix.encode() + b"/", EtcdSettings.of(given))

    @property
    def location(self) -> str:
        """As `open` takes it, without the user."""
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.members
        )
        return f"etcd://{hosts}/{self.prefix[:-1].decode()}"

    def tls_context(self) -> ssl.SSLContext | None:
        """For connections; None: without TLS.

        Raises:
          ServerSetupError: a file cannot be read.
        """
        chosen = self.settings
        if not (chosen.tls or chosen.ca_file or chosen.cert_file):
            return None
        try:
            context = ssl.create_default_context(cafile=chosen.ca_file or None)
            if chosen.cert_file:
                context.load_cert_chain(chosen.cert_file, chosen.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ServerSetupError(
                f"the certificates for etcd cannot be read: {error}",
                hint="ca_file, cert_file and key_file name PEM files; so do ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY",
            ) from None
        return context


def _member(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit("//" + text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.path or not 0 < (port or DEFAULT_PORT) < 65536:
        raise _not_a_url(f"{text!r} is not host:port")
    return host, port or DEFAULT_PORT


def _not_a_url(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"this is not the URL of an etcd cluster: {why}",
        hint="occamdb.open('etcd://h1:2379,h2:2379,h3:2379/prefix')",
    )
