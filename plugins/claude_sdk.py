"""Claude Agent SDK: the transcripts of sessions, mirrored by several processes into one database.

    import asyncio
    from claude_agent_sdk import ClaudeAgentOptions, list_sessions_from_store, query
    from occamdb.plugins.claude_sdk import OccamSessionStore

    async def main() -> None:
        store = OccamSessionStore("agents.db")
        async for message in query(prompt="Hello", options=ClaudeAgentOptions(session_store=store)):
            print(message)
        print(await list_sessions_from_store(store))
        await store.aclose()

    asyncio.run(main())

1. A session has a run of its own, with its main transcript and those of its subagents. An append is one transaction:
   it reads and writes the head of its transcript, so the entries of several processes are in the order of commits.
2. An entry with a uuid is stored once. The first one stays, as the SDK sends a batch again after a failure.
3. The summary of a session is folded in the transaction that appends, from the entries that are new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from occamdb import RunId, ValueEncodingError
from occamdb.aio import AsyncTransaction
from occamdb.plugins._support import AnyDatabase, Engine, missing_extra, run_named, warn_if_newer

try:
    from claude_agent_sdk import (
        SessionKey,
        SessionListSubkeysKey,
        SessionStore,
        SessionStoreEntry,
        SessionStoreListEntry,
        SessionSummaryEntry,
        fold_session_summary,
    )
except ImportError as error:
    missing_extra("claude-agent-sdk", error)

__all__ = ["OccamSessionStore"]

KIND = "claude"
SUMMARY = "summary"
# Of the transcripts: `head/PATH`, `entry/PATH/NUMBER`, `uuid/PATH/UUID`. The main one has an empty path. Paths are
# quoted, so that no path is the beginning of another one up to a slash.
HEAD = "head/"
ENTRY = "entry/{}/"
UUID = "uuid/{}/"
MAIN = ""

warn_if_newer("claude-agent-sdk", "0.2")


class OccamSessionStore(SessionStore):
    """Transcripts of Claude sessions in an occamdb database, with all optional methods of the protocol.

    Any number of processes may append to one session: no entry is lost, and those of one process keep their order.

    Args:
      db: a Database, an AsyncDatabase, or the path of a database.

    Raises:
      TypeError: `db` is nothing of the kind.
    """

    def __init__(self, db: AnyDatabase) -> None:
        self._engine = Engine(db)

    def run_of(self, key: SessionKey | SessionListSubkeysKey) -> RunId:
        """The run that holds a session, for `db.watch`, `occamdb runs` and the like."""
        return run_named(KIND, _session_name(key))

    def close(self) -> None:
        """Close the database if it was given as a path."""
        self._engine.close()

    async def aclose(self) -> None:
        """`close`, after the commits that are under way."""
        await self._engine.aclose()

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Add entries to a transcript, in one transaction; those whose uuid it has are left out.

        Raises:
          ValueEncodingError: JSON cannot hold an entry; nothing was stored.
        """
        run, path = self.run_of(key), _path(key)
        texts = [_encoded(entry) for entry in entries]
        if not entries:
            return

        def write(txn: AsyncTransaction) -> None:
            head = txn.kv.get(HEAD + path)
            length, previous_ms = head or (0, 0)
            fresh: list[SessionStoreEntry] = []
            for entry, text in zip(entries, texts, strict=True):
                uuid = entry.get("uuid")
                if isinstance(uuid, str):
                    mark = UUID.format(path) + uuid
                    if txn.kv.exists(mark):
                        continue
                    txn.kv.put(mark, None)
                txn.kv.put(ENTRY.format(path) + f"{length + len(fresh):012d}", text)
                fresh.append(entry)
            if not fresh:
                return
            if head is None:
                _enter(txn, run, key)
            # Later than the one before, although clocks may be set back: the SDK sorts by it.
            now_ms = max(time.time_ns() // 1_000_000, previous_ms + 1)
            txn.kv.put(HEAD + path, [length + len(fresh), now_ms])
            if path == MAIN:
                old = txn.kv.get(SUMMARY)
                folded = fold_session_summary(None if old is None else json.loads(old), key, fresh)
                folded["mtime"] = now_ms
                txn.kv.put(SUMMARY, json.dumps(folded))

        await self._engine.aio.transaction(run, write, isolation="serializable")

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """The entries of a transcript in order; None when there is none."""
        path = _path(key)
        async with self._engine.aio.begin(self.run_of(key), read_only=True) as txn:
            if txn.kv.get(HEAD + path) is None:
                return None
            texts = [row.value for _, row in txn.kv.scan(ENTRY.format(path))]
        entries: list[SessionStoreEntry] = json.loads(f"[{','.join(texts)}]")
        return entries

    async def list_sessions(self, project_key: str) -> list[SessionStoreListEntry]:
        """The sessions of a project with a main transcript, and when each was last appended to."""
        summaries = await self.list_session_summaries(project_key)
        return [{"session_id": each["session_id"], "mtime": each["mtime"]} for each in summaries]

    async def list_session_summaries(self, project_key: str) -> list[SessionSummaryEntry]:
        """The summaries of all sessions of a project with a main transcript, from one snapshot."""
        tag = _project_tag(project_key)
        async with self._engine.aio.begin(RunId.named(tag), read_only=True) as txn:
            runs = txn.runs.query_runs(tag=tag)
            found = [txn.for_run(run).kv.get(SUMMARY) for run in runs]
        return [json.loads(summary) for summary in found if summary is not None]

    async def delete(self, key: SessionKey) -> None:
        """Delete a session with all its transcripts, or with a `subpath` that one; in one commit."""
        run, path = self.run_of(key), _path(key)

        def remove(txn: AsyncTransaction) -> None:
            if path != MAIN:
                txn.kv.delete_many([HEAD + path, *txn.kv.keys(ENTRY.format(path))])
                txn.kv.delete_many(txn.kv.list(UUID.format(path)))
            if path == MAIN or not txn.kv.list(HEAD, limit=1):
                txn.runs.delete_run(run)

        await self._engine.aio.transaction(run, remove, isolation="serializable")

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The subpaths of a session that have a transcript."""
        async with self._engine.aio.begin(self.run_of(key), read_only=True) as txn:
            paths = [found.removeprefix(HEAD) for found in txn.kv.keys(HEAD)]
        return [unquote(path) for path in paths if path != MAIN]


def _enter(txn: AsyncTransaction, run: RunId, key: SessionKey) -> None:
    """Make sure that the index of runs has a session, so that `occamdb runs` shows it and projects list it."""
    if txn.runs.get_run(run) is None:
        names = {"project_key": key["project_key"], "session_id": key["session_id"]}
        tags = [KIND, _project_tag(key["project_key"])]
        txn.runs.create_run(f"{KIND}/{_session_name(key)}", run_id=run, tags=tags, metadata=names)


def _session_name(key: SessionKey | SessionListSubkeysKey) -> str:
    """The name of a session. Its last slash stands between project and session, and no other pair has the same."""
    session_id = _text(key, "session_id")
    return f"{_text(key, 'project_key')}/{session_id.replace('%', '%25').replace('/', '%2F')}"


def _project_tag(project_key: str) -> str:
    return f"{KIND}/{_text({'project_key': project_key}, 'project_key')}"


def _path(key: SessionKey) -> str:
    """The transcript that a key is about, as it stands in the keys of the run."""
    return MAIN if key.get("subpath") is None else quote(_text(key, "subpath"), safe="")


def _text(key: Mapping[str, Any], field: str) -> str:
    value = key.get(field)
    if not isinstance(value, str):
        raise TypeError(f"the {field} of a session must be a str, got {type(value).__name__}: {value!r}")
    if not value:
        raise ValueError(f"the {field} of a session must not be empty")
    return value


def _encoded(entry: SessionStoreEntry) -> str:
    if not isinstance(entry, dict):
        raise TypeError(f"an entry of a transcript must be a dict, got {type(entry).__name__}")
    try:
        return json.dumps(entry)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueEncodingError(
            f"an entry of type {entry.get('type')!r} cannot be stored: {error}",
            hint="keep what JSON can hold in the entries of a transcript",
        ) from error
