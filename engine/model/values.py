"""Which values can be stored, and how: as msgpack.

None, bool, int (-2**63 .. 2**64 - 1), float (NaN and infinities too), str, bytes, list, dict with str keys,
datetime, date, time, timedelta, Decimal, UUID and RunId: exactly these types. Subclasses (IntEnum, namedtuple,
OrderedDict, numpy scalars, ...) and tuples, sets and bytearrays are refused, since they would come back as
something else. The user's own types are stored through a `Codec`, which turns them into a name and a storable
value.

1. A read returns a fresh object that is equal to the value that was put and consists of the same types.
2. A datetime is an instant: it must be aware, is stored as the msgpack timestamp extension, and comes back
   aware in UTC, exact to the microsecond. A naive one is refused, because it does not say which instant it
   means. A time must be naive, because an offset without a date is not defined for most zones.
3. Lists and dicts nest up to DEPTH_MAX levels. A container that contains itself is refused.
4. An error names the path to the first thing that cannot be stored, such as `value["a"][3]`.

`_value_writer.pyx` and `_value_reader.pyx` do the work; `value_refusal.py` explains a refusal.
"""

from __future__ import annotations

from typing import Any

from ._records import VersionedValue
from ._values import Codec
from .limits import Limits
from .unrestored import Unrestored
from .value_refusal import DEPTH_MAX, explain, too_large

__all__ = [
    "DEPTH_MAX",
    "Codec",
    "Unrestored",
    "VersionedValue",
    "decode_value",
    "encode_value",
    "explain",
    "too_large",
]

_VALUE_SIZE_MAX = Limits().value_size_max
_PLAIN = Codec()


def encode_value(value: object, size_max: int = _VALUE_SIZE_MAX) -> bytes:
    """The msgpack bytes of a value.

    Raises:
      ValueEncodingError: something in it cannot be stored; names the path to it.
      ValueTooLarge: it takes more than `size_max` bytes.
    """
    return _PLAIN.encode(value, size_max)


def decode_value(data: bytes | bytearray | memoryview) -> Any:
    """A fresh object from the bytes `encode_value` made.

    Raises:
      CorruptionError: the bytes are not exactly one storable value.
    """
    return _PLAIN.decode(data)
