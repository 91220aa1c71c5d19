"""How a primitive says what is wrong in its keys: the faults that `occamdb check` reports, and how to mend them.

An auditor is a function of a raw space, in which it reads the primitive's part of one run, on one snapshot. It is the
`auditor` of its primitive's class, so a further primitive brings its own.

1. An auditor writes nothing and keeps only a few values in memory, because a run may be large.
2. A repair writes or deletes only derived keys (index entries and heads), whose content follows from the
   records that are there. Records are what users wrote: a fault in one is reported and never mended.
3. A repair names the record it follows from. The transaction that applies it lets the commit check that the
   record did not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..engine.model.errors import OccamError
from ..engine.transaction._transaction import Space

__all__ = ["Auditor", "EntriesOf", "Fault", "Repair", "apply_repair", "audit_entries", "read_record"]


class Repair(NamedTuple):
    """A change to one derived key.

    Attributes:
      source: the key of the record that it follows from; the record may be missing.
      value: what to put; None is the value of an index entry.
      delete: remove the key instead.
    """

    source: bytes
    value: Any = None
    delete: bool = False


class Fault(NamedTuple):
    """One key that is not as it must be.

    Attributes:
      key: in the primitive's space.
      message: what is wrong, for people.
      repair: how to mend it; None: it cannot be derived from anything.
      advisory: nothing is wrong; the repair adds a key that earlier versions did not write.
    """

    key: bytes
    message: str
    repair: Repair | None = None
    advisory: bool = False


Auditor: TypeAlias = Callable[[Space], Iterator[Fault]]


class EntriesOf(Protocol):
    """The keys of the index entries that a record calls for."""

    def __call__(self, key: bytes, record: Any, /) -> set[bytes]:
        """Of the record under `key`.

        Raises:
          OccamError: it is unreadable.
        """


def apply_repair(space: Space, fault: Fault) -> None:
    """Mend a fault in the transaction, and on the snapshot, that it was found in."""
    repair = fault.repair
    assert repair is not None
    space.get_checked(repair.source)
    if repair.delete:
        space.delete(fault.key)
    else:
        space.put(fault.key, repair.value)


def audit_entries(
    space: Space, group: bytes, record_of: Callable[[bytes], bytes | None], entries_of: EntriesOf
) -> Iterator[Fault]:
    """Compare records with their index entries.

    Args:
      space: all of it is walked.
      group: what the keys of records begin with.
      record_of: the key of the record that an index entry is of, by the entry's key; None: not an entry.
      entries_of: what there must be.
    """
    for key in space.keys(b""):
        if key.startswith(group):
            try:
                entries = entries_of(key, read_record(space, key))
            except OccamError as error:
                yield Fault(key, f"unreadable: {error.message}")
                continue
            for entry in sorted(entries):
                if not space.exists(entry):
                    yield Fault(entry, f"an index entry of {key.hex()} is missing", Repair(key))
            continue
        fault = _fault_of_entry(space, key, record_of(key), entries_of)
        if fault is not None:
            yield fault


def _fault_of_entry(space: Space, key: bytes, source: bytes | None, entries_of: EntriesOf) -> Fault | None:
    if source is None:
        return Fault(key, "a key that this version does not know")
    try:
        record = read_record(space, source)
        if record is None:
            return Fault(
                key, f"an index entry of {source.hex()}, which is not there", Repair(source, delete=True)
            )
        if key in entries_of(source, record):
            return None
    except OccamError:
        return None  # the record itself is reported; which entries it has cannot be known
    return Fault(key, f"an index entry that {source.hex()} does not call for", Repair(source, delete=True))


def read_record(space: Space, key: bytes) -> Any:
    """The value of a key, None when absent.

    Raises:
      OccamError: it is unreadable.
    """
    return space.get(key)
