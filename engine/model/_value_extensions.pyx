"""UUID, RunId, Decimal, date, time and timedelta as bodies of msgpack extensions, both ways.

The type of a value is compared exactly, so a subclass is not stored as what it inherits from.
"""

from cpython.datetime cimport date, import_datetime, time, timedelta

from ...ipc._atomics cimport u64
from ._value_format cimport EXT_DATE, EXT_DECIMAL, EXT_RUN_ID, EXT_TIME, EXT_TIMEDELTA, EXT_UUID

from decimal import Decimal
from uuid import UUID

from .public_types import RunId

import_datetime()


cdef bytes extension_body(object value, object kind, u8 *number):
    cdef u64 microseconds
    if kind is RunId:
        number[0] = EXT_RUN_ID
        return value.bytes
    if kind is UUID:
        number[0] = EXT_UUID
        return value.bytes
    if kind is Decimal:
        number[0] = EXT_DECIMAL
        return str(value).encode()
    if kind is date:
        number[0] = EXT_DATE
        return value.toordinal().to_bytes(4, "big")
    if kind is time and value.tzinfo is None:
        number[0] = EXT_TIME
        microseconds = ((<u64>value.hour * 60 + value.minute) * 60 + value.second) * 1000000 + value.microsecond
        return (microseconds | <u64>value.fold << 63).to_bytes(8, "big")
    if kind is timedelta:
        number[0] = EXT_TIMEDELTA
        return (value.days.to_bytes(4, "big", signed=True)
                + value.seconds.to_bytes(4, "big") + value.microseconds.to_bytes(4, "big"))
    return None


cdef object extension_value(u8 number, bytes body):
    if number == EXT_UUID:
        return UUID(bytes=body)
    if number == EXT_RUN_ID:
        return RunId(bytes=body)
    if number == EXT_DECIMAL:
        return Decimal(body.decode("ascii"))
    if number == EXT_DATE and len(body) == 4:
        return date.fromordinal(int.from_bytes(body, "big"))
    if number == EXT_TIME and len(body) == 8:
        bits = int.from_bytes(body, "big")
        seconds, microsecond = divmod(bits & 0x7FFFFFFFFFFFFFFF, 1000000)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes, 60)
        return time(hour, minute, second, microsecond, fold=bits >> 63)
    if number == EXT_TIMEDELTA and len(body) == 12:
        return timedelta(int.from_bytes(body[:4], "big", signed=True), int.from_bytes(body[4:8], "big"),
                         int.from_bytes(body[8:], "big"))
    raise ValueError
