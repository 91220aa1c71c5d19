"""Errors of what is too large, or too many; part of `errors.py`, which says what holds for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...ipc.errors import OccamError

__all__ = [
    "KeyTooLarge",
    "LimitExceeded",
    "StoreFullError",
    "TooManyChannelsError",
    "TransactionTooLarge",
    "ValueTooLarge",
]


class LimitExceeded(OccamError):
    """Something is larger than its limit.

    Attributes:
      size: what was asked for, in bytes (a count for channels).
      limit: the most allowed.
      setting: the name of the setting that holds the limit.
    """

    code = "occam.limit"
    thing = "this"
    unit = "bytes"
    default_setting = ""

    def __init__(
        self,
        message: str = "",
        *,
        size: int = 0,
        limit: int = 0,
        setting: str = "",
        hint: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        name = setting or self.default_setting
        text = message or f"{self.thing} is {size:,} {self.unit}, more than the limit of {limit:,} ({name})"
        advice = hint or (f"make it smaller, or raise {name} when opening" if name else "make it smaller")
        merged = {"size": size, "limit": limit, "setting": name, **(details or {})}
        super().__init__(text, hint=advice, details=merged)
        self.size = size
        self.limit = limit
        self.setting = name


class KeyTooLarge(LimitExceeded):
    """A key is longer than `key_size_max`."""

    code = "occam.limit.key"
    thing = "the key"
    default_setting = "key_size_max"


class ValueTooLarge(LimitExceeded):
    """An encoded value is larger than `value_size_max`."""

    code = "occam.limit.value"
    thing = "the encoded value"
    default_setting = "value_size_max"


class TransactionTooLarge(LimitExceeded):
    """A transaction's keys and values together exceed `transaction_size_max`."""

    code = "occam.limit.transaction"
    thing = "the transaction"
    default_setting = "transaction_size_max"


class TooManyChannelsError(LimitExceeded):
    """The coordinator serves as many connections as `channel_count_max` allows."""

    code = "occam.limit.channels"
    thing = "the number of connections"
    unit = "channels"
    default_setting = "channel_count_max"


class StoreFullError(LimitExceeded):
    """The store, or the machine's shared memory behind it, is full; the commit changed nothing."""

    code = "occam.limit.store"
    thing = "the store"
    default_setting = "max_store_size"

    def __init__(
        self,
        message: str = "",
        *,
        size: int = 0,
        limit: int = 0,
        setting: str = "max_store_size",
        hint: str = "delete data, close long-lived snapshots (db.stats() shows what they hold back), "
        "or raise max_store_size",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        text = message or (
            f"the store is full: its size is {limit:,} bytes" if limit else "the store is full"
        )
        super().__init__(text, size=size, limit=limit, setting=setting, hint=hint, details=details)
