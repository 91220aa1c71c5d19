"""What the control plane does with requests it cannot serve: they end, it does not."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from occamdb.engine.disk.directory import socket_path
from occamdb.ipc.control import ControlClient
from occamdb.ipc.process import own_identity
from tests.support.processes import coordinator_pid


@pytest.fixture
def client(shared_path: Path) -> Iterator[ControlClient]:
    with ControlClient.connect(socket_path(os.fspath(shared_path)), 60.0) as connected:
        yield connected


def attach_message(**fields: Any) -> dict[str, Any]:
    message = {
        "op": "attach",
        "session": 0,
        "asked": {},
        "durability": "standard",
        "process": own_identity().to_dict(),
    }
    return message | fields


@pytest.mark.parametrize("session", [-1, -(2**63)])
def test_an_impossible_session_is_refused(client: ControlClient, shared_path: Path, session: int) -> None:
    before = coordinator_pid(shared_path)
    reply = client.call(attach_message(session=session), 60.0)
    assert reply["ok"] is False
    assert reply["code"] == "occam.argument"
    assert coordinator_pid(shared_path) == before


@pytest.mark.parametrize(
    "message",
    [
        {"op": "logged_commit", "version": -1},
        {"op": "logged_commit", "version": 2**64 - 1},
        attach_message(asked=3),
        attach_message(process=[]),
        attach_message(process={"pid": "x"}, session="y"),
        {"op": "failpoint", "name": "no such", "action": "kill"},
        {"op": "failpoint", "name": "wal.rotate", "action": "sleep:99999999999999999999999999"},
        {"op": None},
        {},
    ],
    ids=lambda message: str(message.get("op")),
)
def test_a_malformed_message_is_refused(
    client: ControlClient, shared_path: Path, message: dict[str, Any]
) -> None:
    before = coordinator_pid(shared_path)
    reply = client.call(message, 60.0)
    assert reply["ok"] in (False, True)
    assert client.call({"op": "status"}, 60.0)["pid"] == before


def test_a_log_that_cannot_be_read_fails_the_question_alone(shared_path: Path) -> None:
    before = coordinator_pid(shared_path)
    with ControlClient.connect(socket_path(os.fspath(shared_path)), 60.0) as asking:
        asking.call({"op": "failpoint", "name": "file.read", "action": "errno:EIO@1"}, 60.0)
        reply = asking.call({"op": "logged_commit", "version": 1}, 60.0)
        asking.call({"op": "failpoint", "name": "file.read", "action": "off"}, 60.0)
        assert reply["ok"] is False
        assert asking.call({"op": "status"}, 60.0)["pid"] == before
