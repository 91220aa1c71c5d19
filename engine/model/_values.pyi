"""Types of `Codec`; see _values.pyx."""

from typing import Any

from ._codec_hooks import CodecHooks

class Codec(CodecHooks):
    def encode(self, value: object, size_max: int = ...) -> bytes: ...
    def decode(self, data: bytes | bytearray | memoryview) -> Any: ...
