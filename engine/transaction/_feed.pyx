"""Following the changes of one store: committed changes of a key range, in commit order, without waiting.

1. `version` is where the feed stands: every change up to it has been given out, none after it. `poll` moves it by
   whole commits. What `poll` raises leaves it where it was, so nothing is lost between a feed that lags and whatever
   takes its place.
2. The bytes of a commit are parsed in private memory, after the copy was found untorn (`_change_reader.pyx`), and
   every size in it is checked against the block.
3. A value too large for the ring is read from a snapshot, and counts only if it is still the one of that version.
4. A large range delete names a range. Its keys are those that the snapshot before it has; that snapshot can be had as
   long as the coordinator has not reclaimed anything that it sees. If it cannot, the feed lags. Ranges of one commit may
   overlap, and hold keys that it deleted by name or put afterwards: each key is given once, as the commit left it.
5. A feed belongs to one thread. In a forked child it raises ForkedHandleError.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from ...ipc._atomics cimport load_acquire_u64
from ..store._change_reader cimport (
    CURSOR_BLOCK, CURSOR_DAMAGED, CURSOR_LAGS, CURSOR_NO_MEMORY, CURSOR_NOTHING, cursor_close, cursor_next, cursor_open,
)
from ..store._change_ring cimport (
    CHANGE_BLOCK_SIZE, CHANGE_DELETE, CHANGE_ELSEWHERE, CHANGE_ENTRY_SIZE, CHANGE_EXPIRE, CHANGE_PUT, CHANGE_RANGE,
    ChangeBlock, ChangeEntry,
)
from ..store._layout cimport KEY_SIZE_MAX, StoreHeader, key_compare, key_hash
from ..store._reader cimport Found, reader_get, reader_scan
from ._view cimport NO_SLOT, PinnedView, fork_generation

from ..model.errors import CorruptionError, ForkedHandleError, TransactionStateError, WatchLagged

cdef enum:
    SCAN_ROWS = 256
    COMMITS_MAX = 1024              # given out by one poll

cdef tuple KINDS = (None, "put", "delete", "expire", "range")


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class ChangeFeed:
    """Changes of the stored keys in [start, end) after version `since`.

    Args:
      attachment: the store to follow.
      since: the version to go on from, at most the newest committed one.
      start, end: stored keys; `end` None: no bound.
      bare: for `poll_keys`: read no values.

    Raises:
      TransactionStateError: the store keeps no history of changes.
    """

    def __cinit__(self, StoreAttachment attachment not None, u64 since, bytes start not None, bytes end=None,
                  *, bint bare=False):
        cdef int found = cursor_open(&self.cursor, <const u8 *>attachment.store_buffer.buf,
                                     <u64>attachment.store_buffer.len, since)
        self.attachment = attachment
        self.start = start
        self.end = end
        self.bare = bare
        if found == 2:
            raise TransactionStateError(
                "this database keeps no history of changes: its setting watch_history is 0",
                hint="open it with watch_history='16MiB' when no coordinator runs",
            )
        if found:
            self.refuse(CURSOR_DAMAGED)

    def __dealloc__(self):
        cursor_close(&self.cursor)

    @property
    def version(self):
        """Every change up to this version has been given out."""
        return self.cursor.version

    @property
    def current(self):
        """Whether nothing newer was published when this was called."""
        return load_acquire_u64(&self.attachment.header.committed_version) == self.cursor.version

    def skip_to(self, u64 version):
        """Leave out what was committed up to `version`: it came from elsewhere."""
        self.cursor.version = version
        self.cursor.placed = False

    def poll(self, u64 entries_max=4096):
        """What has been committed since the last call, without waiting.

        Args:
          entries_max: stop after the commit with which there are this many changes.

        Returns:
          [(version, committed_at in ns, [(kind, key, value), ...]), ...]: commits that changed something in the range.
          `kind` is "put", "delete" or "expire", `value` the stored bytes of a put.

        Raises:
          WatchLagged: changes after `version` are gone from the ring.
          CorruptionError: the ring is damaged.
          ForkedHandleError: the feed was made in the parent process.
        """
        cdef list commits = []
        cdef list changes
        cdef u64 limit, before, entries = 0
        cdef int found
        if self.attachment.generation != fork_generation:
            raise ForkedHandleError("this feed was made in the parent process")
        # Acquire: everything published up to here is below the `change_end` that the cursor loads.
        limit = load_acquire_u64(&self.attachment.header.committed_version)
        while entries < entries_max and len(commits) < COMMITS_MAX:
            before = self.cursor.version
            with nogil:
                found = cursor_next(&self.cursor, limit)
            if found == CURSOR_NOTHING:
                break
            if found != CURSOR_BLOCK:
                if commits:
                    break               # the next call says it
                self.refuse(found)
            try:
                changes = self.changes()
            except WatchLagged as lag:
                self.skip_to(before)
                if commits:
                    break
                raise WatchLagged(since=before, oldest=lag.oldest) from None
            except BaseException:
                self.skip_to(before)
                if commits:
                    break
                raise
            if changes:
                entries += len(changes)
                commits.append(((<ChangeBlock *>self.cursor.buffer).version,
                                (<ChangeBlock *>self.cursor.buffer).timestamp, changes))
        return commits

    def poll_keys(self):
        """Of a bare feed: the changed keys as (key, None), and deleted ranges as (start, end)."""
        return [change for _, _, changes in self.poll() for change in changes]

    cdef int refuse(self, int found) except -1:
        """Raise what a cursor reports."""
        if found == CURSOR_LAGS:
            raise WatchLagged(since=self.cursor.version, oldest=self.cursor.oldest)
        if found == CURSOR_NO_MEMORY:
            raise MemoryError("no private memory for a commit's changes")
        raise CorruptionError("the ring of changes in shared memory is damaged", expected="whole blocks")

    cdef list changes(self):
        """The changes in the block that was read last, as far as they are in the range."""
        cdef const ChangeBlock *block = <const ChangeBlock *>self.cursor.buffer
        cdef const u8 *at = self.cursor.buffer + CHANGE_BLOCK_SIZE
        cdef const u8 *end = self.cursor.buffer + block.size
        cdef ChangeEntry entry
        cdef u32 index
        cdef bint ranged = False
        cdef list found = []
        for index in range(block.count):
            if <size_t>(end - at) < CHANGE_ENTRY_SIZE:
                self.refuse(CURSOR_DAMAGED)
            memcpy(&entry, at, CHANGE_ENTRY_SIZE)
            at += CHANGE_ENTRY_SIZE
            if <size_t>(end - at) < <u64>entry.key_size + entry.value_size or not CHANGE_PUT <= entry.kind <= CHANGE_RANGE:
                self.refuse(CURSOR_DAMAGED)
            if self.concerns(&entry, at):
                if entry.kind == CHANGE_RANGE and not self.bare:
                    ranged = True
                    found.extend(self.deleted_keys(block.version, at[:entry.key_size],
                                                   (at + entry.key_size)[:entry.value_size]))
                else:
                    found.append(self.change(block.version, entry.kind, entry.flags, at, entry.key_size,
                                             at + entry.key_size, entry.value_size))
            at += <u64>entry.key_size + entry.value_size
        return last_of_each_key(found) if ranged else found

    cdef bint concerns(self, const ChangeEntry *entry, const u8 *key) noexcept:
        """Whether an entry is about keys of the range."""
        cdef const u8 *start = <const u8 *>PyBytes_AS_STRING(self.start)
        cdef u32 start_size = <u32>PyBytes_GET_SIZE(self.start)
        if self.end is not None and key_compare(key, entry.key_size, <const u8 *>PyBytes_AS_STRING(self.end),
                                                <u32>PyBytes_GET_SIZE(self.end)) >= 0:
            return False
        if entry.kind == CHANGE_RANGE:
            return key_compare(key + entry.key_size, entry.value_size, start, start_size) > 0
        return key_compare(key, entry.key_size, start, start_size) >= 0

    cdef object change(self, u64 version, u8 kind, u8 flags, const u8 *key, u32 key_size, const u8 *value, u32 value_size):
        """One change as `poll` gives it."""
        cdef bytes name = PyBytes_FromStringAndSize(<const char *>key, key_size)
        if self.bare:
            if kind == CHANGE_RANGE:
                return name, PyBytes_FromStringAndSize(<const char *>value, value_size)
            return name, None
        if kind != CHANGE_PUT:
            return KINDS[kind], name, None
        if flags & CHANGE_ELSEWHERE:
            return KINDS[kind], name, self.large_value(version, name)
        return KINDS[kind], name, PyBytes_FromStringAndSize(<const char *>value, value_size)

    cdef bytes large_value(self, u64 version, bytes key):
        """The value that a key was given at `version`, if that is still its newest."""
        cdef PinnedView view = PinnedView.__new__(PinnedView)
        cdef Found found
        cdef const u8 *name = <const u8 *>PyBytes_AS_STRING(key)
        cdef u32 size = <u32>PyBytes_GET_SIZE(key)
        cdef int status
        view.open(self.attachment)
        try:
            status = reader_get(&self.attachment.reader, name, size,
                                key_hash(name, size, self.attachment.reader.hash_seed), view.version, &found)
            if status < 0:
                self.refuse(CURSOR_DAMAGED)
            if status == 0 or found.version != version:
                raise WatchLagged(since=version - 1, oldest=version)
            return view.bytes_of(found.value, found.value_size)
        finally:
            view.release()

    cdef list deleted_keys(self, u64 version, bytes start, bytes end):
        """The keys of our range that a delete of [start, end) at `version` deleted."""
        cdef Found rows[SCAN_ROWS]
        cdef bytes resume = PyBytes_FromStringAndSize(NULL, KEY_SIZE_MAX + 1)
        cdef u8 *from_ = <u8 *>PyBytes_AS_STRING(resume)
        cdef u32 from_size, slot
        cdef bint done = False, exclusive = False
        cdef int count, index
        cdef list page, found = []
        start = max(start, self.start)
        end = end if self.end is None else min(end, self.end)
        slot = self.attachment.pin_at(version - 1)
        if slot == NO_SLOT - 1:
            raise WatchLagged(since=version - 1, oldest=version)
        try:
            from_size = <u32>PyBytes_GET_SIZE(start)
            memcpy(from_, PyBytes_AS_STRING(start), from_size)
            while not done:
                count = reader_scan(&self.attachment.reader, from_, from_size, exclusive, <const u8 *>PyBytes_AS_STRING(end),
                                    <u32>PyBytes_GET_SIZE(end), False, version - 1, rows, SCAN_ROWS, from_, &from_size, &done)
                if count < 0:
                    self.refuse(CURSOR_DAMAGED)
                page = [PyBytes_FromStringAndSize(<const char *>rows[index].key, rows[index].key_size)
                        for index in range(count)]
                # Keys are copied before this look: they count only if the pin held.
                if self.attachment.lost(slot):
                    raise WatchLagged(since=version - 1, oldest=version)
                found += [("delete", key, None) for key in page]
                exclusive = True
            return found
        finally:
            self.attachment.unpin(slot)


cdef list last_of_each_key(list changes):
    """The last change of each key, in the order of those."""
    cdef dict found = {}
    cdef tuple change
    for change in changes:
        found.pop(change[1], None)
        found[change[1]] = change
    return list(found.values())
