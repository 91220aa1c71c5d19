"""What a request read and wrote, kept while it has a turn; see _footprint.pyx."""

from ...ipc._atomics cimport u8, u32, u64
from ._turn_table cimport Footprint

# Fills in a footprint from a well-formed request. False: it needs more than `size_max` bytes of private memory, or there
# are none. REQUIRES: zeroed.
cdef bint footprint_take(Footprint *footprint, const u8 *request, u64 hash_seed, u64 size_max) noexcept nogil

cdef void footprint_free(Footprint *footprint) noexcept nogil

# Whether committing these operations may invalidate a transaction with this footprint.
cdef bint ops_break(const u8 *ops, u32 op_count, const Footprint *footprint, u64 hash_seed) noexcept nogil

# The same for a whole request.
cdef bint request_breaks(const u8 *request, const Footprint *footprint, u64 hash_seed) noexcept nogil
