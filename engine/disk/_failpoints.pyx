"""Named places at which a test can make a process die, stop, sleep, or see a system call fail.

One table a process, shared by compiled and Python code. `failpoints.py` parses specifications and sets it;
`failpoint_armed()` guards every use, so an unused failpoint costs one load and one branch.

Invariants:
1. A row's `action` is written last when it is set and first when it is cleared (release), so a thread that
   sees the action sees its argument and window.
2. `hits` only grows while the row is set; hit number n acts when first <= n < first + times.
"""

from libc.signal cimport SIGKILL, SIGSTOP
from libc.stdint cimport INT64_MAX

from ...ipc._atomics cimport (
    fetch_add_u32, i64, load_acquire_u32, load_relaxed_u32, store_relaxed_u32, store_release_u32, u32,
)

cdef extern from "<signal.h>" nogil:
    int kill(int pid, int signal)

cdef extern from "<unistd.h>" nogil:
    int getpid()
    int usleep(unsigned int microseconds)

NAMES = (
    "wal.before_write", "wal.after_write", "wal.before_sync", "wal.after_sync",
    "wal.rotate", "wal.rotate_rename", "wal.after_rotate",
    "commit.before_validate", "commit.after_validate", "commit.after_apply", "commit.before_publish",
    "commit.after_publish", "commit.before_reply", "commit.after_reply",
    "checkpoint.begin", "checkpoint.block", "checkpoint.before_rename", "checkpoint.after_rename",
    "checkpoint.before_remove", "checkpoint.after_remove",
    "recovery.begin", "recovery.after_checkpoint", "recovery.after_replay", "recovery.after_cut",
    "recovery.after_segment",
    "meta.before_rename", "meta.after_rename", "create.before_meta",
    "worker.before_submit", "worker.after_submit", "worker.mid_submit", "worker.after_pin",
    "worker.before_result",
    "coordinator.before_ready", "coordinator.attach", "coordinator.stopping",
    "shm.create", "shm.grow",
    "file.any", "file.open", "file.read", "file.write", "file.sync", "file.directory_sync", "file.truncate",
    "file.allocate", "file.rename", "file.unlink", "file.mkdir",
    "clock.read", "range.convert", "range.check",
    "worker.before_sleep", "commit.turn_clock",
)
assert len(NAMES) == FAILPOINT_COUNT

cdef struct Row:
    u32 action
    u32 hits
    i64 argument
    i64 first
    i64 times

cdef Row rows[FAILPOINT_COUNT]


cdef int failpoint_take(int which, i64 *argument) noexcept nogil:
    cdef Row *row = &rows[which]
    # Acquire: the argument and window were written before the action.
    cdef u32 action = load_acquire_u32(&row.action)
    cdef i64 hit
    argument[0] = 0
    if action == ACTION_NONE:
        return ACTION_NONE
    hit = <i64>fetch_add_u32(&row.hits, 1) + 1
    if hit < row.first or hit - row.first >= row.times:
        return ACTION_NONE
    argument[0] = row.argument
    return action


cdef int failpoint_perform(int action, i64 argument) noexcept nogil:
    if action == ACTION_KILL:
        kill(getpid(), SIGKILL)
    elif action == ACTION_STOP:
        kill(getpid(), SIGSTOP)
    elif action == ACTION_SLEEP:
        while argument > 0:
            usleep(<unsigned int>(1000 * (argument if argument < 500 else 500)))
            argument -= 500
    elif action == ACTION_ERRNO:
        return <int>argument
    return 0


cdef int failpoint_hit(int which) noexcept nogil:
    cdef i64 argument
    cdef int action = failpoint_take(which, &argument)
    return failpoint_perform(action, argument)


cdef i64 failpoint_hit_shift(int which) noexcept nogil:
    cdef i64 argument
    cdef int action = failpoint_take(which, &argument)
    if action == ACTION_SHIFT:
        return argument * 1000000
    failpoint_perform(action, argument)
    return 0


def set_row(int which, u32 action, i64 argument, i64 first, i64 times):
    """Arm one failpoint (action 0 disarms it) and start counting its hits anew."""
    global failpoints_armed
    cdef u32 armed = 0
    cdef int i
    if not 0 <= which < FAILPOINT_COUNT:
        raise IndexError(which)
    # Release: off before its arguments change.
    store_release_u32(&rows[which].action, ACTION_NONE)
    rows[which].argument = argument
    rows[which].first = first
    rows[which].times = times if times > 0 else INT64_MAX
    store_relaxed_u32(&rows[which].hits, 0)
    # Release: on only after its arguments are in place.
    store_release_u32(&rows[which].action, action)
    for i in range(FAILPOINT_COUNT):
        armed += load_relaxed_u32(&rows[i].action) != ACTION_NONE
    store_relaxed_u32(&failpoints_armed, armed)


def hits(int which) -> int:
    """Times an armed failpoint was passed since it was set."""
    if not 0 <= which < FAILPOINT_COUNT:
        raise IndexError(which)
    return load_relaxed_u32(&rows[which].hits)


def hit_row(int which) -> int:
    """Python code passing a failpoint: perform what is due, without the GIL. Returns an errno or 0."""
    cdef int error
    if not 0 <= which < FAILPOINT_COUNT:
        raise IndexError(which)
    if not failpoint_armed():
        return 0
    with nogil:
        error = failpoint_hit(which)
    return error


def armed():
    """Whether any failpoint has an action; the check that guards every `hit` in Python code."""
    return failpoint_armed()
