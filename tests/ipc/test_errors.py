"""Errors say code, message and hint, and cross process boundaries whole."""

import copy
import pickle
from typing import Any

import pytest

from occamdb.ipc import errors
from occamdb.ipc.errors import ChannelTimeout, LockHeldError, OccamError


class Strange(OccamError):
    """A subclass whose constructor has nothing in common with its base's."""

    code = "test.strange"
    retryable = True

    def __init__(self, first: int, *, second: list[int]) -> None:
        super().__init__(f"strange {first}", hint="look", details={"first": first})
        self.first = first
        self.second = second


def ipc_errors() -> list[type[OccamError]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OccamError)]


def fields(error: OccamError) -> dict[str, Any]:
    return {**error.__dict__, "args": error.args, "str": str(error), "type": type(error)}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "error",
    [
        Strange(3, second=[1, 2]),
        ChannelTimeout("late", sent=True, hint="wait"),
        LockHeldError("held", pid=77),
        OccamError("plain"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickles_exactly(error: OccamError, protocol: int) -> None:
    error.add_note("noted")
    assert fields(pickle.loads(pickle.dumps(error, protocol))) == fields(error)
    assert fields(copy.copy(error)) == fields(error)


def test_text_shows_message_and_hint() -> None:
    assert str(OccamError("5 > 4", hint="raise `limit`")) == "5 > 4 (hint: raise `limit`)"
    assert str(OccamError("5 > 4")) == "5 > 4"
    assert "doctor" in str(errors.SegmentExistsError("there")), "a class's default hint is shown"


def test_codes_are_dotted_and_unique() -> None:
    codes = [cls.code for cls in ipc_errors()]
    assert len(set(codes)) == len(codes)
    assert all("." in code for code in codes)


def test_details_are_a_copy() -> None:
    details = {"size": 1}
    error = OccamError("x", details=details)
    details["size"] = 2
    assert error.details == {"size": 1}
