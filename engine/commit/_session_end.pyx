"""The end of a session: removing the keys that are still bound to it.

1. A session has ended when no channel of its handle is open and none will be (`coordinator/sessions.py` decides that),
   so no commit can bind another key to it.
2. The removal is a commit of the coordinator's own (session 0 in the log). Its deletes are writes for validation, like
   those of a user: whoever has read the key conflicts.
3. A key is removed only if its newest record is bound to this session at that moment. Commits are applied one after the
   other, so nothing comes between the look and the removal.
4. One commit removes up to SESSION_PIECE keys. A session with more of them is removed in several commits, oldest
   binding first, and requests of workers are served in between. A crash between two of them leaves the rest, which
   recovery finds and the next coordinator removes.
5. A store that has no room for all tombstones gets those that fit: the commit makes room for the next ones.
6. A removal that fails (not one tombstone fits, or the log is full) changes nothing and is repeated after RETRY_NS,
   until it succeeds.

Ended sessions travel through a ring of ids: the control plane writes an id and then `ended_tail` (release); the commit
thread reads `ended_tail` (acquire), and writes `ended_head` (release) once the session's last key is gone.
"""

from ...ipc._atomics cimport clock_monotonic_ns, i64, load_acquire_u32, store_release_u32, u8, u32
from ..store._layout cimport RECORD_TOMBSTONE, Node, Record, key_hash, node_at, node_key, record_at, record_session
from ..store._range_tombstones cimport ranges_cover
from ..store._store cimport store_find, store_next, store_seek
from ._apply cimport install_tombstone, note_writes, undo_to
from ._batch cimport batch_commit
from ._core cimport ENDED_COUNT, sessions_waiting
from ._sessions cimport (
    SESSION_CHAINS, BoundKey, SessionKeys, sessions_drop, sessions_find, sessions_free, sessions_push,
)

from libc.stdlib cimport free

cdef enum:
    SESSION_PIECE = 8192            # keys removed by one commit: a pause of a few milliseconds for the others
    LOOK_PIECE = 65536              # entries looked at for one commit, most of which may be stale
    RETRY_NS = 200000000            # pause after a removal that failed
    COMPACT_FIRST = 256


# ---- the ring ----------------------------------------------------------------------------------------------------

cdef bint session_ended(Core *core, u64 session) noexcept nogil:
    cdef u32 tail = core.ended_tail
    if tail - load_acquire_u32(&core.ended_head) >= ENDED_COUNT:
        return False
    core.ended[tail & (ENDED_COUNT - 1)] = session
    # Release: the commit thread that sees the new tail sees the id.
    store_release_u32(&core.ended_tail, tail + 1)
    return True


cdef bint sessions_due(const Core *core) noexcept nogil:
    return sessions_waiting(core) and (core.sessions_after == 0 or clock_monotonic_ns() >= core.sessions_after)


# ---- bound keys --------------------------------------------------------------------------------------------------

cdef u32 _bound_node(Core *core, u64 session, const BoundKey *entry) noexcept nogil:
    """The node an entry still speaks of, or 0 when the key was written again, removed or bound to another since."""
    cdef u32 node = store_find(&core.store, entry.key, entry.key_size,
                               key_hash(entry.key, entry.key_size, core.store.hash_seed))
    cdef const Record *record
    if node == 0 or node_at(core.store.base, node).head == 0:
        return 0
    record = record_at(core.store.base, node_at(core.store.base, node).head)
    if record.version != entry.version or record.flags & RECORD_TOMBSTONE or record_session(record) != session:
        return 0
    if record.expires_at != 0 and record.expires_at <= core.now:
        return 0                        # its removal is left to expiry, which is not a write
    if ranges_cover(&core.store, node) != NULL:
        return 0
    return node


cdef void _compact(Core *core) noexcept nogil:
    """Drop stale entries. Between batches only: an entry that an unpublished record makes stale is good again if that
    record is undone."""
    cdef u32 chain
    cdef u64 index, kept
    cdef SessionKeys *keys
    core.sessions.crowded = False
    for chain in range(SESSION_CHAINS):
        keys = core.sessions.chains[chain]
        while keys != NULL:
            if keys.count >= keys.compact_at:
                kept = 0
                for index in range(keys.count):
                    if _bound_node(core, keys.session, &keys.keys[index]) != 0:
                        keys.keys[kept] = keys.keys[index]
                        kept += 1
                    else:
                        free(keys.keys[index].key)
                keys.count = kept
                keys.done = 0
                keys.compact_at = max(<u64>COMPACT_FIRST, 2 * kept)
            keys = keys.next


cdef void load_sessions(Core *core) noexcept nogil:
    cdef u32 node
    cdef const Node *entry
    cdef const Record *record
    sessions_free(&core.sessions)
    if core.store.bound_count == 0:
        return
    node = store_seek(&core.store, <const u8 *>b"", 0)
    while node != 0:
        entry = node_at(core.store.base, node)
        if entry.head != 0:
            record = record_at(core.store.base, entry.head)
            if record_session(record) and sessions_push(&core.sessions, record_session(record), record.version,
                                                        node_key(entry), entry.key_size):
                core.sessions.stale = True
        node = store_next(&core.store, node)


# ---- the removal -------------------------------------------------------------------------------------------------

cdef i64 _remove_piece(Core *core, SessionKeys *keys, u64 *reached, WalAppender log) noexcept nogil:
    """Delete keys of the list from `keys.done` on, at version next_version + 1, in the manner of `expire_due`.

    Returns how many, and the position behind the last one in `reached`; -1 with nothing done if something failed.
    """
    cdef u64 version = core.next_version + 1, mark = core.undo_count, log_mark = 0, index = keys.done
    cdef u64 look_end = min(keys.count, keys.done + LOOK_PIECE)
    cdef u8 run_id[16]
    cdef i64 removed = 0
    cdef int error = 0
    cdef u32 node, byte, full = 0
    for byte in range(16):
        run_id[byte] = 0
    if log is not None:
        log_mark = log.mark()
        error = log.begin_transaction(0, 0, run_id, core.now)
    while not error and index < look_end and removed < SESSION_PIECE:
        node = _bound_node(core, keys.session, &keys.keys[index])
        if node != 0:
            full = install_tombstone(core, node, version)
            if full:
                # The store has no room for another tombstone. Commit what there is: that makes room for the rest.
                break
            removed += 1
            if log is not None:
                error = log.add_delete(keys.keys[index].key, keys.keys[index].key_size, version)
        index += 1
    if not error and removed and log is not None:
        error = log.end_transaction(version)
    if error or removed == 0:
        undo_to(core, mark)
        if log is not None:
            log.discard_to(log_mark)
    if error or (full and removed == 0):
        return -1
    reached[0] = index
    if removed:
        note_writes(core, mark, version)
    return removed


cdef bint _end_piece(Core *core, u64 session, WalAppender log) noexcept nogil:
    """Remove a piece of a session's keys as one commit. False: it failed, and nothing has changed."""
    cdef SessionKeys *keys = sessions_find(&core.sessions, session)
    cdef u64 reached = 0, committed = core.store.header.committed_version
    cdef i64 removed
    if keys != NULL:
        removed = _remove_piece(core, keys, &reached, log)
        if removed < 0:
            core.full = True
            return False
        if removed:
            core.next_version += 1
            batch_commit(core, core.sync_all, log)
            if core.store.header.committed_version == committed:
                return False            # the log refused it, and the keys are back
            core.counters.unbound += removed
        keys.done = reached
        if keys.done < keys.count:
            return True
        sessions_drop(&core.sessions, session)
    store_release_u32(&core.ended_head, core.ended_head + 1)
    return True


cdef bint tend_sessions(Core *core, WalAppender log) noexcept nogil:
    if core.sessions.crowded:
        _compact(core)
    if not sessions_due(core):
        return False
    core.sessions_after = 0
    if core.sessions.stale:
        load_sessions(core)
    if (core.sessions.stale or (log is not None and load_acquire_u32(&log.file.poison_errno))
            or not _end_piece(core, core.ended[core.ended_head & (ENDED_COUNT - 1)], log)):
        core.sessions_after = clock_monotonic_ns() + RETRY_NS
        return False
    return sessions_waiting(core)
