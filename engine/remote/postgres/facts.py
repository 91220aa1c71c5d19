"""What `occamdb status` and `stats` tell of a PostgreSQL server: its version, our role, durability, sizes, sessions.

Numbers of rows are the server's estimates, because counting them would read the tables.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from .location import Location
from .pool import Connection

__all__ = ["schema_facts", "server_facts"]

_SERVER = """
select current_setting('server_version'), current_user::text, pg_is_in_recovery(), current_setting('fsync'),
    current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), current_database()::text,
    (select setting from pg_settings where name = 'max_connections'),
    (select count(*) from pg_stat_activity where datname = current_database())
"""
_TABLES = """
select c.relname::text, pg_total_relation_size(c.oid), greatest(c.reltuples, 0)::bigint
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %s and c.relkind = 'r' order by 1
"""


def server_facts(connection: Connection) -> dict[str, Any]:
    """Of the server and of our role on it."""
    row = connection.execute(_SERVER).fetchone()
    assert row is not None
    return {
        "server_version": row[0],
        "role": row[1],
        "database": row[6],
        "takes_writes": not row[2],
        "fsync": row[3],
        "synchronous_commit": row[4],
        "synchronous_standby_names": row[5] or None,
        "connections": row[8],
        "connections_max": int(row[7]),
    }


def schema_facts(connection: Connection, location: Location) -> dict[str, Any]:
    """Of a schema that is there: its size, estimated numbers of rows, and the sessions that keys are bound to."""
    tables = connection.execute(_TABLES, [location.schema]).fetchall()
    facts: dict[str, Any] = {
        "schema_size": sum(size for _, size, _ in tables),
        "rows_estimated": {name: rows for name, _, rows in tables if name in ("now", "old", "change")},
    }
    query = sql.SQL("select count(*) from {}.session where not ended").format(sql.Identifier(location.schema))
    try:
        row = connection.execute(query).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return facts  # the role sees that the schema is there, and no more
    assert row is not None
    return facts | {"sessions_with_keys": row[0]}
