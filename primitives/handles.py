"""`Database` and `Transaction` with the primitives on them, for type checkers and editors.

The engine knows no primitive; each is attached to its classes when it is registered. So at run time these are the
engine's own classes and functions; `handles.pyi` says what hangs on what they give.
"""

from ..engine.database import Database
from ..engine.opening import open_database, open_in_memory
from ..engine.transaction import Transaction

__all__ = ["Database", "Transaction", "open_database", "open_in_memory"]
