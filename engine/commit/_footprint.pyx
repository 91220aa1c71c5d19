"""What a request read and wrote, and whether another request would invalidate it.

The answer may err on the side of yes, never on the side of no:

- keys are compared by their 64-bit hashes;
- a range that somebody else deletes counts if it meets the footprint anywhere between its first and its last key;
- with more than TURN_SPANS_MAX ranges, a key counts if it lies between the first and the last key.

An increment reads nothing: only the deletion of a range around its key is a conflict for it (rule 5 of _validate.pyx).
"""

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ..store._layout cimport key_compare, key_hash
from ._turn_table cimport TURN_SPANS_MAX
from ._wire cimport (
    OP_ADD, OP_DELETE_RANGE, OP_HEADER_SIZE, OP_RANGE, REQUEST_HEADER_SIZE, OpHeader, RequestHeader, op_is_effect,
)


cdef inline const u8 *_key(const OpHeader *op) noexcept nogil:
    return <const u8 *>op + OP_HEADER_SIZE


cdef inline bint _is_span(const OpHeader *op) noexcept nogil:
    return op.code == OP_RANGE or op.code == OP_DELETE_RANGE


cdef inline u64 _body_size(const OpHeader *op) noexcept nogil:
    """Bytes of an operation without its value; the end of a range is part of the range."""
    return OP_HEADER_SIZE + <u64>op.key_size + (op.value_size if _is_span(op) else 0)


cdef u64 _ops_size(const u8 *request) noexcept nogil:
    """Bytes of the operations without their values."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 offset = REQUEST_HEADER_SIZE, size = 0
    cdef u32 index
    for index in range(header.op_count):
        op = <const OpHeader *>(request + offset)
        offset += OP_HEADER_SIZE + <u64>op.key_size + op.value_size
        size += _body_size(op)
    return size


cdef void _copy_ops(u8 *at, const u8 *request) noexcept nogil:
    """Copy the operations without their values."""
    cdef const RequestHeader *header = <const RequestHeader *>request
    cdef const OpHeader *op
    cdef u64 offset = REQUEST_HEADER_SIZE
    cdef u32 index
    for index in range(header.op_count):
        op = <const OpHeader *>(request + offset)
        offset += OP_HEADER_SIZE + <u64>op.key_size + op.value_size
        memcpy(at, op, _body_size(op))
        if not _is_span(op):
            (<OpHeader *>at).value_size = 0
        at += _body_size(op)


cdef void _add_hash(Footprint *footprint, u64 hash) noexcept nogil:
    cdef u64 at = hash & footprint.mask
    hash = hash if hash else 1
    while footprint.hashes[at] != 0 and footprint.hashes[at] != hash:
        at = (at + 1) & footprint.mask
    footprint.hashes[at] = hash


cdef inline bint _has_hash(const Footprint *footprint, u64 hash) noexcept nogil:
    cdef u64 at = hash & footprint.mask
    hash = hash if hash else 1
    while footprint.hashes[at] != 0:
        if footprint.hashes[at] == hash:
            return True
        at = (at + 1) & footprint.mask
    return False


cdef void _stretch(Footprint *footprint, const u8 *key, u32 size, bint included) noexcept nogil:
    """Let the footprint reach to a key (included) or to the end of a range."""
    cdef int order
    if included and (footprint.low == NULL or key_compare(key, size, footprint.low, footprint.low_size) < 0):
        footprint.low = key
        footprint.low_size = size
    order = 1 if footprint.high == NULL else key_compare(key, size, footprint.high, footprint.high_size)
    if order > 0 or (order == 0 and included):
        footprint.high = key
        footprint.high_size = size
        footprint.high_included = included


cdef bint footprint_take(Footprint *footprint, const u8 *request, u64 hash_seed, u64 size_max) noexcept nogil:
    cdef const OpHeader *op
    cdef u64 offset = 0, buckets = 8, size = _ops_size(request)
    cdef u32 index
    memset(footprint, 0, sizeof(Footprint))
    footprint.op_count = (<const RequestHeader *>request).op_count
    while buckets < 2 * <u64>footprint.op_count:
        buckets *= 2
    footprint.mask = buckets - 1
    footprint.size = size + buckets * sizeof(u64)
    # An offset in `ops` has 32 bits.
    if footprint.size > size_max or size > <u32>-1:
        return False
    footprint.ops = <u8 *>malloc(size + 1)
    footprint.hashes = <u64 *>calloc(buckets, sizeof(u64))
    if footprint.ops == NULL or footprint.hashes == NULL:
        footprint_free(footprint)
        return False
    _copy_ops(footprint.ops, request)
    for index in range(footprint.op_count):
        op = <const OpHeader *>(footprint.ops + offset)
        if _is_span(op):
            if footprint.span_count < TURN_SPANS_MAX:
                footprint.spans[footprint.span_count] = <u32>offset
            footprint.span_count += 1
            _stretch(footprint, _key(op), op.key_size, True)
            _stretch(footprint, _key(op) + op.key_size, op.value_size, False)
        else:
            if op.code != OP_ADD:
                _add_hash(footprint, key_hash(_key(op), op.key_size, hash_seed))
            _stretch(footprint, _key(op), op.key_size, True)
        offset += _body_size(op)
    return True


cdef void footprint_free(Footprint *footprint) noexcept nogil:
    free(footprint.ops)
    free(footprint.hashes)
    memset(footprint, 0, sizeof(Footprint))


cdef inline bint _in_hull(const Footprint *footprint, const u8 *key, u32 size) noexcept nogil:
    return (footprint.low != NULL and key_compare(key, size, footprint.low, footprint.low_size) >= 0
            and key_compare(key, size, footprint.high, footprint.high_size) < (1 if footprint.high_included else 0))


cdef bint _in_spans(const Footprint *footprint, const u8 *key, u32 size) noexcept nogil:
    cdef const OpHeader *span
    cdef u32 index
    if footprint.span_count > TURN_SPANS_MAX:
        return _in_hull(footprint, key, size)
    for index in range(footprint.span_count):
        span = <const OpHeader *>(footprint.ops + footprint.spans[index])
        if (key_compare(key, size, _key(span), span.key_size) >= 0
                and key_compare(key, size, _key(span) + span.key_size, span.value_size) < 0):
            return True
    return False


cdef bint _meets_hull(const Footprint *footprint, const OpHeader *span) noexcept nogil:
    """Whether a deleted range meets the footprint somewhere between its first and its last key."""
    if footprint.low == NULL or key_compare(_key(span), span.key_size, _key(span) + span.key_size, span.value_size) >= 0:
        return False
    return (key_compare(_key(span), span.key_size, footprint.high, footprint.high_size)
            < (1 if footprint.high_included else 0)
            and key_compare(footprint.low, footprint.low_size, _key(span) + span.key_size, span.value_size) < 0)


cdef bint ops_break(const u8 *ops, u32 op_count, const Footprint *footprint, u64 hash_seed) noexcept nogil:
    cdef const OpHeader *op
    cdef u64 offset = 0
    cdef u32 index
    for index in range(op_count):
        op = <const OpHeader *>(ops + offset)
        offset += OP_HEADER_SIZE + <u64>op.key_size + op.value_size
        if not op_is_effect(op.code):
            continue
        if op.code == OP_DELETE_RANGE:
            if _meets_hull(footprint, op):
                return True
        elif (_has_hash(footprint, key_hash(_key(op), op.key_size, hash_seed))
                or footprint.span_count and _in_spans(footprint, _key(op), op.key_size)):
            return True
    return False


cdef bint request_breaks(const u8 *request, const Footprint *footprint, u64 hash_seed) noexcept nogil:
    return ops_break(request + REQUEST_HEADER_SIZE, (<const RequestHeader *>request).op_count, footprint, hash_seed)
