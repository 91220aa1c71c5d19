"""The placement of the calling thread, driven from Python."""

from typing import final

@final
class Mover:
    """The calling thread's placement, for tests."""

    def __init__(self) -> None: ...
    def woken_by(self, ringer: int, now: int, turn: bool = False) -> bool: ...
    @staticmethod
    def cpu() -> int: ...
