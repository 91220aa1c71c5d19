"""Integers in stored values: msgpack, as the local engine adds to them (`commit/_integer.pxd`)."""

from __future__ import annotations

from typing import Final

import msgpack

__all__ = ["decode_integer", "encode_integer"]

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1


def decode_integer(value: bytes) -> int | None:
    """The integer that a value is; None: it is something else."""
    lead = value[0] if value else 0xC0
    if lead <= 0x7F or lead >= 0xE0:
        width = 0
    elif 0xCC <= lead <= 0xD3:
        width = 1 << (lead - 0xCC & 3)
    else:
        return None
    return int(msgpack.unpackb(value)) if len(value) == width + 1 else None


def encode_integer(number: int) -> bytes | None:
    """The shortest form of an integer; None: it does not fit."""
    return bytes(msgpack.packb(number)) if INTEGER_MIN <= number <= INTEGER_MAX else None
