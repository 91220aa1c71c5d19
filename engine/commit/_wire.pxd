"""The request and reply format of a commit, for compiled code (docs/wire-format.md).

`messages.py` is the same format in plain Python and the model it is tested against.

1. Little-endian machines only. The structs are packed, so a pointer to any byte position may be cast to one.
2. A reader of bytes that another process wrote first copies them to private memory, and checks every size
   against what is left before it follows it. Nothing here checks anything.
3. The structs have no padding: their sizes are the `*_SIZE` constants (asserted by the tests).
"""

from libc.string cimport memcpy

from ...ipc._atomics cimport i64, u8, u16, u32, u64

cdef enum:
    REQUEST_MAGIC = 0x5152434F      # "OCRQ" as bytes
    REPLY_MAGIC = 0x5052434F        # "OCRP" as bytes

    REQUEST_HEADER_SIZE = 64
    OP_HEADER_SIZE = 24
    REPLY_HEADER_SIZE = 64
    RESULT_SIZE = 24
    CONFLICT_HEADER_SIZE = 32
    CONFLICTS_LISTED_MAX = 16

    KIND_COMMIT = 1

    REQUEST_BLIND = 1               # no start version: effects get no first-committer check
    REQUEST_SYNC = 2                # answer only when on disk
    REQUEST_JUDGE_ONLY = 4          # answer with the conflicts, apply nothing
    REQUEST_PATIENT = 8             # it gets a turn only if it has waited for one that was kept

    # Checks come before effects in a request; `op_is_check` relies on these values.
    OP_READ = 1                     # argument: version read, 0 absent
    OP_RANGE = 2                    # key: start, value: end (exclusive), argument: rows seen
    OP_CAS = 3                      # argument: expected version, 0 absent
    OP_PUT = 4
    OP_DELETE = 5
    OP_ADD = 6                      # argument: i64 delta; value: nothing, or Bounds
    OP_DELETE_RANGE = 7             # key: start, value: end (exclusive)

    OP_UNCHECKED = 1                # effect of a CAS: no first-committer check
    OP_WANT_RESULT = 2
    OP_EPHEMERAL = 4                # a put whose key lives as long as the handle of this channel

    REPLY_TURN = 1                  # the request lost, and its transaction has a turn now

    STATUS_COMMITTED = 0
    STATUS_CONFLICT = 1
    STATUS_STORE_FULL = 2
    STATUS_LOG_WRITE_ERROR = 3      # detail: errno; nothing changed
    STATUS_NOT_AN_INTEGER = 4       # detail: op index
    STATUS_INTEGER_OVERFLOW = 5     # detail: op index
    STATUS_TOO_LARGE = 6
    STATUS_LOG_FAILED = 7           # an earlier sync failed: no commits until restart
    STATUS_BAD_REQUEST = 8
    STATUS_STOPPING = 9
    STATUS_BOUND_REACHED = 10       # detail: op index; one result: what the key holds

    RESULT_EXISTED = 1              # value 0 or 1
    RESULT_SIGNED = 2               # value is an i64
    RESULT_UNSIGNED = 3             # value is a u64

    BOUNDS_SIZE = 24
    BOUND_MOST = 1                  # there is an at_most
    BOUND_LEAST = 2
    BOUND_MOST_NEGATIVE = 4         # its bits are an i64 below zero, otherwise a u64
    BOUND_LEAST_NEGATIVE = 8

    CONFLICT_READ = 1
    CONFLICT_RANGE = 2              # key: start, end: end
    CONFLICT_WRITE = 3
    CONFLICT_CAS = 4


cdef packed struct RequestHeader:
    u32 magic
    u16 kind
    u16 flags
    u64 sequence
    u64 start_version
    i64 read_time
    u32 op_count
    u32 body_size                   # bytes after this header
    u8 run_id[16]
    u64 turn                        # "if it loses, grant a turn": names the transaction over its attempts; 0: no


cdef packed struct OpHeader:        # then key_size key bytes, then value_size value bytes
    u8 code
    u8 flags
    u16 key_size
    u32 value_size
    u64 argument
    i64 expires_at


cdef packed struct Bounds:          # of the sum of an add
    u8 flags                        # BOUND_*
    u8 reserved[7]
    u64 at_most
    u64 at_least


cdef packed struct ReplyHeader:     # then results, then conflicts
    u32 magic
    u16 status
    u16 flags
    u64 sequence
    u64 commit_version
    i64 committed_at
    u32 result_count
    u32 conflict_count              # listed here, at most CONFLICTS_LISTED_MAX
    u32 detail
    u32 body_size                   # bytes after this header
    u64 conflicts_found             # all of them, listed or not
    u64 reserved2


cdef packed struct ResultEntry:
    u32 op_index
    u32 kind
    u64 value
    u64 reserved


cdef packed struct ConflictHeader:  # then key_size key bytes, then end_size end bytes
    u8 kind
    u8 reserved[3]
    u32 key_size
    u32 end_size
    u32 reserved2
    u64 expected
    u64 found


# Unaligned little-endian access. memcpy of a known size compiles to one move.

cdef inline u16 load_u16(const u8 *p) noexcept nogil:
    cdef u16 value
    memcpy(&value, p, 2)
    return value


cdef inline u32 load_u32(const u8 *p) noexcept nogil:
    cdef u32 value
    memcpy(&value, p, 4)
    return value


cdef inline u64 load_u64(const u8 *p) noexcept nogil:
    cdef u64 value
    memcpy(&value, p, 8)
    return value


cdef inline i64 load_i64(const u8 *p) noexcept nogil:
    cdef i64 value
    memcpy(&value, p, 8)
    return value


cdef inline void store_u16(u8 *p, u16 value) noexcept nogil:
    memcpy(p, &value, 2)


cdef inline void store_u32(u8 *p, u32 value) noexcept nogil:
    memcpy(p, &value, 4)


cdef inline void store_u64(u8 *p, u64 value) noexcept nogil:
    memcpy(p, &value, 8)


cdef inline void store_i64(u8 *p, i64 value) noexcept nogil:
    memcpy(p, &value, 8)


cdef inline bint op_is_check(u8 code) noexcept nogil:
    return OP_READ <= code <= OP_CAS


cdef inline bint op_is_effect(u8 code) noexcept nogil:
    return OP_PUT <= code <= OP_DELETE_RANGE


cdef inline u8 *put_op(u8 *p, u8 code, u8 flags, const u8 *key, u16 key_size, const u8 *value, u32 value_size,
                       u64 argument, i64 expires_at) noexcept nogil:
    """Write one op at `p` and return the position after it. REQUIRES: room for header, key and value."""
    cdef OpHeader *op = <OpHeader *>p
    op.code = code
    op.flags = flags
    op.key_size = key_size
    op.value_size = value_size
    op.argument = argument
    op.expires_at = expires_at
    p += OP_HEADER_SIZE
    if key_size:
        memcpy(p, key, key_size)
        p += key_size
    if value_size:
        memcpy(p, value, value_size)
        p += value_size
    return p
