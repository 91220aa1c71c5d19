"""`Space`: one tag of one run inside a transaction, with the calls that everything else is made of.

This is the hot path: arguments are checked here, keys are put together, everything else is `_core` (state)
and `_scan` (walks).

1. Any number of spaces share one `TransactionCore`.
2. What a call returns is a fresh object; nothing returned refers to the store.
3. A read that needs no tracking and can meet no own write makes no bytes object: its key is put together on
   the stack.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_Check
from libc.string cimport memcpy

from ..model._records cimport make_versioned
from ..model._values cimport Codec
from ..store._reader cimport Found
from ._core cimport (
    SEEN_ABSENT, SEEN_DELTA, SEEN_OWN, SEEN_STORED, STACK_KEY_SIZE, STATE_ABORTED, TAG_KV, Effect, expiry_of, join_key,
)
from ._view cimport StoreAttachment
from ._scan cimport ROWS_ITEMS, ROWS_KEYS, count_rows, new_scan

from ..model.bounds import encode_bounds
from ..model.errors import InvalidArgumentError, InvalidKeyError
from ..model.keys import RunId, encode_user_key, successor
from ..model.key_types import tag_name, tag_of

cdef Codec PLAIN = Codec()
cdef TransactionCore NEVER_BEGUN = TransactionCore.__new__(TransactionCore)
NEVER_BEGUN.state = STATE_ABORTED


cdef inline const u8 *key_bytes(object key, u64 size_max, Py_ssize_t *size) except? NULL:
    """The bytes of a user key, borrowed from `key`; NULL for text with escaped bytes, which has to be encoded
    first.

    Raises InvalidKeyError or KeyTooLarge.
    """
    cdef const u8 *data = NULL
    if PyUnicode_Check(key):
        try:
            data = <const u8 *>PyUnicode_AsUTF8AndSize(key, size)
        except UnicodeEncodeError:
            encode_user_key(key, size_max)
            return NULL
    elif PyBytes_Check(key):
        data = <const u8 *>PyBytes_AS_STRING(key)
        size[0] = PyBytes_GET_SIZE(key)
    if data == NULL or size[0] == 0 or <u64>size[0] > size_max:
        encode_user_key(key, size_max)
        raise InvalidKeyError(f"{key!r} cannot be a key")
    return data


cdef bytes bound_bytes(object bound, str name, u64 size_max):
    """One end of a scan: a user key, or empty."""
    if isinstance(bound, (str, bytes)):
        return encode_user_key(bound, size_max) if bound else b""
    raise InvalidKeyError(f"{name} must be str or bytes, got {type(bound).__name__}", hint="leave it out for no bound")


cdef u64 version_argument(object version) except? 0xFFFFFFFFFFFFFFFF:
    if type(version) is not int or not 0 <= version < 2**64 - 1:
        raise InvalidArgumentError(
            f"expected_version must be a whole number from 0, got {version!r}", hint="0 means that the key must be absent"
        )
    return version


cdef i64 delta_argument(object delta) except? -1:
    if type(delta) is not int or not -(2**63) <= delta < 2**63:
        raise InvalidArgumentError(
            f"an increment is a whole number of 64 bits, got {delta!r}", hint="-2**63 to 2**63 - 1"
        )
    return delta


cdef bytes bounds_argument(object at_most, object at_least):
    if at_most is None and at_least is None:
        return None
    return encode_bounds(at_most, at_least)


cdef bytes with_tag(bytes kv_prefix, object tag):
    """The prefix of another tag in the same run."""
    if isinstance(tag, bool) or not isinstance(tag, int) or not 1 <= tag <= 0xFE:
        raise InvalidArgumentError(f"a tag is a number from 0x01 to 0xFE, got {tag!r}", hint="see TypeTag")
    if tag == TAG_KV:
        return kv_prefix
    return kv_prefix[:len(kv_prefix) - 1] + bytes((tag,))


cdef object walk(Space space, object prefix, object start, object end, object limit, bint reverse, int rows, bint raw,
                 bint track):
    """What `scan` and `keys` return."""
    cdef TransactionCore core = space.core
    cdef bint tracking = core.tracking
    low, high = space.bounds(prefix, start, end)
    core.tracking = tracking and track      # the range enters the read set here, and grows while it is walked
    try:
        return new_scan(core, low, high, <u32>PyBytes_GET_SIZE(space.prefix), limit, reverse, rows, space.raw or raw)
    finally:
        core.tracking = tracking


cdef Space make_space(TransactionCore core, bytes prefix, bint raw):
    cdef Space space = Space.__new__(Space)
    space.core = core
    space.prefix = prefix
    space.raw = raw
    return space


@cython.no_gc
@cython.freelist(16)
@cython.auto_pickle(False)
cdef class Space:
    """One tag of one run inside a transaction. Every primitive is built on one.

    Its keys are the part of a stored key behind namespace, run and tag. Scans return them as str, with
    `surrogateescape` for bytes that are not UTF-8; with `raw=True`, and from a raw space, they return bytes.
    """

    def __cinit__(self):
        self.core = NEVER_BEGUN     # a Space that was made by hand then refuses calls instead of crashing

    def __init__(self):
        raise TypeError(f"{type(self).__name__} is not made directly: use db.begin(run_id)")

    cdef bytes full_key(self, object key):
        cdef Py_ssize_t size = 0
        cdef const u8 *data = key_bytes(key, self.core.key_size_max, &size)
        if data == NULL:
            return self.prefix + encode_user_key(key, self.core.key_size_max)
        return join_key(self.prefix, data, size)

    cdef tuple bounds(self, object prefix, object start, object end):
        """[low, high) of stored keys that have the prefix and lie in [start, end)."""
        cdef bytes low = self.prefix, high, bound
        cdef u64 size_max = self.core.key_size_max
        self.core.require_active()
        if prefix is not None:
            low = low + bound_bytes(prefix, "prefix", size_max)
        high = successor(low)
        if start is not None:
            bound = self.prefix + bound_bytes(start, "start", size_max)
            low = bound if bound > low else low
        if end is not None:
            bound = self.prefix + bound_bytes(end, "end", size_max)
            high = bound if bound < high else high
        return low, high

    def get(self, key, default=None, *, bint track=True):
        """The value of a key as the transaction sees it: a fresh object; `default` when absent.

        Args:
          key: str or bytes.
          default: returned when there is no such key.
          track: False leaves this read out of the read set: the commit will not check it.
        """
        cdef TransactionCore core = self.core
        cdef Py_ssize_t size = 0, prefix_size
        cdef const u8 *data
        cdef u8 stack[STACK_KEY_SIZE]
        cdef bytes full
        cdef Found found
        cdef PyObject *own = NULL
        cdef int seen
        core.require_active()
        data = key_bytes(key, core.key_size_max, &size)
        if data == NULL:
            key = encode_user_key(key, core.key_size_max)
            data = key_bytes(key, core.key_size_max, &size)
        prefix_size = PyBytes_GET_SIZE(self.prefix)
        if core.effects is None and core.cleared is None and not (track and core.tracking) and (
                prefix_size + size <= STACK_KEY_SIZE):
            memcpy(stack, PyBytes_AS_STRING(self.prefix), prefix_size)
            memcpy(stack + prefix_size, data, size)
            if core.find(stack, <u32>(prefix_size + size), &found):
                return core.value_of(&found)
            return default
        full = join_key(self.prefix, data, size)
        seen = core.look(full, track, &found, &own)
        if seen == SEEN_STORED:
            return core.value_of(&found)
        if seen == SEEN_ABSENT:
            return default
        return core.own_value(full, <Effect>own, NULL if seen == SEEN_OWN or seen == SEEN_DELTA else &found)

    @property
    def is_far(self):
        """Whether a read may be a round trip to a server: then it pays to `fetch` many keys at once."""
        return self.core.attachment is not None and type(self.core.attachment) is not StoreAttachment

    def fetch(self, keys):
        """Have these keys at hand for the reads that follow. On the store of this machine nothing is done.

        They enter the read set only when they are read.
        """
        cdef TransactionCore core = self.core
        core.require_active()
        if self.is_far:
            core.attachment.fetch(core, [self.full_key(key) for key in keys])

    def get_checked(self, key, default=None):
        """Like `get`, but the commit checks this read whatever the isolation.

        For what an invariant rests on under "snapshot" too, such as the parent that a new record names.
        """
        cdef bint tracking = self.core.tracking
        self.core.tracking = not self.core.read_only
        try:
            return self.get(key, default)
        finally:
            self.core.tracking = tracking

    def keys_checked(self, prefix=""):
        """Like `keys(prefix)`, but the commit checks what was walked whatever the isolation."""
        cdef bint tracking = self.core.tracking
        self.core.tracking = not self.core.read_only
        try:
            return self.keys(prefix)        # the range enters the read set here, and grows while it is walked
        finally:
            self.core.tracking = tracking

    def get_versioned(self, key, *, bint track=True):
        """The value with version and times, None when absent.

        The version of an own write, not committed yet, is that of the committed value it replaces (0: none):
        the one that a cas in this transaction has to expect.
        """
        cdef Found found
        cdef PyObject *own = NULL
        cdef bytes full
        cdef int seen
        self.core.require_active()
        full = self.full_key(key)
        seen = self.core.look(full, track, &found, &own)
        if seen == SEEN_ABSENT:
            return None
        if seen == SEEN_STORED:
            value = self.core.value_of(&found)
            return make_versioned(value, found.version, found.timestamp, found.expires_at, found.session)
        # The base of an own put needs no tracking: the put itself is checked against it.
        if seen == SEEN_OWN and self.core.live_base(full, &found):
            return self.core.own_record(full, <Effect>own, &found)
        return self.core.own_record(full, <Effect>own, NULL if seen == SEEN_OWN or seen == SEEN_DELTA else &found)

    def exists(self, key, *, bint track=True):
        """Whether the transaction sees the key; its value is not decoded."""
        cdef Found found
        cdef PyObject *own = NULL
        self.core.require_active()
        return self.core.look(self.full_key(key), track, &found, &own) != SEEN_ABSENT

    def put(self, key, value, *, ttl=None, bint ephemeral=False):
        """Set a key.

        Args:
          key: non-empty str or bytes.
          value: None, bool, int, float, str, bytes, list, dict with str keys, aware datetime.
          ttl: seconds (or a timedelta) until it expires, counted from the transaction's clock reading; None:
            never.
          ephemeral: the key goes when this open database does, by `close` or by the death of its process.

        Raises:
          KeyTooLarge, ValueTooLarge, TransactionTooLarge, InvalidKeyError, ValueEncodingError: nothing was
            changed.
        """
        self.core.require_writable()
        cdef bytes full = self.full_key(key)
        self.core.put(full, value, expiry_of(ttl, self.core.now()) if ttl is not None else 0, ephemeral)

    def delete(self, key):
        """Remove a key; returns whether it was there. Looking for it enters the read set."""
        self.core.require_writable()
        return self.core.delete(self.full_key(key)) == 1

    def cas(self, key, expected_version, value, *, ttl=None, bint ephemeral=False):
        """Set a key if at commit its version is the expected one; 0: if it is absent.

        The commit raises ConflictError with a CASConflict otherwise. The key does not enter the read set.
        """
        self.core.require_writable()
        cdef bytes full = self.full_key(key)
        cdef u64 expected = version_argument(expected_version)
        self.core.cas(full, expected, value, expiry_of(ttl, self.core.now()) if ttl is not None else 0, ephemeral)

    def add(self, key, delta=1, *, at_most=None, at_least=None):
        """Add to an integer when the commit is applied; an absent key counts as 0. It reads nothing, so it
        cannot conflict. The commit is refused if the sum would pass a bound.

        Raises:
          NotAnIntegerError, IntegerOverflowError, BoundReached: at once if this transaction wrote the value
            itself, else at commit.
        """
        self.core.require_writable()
        self.core.add(self.full_key(key), delta_argument(delta), bounds_argument(at_most, at_least), False)

    def scan(self, prefix="", *, start=None, end=None, limit=None, bint reverse=False, bint raw=False, bint track=True):
        """(key, VersionedValue) of every key with this prefix in [start, end), in key order, read lazily.

        The transaction's own writes before this call are merged in; writes made while iterating do not show.
        The commit checks the part of the range that was walked. `raw`: keys are bytes. `track`: as for `get`.
        """
        return walk(self, prefix, start, end, limit, reverse, ROWS_ITEMS, raw, track)

    def keys(self, prefix="", *, start=None, end=None, limit=None, bint reverse=False, bint raw=False, bint track=True):
        """Like `scan`, but only the keys: values are not decoded."""
        return walk(self, prefix, start, end, limit, reverse, ROWS_KEYS, raw, track)

    def count(self, prefix="", *, start=None, end=None):
        """How many keys a scan would give. O(n); nothing is decoded."""
        low, high = self.bounds(prefix, start, end)
        return count_rows(self.core, low, high)

    def delete_range(self, prefix="", *, start=None, end=None):
        """Delete every key with this prefix in [start, end), in one step at commit. Own writes there are
        dropped.

        Conflicts with any key in the range that was written after the snapshot.
        """
        self.core.require_writable()
        low, high = self.bounds(prefix, start, end)
        if low < high:
            self.core.clear_range(low, high)

    @property
    def run_id(self):
        """The run this is a part of."""
        return RunId(bytes=self.prefix[len(self.prefix) - 17:len(self.prefix) - 1])

    @property
    def tag(self):
        """Which part of the run."""
        return tag_of(self.prefix[len(self.prefix) - 1])

    @property
    def codec(self):
        """How the database stores values."""
        return PLAIN if self.core.codec is None else self.core.codec

    def __repr__(self):
        return f"<{type(self).__name__} {tag_name(self.tag)} run={self.run_id}>"

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it belongs to one thread of one process")
