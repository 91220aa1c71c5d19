"""A doorbell with a value to wait for, driven from Python."""

from typing import Any

class Bell:
    """One doorbell with a u64 that counts up, over a writable buffer; for tests and measurements."""

    def __init__(self, buffer: Any, offset: int = 0) -> None: ...
    def publish(self, value: int) -> None: ...
    def wait_for(self, value: int, timeout_ns: int, may_spin: bool) -> int: ...
    def play(
        self,
        other: Bell,
        first: int,
        rounds: int,
        leads: bool,
        timeout_ns: int,
        may_spin: bool,
        pause_max: int = 0,
    ) -> int: ...
    @property
    def sleeping(self) -> bool: ...
    @property
    def statistics(self) -> dict[str, int]: ...
