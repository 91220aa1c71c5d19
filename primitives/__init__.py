"""The primitives for agents, and how a further one registers itself."""

from . import auditors as auditors  # attaches them to their primitives
from .auditing import Auditor, Fault, Repair
from .event_log import ChainVerification, Event, EventLog
from .extension import Primitive, answered, blind, operation, reader, register, single, stream
from .handles import Database, Snapshot, Transaction, open, open_in_memory
from .kv import KVStore, KVTransaction
from .kv_mapping import KVMapping
from .run_index import RunIndex
from .run_types import ALLOWED_TRANSITIONS, RunMetadata, RunStatus
from .spans import Span
from .state_cell import State, StateCell
from .trace_store import TraceStore
from .trace_types import (
    Custom,
    Decision,
    Error,
    Query,
    Thought,
    ToolCall,
    Trace,
    TraceId,
    TraceTree,
    TraceType,
)

__all__ = [
    "ALLOWED_TRANSITIONS",
    "Auditor",
    "ChainVerification",
    "Custom",
    "Database",
    "Decision",
    "Error",
    "Event",
    "EventLog",
    "Fault",
    "KVMapping",
    "KVStore",
    "KVTransaction",
    "Primitive",
    "Query",
    "Repair",
    "RunIndex",
    "RunMetadata",
    "RunStatus",
    "Snapshot",
    "Span",
    "State",
    "StateCell",
    "Thought",
    "ToolCall",
    "Trace",
    "TraceId",
    "TraceStore",
    "TraceTree",
    "TraceType",
    "Transaction",
    "answered",
    "blind",
    "open",
    "open_in_memory",
    "operation",
    "reader",
    "register",
    "single",
    "stream",
]
