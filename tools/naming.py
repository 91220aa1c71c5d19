"""Runs and traces as a user names them: by id, by the name of a run, or by a prefix that only one has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from occamdb import Database, OccamError, RunId

CANDIDATES_SHOWN = 5
SHORT_ID_LENGTH_MIN = 8
_HEX_DIGITS = frozenset("0123456789abcdef")


def run_of(db: Database, text: str, *, create: bool = False) -> RunId:
    """The run that a user names: its id, its name, or the beginning of either.

    An id or a whole name goes before a prefix. Prefixes are looked up in the run index only.

    Args:
      db: an open database.
      text: what was typed.
      create: make a run of that name if there is none. Prefixes are then not looked at, so that a new name
        never means an older run.

    Raises:
      NotFoundError: no run is meant, and `create` is false.
      InvalidArgumentError: several runs are meant.
      TransactionStateError: the run was not copied to its end.
    """
    from occamdb import RunId
    from occamdb.engine.model.errors import InvalidArgumentError, NotFoundError

    try:
        run_id = RunId.of(text)
    except InvalidArgumentError:
        pass
    else:
        return _require_whole(db, run_id)
    runs = db.runs.list_runs()
    named = [run for run in runs if run.name == text]
    if not named and create:
        return db.runs.create_run(text).run_id
    digits = _id_digits(text)
    begun = [
        run
        for run in runs
        if text and (run.name.startswith(text) or (digits and run.run_id.hex.startswith(digits)))
    ]
    found = named or begun
    if len(found) == 1:
        return found[0].run_id
    if found:
        what = f"are named {text!r}" if named else f"begin with {text!r}"
        raise _ambiguous("runs", what, {str(run.run_id): run.name for run in found})
    raise NotFoundError(
        f"no run is named {text!r}",
        hint="`occamdb runs PATH` lists them, `occamdb put --create-run` makes one; an id (UUID) works too, "
        "and so does the beginning of a name or id",
    )


def _require_whole(db: Database, run_id: RunId) -> RunId:
    """The run, unless it is a copy that was interrupted. Such a run has no record in the index."""
    from occamdb.engine.model.errors import TransactionStateError
    from occamdb.tools.copy_runs import is_half

    if is_half(db, run_id):
        raise TransactionStateError(
            f"run {run_id} was not copied to its end: `occamdb copy` is at work, or was interrupted",
            hint="run the same `occamdb copy` again, which begins this run anew",
        )
    return run_id


def trace_of(db: Database, run_id: RunId, text: str) -> str:
    """The id of the trace that a user names by its id or the beginning of it.

    Raises:
      NotFoundError: the run has no such trace.
      InvalidArgumentError: several traces of the run begin so.
    """
    from occamdb.engine.model.errors import NotFoundError

    found = _traces_beginning(db, run_id, _id_digits(text))
    if len(found) == 1:
        return found[0]
    if found:
        raise _ambiguous("traces", f"begin with {text!r}", dict.fromkeys(found, ""))
    raise NotFoundError(f"there is no trace {text} in this run", hint="leave it out to list them all")


def _traces_beginning(db: Database, run_id: RunId, digits: str) -> list[str]:
    """The ids of the traces whose hexadecimal digits begin so; none for no digits."""
    from occamdb.engine.model.public_types import TypeTag
    from occamdb.primitives import layout

    if not digits:
        return []
    whole_bytes = bytes.fromhex(digits[: len(digits) // 2 * 2])
    keys = db.space(run_id, TypeTag.TRACE, raw=True).keys(layout.trace(whole_bytes))
    ids = (UUID(bytes=bytes(key[len(layout.TRACE) :])) for key in keys)
    return [str(each) for each in ids if each.hex.startswith(digits)]


def short_ids(ids: Iterable[str]) -> Mapping[str, str]:
    """Each id cut to one length at which no two of them are the same."""
    ordered = sorted(set(ids))
    length = SHORT_ID_LENGTH_MIN
    for first, second in pairwise(ordered):
        same = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
        length = max(length, same + 1)
    return {each: each[:length] for each in ordered}


def _id_digits(text: str) -> str:
    """The hexadecimal digits of an id or of its beginning; empty if the text cannot be one."""
    digits = text.lower().replace("-", "")
    return digits if set(digits) <= _HEX_DIGITS and len(digits) <= 32 else ""


def _ambiguous(kind: str, what: str, found: Mapping[str, str]) -> OccamError:
    from occamdb.engine.model.errors import InvalidArgumentError

    candidates: Sequence[str] = [f"{each} ({name})" if name else each for each, name in found.items()]
    shown = ", ".join(candidates[:CANDIDATES_SHOWN])
    more = len(candidates) - CANDIDATES_SHOWN
    return InvalidArgumentError(
        f"{len(candidates)} {kind} {what}: {shown}{f' and {more:,} more' if more > 0 else ''}",
        hint="give the id of one, or more of its beginning",
    )
