"""The small types that keys, errors and conflict records all name. This module imports nothing of occamdb."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

__all__ = ["TypeTag", "UserKey", "tag_name", "tag_of"]

UserKey: TypeAlias = str | bytes


class TypeTag(IntEnum):
    """Which part of a run a key belongs to. 0x20 and up are free for later primitives."""

    KV = 0x01
    EVENT = 0x02
    STATE = 0x03
    TRACE = 0x04
    RUN = 0x05
    TASK = 0x10
    LEASE = 0x11
    STEP = 0x12


def tag_name(tag: int) -> str:
    """A tag for people: its name, or its number."""
    return tag.name if isinstance(tag, TypeTag) else f"tag {tag:#04x}"


def tag_of(number: int) -> TypeTag | int:
    """The named tag of a number, or the number itself for a later primitive's tag."""
    try:
        return TypeTag(number)
    except ValueError:
        return number
