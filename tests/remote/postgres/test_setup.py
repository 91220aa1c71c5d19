"""What the server must be like: schemas that are not ours, roles that may not, settings that do not fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from occamdb.engine.commit.messages import Op, OpCode, Request, RequestFlags, Status, encode_request
from occamdb.engine.model.errors import (
    InvalidArgumentError,
    OccamError,
    ServerSetupError,
    ServerUnavailable,
    SettingsError,
    StoreFullError,
    TransactionTooLarge,
)
from occamdb.engine.remote.postgres import describe, migrate, migrations, open_backend
from occamdb.engine.remote.postgres.backend import PostgresBackend
from occamdb.engine.remote.postgres.location import Location, parse_url
from tests.support.one_postgres import OnePostgres

BASE = b"\0\0\0"
KEY = BASE + b"key"


def opened(url: str, **settings: Any) -> PostgresBackend:
    return open_backend(url, BASE, **{"timeout": 5, "durability": "standard", **settings})


def put(value: bytes = b"\x01", key: bytes = KEY) -> bytes:
    return encode_request(Request(0, ops=(Op(OpCode.PUT, key, value),), flags=RequestFlags.BLIND))


def works(url: str) -> None:
    backend = opened(url)
    try:
        assert backend.commit(put(), None).reply.status is Status.COMMITTED
    finally:
        backend.close()


@pytest.fixture
def role(server: OnePostgres, schema: str) -> Iterator[str]:
    """A role that may connect, and nothing else."""
    name = f"role_{schema}"
    with server.connect() as admin:
        admin.execute(f"create role {name} login")
        yield name
        admin.execute(f"drop owned by {name}; drop role {name}")


# ---- the schema --------------------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing(url: str) -> None:
    assert migrate(url) == (0, migrations.FORMAT)
    assert migrate(url) == (migrations.FORMAT, migrations.FORMAT)
    assert describe(url)["format"] == migrations.FORMAT


def test_the_first_open_makes_the_schema_once(url: str) -> None:
    errors: list[BaseException] = []

    def open_and_write() -> None:
        try:
            works(url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_an_older_schema_is_brought_up_to_date(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = migrations.FORMAT
    monkeypatch.setattr(migrations, "FORMAT", 3)
    assert migrate(url) == (0, 3)
    monkeypatch.setattr(migrations, "FORMAT", whole)
    assert migrate(url) == (3, whole)
    works(url)


def test_a_migration_that_fails_leaves_nothing(
    url: str, server: OnePostgres, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = migrations.statements_of

    def broken(location: Location, number: int) -> str:
        return statements(location, number) + "select 1/(4 - 4);" * (number == 4)

    monkeypatch.setattr(migrations, "statements_of", broken)
    with pytest.raises(OccamError):
        migrate(url)
    monkeypatch.undo()
    with server.connect() as admin:
        assert admin.execute("select 1 from pg_namespace where nspname = %s", [schema]).fetchone() is None
    works(url)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("create table {s}.users (id int)", "another program"),
        ("create table {s}.meta (key text, value text)", "another program"),
        (
            "create table {s}.meta (program text, format int); insert into {s}.meta values ('other', 1)",
            "another program",
        ),
        ("create table {s}.head (ns int)", "half made"),
        ("create table {s}.meta (program text, format int)", "half made"),
        (
            "create table {s}.meta (program text, format int); insert into {s}.meta values ('occamdb', 5)",
            "half made",
        ),
    ],
)
def test_a_schema_that_is_not_ours_is_refused(
    url: str, server: OnePostgres, schema: str, made: str, says: str
) -> None:
    with server.connect() as admin:
        admin.execute(f"create schema {schema}; " + made.replace("{s}", schema))
        before = tables(admin, schema)
        for call in (lambda: opened(url), lambda: migrate(url), lambda: describe(url)):
            with pytest.raises(ServerSetupError, match=says) as caught:
                call()
            assert "schema=" in (caught.value.hint or "")
        assert tables(admin, schema) == before, "nothing was written"


def tables(admin: Any, schema: str) -> Any:
    return admin.execute(
        "select relname, relkind from pg_class c join pg_namespace n on n.oid = relnamespace"
        " where nspname = %s order by 1",
        [schema],
    ).fetchall()


def test_a_newer_schema_is_refused(url: str, server: OnePostgres, schema: str) -> None:
    works(url)
    with server.connect() as admin:
        admin.execute(f"update {schema}.meta set format = 99")
    with pytest.raises(ServerSetupError, match="newer") as caught:
        opened(url)
    assert "upgrade" in (caught.value.hint or "")


# ---- roles -------------------------------------------------------------------------------------------------------


def test_a_role_that_may_not_make_the_schema_is_told_the_command(
    server: OnePostgres, schema: str, role: str
) -> None:
    url = server.url(user=role, schema=schema)
    with pytest.raises(ServerSetupError) as caught:
        opened(url)
    assert f"occamdb migrate {parse_url(url).shown}" in (caught.value.hint or "")


def test_a_role_with_the_advised_grants_may_do_everything(
    server: OnePostgres, schema: str, role: str
) -> None:
    migrate(server.url(schema=schema))
    url = server.url(user=role, schema=schema)
    with pytest.raises(ServerSetupError) as caught:
        opened(url)
    hint = caught.value.hint or ""
    statements = hint[hint.index("grant") :].replace("ROLE", role)
    with server.connect() as admin:
        admin.execute(statements)
    backend = opened(url)
    backend.keep_session()
    works(url)
    backend._server.keeper._sweep(0.0)
    backend.close()


# ---- connecting --------------------------------------------------------------------------------------------------


def test_an_unknown_database_or_role_is_refused_at_once(server: OnePostgres) -> None:
    with pytest.raises(ServerSetupError, match="does not exist") as caught:
        opened(server.url(database="nowhere"))
    assert "createdb" in (caught.value.hint or "")
    with pytest.raises(ServerSetupError, match="does not exist"):
        opened(server.url(user="nobody_here"))


def test_a_wrong_password_is_refused_and_not_shown(server: OnePostgres, role: str) -> None:
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    with server.connect() as admin:
        admin.execute(f"alter role {role} password 'right'")
        hba.write_text(f"host all {role} all scram-sha-256\n{before}")
        admin.execute("select pg_reload_conf()")
        try:
            url = server.url(user=f"{role}:s3cret%21x")
            with pytest.raises(ServerSetupError, match="password") as caught:
                opened(url)
            shown = f"{caught.value!r} {caught.value.hint} {caught.value.details} {caught.value.__cause__}"
            assert "s3cret" not in shown
        finally:
            hba.write_text(before)
            admin.execute("select pg_reload_conf()")


def test_the_location_has_no_secret() -> None:
    location = parse_url(
        "postgresql://me:pass%40word@h1:5433,h2/app?schema=mine&sslpassword=hush&sslmode=require"
    )
    assert location.shown == "postgresql://me@h1:5433,h2:5433/app?sslmode=require&schema=mine" or (
        location.shown == "postgresql://me@h1:5433,h2/app?sslmode=require&schema=mine"
    )
    assert location.parameters["password"] == "pass@word"
    assert "pass" not in repr(location)
    assert "hush" not in repr(location)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@h1/app?nonsense=1",
        "postgresql://me:secret@[h1/app",
        "postgresql://h/d?schema=",
        "postgresql://me:secret@h1:x/d",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises((InvalidArgumentError, ServerUnavailable, ServerSetupError)) as caught:
        open_backend(url, BASE, timeout=0.3, durability="standard")
    assert "secret" not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_tls_that_the_server_does_not_speak(server: OnePostgres) -> None:
    with pytest.raises(ServerSetupError, match="TLS") as caught:
        opened(server.url() + "?sslmode=require")
    assert "sslmode" in (caught.value.hint or "")


def test_an_old_server_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "SERVER_VERSION_MIN", 990000)
    with pytest.raises(ServerSetupError, match="PostgreSQL"):
        opened(url)


def test_too_many_connections_names_the_setting(server: OnePostgres) -> None:
    held = []
    try:
        with pytest.raises(ServerUnavailable) as caught:
            for _ in range(80):
                held.append(opened(server.url(schema="crowd"), timeout=1.0))
        assert "max_connections" in (caught.value.hint or "")
    finally:
        for backend in held:
            backend.close()
        with server.connect() as admin:
            admin.execute("set client_min_messages = warning; drop schema if exists crowd cascade")


# ---- settings ----------------------------------------------------------------------------------------------------


def with_role_setting(server: OnePostgres, role: str, schema: str, setting: str) -> str:
    migrate(server.url(schema=schema))
    with server.connect() as admin:
        admin.execute(
            f"grant usage on schema {schema} to {role};"
            f"grant select, insert, update, delete on all tables in schema {schema} to {role};"
            f"alter role {role} set {setting}"
        )
    return server.url(user=role, schema=schema)


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_another_default_isolation_on_the_server_does_no_harm(
    server: OnePostgres, schema: str, role: str, level: str
) -> None:
    works(with_role_setting(server, role, schema, f"default_transaction_isolation = '{level}'"))


def test_another_isolation_behind_a_pooler_is_refused(
    server: OnePostgres, schema: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler may give us connections on which our own setting was not made."""
    from occamdb.engine.remote.postgres import pool

    url = with_role_setting(server, role, schema, "default_transaction_isolation = 'serializable'")
    monkeypatch.setattr(pool, "_SETTINGS", "select 1")
    with pytest.raises(ServerSetupError) as caught:
        works(url)
    assert "default_transaction_isolation" in (caught.value.hint or "")


def test_prepared_statements_that_get_lost_are_done_without(url: str, server: OnePostgres) -> None:
    """A pooler in transaction mode gives each transaction another connection."""
    backend = opened(url)
    backend.commit(put(), None)
    with backend._server.pool.connection(9e9) as connection:
        connection.execute("deallocate all", prepare=False)
    assert backend.commit(put(), None).reply.status is Status.COMMITTED
    assert backend.begin([KEY]).rows[0] is not None
    assert not backend._server.pool.prepare
    backend.close()


def test_a_server_that_is_read_only_is_unavailable(server: OnePostgres, schema: str, role: str) -> None:
    url = with_role_setting(server, role, schema, "default_transaction_read_only = on")
    with pytest.raises(ServerUnavailable) as caught:
        opened(url, timeout=1.0)
    assert "standby" in (caught.value.hint or "")


def test_a_statement_timeout_names_the_setting(server: OnePostgres, schema: str, role: str) -> None:
    url = with_role_setting(server, role, schema, "statement_timeout = '200ms'")
    backend = opened(url)
    backend.begin()
    with server.connect() as admin:
        admin.autocommit = False
        admin.execute(f"select from {schema}.head for update")
        with pytest.raises(ServerUnavailable) as caught:
            backend.commit(put(), None)
    assert "statement_timeout" in (caught.value.hint or "")
    backend.close()


def test_a_full_disk_is_said(url: str, server: OnePostgres, schema: str) -> None:
    backend = opened(url)
    backend.begin()
    with server.connect() as admin:
        admin.execute(
            f"create function {schema}.full() returns trigger language plpgsql as "
            "$$ begin raise exception 'could not extend file' using errcode = '53100'; end $$;"
            f"create trigger full_disk before insert on {schema}.now for each row execute function {schema}.full()"
        )
    with pytest.raises(StoreFullError, match="disk") as caught:
        backend.commit(put(), None)
    assert "data_directory" in (caught.value.hint or "")
    backend.close()


def test_a_key_too_long_for_an_index_fails_alone(url: str) -> None:
    """Commits that travel with it are not refused."""
    import os

    backend = opened(url)
    found: list[Any] = []

    def commit(request: bytes) -> None:
        try:
            found.append(backend.commit(request, None).reply.status)
        except OccamError as error:
            found.append(type(error))

    requests = [put(key=BASE + os.urandom(5000))] + [put(key=BASE + b"%d" % index) for index in range(8)]
    threads = [threading.Thread(target=commit, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == sorted([str(TransactionTooLarge)] + [str(Status.COMMITTED)] * 8)
    backend.close()


def test_settings_that_a_server_has_no_use_for(url: str) -> None:
    with pytest.raises(SettingsError, match="max_store_size"):
        opened(url, max_store_size="1GiB")
    with pytest.raises(SettingsError, match="key_size_max"):
        opened(url, key_size_max=8192)
    backend = opened(url, value_size_max="1MiB", snapshot_max_age=60)
    assert backend.limits.value_size_max == 1 << 20
    backend.close()
