"""The interface of the failpoints for compiled code. See `_failpoints.pyx`.

At a failpoint write

    if failpoint_armed():
        error = failpoint_hit(FP_WAL_BEFORE_SYNC)   # the errno with which the next system call fails, or 0

`failpoint_armed` is one relaxed load of one word, and a branch that is taken only when a test has armed a
failpoint.
"""

from ...ipc._atomics cimport i64, load_relaxed_u32, u32

cdef enum Failpoint:
    FP_WAL_BEFORE_WRITE = 0
    FP_WAL_AFTER_WRITE = 1
    FP_WAL_BEFORE_SYNC = 2
    FP_WAL_AFTER_SYNC = 3
    FP_WAL_ROTATE = 4             # the old segment is complete and synced, the new one does not exist
    FP_WAL_ROTATE_RENAME = 5      # the new segment is written under its temporary name
    FP_WAL_AFTER_ROTATE = 6
    FP_COMMIT_BEFORE_VALIDATE = 7
    FP_COMMIT_AFTER_VALIDATE = 8
    FP_COMMIT_AFTER_APPLY = 9
    FP_COMMIT_BEFORE_PUBLISH = 10
    FP_COMMIT_AFTER_PUBLISH = 11
    FP_COMMIT_BEFORE_REPLY = 12
    FP_COMMIT_AFTER_REPLY = 13
    FP_CHECKPOINT_BEGIN = 14
    FP_CHECKPOINT_BLOCK = 15
    FP_CHECKPOINT_BEFORE_RENAME = 16
    FP_CHECKPOINT_AFTER_RENAME = 17
    FP_CHECKPOINT_BEFORE_REMOVE = 18   # hit before each old file is removed
    FP_CHECKPOINT_AFTER_REMOVE = 19
    FP_RECOVERY_BEGIN = 20
    FP_RECOVERY_AFTER_CHECKPOINT = 21
    FP_RECOVERY_AFTER_REPLAY = 22
    FP_RECOVERY_AFTER_CUT = 23
    FP_RECOVERY_AFTER_SEGMENT = 24
    FP_META_BEFORE_RENAME = 25
    FP_META_AFTER_RENAME = 26
    FP_CREATE_BEFORE_META = 27
    FP_WORKER_BEFORE_SUBMIT = 28
    FP_WORKER_AFTER_SUBMIT = 29
    FP_WORKER_MID_SUBMIT = 30
    FP_WORKER_AFTER_PIN = 31
    FP_WORKER_BEFORE_RESULT = 32
    FP_COORDINATOR_BEFORE_READY = 33
    FP_COORDINATOR_ATTACH = 34
    FP_COORDINATOR_STOPPING = 35
    FP_SHM_CREATE = 36
    FP_SHM_GROW = 37
    # One per kind of system call on files, hit by `_files`; `FP_FILE_ANY` is hit by every one of them.
    FP_FILE_ANY = 38
    FP_FILE_OPEN = 39
    FP_FILE_READ = 40
    FP_FILE_WRITE = 41
    FP_FILE_SYNC = 42             # fsync and fdatasync of a file
    FP_FILE_DIRECTORY_SYNC = 43
    FP_FILE_TRUNCATE = 44
    FP_FILE_ALLOCATE = 45
    FP_FILE_RENAME = 46
    FP_FILE_UNLINK = 47
    FP_FILE_MKDIR = 48
    FP_CLOCK_READ = 49            # the commit thread reads the wall clock
    FP_COMMIT_RANGE_SLICE = 50    # before a piece of a range tombstone is converted; errno: the store is full
    FP_COMMIT_WALK_SLICE = 51     # before a piece of a request's range checks; errno: no progress this time
    FP_WORKER_BEFORE_SLEEP = 52   # a waiting worker has found nothing, and is about to sleep until something changes
    FP_COMMIT_TURN_CLOCK = 53     # the commit thread compares the time with the ends of turns
    FAILPOINT_COUNT = 54

cdef enum FailpointAction:
    ACTION_NONE = 0
    ACTION_KILL = 1
    ACTION_STOP = 2
    ACTION_SLEEP = 3
    ACTION_ERRNO = 4
    ACTION_SHORT = 5              # a write transfers at most `argument` bytes
    ACTION_SHIFT = 7              # a clock is that many ms ahead (or behind)
    ACTION_TORN = 6               # a write transfers `argument` bytes, then the process dies by SIGKILL

cdef u32 failpoints_armed         # points with an action; 0 outside of tests

cdef inline bint failpoint_armed() noexcept nogil:
    # Relaxed: a point set while code runs past it may be missed once, which no test may depend on.
    return load_relaxed_u32(&failpoints_armed) != 0

# Counts a hit and performs the action. Returns the errno to fail with, or 0 to go on.
cdef int failpoint_hit(int which) noexcept nogil
# Counts a hit; returns the FailpointAction that is due, with its argument, without performing it.
cdef int failpoint_take(int which, i64 *argument) noexcept nogil
# Counts a hit; returns the ns by which a clock reading is to be shifted.
cdef i64 failpoint_hit_shift(int which) noexcept nogil
cdef int failpoint_perform(int action, i64 argument) noexcept nogil
