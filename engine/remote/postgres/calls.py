"""The calls of every transaction, without the driver's cursors: prepared statements, sent and answered in binary.

A cursor costs more here than the server does: it converts each parameter and each column by a table of types. These
calls know their types. They wait in libpq, which lets go of the GIL. What the watch thread of the pool cuts off ends as
a lost connection.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import psycopg
from psycopg import errors, pq

from ...model.errors import ProtocolError
from .pool import Connection

__all__ = ["Call", "arrays_of_bytes", "int4", "int8", "number", "numbers", "values"]

_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_GOOD = pq.ConnStatus.OK
_SIZE = struct.Struct(">i")
_HEAD = struct.Struct(">iiIii")  # of an array: dimensions, has nulls, type of elements, count, lower bound
_BYTEA = 17

int4 = struct.Struct(">i").pack
int8 = struct.Struct(">q").pack


class Call:
    """One statement.

    Args:
      name: for the server, unique in the schema's program.
      text: with $1, $2, … for the parameters, whose types are told by casts.
      count: of parameters.
    """

    def __init__(self, name: str, text: bytes, count: int) -> None:
        self.name = name.encode()
        self._text = text
        self._formats = [pq.Format.BINARY] * count

    def run(self, connection: Connection, parameters: Sequence[bytes], prepare: bool) -> pq.abc.PGresult:
        """The result, in binary.

        Args:
          parameters: in binary.
          prepare: False: send the text with each call, for poolers.

        Raises:
          psycopg.Error: as a cursor would.
        """
        raw = connection.pgconn
        known: set[bytes] = connection.__dict__.setdefault("occamdb_prepared", set())
        if not prepare:
            result = raw.exec_params(self._text, parameters, None, self._formats, pq.Format.BINARY)
        else:
            if self.name not in known:
                self._check(raw, raw.prepare(self.name, self._text))
                known.add(self.name)
            result = raw.exec_prepared(self.name, parameters, self._formats, pq.Format.BINARY)
        self._check(raw, result)
        return result

    @staticmethod
    def _check(raw: pq.abc.PGconn, result: pq.abc.PGresult) -> None:
        if result.status in _OK:
            return
        if raw.status != _GOOD:
            raise psycopg.OperationalError(raw.get_error_message() or "the connection is lost")
        raise errors.error_from_result(result)


# ---- binary values -----------------------------------------------------------------------------------------------


def number(value: bytes | None) -> int:
    """An integer of any size, or a boolean."""
    if value is None:
        raise ProtocolError("the server answered with nothing instead of a number")
    return int.from_bytes(value, "big", signed=True)


def arrays_of_bytes(items: Sequence[bytes]) -> bytes:
    """A bytea[] parameter."""
    parts = [_HEAD.pack(1, 0, _BYTEA, len(items), 1)]
    for item in items:
        parts.append(_SIZE.pack(len(item)))
        parts.append(item)
    return b"".join(parts)


def values(array: bytes | None) -> list[bytes]:
    """The elements of an array, as bytes. An absent or empty array has none."""
    if array is None:
        return []
    try:
        dimensions = _SIZE.unpack_from(array)[0]
        if dimensions == 0:
            return []
        dimensions, nulls, _, count, _ = _HEAD.unpack_from(array)
        if dimensions != 1 or nulls or not 0 <= count <= len(array):
            raise ProtocolError("the server answered with a damaged array")
        found, position = [], _HEAD.size
        for _ in range(count):
            (size,) = _SIZE.unpack_from(array, position)
            position += _SIZE.size
            if not 0 <= size <= len(array) - position:
                raise ProtocolError("the server answered with a damaged array")
            found.append(array[position : position + size])
            position += size
    except struct.error:
        raise ProtocolError("the server answered with a damaged array") from None
    return found


def numbers(array: bytes | None) -> list[int]:
    """The elements of an array of integers."""
    return [int.from_bytes(value, "big", signed=True) for value in values(array)]
