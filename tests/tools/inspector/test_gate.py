"""Who may ask the inspector, and what its pages may do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import occamdb
from occamdb.tools.inspector.security import Secrets, is_allowed_host
from tests.support.inspecting import PORT, Looked, looking_at

PATHS = ("/", "/runs", "/conflicts", "/commits", "/compare", "/lanes", "/events", "/run/x", "/nothing")


@pytest.fixture
def looked(database_path: Path) -> Iterator[Looked]:
    with occamdb.open(database_path) as db:
        db.runs.create_run("secret name")
        with looking_at(database_path) as found:
            yield found


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_the_cookie(looked: Looked, path: str) -> None:
    answer = looked.stranger.get(path)
    assert answer.status_code == 403
    assert "secret name" not in answer.text and str(looked.source.name) not in answer.text


@pytest.mark.parametrize("token", ["", "wrong", "é" * 3, "x" * 10_000])
def test_a_wrong_token_lets_nobody_in(looked: Looked, token: str) -> None:
    answer = looked.stranger.get("/", params={"token": token})
    assert answer.status_code == 403 and "Wrong token" in answer.text
    assert "set-cookie" not in answer.headers
    assert looked.stranger.get("/").status_code == 403


def test_the_token_becomes_a_strict_cookie_and_leaves_the_address(looked: Looked) -> None:
    answer = looked.stranger.get("/runs", params={"token": looked.known.token, "status": "failed"})
    assert answer.status_code == 200 and answer.text == ""
    assert answer.headers["refresh"] == "0; url=/runs?status=failed"
    name, _, rest = answer.headers["set-cookie"].partition("=")
    assert name == f"occamdb-inspect-{PORT}", "browsers do not tell the ports of a host apart"
    assert rest.endswith("; Path=/; HttpOnly; SameSite=Strict")
    assert looked.known.token not in rest, "who sees the cookie must not learn the token"
    assert looked.stranger.get("/runs").status_code == 200


def test_the_page_that_follows_the_token_is_one_of_ours(looked: Looked) -> None:
    for path in ("//evil.example/", "/%0d%0aSet-Cookie:%20a=b", "/runs%22%3E"):
        answer = looked.client.get(f"http://127.0.0.1:{PORT}{path}?token={looked.known.token}")
        target = answer.headers.get("refresh", "0; url=/").partition("url=")[2]
        assert target.startswith("/") and not target.startswith("//")
        assert "\r" not in target and "\n" not in target and '"' not in target


def test_a_ticket_works_once() -> None:
    known = Secrets()
    ticket = known.ticket()
    assert known.admits(ticket) and not known.admits(ticket)
    assert known.admits(known.token) and known.admits(known.token)
    assert not known.knows(known.token) and not known.admits(known.cookie)
    assert not known.admits("") and not known.knows("")


def test_a_ticket_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Secrets()
    monkeypatch.setattr("occamdb.tools.inspector.security.TICKET_LIFE_S", -1.0)
    assert not known.admits(known.ticket())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"])
def test_only_reading_is_answered(looked: Looked, method: str) -> None:
    for client in (looked.client, looked.stranger):
        assert client.request(method, "/runs").status_code == 405


def test_head_is_answered_without_a_body(looked: Looked) -> None:
    answer = looked.client.head("/runs")
    assert answer.status_code == 200 and answer.text == ""


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:8790", True),
        ("127.0.0.1", True),
        ("localhost:1", True),
        ("LOCALHOST:1", True),
        ("[::1]:8790", True),
        ("[::1]", True),
        ("192.168.1.7:8790", True),
        ("my.machine:8790", True),
        ("evil.example:8790", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8790", False),
        ("[::1", False),
        ("[::1]x", False),
        ("[evil.example]:1", False),
        ("", False),
        (":8790", False),
    ],
)
def test_a_host_is_named_by_its_address_or_as_it_was_asked_for(header: str, allowed: bool) -> None:
    assert is_allowed_host(header, "my.machine") is allowed


def test_another_name_for_this_machine_is_refused(looked: Looked) -> None:
    """What a page of another site could do by letting its name resolve to 127.0.0.1."""
    for path in ("/runs", f"/?token={looked.known.token}", "/static/inspector.css"):
        answer = looked.client.get(path, headers={"host": f"evil.example:{PORT}"})
        assert answer.status_code == 421 and "set-cookie" not in answer.headers


def test_every_answer_has_the_headers_that_bind_a_page(looked: Looked) -> None:
    for client, path in [
        *((looked.client, path) for path in PATHS if path != "/events"),
        (looked.stranger, "/"),
        (looked.stranger, "/static/inspector.js"),
        (looked.client, "/static/nothing.js"),
    ]:
        headers = client.get(path).headers
        policy = dict(
            part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'", path
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] in ("no-store", "no-cache")


def test_cookies_that_are_no_cookies_let_nobody_in(looked: Looked) -> None:
    for cookie in (
        "",
        ";;;",
        "a=b",
        f"occamdb-inspect-{PORT}=",
        'x="',
        f"occamdb-inspect-{PORT + 1}={looked.known.cookie}",
    ):
        assert looked.stranger.get("/runs", headers={"cookie": cookie}).status_code == 403


def test_files_beside_the_static_ones_cannot_be_had(looked: Looked) -> None:
    for path in (
        "/static/../app.py",
        "/static/%2e%2e%2fapp.py",
        "/static/..%5capp.py",
        "/static/base.html",
        "/static/",
    ):
        assert looked.client.get(path).status_code in (404, 403, 307), path
        assert b"def " not in looked.client.get(path).content
