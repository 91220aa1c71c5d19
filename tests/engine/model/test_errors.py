"""Errors: stable codes, exact pickling, and what `except` catches."""

import copy
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import FrozenInstanceError

import pytest

from occamdb.engine.model import errors
from occamdb.engine.model.errors import (
    CASConflict,
    ConflictError,
    OccamError,
    ReadConflict,
    RetriesExhausted,
    WriteConflict,
)
from occamdb.engine.model.public_types import RunId, TypeTag

RUN = RunId("01890a5d-ac96-774b-bcce-b302099a8057")

CODES = {
    "AlreadyExistsError": "occam.already_exists",
    "BoundReached": "occam.value.bound_reached",
    "CASConflict": "occam.conflict.cas",
    "CommitOutcomeUnknown": "occam.commit.outcome_unknown",
    "ConflictError": "occam.conflict",
    "CoordinatorUnavailable": "occam.coordinator.unavailable",
    "ServerSetupError": "occam.server.setup",
    "ServerUnavailable": "occam.coordinator.unavailable.server",
    "UnsupportedError": "occam.unsupported",
    "CorruptionError": "occam.corruption",
    "DatabaseClosedError": "occam.database.closed",
    "ForkedHandleError": "occam.handle.forked",
    "IncompatibleFormatError": "occam.format.incompatible",
    "IntegerOverflowError": "occam.value.integer_overflow",
    "InvalidArgumentError": "occam.argument",
    "InvalidKeyError": "occam.argument.key",
    "InvalidTransition": "occam.transition.invalid",
    "KeyTooLarge": "occam.limit.key",
    "LeaseLost": "occam.lease.lost",
    "LimitExceeded": "occam.limit",
    "LogWriteError": "occam.log.write",
    "MainModuleError": "occam.argument.main_module",
    "NotAnIntegerError": "occam.value.not_an_integer",
    "NotFoundError": "occam.not_found",
    "OccamError": "occam.error",
    "ProtocolError": "occam.protocol",
    "ReadOnlyError": "occam.transaction.state.read_only",
    "RetriesExhausted": "occam.conflict.retries_exhausted",
    "RunNotActive": "occam.run.not_active",
    "SettingsError": "occam.argument.setting",
    "SettingsMismatchError": "occam.argument.setting.mismatch",
    "SnapshotExpired": "occam.snapshot.expired",
    "StepFailed": "occam.step.failed",
    "StoreFullError": "occam.limit.store",
    "TooManyChannelsError": "occam.limit.channels",
    "TransactionStateError": "occam.transaction.state",
    "TransactionTimeout": "occam.transaction.timeout",
    "TransactionTooLarge": "occam.limit.transaction",
    "ValueEncodingError": "occam.argument.value",
    "ValueTooLarge": "occam.limit.value",
    "WatchLagged": "occam.watch.lagged",
}

CONFLICTS = (
    ReadConflict("k", 3, 7, None, RUN, TypeTag.KV),
    ReadConflict("a", 3, 9, ("a", None), RUN, TypeTag.KV),
    WriteConflict("\udcff", 3, 7, RUN, 0x42),
    CASConflict("c", 0, 4, RUN, TypeTag.STATE),
)

RETRYABLE = {
    "ConflictError",
    "CoordinatorUnavailable",
    "ServerUnavailable",
    "SnapshotExpired",
    "TransactionTimeout",
}


def error_classes() -> dict[str, type[OccamError]]:
    named = {name: getattr(errors, name) for name in errors.__all__}
    return {n: c for n, c in named.items() if isinstance(c, type) and issubclass(c, OccamError)}


def samples() -> Iterator[OccamError]:
    """One of each class, with every extra field set."""
    extras: dict[str, dict[str, object]] = {
        "CommitOutcomeUnknown": {"txn_id": (5, 6)},
        "ConflictError": {"conflicts": CONFLICTS, "conflicts_found": 99},
        "RetriesExhausted": {"conflicts": CONFLICTS, "attempts": 12},
        "BoundReached": {"key": "n", "value": 98, "by": 5, "at_most": 100, "at_least": 0},
        "LeaseLost": {"name": "leader", "token": 7},
        "StepFailed": {"name": "fetch", "attempts": 3, "error": "ValueError: no"},
        "CorruptionError": {"file": "wal/1.log", "offset": 77, "expected": "a CRC of 0x1"},
        "IncompatibleFormatError": {"found": 2, "supported": 1},
        "InvalidTransition": {"current": "Archived", "requested": "Active", "allowed": ("X",)},
        "LogWriteError": {"errno": 28},
        "NotAnIntegerError": {"key": "n"},
        "IntegerOverflowError": {"key": b"n"},
        "ValueEncodingError": {"path": 'value["a"]'},
        "RunNotActive": {"run_id": RUN, "status": "paused"},
        "SettingsError": {"setting": "ring_size"},
        "SettingsMismatchError": {"setting": "ring_size"},
        "WatchLagged": {"since": 3, "oldest": 9},
    }
    for name, kind in error_classes().items():
        if kind is CASConflict:
            yield CASConflict("c", 1, 2, RUN, TypeTag.STATE)
        elif issubclass(kind, errors.LimitExceeded):
            yield kind(size=2_000, limit=1_000, setting="key_size_max")
        else:
            yield kind("what happened", **extras.get(name, {}))  # type: ignore[arg-type]


def test_codes_are_the_released_ones() -> None:
    assert {name: kind.code for name, kind in error_classes().items()} == CODES


def test_codes_extend_the_code_of_the_class_above() -> None:
    for kind in error_classes().values():
        parent = kind.__mro__[1]
        if issubclass(parent, OccamError) and parent is not OccamError:
            assert kind.code.startswith(f"{parent.code}."), kind


def test_what_is_retryable() -> None:
    assert {name for name, kind in error_classes().items() if kind.retryable} == RETRYABLE


@pytest.mark.parametrize("error", list(samples()), ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_pickles_exactly(error: OccamError, clone: object) -> None:
    assert callable(clone)
    other = clone(error)
    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert (str(other), repr(other), other.args) == (str(error), repr(error), error.args)
    assert other.code == error.code and other.hint == error.hint


@pytest.mark.parametrize("error", list(samples()), ids=lambda e: type(e).__name__)
def test_details_are_plain(error: OccamError) -> None:
    plain = (int, float, str, bytes, type(None), list, tuple, dict)
    assert all(isinstance(value, plain) for value in error.details.values())
    assert error.message and str(error).startswith(error.message)


@pytest.mark.parametrize(
    "error", [e for e in samples() if isinstance(e, errors.LimitExceeded)], ids=lambda e: type(e).__name__
)
def test_limits_name_size_limit_and_setting(error: errors.LimitExceeded) -> None:
    assert (error.size, error.limit, error.setting) == (2_000, 1_000, "key_size_max")
    assert error.details["size"] == 2_000 and error.details["setting"] == "key_size_max"
    assert "1,000" in error.message


def test_default_limit_hint_names_the_setting() -> None:
    assert "value_size_max" in errors.ValueTooLarge(size=2, limit=1).hint
    assert "max_store_size" in errors.StoreFullError().hint


def test_conflict_error_catches_every_kind() -> None:
    for error in (ConflictError(), CASConflict("k", 1, 2), RetriesExhausted(attempts=3)):
        with pytest.raises(ConflictError):
            raise error


def test_cas_conflict_is_record_and_exception() -> None:
    conflict = CASConflict("cell", 3, 5, RUN, TypeTag.STATE)
    assert conflict.conflicts == (conflict,)
    assert conflict.conflicts_found == 1
    assert "expected version 3" in conflict.message and "version 5" in conflict.message
    with pytest.raises(CASConflict) as caught:
        raise conflict
    assert caught.value.found_version == 5
    inside = ConflictError(conflicts=[conflict])
    assert inside.conflicts == (CASConflict("cell", 3, 5, RUN, TypeTag.STATE),)


def test_cas_conflict_compares_by_fields() -> None:
    assert CASConflict("k", 1, 2) == CASConflict("k", 1, 2)
    assert CASConflict("k", 1, 2) != CASConflict("k", 1, 3)
    assert CASConflict("k", 1, 2) != ReadConflict("k", 1, 2)
    assert len({CASConflict("k", 1, 2), CASConflict("k", 1, 2), CASConflict("j", 1, 2)}) == 2


def test_records_match_by_pattern() -> None:
    seen: list[tuple[object, ...]] = []
    for conflict in CONFLICTS:
        match conflict:
            case ReadConflict(key, range=None):
                seen.append(("read", key))
            case ReadConflict(range=(start, _)):
                seen.append(("range", start))
            case WriteConflict(key):
                seen.append(("write", key))
            case CASConflict(key, expected, found):
                seen.append(("cas", key, expected, found))
    assert seen == [("read", "k"), ("range", "a"), ("write", "\udcff"), ("cas", "c", 0, 4)]


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CONFLICTS[0].key = "other"  # type: ignore[misc]
    assert not hasattr(CONFLICTS[0], "__dict__")


def test_conflict_message_counts_the_rest() -> None:
    error = ConflictError(conflicts=CONFLICTS, conflicts_found=40)
    assert "'k'" in error.message and "39 more" in error.message
    assert ConflictError(conflicts=CONFLICTS[:1]).conflicts_found == 1


def test_texts_say_what_was_expected_and_found() -> None:
    assert "expected it to be absent" in str(ReadConflict("k", 0, 4))
    assert "found it absent" in str(ReadConflict("k", 4, 0))
    assert "version 9, after the snapshot at 4" in str(WriteConflict("k", 4, 9))
    assert "range 'a' to the end" in str(CONFLICTS[1])
    assert str(RUN) in str(CONFLICTS[0]) and "KV" in str(CONFLICTS[0])
    assert "tag 0x42" in str(CONFLICTS[2])


def test_retries_exhausted_tells_attempts_and_last_conflicts() -> None:
    error = RetriesExhausted(attempts=12, conflicts=CONFLICTS)
    assert "12 attempts" in error.message and "'k'" in error.message
    assert (error.attempts, error.conflicts) == (12, CONFLICTS)


def test_argument_errors_are_value_errors() -> None:
    for kind in (errors.InvalidArgumentError, errors.InvalidKeyError, errors.ValueEncodingError):
        with pytest.raises(ValueError, match="wrong"):
            raise kind("wrong")


def test_run_id_may_be_a_plain_uuid() -> None:
    assert str(uuid.UUID(int=1)) in str(WriteConflict("k", 1, 2, uuid.UUID(int=1)))
