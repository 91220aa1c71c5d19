"""Reading the store from any process, without locks. See `_reader.pyx` for the argument why this is sound."""

from ...ipc._atomics cimport i64, u8, u32, u64
from ._layout cimport KEY_SIZE_MAX, StoreHeader, key_hash    # key_hash(key, key_size, r.hash_seed)

cdef struct Reader:
    const u8 *base
    u64 size
    u64 hash_seed
    u64 limit                   # no block starts at or above this
    u32 first_node

cdef struct Found:              # pointers into the store: valid as long as the pin holds
    const u8 *key
    const u8 *value
    u32 key_size
    u32 value_size
    u64 version
    i64 timestamp
    i64 expires_at
    u64 session                 # that the key is bound to; 0: none

# 0 ok; 1: not a store of this layout (or `size` is not the size it was made with). Call once per mapping.
cdef int reader_open(Reader *r, const u8 *base, u64 size) noexcept nogil

# 1 found, 0 absent (never written, deleted, or not yet at `version`), -1 damaged. Expired records are found.
cdef int reader_get(const Reader *r, const u8 *key, u32 key_size, u64 hash, u64 version, Found *out) noexcept nogil

# One page of rows with start <= key < end (start < key when start_exclusive; end NULL: no upper bound),
# ascending, or descending when `reverse`. Returns the number of rows in `out` (0..count_max), -1 damaged.
# done = 1: the range is exhausted. done = 0: more may follow, even when 0 rows were returned (one call walks
# a bounded number of deleted keys). The last key walked is then in resume_key/resume_size (a buffer of
# KEY_SIZE_MAX + 1 bytes). Ask for the next page with it as `start` and start_exclusive = 1, or as `end` when
# reverse. start and end may lie in resume_key itself.
cdef int reader_scan(const Reader *r, const u8 *start, u32 start_size, bint start_exclusive, const u8 *end, u32 end_size,
                     bint reverse, u64 version, Found *out, u32 count_max, u8 *resume_key, u32 *resume_size,
                     bint *done) noexcept nogil
