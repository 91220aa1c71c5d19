"""Opening a database on PostgreSQL, making its schema, and saying what is there."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from ...model.errors import SettingsError
from ...model.limits import KIB, Limits, check_number
from .backend import PostgresBackend
from .errors import Fate, fate_of, server_error, unavailable
from .facts import schema_facts, server_facts
from .location import Location, parse_url
from .migrations import FORMAT, check_schema, migrate_on, script_of
from .pool import Connection, Pool
from .server import Server

__all__ = ["describe", "migrate", "migration_script", "open_backend"]

# An index of PostgreSQL holds entries of up to 2,704 bytes: the stored key, its namespace and version.
KEY_SIZE_MAX = 2 * KIB
_SIZES = ("key_size_max", "value_size_max", "transaction_size_max")


def open_backend(
    url: str, base: bytes, *, timeout: float, durability: str, housekeeping: bool = True, **settings: Any
) -> PostgresBackend:
    """Connect to one namespace of a server. Makes the schema if there is none and the role may.

    Args:
      url: postgresql://user@host1,host2/database?schema=occam
      base: what the namespace's stored keys begin with.
      timeout: seconds to try for, now and in each call.
      durability: "none", "standard" or "always".
      housekeeping: sweep what has expired or is old, now and then, in a thread.
      settings: `key_size_max` and the other sizes, `snapshot_max_age`, `session_grace`.

    Raises:
      InvalidArgumentError: the URL cannot be read.
      ServerUnavailable, ServerSetupError: as their names say; nothing was written.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    limits = _limits({name: given.pop(name) for name in _SIZES if name in given})
    age = check_number(
        "snapshot_max_age", given.pop("snapshot_max_age", 300.0), 0.05, 30 * 86400, whole=False
    )
    grace = check_number("session_grace", given.pop("session_grace", 15.0), 0.05, 3600.0, whole=False)
    if given:
        name = sorted(given)[0]
        raise SettingsError(
            f"{name} is not a setting of a database on a server",
            setting=name,
            hint=f"its settings are {', '.join(_SIZES)}, snapshot_max_age and session_grace",
        )
    server = Server(parse_url(url), timeout, durability, age, grace, housekeeping)
    return PostgresBackend(server, base, limits, {})


def _limits(sizes: dict[str, Any]) -> Limits:
    limits = Limits(**{"key_size_max": KEY_SIZE_MAX, **sizes})
    if limits.key_size_max > KEY_SIZE_MAX:
        raise SettingsError(
            f"key_size_max = {limits.key_size_max} is more than PostgreSQL can hold in an index: {KEY_SIZE_MAX}",
            setting="key_size_max",
            hint=f"choose key_size_max up to {KEY_SIZE_MAX}",
        )
    return limits


def migrate(url: str, *, timeout: float = 10.0) -> tuple[int, int]:
    """Make the schema on the server, or bring it up to date. (format before, format now); 0: there was none.

    Raises:
      ServerSetupError: this role may not, or the schema is not ours, newer, or half made. Nothing was written.
    """
    location = parse_url(url)
    pool = Pool(location, timeout)
    try:
        with pool.connection(time.monotonic() + timeout) as connection:
            return migrate_on(connection, location)
    except psycopg.Error as error:
        if fate_of(error) is Fate.DEFINITE:
            raise server_error(error, location) from None
        raise unavailable(location, str(error)) from None
    finally:
        pool.close()


def migration_script(url: str, *, timeout: float = 10.0) -> str:
    """The SQL that `migrate` would run just now, for an administrator to run. Writes nothing."""
    location = parse_url(url)
    pool = Pool(location, timeout)
    try:
        return script_of(location, pool.run(lambda connection: check_schema(connection, location)))
    finally:
        pool.close()


def describe(url: str, *, timeout: float = 10.0) -> dict[str, Any]:
    """What is at a URL, for `occamdb status`. Writes nothing."""
    location = parse_url(url)
    pool = Pool(location, timeout)
    try:
        return pool.run(lambda connection: _described(connection, location))
    finally:
        pool.close()


def _described(connection: Connection, location: Location) -> dict[str, Any]:
    format_ = check_schema(connection, location)
    found = {"engine": "postgres", "location": location.shown} | server_facts(connection)
    found |= {"schema": location.schema, "format": format_, "format_known": FORMAT}
    return found | (schema_facts(connection, location) if format_ else {})
