"""A transaction's private state; see _core.pyx. Nothing in it is called from Python."""

from typing import final

from ._view import PinnedView
from .guard import RunRule

@final
class RunGuard:
    def __init__(self, base: bytes, rule: RunRule) -> None: ...
    @property
    def rule(self) -> RunRule: ...

@final
class Effect: ...

@final
class ScanRange: ...

@final
class TransactionCore(PinnedView): ...
