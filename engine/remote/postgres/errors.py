"""What an error of the driver means: to be tried again, or one of the engine's errors.

1. An error with a code of the server (SQLSTATE) is definite: the statement did nothing. Only a connection that broke
   leaves open what became of it.
2. Every error that a setting of the server causes names the setting.
3. No error holds a password, and none of the driver's errors is chained to ours.
"""

from __future__ import annotations

from enum import Enum

import psycopg

from ...model.errors import (
    OccamError,
    ServerSetupError,
    ServerUnavailable,
    StoreFullError,
    TransactionTooLarge,
)
from .location import Location

__all__ = ["Fate", "connect_error", "fate_of", "server_error", "unavailable"]

_SQL_TRUNCATED = 300

_REPEATED = {"40001", "40P01"}  # serialization failure, deadlock
_STANDBY = {"25006", "55000"}  # a read-only transaction, "recovery is in progress"
_LOST = {"57P01", "57P02", "57P03", "57P05"}  # shutdown, crash, starting up, idle too long
_UNPREPARED = {"26000", "42P05", "08P01"}  # a pooler gave us another connection than the one that prepared
_SCHEMA_GONE = {"3F000", "42P01", "42883", "42704", "42703", "OC004"}


class Fate(Enum):
    """What to do after an error of the driver."""

    LOST = 1  # the connection broke, or its server no longer takes writes: another connection
    REPEAT = 2  # the statement did nothing and may succeed next time
    UNPREPARED = 3  # prepared statements do not work here
    LATE = 4  # the request was sent too long ago for the server
    ENDED = 5  # the session has ended
    WEAKER = 6  # the server no longer waits for what it was said to wait for
    DEFINITE = 7  # `server_error` says what


def fate_of(error: psycopg.Error) -> Fate:
    """What to do after an error of a statement."""
    state = error.sqlstate
    if state is None:
        return (
            Fate.LOST
            if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
            else Fate.DEFINITE
        )
    if state in _REPEATED:
        return Fate.REPEAT
    if state in _UNPREPARED:
        return Fate.UNPREPARED
    if state in _LOST or state in _STANDBY or state.startswith("08"):
        return Fate.LOST
    return {"OC002": Fate.ENDED, "OC003": Fate.LATE, "OC005": Fate.WEAKER}.get(state, Fate.DEFINITE)


def unavailable(location: Location, why: str, hint: str = "") -> ServerUnavailable:
    """No server answers."""
    return ServerUnavailable(
        f"no server of {location.shown} could be reached in time: {location.hide(why) or 'no answer'}",
        hint=hint or "check that the server runs and that this machine may connect to it",
        details={"location": location.shown},
    )


def server_error(error: psycopg.Error, location: Location) -> OccamError:
    """The engine's error for one that is definite."""
    state = error.sqlstate or ""
    text = location.hide(error.diag.message_primary or str(error))[:_SQL_TRUNCATED]
    details = {"sqlstate": state, "location": location.shown}
    if state == "53100":
        return StoreFullError(
            f"the disk of the server is full; nothing was committed: {text}",
            setting="",
            hint="make room on the disk that holds the server's data_directory (and pg_wal)",
            details=details,
        )
    if state == "53300":
        return ServerUnavailable(
            f"the server has no connection left: {text}",
            hint="raise max_connections on the server, or put a pooler in front of it",
            details=details,
        )
    if state in ("57014", "55P03", "25P03", "25P04"):
        return ServerUnavailable(
            f"the server gave up on a statement; nothing was committed: {text}",
            hint="raise statement_timeout, lock_timeout or transaction_timeout on the server, for this role",
            details=details,
        )
    if state.startswith(("53", "58")):
        return ServerUnavailable(
            f"the server lacks a resource; nothing was committed: {text}",
            hint="see the server's log; work_mem, max_locks_per_transaction and its memory are the usual limits",
            details=details,
        )
    if state.startswith("54"):
        return TransactionTooLarge(
            f"the server refused the size of a key or value; nothing was committed: {text}",
            hint="smaller keys and values; PostgreSQL holds keys of about 2,600 bytes and values of 1 GB",
            details=details,
        )
    return _setup_error(state, text, location, details)


def _setup_error(state: str, text: str, location: Location, details: dict[str, str]) -> ServerSetupError:
    hint = "see the server's log"
    if state == "OC001":
        hint = (
            "set default_transaction_isolation to 'read committed' for this role: "
            "alter role CURRENT_USER set default_transaction_isolation = 'read committed'"
        )
    elif state == "42501":
        hint = grants(location)
    elif state in _SCHEMA_GONE:
        hint = f"run `occamdb migrate {location.shown}`"
    return ServerSetupError(f"the server refused a statement ({state}): {text}", hint=hint, details=details)


def grants(location: Location) -> str:
    """What gives a role its rights, as advice."""
    name = location.schema
    return (
        f"run as the owner of the schema: grant usage on schema {name} to ROLE; "
        f"grant select, insert, update, delete on all tables in schema {name} to ROLE"
    )


# ---- connecting --------------------------------------------------------------------------------------------------

# The driver has no code for a refused connection, only the server's text. What is not known here is tried again.
_REFUSALS = (
    (
        "password authentication failed",
        "the password or the user is wrong",
        "check PGPASSWORD, ~/.pgpass or the URL",
    ),
    ("no password supplied", "it wants a password", "set PGPASSWORD, or write ~/.pgpass"),
    ("fe_sendauth", "it wants a password", "set PGPASSWORD, or write ~/.pgpass"),
    (
        "authentication failed",
        "it refused who we are",
        "check the user of the URL and pg_hba.conf on the server",
    ),
    ("no pg_hba.conf entry", "it does not let us in from here", "add a line to pg_hba.conf on the server"),
    ("is not permitted to log in", "the role may not log in", "alter role … login"),
    ("certificate", "the certificates do not match", "check sslmode, sslrootcert, sslcert and sslkey"),
    (
        "does not support SSL",
        "it does not speak TLS",
        "set ssl = on on the server, or sslmode=prefer in the URL",
    ),
    ("SSL error", "TLS failed", "check sslmode, sslrootcert, sslcert and sslkey"),
    ("sslmode", "TLS is not set up", "check sslmode, sslrootcert, sslcert and sslkey"),
    (
        "unsupported startup parameter",
        "a pooler refused a parameter",
        "set ignore_startup_parameters in pgbouncer.ini",
    ),
)
_MISSING = "does not exist"


def connect_error(error: psycopg.Error, location: Location) -> OccamError | None:
    """Why a server refused us for good; None: it may let us in later."""
    text = location.hide(str(error))
    for sign, what, hint in _REFUSALS:
        if sign in text:
            return ServerSetupError(
                f"the server refused the connection to {location.shown}: {what}: {text[:_SQL_TRUNCATED]}",
                hint=hint,
                details={"location": location.shown},
            )
    if _MISSING in text and "FATAL" in text:
        return ServerSetupError(
            f"the server does not know what {location.shown} names: {text[:_SQL_TRUNCATED]}",
            hint="create the database with `createdb NAME`, or the role with `createuser NAME`; or mend the URL",
            details={"location": location.shown},
        )
    return None
