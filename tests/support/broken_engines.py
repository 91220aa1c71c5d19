"""Engines with a deliberate fault: the suite is only worth something if it catches them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from occamdb import Database
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.commit import messages
from occamdb.engine.commit.messages import OpCode
from occamdb.engine.model.settings import Settings
from occamdb.engine.transaction._answer import Answer

__all__ = ["SkipsReadValidation", "broken_database"]


class SkipsReadValidation(LocalHandle):
    """Commits without looking at what was read or scanned. (A worker's own early look at its reads stays in place.)"""

    def submit(self, request: bytearray, deadline: float | None) -> Answer:
        asked = messages.decode_request(bytes(request))
        kept = tuple(op for op in asked.ops if op.code not in (OpCode.READ, OpCode.RANGE))
        changed = bytearray(messages.encode_request(replace(asked, ops=kept)))
        return super().submit(changed, deadline)


def broken_database(handle: type[LocalHandle] = SkipsReadValidation, **settings: Any) -> Database:
    """An in-memory database over a broken engine."""
    return Database(handle(Settings.of({"max_store_size": "4MiB", **settings})))
