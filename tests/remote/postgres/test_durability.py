"""What an acknowledged commit survives is asked of the server; nothing more is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from occamdb.engine.commit.messages import Op, OpCode, Request, RequestFlags, encode_request
from occamdb.engine.model.errors import ServerSetupError
from occamdb.engine.remote.postgres import migrate, open_backend
from tests.support.one_postgres import OnePostgres

BASE = b"\0\0\0"
Change = Callable[..., None]


def put() -> bytes:
    return encode_request(Request(0, ops=(Op(OpCode.PUT, BASE + b"k", b"\x01"),), flags=RequestFlags.BLIND))


@pytest.fixture
def setting(server: OnePostgres) -> Iterator[Change]:
    """Changes settings of the server, and takes that back."""
    with server.connect() as admin:

        def change(**settings: str) -> None:
            for name, value in settings.items():
                admin.execute(f"alter system set {name} = '{value}'")
            admin.execute("select pg_reload_conf()")

        yield change
        admin.execute("alter system reset all")
        admin.execute("select pg_reload_conf()")


def test_always_without_fsync_or_standbys_is_refused(url: str, setting: Change) -> None:
    with pytest.raises(ServerSetupError, match="fsync") as caught:
        open_backend(url, BASE, timeout=5, durability="always")
    assert "fsync" in (caught.value.hint or "")
    setting(fsync="on")
    with pytest.raises(ServerSetupError, match="synchronous_standby_names"):
        open_backend(url, BASE, timeout=5, durability="always")


def test_a_durable_commit_needs_fsync(url: str, setting: Change) -> None:
    backend = open_backend(url, BASE, timeout=5, durability="none")
    try:
        with pytest.raises(ServerSetupError, match="fsync"):
            backend.commit(put(), None, durable=True)
        assert backend.begin([BASE + b"k"]).rows == [None]
    finally:
        backend.close()
    setting(fsync="on")
    backend = open_backend(url, BASE, timeout=5, durability="none")
    assert backend.commit(put(), None, durable=True).durability == "standard"
    backend.close()


@pytest.mark.parametrize(("durability", "waits"), [("none", "off"), ("standard", "on")])
def test_the_commit_waits_for_what_was_asked(
    url: str, server: OnePostgres, schema: str, durability: str, waits: str
) -> None:
    backend = open_backend(url, BASE, timeout=5, durability=durability)
    backend.begin()
    with server.connect() as admin:
        admin.execute(
            f"create table {schema}_seen (setting text);"
            f"create function {schema}.note() returns trigger language plpgsql as "
            f"$$ begin insert into {schema}_seen values (current_setting('synchronous_commit')); return new; end $$;"
            f"create trigger note after insert on {schema}.outcome for each row execute function {schema}.note()"
        )
        assert backend.durability == durability
        assert backend.commit(put(), None).durability == durability
        assert admin.execute(f"select setting from {schema}_seen").fetchall() == [(waits,)]
        admin.execute(f"drop table {schema}_seen")
    backend.close()


def test_a_server_that_waits_for_less_than_before_is_noticed(
    url: str, setting: Change, server: OnePostgres
) -> None:
    """A receipt says what was true when the commit was made, and not when the database was opened."""
    migrate(url)
    setting(fsync="on", synchronous_standby_names="*")
    always = open_backend(url, BASE, timeout=5, durability="always")
    standard = open_backend(url, BASE, timeout=5, durability="none")
    assert always.durability == "always"
    setting(synchronous_standby_names="")
    with server.connect() as admin:
        deadline = time.monotonic() + 20
        while admin.execute("show synchronous_standby_names").fetchone() != ("",):
            assert time.monotonic() < deadline
    try:
        _refused_soon(lambda: always.commit(put(), None), "synchronous_standby_names")
        assert standard.commit(put(), None, durable=True).durability == "standard"
        setting(fsync="off")
        _refused_soon(lambda: standard.commit(put(), None, durable=True), "fsync")
    finally:
        always.close()
        standard.close()


def _refused_soon(commit: Callable[[], object], setting: str) -> None:
    """Each session of the server reads changed settings by itself, some time after another one has."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            commit()
        except ServerSetupError as error:
            assert setting in str(error)
            return
    pytest.fail(f"commits go on without {setting}")
