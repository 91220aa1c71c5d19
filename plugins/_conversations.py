"""How conversations of Pydantic AI are stored: their records, entries, and places in the index.

1. A message and a record are stored as the JSON that pydantic makes of them, beside the few fields that transactions
   look at. What does not survive JSON, such as a class of the user's own in the metadata, comes back as its JSON form.
2. A record has a place among all records, and one among those of its scope. Places are in the order of `updated_at`,
   the latest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from pydantic import ConfigDict, TypeAdapter
from pydantic_ai.conversation_store import ConversationEntry, ConversationRecord
from pydantic_ai.messages import ModelMessagesTypeAdapter

from occamdb import RunId, ValueEncodingError

__all__ = [
    "PARENT",
    "StoredRecord",
    "decode_entries",
    "decode_record",
    "encode_entry",
    "encode_record",
    "places",
    "places_of",
]

# A stored entry: [parent id, kind, message].
PARENT, KIND, MESSAGE = range(3)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MAX = (1 << 63) - 1

_RECORDS: TypeAdapter[list[ConversationRecord]] = TypeAdapter(
    list[ConversationRecord], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
)


class StoredRecord(TypedDict):
    """A record.

    Attributes:
      revision: it is compared with the one that a save expects.
      updated_us: when it was saved, in microseconds since 1970: its place in the index.
      scope: likewise.
      tips: the entries that it points at: its head and its branches.
      record: all of it, as JSON.
    """

    revision: str
    updated_us: int
    scope: str | None
    tips: list[str]
    record: str


def encode_record(record: ConversationRecord) -> StoredRecord:
    """The stored form of a record.

    Raises:
      ValueEncodingError: it holds something that JSON cannot hold.
    """
    head = [] if record.head_id is None else [record.head_id]
    what = f"the record of conversation {record.conversation_id!r}"
    return {
        "revision": record.revision,
        "updated_us": (record.updated_at.astimezone(UTC) - EPOCH) // timedelta(microseconds=1),
        "scope": record.scope,
        "tips": [*head, *record.branches],
        "record": _json(_RECORDS, record, what),
    }


def decode_record(row: StoredRecord) -> ConversationRecord:
    """The record of its stored form."""
    return _RECORDS.validate_json(f"[{row['record']}]")[0]


def encode_entry(entry: ConversationEntry) -> list[Any]:
    """The stored form of an entry.

    Raises:
      ValueEncodingError: its message holds something that JSON cannot hold.
    """
    message = _json(ModelMessagesTypeAdapter, entry.message, f"the message of entry {entry.id!r}")
    return [entry.parent_id, entry.kind, message]


def decode_entries(rows: Sequence[tuple[str, list[Any]]]) -> list[ConversationEntry]:
    """The entries of several ids and stored forms."""
    messages = ModelMessagesTypeAdapter.validate_json(f"[{','.join(row[MESSAGE] for _, row in rows)}]")
    return [
        ConversationEntry(id=entry_id, parent_id=row[PARENT], message=message, kind=row[KIND])
        for (entry_id, row), message in zip(rows, messages, strict=True)
    ]


def _json(adapter: TypeAdapter[Any], value: object, what: str) -> str:
    try:
        return adapter.dump_json([value])[1:-1].decode()
    except (ValueError, TypeError) as error:  # PydanticSerializationError is a ValueError
        raise ValueEncodingError(
            f"{what} cannot be stored: {error}",
            hint="keep what JSON can hold in messages and metadata: text, numbers, lists, dicts, pydantic models",
        ) from error


def places_of(scope: str | None) -> bytes:
    """What the places of all records begin with, or those of one scope."""
    return b"all/" if scope is None else b"scope/" + RunId.named(f"scope/{scope}").bytes + b"/"


def places(record: StoredRecord, run: RunId) -> list[bytes]:
    """The keys of the index that a record is listed under."""
    place = (TIME_MAX - record["updated_us"]).to_bytes(8, "big") + run.bytes
    groups = [places_of(None)]
    if record["scope"] is not None:
        groups.append(places_of(record["scope"]))
    return [group + place for group in groups]
