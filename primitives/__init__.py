"""The primitives for agents, and how a further one registers itself."""

from . import auditors as auditors  # attaches them to their primitives
from . import task_auditor as task_auditor  # likewise
from . import working_auditors as working_auditors  # likewise
from .auditing import Auditor, Fault, Repair
from .event_log import ChainVerification, Event, EventLog
from .extension import Primitive, answered, blind, operation, reader, register, single, stream
from .handles import Database, Snapshot, Transaction, open, open_in_memory
from .kv import KVStore, KVTransaction
from .kv_mapping import KVMapping
from .leases import Lease, LeaseHolder, Leases
from .run_index import RunIndex
from .run_types import ALLOWED_TRANSITIONS, RunMetadata, RunStatus
from .spans import Span
from .state_cell import State, StateCell
from .steps import Step, Steps
from .task_types import QueueStats, Task, TaskState
from .task_worker import AsyncWorker, Worker
from .tasks import Tasks
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
    "AsyncWorker",
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
    "Lease",
    "LeaseHolder",
    "Leases",
    "Primitive",
    "Query",
    "QueueStats",
    "Repair",
    "RunIndex",
    "RunMetadata",
    "RunStatus",
    "Snapshot",
    "Span",
    "State",
    "StateCell",
    "Step",
    "Steps",
    "Task",
    "TaskState",
    "Tasks",
    "Thought",
    "ToolCall",
    "Trace",
    "TraceId",
    "TraceStore",
    "TraceTree",
    "TraceType",
    "Transaction",
    "Worker",
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
