"""Types of the base of `Codec`; see _codec_hooks.pyx."""

from collections.abc import Callable
from typing import Any

class CodecHooks:
    def __init__(
        self,
        default: Callable[[Any], tuple[str, Any] | None] | None = None,
        restore: Callable[[str, Any], Any] | None = None,
    ) -> None: ...
    @property
    def default(self) -> Callable[[Any], tuple[str, Any] | None] | None: ...
    @property
    def restore(self) -> Callable[[str, Any], Any] | None: ...
