"""Snapshots of a server: `SnapshotSource` over a `Backend` (backend.py).

1. A snapshot never changes, so every row that was fetched is kept as long as it is held, and is asked for once. The
   pointers of a `Found` go into these rows: bytes of a record that is found stay in `view.rows`, those of a page in
   the list that its scan holds.
2. What the server sends is checked before it is pointed into: the types of a row, and for a page its order and its
   range. A row that fails raises ProtocolError.
3. An implicit read begins its snapshot with its first read, in the same round trip (`view.late`). A transaction begins
   at once: what is committed between its begin and its first read must conflict with it.
4. A call to the backend lets go of the GIL, and other threads may end the transaction meanwhile. So the view is looked
   at again behind each of them, and its rows are kept by a reference of our own until then.
5. The clock is the server's, as it was when the last snapshot began, and moved on by the monotonic clock of this
   machine since.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.string cimport memcpy

from ...ipc._atomics cimport clock_monotonic_ns, i64, u8, u32, u64
from ..store._layout cimport KEY_SIZE_MAX
from ..store._reader cimport Found
from ..transaction._view cimport NO_SLOT, PinnedView, SnapshotSource, fork_generation

from ..model.errors import ForkedHandleError, ProtocolError
from .backend import Row
from .feed import RemoteBell, RemoteFeed

cdef enum:
    FIRST_ROWS = 100
    ROWS = 1000
    KEPT_BYTES_MAX = 32 << 20       # of scanned rows that a snapshot keeps for later reads of single keys


@cython.no_gc
@cython.auto_pickle(False)
cdef class ServerClock:
    """The clock of a server, for all namespaces of one connection: what it showed last, moved on by our monotonic one.

    Args:
      now: what it shows.
    """

    cdef i64 offset                 # the server's clock minus our monotonic one

    def __cinit__(self, i64 now):
        self.offset = now - clock_monotonic_ns()


cdef class RemoteSource(SnapshotSource):
    """One process's snapshots of one namespace of a server.

    Args:
      backend: of the namespace.
      base: what its stored keys begin with.
      end: the first key behind those.
      clock: of the server.
    """

    cdef readonly object backend
    cdef readonly bytes base
    cdef readonly bytes end
    cdef readonly u64 pin_count     # snapshots that are open
    cdef readonly u64 retries       # transactions tried again, for `stats`
    cdef u64 words[2]               # of slot 0, which all snapshots share: it is never revoked
    cdef ServerClock server_clock
    cdef object prepared            # (thread, Begun) for the next snapshot of an event loop's thread

    def __cinit__(self, backend not None, bytes base not None, bytes end not None, ServerClock clock not None):
        self.backend = backend
        self.base = base
        self.end = end
        self.generation = fork_generation
        self.first_page_rows = FIRST_ROWS
        self.page_rows = ROWS
        self.words[0] = 1
        self.words[1] = 0
        self.slots = <u8 *>self.words
        self.server_clock = clock

    cdef int begin(self, PinnedView view, bint lazily) except -1:
        cdef object prepared
        if self.generation != fork_generation:
            raise ForkedHandleError("this connection to the server belongs to the parent process")
        prepared = self.prepared
        if prepared is not None and prepared[0] == PyThread_get_thread_ident():
            self.prepared = None
            return self.take(view, prepared[1])
        if lazily:
            view.rows = {}
            view.late = True
            self.hold(view)
            return 0
        return self.take(view, self.backend.begin())

    cdef int take(self, PinnedView view, object begun) except -1:
        """Let a view hold a snapshot that has just begun."""
        cdef u64 version = begun.version
        cdef i64 expiry_time = begun.expiry_time
        self.server_clock.offset = <i64>begun.clock - clock_monotonic_ns()
        view.version = version
        view.expiry_time = expiry_time
        if view.rows is None:
            view.rows = {}
        view.late = False
        self.hold(view)
        return 0

    cdef void hold(self, PinnedView view) noexcept:
        if view.slot == NO_SLOT:
            view.slot = 0
            self.pin_count += 1

    cdef void unpin(self, u32 slot) noexcept:
        self.pin_count -= 1

    def prepare(self, begun):
        """Let the next snapshot of this thread be `begun`, which was awaited. Nothing may be awaited before that.

        None: there is no such snapshot any longer.
        """
        self.prepared = None if begun is None else (PyThread_get_thread_ident(), begun)

    cdef i64 clock(self) noexcept:
        return clock_monotonic_ns() + self.server_clock.offset

    cdef void note_retry(self) noexcept:
        self.retries += 1

    cdef int get(self, PinnedView view, const u8 *key, u32 key_size, Found *found) except -2:
        cdef bytes name = PyBytes_FromStringAndSize(<const char *>key, key_size)
        cdef dict rows = view.rows
        cdef PyObject *row = PyDict_GetItem(rows, name)
        if row == NULL:
            self.load(view, rows, [name])
            row = PyDict_GetItem(rows, name)
        if <object>row is None:
            return 0
        fill(found, <tuple><object>row)
        return 1

    cdef int load(self, PinnedView view, dict rows, list keys) except -1:
        """Fetch these keys into the rows of a view."""
        cdef object begun, found
        if view.late:
            begun = self.backend.begin(keys)
            view.require_alive()
            found = begun.rows
            self.take(view, begun)
        else:
            found = self.backend.read(keys, view.version)
            view.require_alive()
        if len(found) != len(keys):
            raise ProtocolError(f"the server answered {len(found)} of {len(keys)} keys")
        for key, row in zip(keys, found):
            if row is not None:
                check_row(row)
                if (<tuple>row)[0] != key:
                    raise ProtocolError(f"the server answered another key than the one asked for: {(<tuple>row)[0]!r}")
            rows[key] = row
        return 0

    cdef int fetch(self, PinnedView view, list keys) except -1:
        cdef dict rows = view.rows
        missing = [key for key in dict.fromkeys(keys) if key not in rows]
        if missing:
            self.load(view, rows, missing)
        return 0

    cdef object page(self, PinnedView view, const u8 *start, u32 start_size, bint exclusive, const u8 *end, u32 end_size,
                     bint reverse, Found *out, u32 count_max, u8 *resume, u32 *resume_size, bint *done, int *count):
        cdef bytes low = PyBytes_FromStringAndSize(<const char *>start, start_size)
        cdef bytes high = PyBytes_FromStringAndSize(<const char *>end, end_size)
        cdef bytes last
        cdef Py_ssize_t index
        if exclusive:
            low = low + b"\x00"
        low = max(low, self.base)
        high = min(high, self.end)
        count[0] = 0
        done[0] = True
        if low >= high:
            return None
        view.begin_now()
        rows, whole = self.backend.scan(low, high, view.version, count_max, reverse=reverse)
        view.require_alive()
        check_page(rows, whole, low, high, count_max, reverse)
        for index in range(len(rows)):
            fill(&out[index], <tuple>rows[index])
        count[0] = <int>len(rows)
        done[0] = whole
        if not whole:
            last = (<tuple>rows[len(rows) - 1])[0]
            memcpy(resume, PyBytes_AS_STRING(last), PyBytes_GET_SIZE(last))
            resume_size[0] = <u32>PyBytes_GET_SIZE(last)
        self.keep(view, rows)
        return rows

    cdef int keep(self, PinnedView view, object rows) except -1:
        """Let later reads of single keys find scanned rows, as long as they are not too many."""
        cdef dict kept = view.rows
        cdef u64 size = 0
        for row in rows:
            size += PyBytes_GET_SIZE((<tuple>row)[1]) + 200
        if view.rows_size + size > KEPT_BYTES_MAX:
            return 0
        view.rows_size += size
        for row in rows:
            kept[(<tuple>row)[0]] = row
        return 0

    def feed(self, since, start, end=None, *, codec=None, skip=0, bare=False):
        start = max(start, self.base)
        end = self.end if end is None else min(end, self.end)
        return RemoteFeed(self, since, start, end, codec, skip)

    def bell(self):
        return RemoteBell(self)

    @property
    def committed_version(self):
        """The newest version on the server."""
        return self.backend.newest()

    @property
    def incarnation(self):
        """Grows when the server lost acknowledged commits."""
        return self.backend.incarnation


cdef int fill(Found *found, tuple row) except -1:
    """Point into a row that `check_row` has let through, and that somebody keeps."""
    cdef bytes key = row[0], value = row[1]
    found.key = <const u8 *>PyBytes_AS_STRING(key)
    found.key_size = <u32>PyBytes_GET_SIZE(key)
    found.value = <const u8 *>PyBytes_AS_STRING(value)
    found.value_size = <u32>PyBytes_GET_SIZE(value)
    found.version = row[2]
    found.timestamp = row[3]
    found.expires_at = row[4]
    found.session = row[5]
    return 0


cdef int check_row(object row) except -1:
    if type(row) is not Row or type((<tuple>row)[0]) is not bytes or type((<tuple>row)[1]) is not bytes:
        raise ProtocolError(f"the server sent {type(row).__name__} in place of a row of bytes")
    if not 0 < PyBytes_GET_SIZE((<tuple>row)[0]) <= KEY_SIZE_MAX or not 0 < PyBytes_GET_SIZE((<tuple>row)[1]) <= 0x7FFFFFFF:
        raise ProtocolError(f"the server sent a row whose key has {len(row[0])} bytes and its value {len(row[1])}")
    return 0


cdef int check_page(object rows, object whole, bytes low, bytes high, u32 count_max, bint reverse) except -1:
    cdef bytes before = None, key
    if len(rows) > count_max or not (whole or rows):
        raise ProtocolError(f"the server sent a page of {len(rows)} rows, where at most {count_max} were asked for")
    for row in rows:
        check_row(row)
        key = (<tuple>row)[0]
        if not low <= key < high or (before is not None and (key >= before if reverse else key <= before)):
            raise ProtocolError(f"the server sent a page with {key!r} out of its place")
        before = key
    return 0
