"""Opening a database on etcd: URLs and settings, users, TLS, and servers that are not what they should be."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.model.errors import (
    InvalidArgumentError,
    OccamError,
    ServerSetupError,
    ServerUnavailable,
    SettingsError,
)
from occamdb.engine.remote.etcd import open_backend
from occamdb.engine.remote.etcd.address import Address
from occamdb.engine.remote.etcd.records import Head, LogEntry, Record
from occamdb.engine.remote.etcd.wire import text
from tests.support.etcd_servers import EtcdCluster, free_ports

from .conftest import BASE, Opening
from .test_commits import ask, k, names, put


def test_a_url_names_members_and_a_prefix() -> None:
    address = Address.of("etcd://me:s%40cret@h1,h2:23790,[::1]:7/apps/memory/", {})
    assert address.members == (("h1", 2379), ("h2", 23790), ("::1", 7))
    assert address.prefix == b"apps/memory/"
    assert address.location == "etcd://h1:2379,h2:23790,[::1]:7/apps/memory"
    assert (address.settings.user, address.settings.password) == ("me", "s@cret")
    assert "cret" not in repr(address)
    assert Address.of("etcd://h1", {}).prefix == b"occamdb/"


@pytest.mark.parametrize(
    "url",
    [
        "etcd://",
        "etcd:///p",
        "etcd://h:99999/p",
        "etcd://h:x/p",
        "etcd://h,h:2379/p",
        "etcd://h/p?x=1",
        "http://h",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="etcd"):
        open_backend(url, BASE)


def test_settings_are_checked() -> None:
    wrong: list[tuple[str, Any]] = [
        ("snapshot_age", 1),
        ("call_timeout", 0),
        ("max_txn_ops", 1.5),
        ("user", 7),
    ]
    for name, value in wrong:
        with pytest.raises(SettingsError) as caught:
            open_backend("etcd://h", BASE, **{name: value})
        assert caught.value.setting == name


def test_the_environment_gives_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_USER", "me:word")
    assert (Address.of("etcd://h", {}).settings.user, Address.of("etcd://h", {}).settings.password) == (
        "me",
        "word",
    )
    monkeypatch.setenv("ETCDCTL_PASSWORD", "other")
    assert Address.of("etcd://h", {}).settings.password == "other"
    assert Address.of("etcd://you@h", {"password": "mine"}).settings.password == "mine"


def test_a_member_that_is_down_is_passed_over(etcd: EtcdCluster, opened: Opening) -> None:
    (down,) = free_ports(1)
    backend = opened(at=f"etcd://127.0.0.1:{down},127.0.0.1:{etcd.members[0].port}/over")
    assert ask(backend, put("a")).commit_version == 1


def test_nobody_there_is_said_in_time() -> None:
    (down,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="nothing was committed"):
        open_backend(f"etcd://127.0.0.1:{down}/p", BASE, timeout=0.5)
    assert time.monotonic() - began < 10


class Impostor(http.server.BaseHTTPRequestHandler):
    """Answers whatever is asked with one text."""

    answer = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"etcdserver":"3.3.27"}', "too old: 3.4"),
        (b"<html>", "is not etcd"),
        (b'{"etcdserver":"x"}', "too old"),
    ],
)
def test_other_servers_are_refused(answer: bytes, words: str) -> None:
    handler = type("Handler", (Impostor,), {"answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ServerSetupError, match=words):
                open_backend(f"etcd://127.0.0.1:{server.server_address[1]}/p", BASE, timeout=5.0)
        finally:
            server.shutdown()
            thread.join()


def test_a_prefix_of_another_format_is_left_alone(etcd: EtcdCluster, url: str) -> None:
    prefix = url.rpartition("/")[2].encode() + b"/"
    etcd.members[0].ask("/v3/kv/put", {"key": text(prefix + b"f"), "value": text(b"occamdb 99")})
    with pytest.raises(ServerSetupError, match="occamdb 99"):
        open_backend(url, BASE)


def test_damaged_records_are_refused(etcd: EtcdCluster, opened: Opening) -> None:
    backend = opened()
    ask(backend, put("a"))
    keys = backend._member.space.keys
    for name, value in [(keys.record(k("a")), b"\x09garbage"), (keys.head, b"\xc1")]:
        etcd.members[0].ask("/v3/kv/put", {"key": text(name), "value": text(value)})
        with pytest.raises(OccamError, match="damaged"):
            backend.begin([k("a")])
    for decode in (Record.decode, Head.decode, lambda data: LogEntry.decode(data, 1)):
        for data in (b"", b"\x00" * 40, b"\x93\x01\x02\x03", b"\x92\x01\x91\x97\x01\x02\x03\x04\x05\x06\x07"):
            with pytest.raises(OccamError, match="damaged"):
                decode(data)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EtcdCluster]:
    """Etcd with users: `app` may write below app/, with the password "word"."""
    cluster = EtcdCluster(tmp_path)
    cluster.start()
    member = cluster.members[0]
    area = {"key": text(b"app/"), "range_end": text(b"app0"), "permType": "READWRITE"}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("user/add", {"name": "root", "password": "root"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": "app", "password": "word"}),
        ("role/add", {"name": "app"}),
        ("role/grant", {"name": "app", "perm": area}),
        ("user/grant", {"user": "app", "role": "app"}),
        ("enable", {}),
    ]
    for path, body in steps:
        answer = member.ask(f"/v3/auth/{path}", body)
        assert "error" not in answer, (path, answer)
    yield cluster
    cluster.stop()


def test_users_and_their_rights(guarded: EtcdCluster, opened: Opening) -> None:
    at = guarded.url("app")
    backend = opened(at=at, user="app", password="word")
    assert ask(backend, put("a")).commit_version == 1
    backend.keep_session()
    backend._family.client.gateway._token = "stale"  # as after the time to live of a token
    assert names(backend, backend.newest()) == ["a"]
    assert backend.stats()["version"] == 1
    for where, user, password, words in [
        (at, "", "", "wants a user"),
        (at, "app", "wrong", "refused the user 'app'"),
        (guarded.url("other"), "app", "word", "permission denied"),
    ]:
        with pytest.raises(ServerSetupError, match=words) as caught:
            open_backend(where, BASE, timeout=5.0, user=user, password=password)
        assert "word" not in str(caught.value).replace("password", "")


def test_tls(tmp_path: Path, opened: Opening) -> None:
    key, certificate, wrong = tmp_path / "key.pem", tmp_path / "ca.pem", tmp_path / "wrong.pem"
    for path in (wrong, certificate):
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ]
        made += [
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            str(key),
            "-out",
            str(path),
        ]
        subprocess.run(made, check=True, capture_output=True)
    cluster = EtcdCluster(tmp_path, tls=(certificate, key))
    cluster.start()
    try:
        backend = opened(at=cluster.url("tls"), ca_file=certificate)
        assert ask(backend, put("a")).commit_version == 1
        assert backend.wait(0, 5.0)
        with pytest.raises(ServerSetupError, match="certificate"):
            open_backend(cluster.url("tls"), BASE, ca_file=wrong, timeout=5.0)
        with pytest.raises(ServerSetupError, match="cannot be read"):
            open_backend(cluster.url("tls"), BASE, ca_file=tmp_path / "absent.pem")
        with pytest.raises(OccamError, match=r"127.0.0.1:\d+: \w+|not etcd"):
            open_backend(cluster.url("tls"), BASE, timeout=1.0)
    finally:
        cluster.stop()


def test_facts_for_status(opened: Opening) -> None:
    backend = opened()
    ask(backend, put("a"))
    facts = backend.stats()
    assert facts["engine"] == "etcd" and facts["durability"] == "always" and facts["version"] == 1
    assert facts["server_version"].startswith("3.") and facts["database_size"] > 0
    json.dumps(facts)
