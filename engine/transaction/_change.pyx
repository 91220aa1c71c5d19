"""What a watch gives out. Compiled, since a follower of everything makes one for each key that is written."""

cimport cython

from datetime import UTC, datetime, timedelta

from ...ipc._atomics cimport i64, u64

cdef object EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@cython.final
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Change:
    """What a commit did to one key.

    Attributes:
      key: the user key.
      value: what it was set to; None when it is gone.
      version: of the commit.
      committed_at_ns: the commit's time, in ns since the epoch.
      kind: "put", "delete", or "expire": its ttl ran out.
    """

    __match_args__ = ("key", "value", "version", "committed_at_ns", "kind")

    def __init__(self, str key not None, object value, u64 version, i64 committed_at_ns, str kind not None):
        self.key = key
        self.value = value
        self.version = version
        self.committed_at_ns = committed_at_ns
        self.kind = kind

    @property
    def committed_at(self):
        """The commit's time, in UTC."""
        return EPOCH + timedelta(microseconds=self.committed_at_ns // 1000)

    cdef tuple fields(self):
        return self.key, self.value, self.version, self.committed_at_ns, self.kind

    def __eq__(self, other):
        if type(other) is not Change:
            return NotImplemented
        return self.fields() == (<Change>other).fields()

    def __hash__(self):
        return hash(self.fields())

    def __repr__(self):
        return (f"Change(key={self.key!r}, value={self.value!r}, version={self.version}, "
                f"committed_at_ns={self.committed_at_ns}, kind={self.kind!r})")

    def __reduce__(self):
        return Change, self.fields()


cdef Change make_change(str key, object value, u64 version, i64 committed_at_ns, str kind):
    """A `Change` without the parsing of arguments."""
    cdef Change change = Change.__new__(Change)
    change.key = key
    change.value = value
    change.version = version
    change.committed_at_ns = committed_at_ns
    change.kind = kind
    return change
