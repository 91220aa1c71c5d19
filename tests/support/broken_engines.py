"""Engines with a deliberate fault: the suite is worth something only if it catches them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from occamdb import Database
from occamdb.engine.client.local_handle import LocalHandle
from occamdb.engine.commit import messages
from occamdb.engine.commit.messages import OpCode
from occamdb.engine.model.settings import Settings

__all__ = ["SkipsReadValidation", "broken_database"]


class SkipsReadValidation(LocalHandle):
    """Commits without looking at what was read or scanned. (A worker's own early look at its reads stays in place.)"""

    def submit(self, request: bytearray, deadline: float | None) -> bytes:
        asked = messages.decode_request(bytes(request))
        kept = tuple(op for op in asked.ops if op.code not in (OpCode.READ, OpCode.RANGE))
        return super().submit(self._take(request, replace(asked, ops=kept)), deadline)

    @staticmethod
    def _take(request: bytearray, changed: messages.Request) -> bytearray:
        # In place: the caller reads the sequence out of its own buffer afterwards.
        request[:] = messages.encode_request(changed)
        return request


def broken_database(handle: type[LocalHandle] = SkipsReadValidation, **settings: Any) -> Database:
    """An in-memory database over a broken engine."""
    return Database(handle(Settings.of({"max_store_size": "4MiB", **settings})))
