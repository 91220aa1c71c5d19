"""The schema on the server: making it, bringing it up to date, and refusing what is not ours.

1. `FORMAT` is the number of the last file in sql/. A schema of format n has the files up to n. A file that was released
   is never changed.
2. A migration is one transaction under an advisory lock: there is no half of it, and two processes that begin at the
   same time make it once.
3. Nothing is written into a schema that is not known to be ours.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg
from psycopg import sql

from ...model.errors import ServerSetupError
from .errors import grants
from .location import Location

__all__ = ["FORMAT", "SERVER_VERSION_MIN", "check_schema", "migrate_on", "script_of", "statements_of"]

FORMAT = 5
SERVER_VERSION_MIN = 140000
PROGRAM = "occamdb"
_LOCK = 0x6F6363616D  # of migrations, over the whole database
_CLOCK = "((date_part('epoch', clock_timestamp()) * 1000000)::bigint * 1000)"
# The first 8 digits of a log file's name are its timeline. The control file would tell of a promotion only later.
_TIMELINE = "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer"
_TABLES = ("meta", "head", "now", "old", "change", "erased", "outcome", "session")

Connection = psycopg.Connection[Any]


def filled(text: str, location: Location) -> str:
    """A text with the names and expressions of this database in it."""
    schema = '"' + location.schema.replace('"', '""') + '"'
    for name, value in (
        ("{s}", schema),
        ("{clock}", _CLOCK),
        ("{timeline}", _TIMELINE),
        ("{channel}", location.channel),
    ):
        text = text.replace(name, value)
    return text


def statements_of(location: Location, number: int) -> str:
    """The statements of one migration."""
    for entry in files(__package__).joinpath("sql").iterdir():
        if entry.name.startswith(f"{number:03}_"):
            return filled(entry.read_text("utf-8"), location)
    raise AssertionError(f"there is no migration {number}")


def check_schema(connection: Connection, location: Location) -> int:
    """The format of the schema, 0 when there is none yet.

    Raises:
      ServerSetupError: the server is too old, or the schema is not ours, newer, or half made.
    """
    if connection.info.server_version < SERVER_VERSION_MIN:
        have = connection.info.server_version // 10000
        raise ServerSetupError(
            f"the server is PostgreSQL {have}; 14 is the oldest that holds an occamdb database",
            hint="move to a newer server (pg_upgrade, or dump and restore)",
            details={"server": have, "oldest": SERVER_VERSION_MIN // 10000},
        )
    row = connection.execute(
        "select array(select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relkind in ('r', 'p', 'v', 'm', 'f'))",
        [location.schema],
    ).fetchone()
    tables = set(row[0]) if row else set()
    if not tables:
        return 0
    name, format_ = _meta(connection, location, tables)
    if name != PROGRAM:
        raise _refusal(location, "belongs to another program", "choose another one: ?schema=NAME in the URL")
    if format_ is None or not tables.issuperset(_TABLES):
        missing = ", ".join(sorted(set(_TABLES) - tables)) or "its row in meta"
        raise _refusal(
            location,
            f"is half made: {missing} is missing",
            "restore it from a backup, or choose another one: ?schema=NAME in the URL",
        )
    if format_ > FORMAT:
        raise _refusal(
            location,
            f"has format {format_}, newer than {FORMAT}, which this occamdb knows",
            "upgrade occamdb here",
        )
    return int(format_)


def _meta(connection: Connection, location: Location, tables: set[str]) -> tuple[str, int | None]:
    """(program, format) as the schema says; a format of None when it says none."""
    if "meta" not in tables:
        return (PROGRAM, None) if tables & set(_TABLES) == tables else ("", None)
    query = sql.SQL("select program, format from {}.meta").format(sql.Identifier(location.schema))
    try:
        row = connection.execute(query).fetchone()
    except (psycopg.errors.UndefinedColumn, psycopg.errors.WrongObjectType):
        return "", None
    except psycopg.errors.InsufficientPrivilege:
        raise ServerSetupError(
            f"this role may not use the schema {location.schema}", hint=grants(location)
        ) from None
    return (PROGRAM, None) if row is None else (str(row[0]), row[1])


def _refusal(location: Location, what: str, hint: str) -> ServerSetupError:
    return ServerSetupError(
        f"the schema {location.schema} of {location.shown} {what}; nothing was written",
        hint=hint,
        details={"schema": location.schema, "location": location.shown},
    )


def _create_schema(connection: Connection, schema: str) -> None:
    # Not "if not exists": that needs the right to create one even where it exists.
    if connection.execute("select from pg_namespace where nspname = %s", [schema]).fetchone() is None:
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))


def script_of(location: Location, before: int) -> str:
    """The SQL that `migrate_on` runs where the schema has format `before`, for an administrator to run."""
    if before == FORMAT:
        return f"-- the schema {location.schema} has format {FORMAT}: there is nothing to do\n"
    lines = ["begin;", f"select pg_advisory_xact_lock({_LOCK});"]
    if before == 0:
        lines.append(filled("create schema if not exists {s};", location))
    lines += [statements_of(location, number).rstrip() for number in range(before + 1, FORMAT + 1)]
    lines.append(
        filled(f"insert into {{s}}.meta (program, format) values ('{PROGRAM}', {FORMAT})", location)
        + " on conflict (one) do update set format = excluded.format;"
    )
    return "\n".join([*lines, "commit;", f"-- for another role that uses it: {grants(location)}", ""])


def migrate_on(connection: Connection, location: Location) -> tuple[int, int]:
    """Make the schema, or bring it up to date. (format before, format now).

    Raises:
      ServerSetupError: as `check_schema`, or this role may not.
    """
    try:
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s::bigint)", [_LOCK])
            before = check_schema(connection, location)
            if before == FORMAT:
                return before, before
            if before == 0:
                _create_schema(connection, location.schema)
            for number in range(before + 1, FORMAT + 1):
                connection.execute(statements_of(location, number).encode(), prepare=False)
            table = sql.Identifier(location.schema, "meta")
            connection.execute(
                sql.SQL(
                    "insert into {} (program, format) values (%s, %s)"
                    " on conflict (one) do update set format = excluded.format"
                ).format(table),
                [PROGRAM, FORMAT],
            )
            return before, FORMAT
    except psycopg.errors.InsufficientPrivilege as error:
        raise ServerSetupError(
            f"the schema {location.schema} has to be made or brought up to date, and this role may not: "
            f"{location.hide(error.diag.message_primary or '')}",
            hint=f"let a role that may create it run `occamdb migrate {location.shown}`, then {grants(location)}",
            details={"schema": location.schema, "location": location.shown},
        ) from None
