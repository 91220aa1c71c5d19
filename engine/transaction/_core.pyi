"""A transaction's private state; see _core.pyx. Nothing in it is called from Python."""

from typing import final

from ._view import PinnedView

@final
class Effect: ...

@final
class ScanRange: ...

@final
class TransactionCore(PinnedView): ...
