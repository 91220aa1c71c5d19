"""Pydantic AI: conversations that several processes save to one database.

    import asyncio
    from pydantic_ai import Agent
    from pydantic_ai.conversation import Conversation
    from pydantic_ai.models.test import TestModel
    from occamdb.plugins.pydantic_ai import OccamConversationStore

    async def main() -> None:
        store = OccamConversationStore("agents.db")
        conversation = await store.load("ada") or Conversation(conversation_id="ada")
        result = await Agent(TestModel()).run("Hello", conversation=conversation)
        await store.save(result)
        await store.aclose()

    asyncio.run(main())

1. A conversation has a run of its own, with its record and the entries that it stored. A save is one transaction, in
   which the stored revision is compared: of two savers that loaded the same revision, one gets ConversationConflict.
2. An entry is in one run. The index, a run that all conversations share, says in which. A fork points at entries in
   the run of the conversation that it came from.
3. A run that points at entries of another one is noted in both: `lent/<borrower>` here, `borrowed/<lender>` there. It
   points at them with the head or a branch of its record, or with the parent of an entry.
4. A conversation that is deleted hands the entries that its borrowers need to one of them, in the same commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from occamdb import RunId
from occamdb.aio import AsyncTransaction
from occamdb.plugins._support import AnyDatabase, Engine, missing_extra, run_named, warn_if_newer

try:
    from pydantic_ai.conversation_store import (
        ConversationConflict,
        ConversationEntry,
        ConversationRecord,
        ConversationStore,
    )

    from occamdb.plugins import _conversations as stored
except ImportError as error:
    missing_extra("pydantic-ai", error)

__all__ = ["OccamConversationStore"]

KIND = "pydantic-ai"
# Its kind is another word, so no conversation can have the same run.
INDEX_NAME = "pydantic-ai-index/entries"
INDEX = RunId.named(INDEX_NAME)
RECORD = "record"
ENTRY = "entry/"
LENT = "lent/"
BORROWED = "borrowed/"

warn_if_newer("pydantic-ai-slim", "2.68")


class OccamConversationStore(ConversationStore):
    """Conversations in an occamdb database, for `load`, `save`, `fork`, `branch` and `delete` of Pydantic AI.

    Any number of processes may use one database. A save that would overwrite the save of another process raises
    ConversationConflict. `delete` removes the messages of the conversation, except those that forks of it still show.

    Args:
      db: a Database, an AsyncDatabase, or the path of a database.

    Raises:
      TypeError: `db` is nothing of the kind.
    """

    def __init__(self, db: AnyDatabase) -> None:
        self._engine = Engine(db)

    def run_of(self, conversation_id: str) -> RunId:
        """The run that holds a conversation, for `db.watch`, `occamdb runs` and the like."""
        return run_named(KIND, conversation_id)

    def close(self) -> None:
        """Close the database if it was given as a path."""
        self._engine.close()

    async def aclose(self) -> None:
        """`close`, after the commits that are under way."""
        await self._engine.aclose()

    # --- Reading: each call sees one snapshot ---

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """The record of a conversation; None when there is none."""
        async with self._engine.aio.begin(self.run_of(conversation_id), read_only=True) as txn:
            found = txn.kv.get(RECORD)
        return None if found is None else stored.decode_record(found)

    async def read_records(
        self, *, scope: str | None = None, limit: int | None = None
    ) -> Sequence[ConversationRecord]:
        """The records, or those of a scope, the latest `updated_at` first; O(answer)."""
        found: list[Any] = []
        async with self._engine.aio.begin(INDEX, read_only=True) as index:
            for place, row in index.kv.scan(stored.places_of(scope), raw=True):
                if limit is not None and len(found) >= limit:
                    break
                record = index.for_run(row.value).kv.get(RECORD)
                # The place of a conversation whose run was deleted by other means than this store is left behind.
                if record is not None and place in stored.places(record, row.value):
                    found.append(record)
        return [stored.decode_record(record) for record in found]

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """The entry with an id.

        Raises:
          KeyError: there is none.
        """
        return (await self.read_history(entry_id, limit=1))[0]

    async def read_history(self, head_id: str | None, *, limit: int | None = None) -> list[ConversationEntry]:
        """The entries up to `head_id` in order, or the last `limit` of them.

        Raises:
          KeyError: one of them is missing.
        """
        rows: list[tuple[str, Any]] = []
        entry_id = head_id
        async with self._engine.aio.begin(INDEX, read_only=True) as index:
            owner = index
            while entry_id is not None and (limit is None or len(rows) < limit):
                key, row = ENTRY + entry_id, None
                if rows:  # most often it is where the one before was
                    row = owner.kv.get(key)
                if row is None and (run := index.kv.get(key)) is not None:
                    owner = index.for_run(run)
                    row = owner.kv.get(key)
                if row is None:
                    raise KeyError(entry_id)
                rows.append((entry_id, row))
                entry_id = row[stored.PARENT]
        rows.reverse()
        return stored.decode_entries(rows)

    # --- Writing: each call is one transaction ---

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and new entries if the stored revision is the expected one, None for no record.

        Raises:
          ConversationConflict: it is another one, or the head of the record is not stored any longer.
          ValueEncodingError: the record or a message holds something that JSON cannot hold; nothing was stored.
        """
        run = self.run_of(record.conversation_id)
        row = stored.encode_record(record)
        entries = [(entry.id, stored.encode_entry(entry)) for entry in new_entries]

        def write(txn: AsyncTransaction) -> None:
            old, index = txn.kv.get(RECORD), txn.for_run(INDEX)
            if (None if old is None else old["revision"]) != expected_revision:
                raise ConversationConflict(record.conversation_id)
            if old is None:
                _enter(txn, INDEX, INDEX_NAME)
                _enter(txn, run, f"{KIND}/{record.conversation_id}")
            written = _put_entries(txn, run, entries)
            head_id = record.head_id
            if head_id is not None and head_id not in written and not _is_stored(txn, head_id):
                raise ConversationConflict(record.conversation_id)
            for tip in {*row["tips"]} - {*(old["tips"] if old else ())} - written:
                _borrow(txn, run, index.kv.get(ENTRY + tip))
            if old is not None:
                index.kv.delete_many(stored.places(old, run))
            for place in stored.places(row, run):
                index.kv.put(place, run)
            txn.kv.put(RECORD, row)

        await self._engine.aio.transaction(run, write, isolation="serializable")

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation's run, with all its entries that no fork needs; O(entries).

        Raises:
          ConversationConflict: there is no record, or it has another revision.
        """
        run = self.run_of(conversation_id)

        def delete(txn: AsyncTransaction) -> None:
            old = txn.kv.get(RECORD)
            if old is None or old["revision"] != expected_revision:
                raise ConversationConflict(conversation_id)
            _hand_over(txn, run)
            txn.for_run(INDEX).kv.delete_many(stored.places(old, run))
            txn.runs.delete_run(run)

        await self._engine.aio.transaction(run, delete, isolation="serializable")


def _enter(txn: AsyncTransaction, run: RunId, name: str) -> None:
    """Make sure that the index of runs has a run, so that `occamdb runs` shows it."""
    if txn.runs.get_run(run) is None:
        txn.runs.create_run(name, run_id=run, tags=[KIND])


def _is_stored(txn: AsyncTransaction, entry_id: str) -> bool:
    owner = txn.for_run(INDEX).kv.get(ENTRY + entry_id)
    return owner is not None and txn.for_run(owner).kv.exists(ENTRY + entry_id)


def _put_entries(txn: AsyncTransaction, run: RunId, entries: list[tuple[str, Any]]) -> set[str]:
    """Store entries in a run; one that is stored elsewhere is replaced where it is. Returns their ids."""
    index = txn.for_run(INDEX)
    written: set[str] = set()
    for entry_id, row in entries:
        owner = index.kv.get(ENTRY + entry_id)
        if owner is None:
            owner = run
            index.kv.put(ENTRY + entry_id, run)
        txn.for_run(owner).kv.put(ENTRY + entry_id, row)
        _borrow(txn, run, owner)
        parent = row[stored.PARENT]
        if parent is not None and parent not in written:
            _borrow(txn, owner, index.kv.get(ENTRY + parent))
        written.add(entry_id)
    return written


def _borrow(txn: AsyncTransaction, borrower: RunId, lender: RunId | None) -> None:
    """Note that a run points at an entry in another one: invariant 3."""
    if lender is not None and lender != borrower:
        txn.for_run(lender).kv.put(LENT + str(borrower), None)
        txn.for_run(borrower).kv.put(BORROWED + str(lender), None)


def _hand_over(txn: AsyncTransaction, run: RunId) -> None:
    """Give the entries that other runs need to those runs, and forget the others. `txn` shows the run.

    A borrower gets the chain of entries behind each one that it points at, up to what another borrower got before. It
    then points at that borrower's run, or at the run that the chain goes on in.
    """
    index = txn.for_run(INDEX)
    own = {key.removeprefix(ENTRY): row.value for key, row in txn.kv.scan(ENTRY)}
    heirs: dict[str, RunId] = {}
    for key in txn.kv.list(LENT):
        heir = RunId(key.removeprefix(LENT))
        space = txn.for_run(heir).kv
        record = space.get(RECORD)
        pointed_at = [row.value[stored.PARENT] for _, row in space.scan(ENTRY)]
        for start in [*pointed_at, *(record["tips"] if record else ())]:
            if start not in own:
                continue
            entry_id = start
            while entry_id in own and entry_id not in heirs:
                heirs[entry_id] = heir
                entry_id = own[entry_id][stored.PARENT]
            if entry_id is not None:
                _borrow(txn, heir, heirs.get(entry_id) or index.kv.get(ENTRY + entry_id))
        space.delete(BORROWED + str(run))
    for key in txn.kv.list(BORROWED):
        txn.for_run(RunId(key.removeprefix(BORROWED))).kv.delete(LENT + str(run))
    for entry_id, row in own.items():
        new_owner = heirs.get(entry_id)
        if new_owner is None:
            index.kv.delete(ENTRY + entry_id)
        else:
            index.kv.put(ENTRY + entry_id, new_owner)
            txn.for_run(new_owner).kv.put(ENTRY + entry_id, row)
