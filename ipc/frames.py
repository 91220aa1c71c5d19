"""Frames of the control channel: `u32` size, then a msgpack map of that size.

Used by both ends of `control`; knows no sockets.

Invariants:
  1. The size is judged before anything is kept for it, and memory grows only with bytes that arrived.
  2. What comes out of the parser is a dict with str keys; anything else is an error that ends the connection.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from .errors import ControlProtocolError

FRAME_SIZE_MAX: Final = 16 * 1024 * 1024
_PREFIX: Final = struct.Struct("<I")


def pack_frame(message: dict[str, Any]) -> bytes:
    """Encode one message.

    Text that is not UTF-8 (the name of a file, for example) arrives with its bytes spelled out: `\\udcff`.

    Raises:
      ControlProtocolError: it is larger than a frame may be.
      TypeError: it holds something msgpack cannot carry.
    """
    body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="backslashreplace")
    if len(body) > FRAME_SIZE_MAX:
        raise ControlProtocolError(
            f"a control message of {len(body)} bytes is over the limit of {FRAME_SIZE_MAX}"
        )
    return _PREFIX.pack(len(body)) + body


class FrameParser:
    """Cuts a byte stream into messages. Once it has raised, the stream is lost: close the connection."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Add received bytes; return the messages now complete, in order.

        Raises:
          ControlProtocolError: a frame is too large, or is not a msgpack map with string keys.
        """
        self._bytes += data
        messages = []
        position = 0
        while len(self._bytes) - position >= _PREFIX.size:
            (size,) = _PREFIX.unpack_from(self._bytes, position)
            if size > FRAME_SIZE_MAX:
                raise ControlProtocolError(
                    f"a control frame claims {size} bytes, the limit is {FRAME_SIZE_MAX}"
                )
            start = position + _PREFIX.size
            if len(self._bytes) - start < size:
                break
            messages.append(_unpack(bytes(self._bytes[start : start + size])))
            position = start + size
        del self._bytes[:position]
        return messages


def _unpack(body: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, raw=False)
    # msgpack has no common base for what malformed input raises.
    except Exception as error:
        raise ControlProtocolError(f"a control frame of {len(body)} bytes is not msgpack: {error}") from error
    if not isinstance(message, dict) or not all(isinstance(name, str) for name in message):
        raise ControlProtocolError(
            f"a control frame holds a {type(message).__name__}, not a dict with str keys"
        )
    return message
