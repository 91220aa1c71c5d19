"""Errors over the control socket: the same class, the same facts, whatever layer raised them."""

import json
from typing import Any

import msgpack
import pytest

from occamdb.engine.model import errors
from occamdb.engine.model.control_messages import raise_refusal, refusal
from occamdb.ipc import errors as ipc_errors
from occamdb.ipc.errors import OccamError

EXAMPLES: list[OccamError] = [
    errors.StoreFullError("full", limit=5, details={"free": 3, "errno": 28}),
    errors.StoreFullError(limit=1 << 30),
    errors.TooManyChannelsError("all taken", size=9, limit=8),
    errors.CorruptionError("damaged", file="/x/1.log", offset=77, expected="an entry"),
    errors.CorruptionError("damaged"),
    errors.IncompatibleFormatError("newer", found=9, supported=1),
    errors.LogWriteError("no space", errno=28),
    errors.CoordinatorUnavailable("gone", hint="start it", details={"path": "/x", "errno": 13}),
    errors.SettingsMismatchError("differs", setting="ring_size"),
    errors.SettingsError("unknown", setting="x"),
    errors.InvalidArgumentError("malformed"),
    errors.NotFoundError("commit 3 is gone"),
    errors.SnapshotExpired(),
    errors.CommitOutcomeUnknown("who knows", txn_id=(3, 4)),
    ipc_errors.LockHeldError("held", pid=77),
    ipc_errors.SegmentError("no descriptors", hint="raise `ulimit -n`", details={"errno": 24}),
    ipc_errors.AddressSpaceError("cannot map", details={"size": 1 << 40}),
    ipc_errors.ShmFullError("full", details={"free": 1, "needed": 2}),
    ipc_errors.ControlError("cannot listen", details={"path": "/x"}),
]


def listed(value: Any) -> Any:
    """Frames and JSON know lists only."""
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, tuple) else value


def over_the_socket(frame: dict[str, Any]) -> dict[str, Any]:
    return dict(msgpack.unpackb(msgpack.packb(frame)))


def over_the_pipe(frame: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(frame, default=repr)))


@pytest.mark.parametrize("transport", [over_the_socket, over_the_pipe])
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_was(error: OccamError, transport: Any) -> None:
    with pytest.raises(OccamError) as caught:
        raise_refusal(transport(refusal(error)))
    arrived = caught.value
    assert type(arrived) is type(error)
    assert listed(arrived.__dict__) == listed(error.__dict__)
    assert (str(arrived), arrived.code, arrived.retryable) == (str(error), error.code, error.retryable)


@pytest.mark.parametrize("name", ["Exception", "SystemExit", "UserKey", "Any", "", "OccamError", "no such"])
def test_no_name_raises_anything_but_an_error_of_ours(name: str) -> None:
    with pytest.raises(OccamError) as caught:
        raise_refusal(
            {"ok": False, "error": name, "message": "m", "hint": "h", "details": {"code": "x", "a": 1}}
        )
    assert type(caught.value) is OccamError
    assert (caught.value.message, caught.value.hint, caught.value.code) == ("m", "h", "occam.error")
