"""The statements that reads and commits are made of. Each is one statement, and so sees one state of all tables.

The snapshot of `begin` is (V, T): the head's version and expiry time, read together.

1. `expiry_time` is raised under the head's lock alone: by each commit to the time by which it judged, which is the
   server's clock or the expiry time before it, whichever is later; and by `tick`. So T is no earlier than the time by
   which commit V judged, and no later than that of commit V + 1. The clock at begin would not do as T: commit V + 1 may
   wait for its lock with an earlier reading, and still see a key that this snapshot has lost.
2. `next_due` says when the next value expires after `expiry_time`. A begin that finds it passed calls `tick` first.
   Until then an older T gives the same answers.
3. A snapshot needs `old` only when something was committed after V.
"""

from __future__ import annotations

from .calls import Call
from .location import Location
from .migrations import filled

__all__ = ["Statements"]


# Rows of (value, numbers), the head's first. Numbers travel packed, because a column costs more than they do.
_HEAD = """
select null::bytea, int8send(h.version) || int8send(h.expiry_time) || int8send(h.next_due) || int8send({clock})
    || int8send((h.timeline <> {timeline})::integer) || int8send(h.incarnation)
from {s}.head h where h.ns = $1::integer
"""
_ROW = """
int8send(k.place) || int8send(r.version) || int8send(r.ts) || int8send(r.expires_at) || int8send(r.session)
"""

_BEGIN = _HEAD

# Everything in `now` is of the head's version: both are of one state.
_BEGIN_WITH = f"""
{_HEAD}
union all
select r.value, {_ROW}
from unnest($2::bytea[]) with ordinality k(key, place)
join {{s}}.now r on r.ns = $1::integer and r.key = k.key and r.value is not null
"""

# What bounds the versions that can be read comes with every answer.
_BOUNDS = "h.version, h.floor, h.gap_low, h.gap_high"

_READ = f"""
select null::bytea, int8send(h.version) || int8send(h.floor) || int8send(h.gap_low) || int8send(h.gap_high)
from {{s}}.head h where h.ns = $1::integer
union all
select r.value, {_ROW}
from unnest($2::bytea[]) with ordinality k(key, place)
cross join lateral (
    select n.value, n.version, n.ts, n.expires_at, n.session from {{s}}.now n
    where n.ns = $1::integer and n.key = k.key and n.version <= $3::bigint and n.value is not null
    union all
    select o.value, o.version, o.ts, o.expires_at, o.session from {{s}}.old o
    where (select h.version from {{s}}.head h where h.ns = $1::integer) > $3::bigint
        and o.ns = $1::integer and o.key = k.key and o.version <= $3::bigint and o.superseded > $3::bigint
) r
"""

_SCAN = """
select {bounds}, r.*
from {{s}}.head h
left join lateral (
    select * from (
        (select n.key, n.value, n.version, n.ts, n.expires_at, n.session from {{s}}.now n
        where n.ns = %(ns)s and n.key >= %(start)s and n.key < %(end)s
            and n.version <= %(version)s and n.value is not null
        order by n.key {order} limit %(limit)s)
        union all
        (select o.key, o.value, o.version, o.ts, o.expires_at, o.session from {{s}}.old o
        where h.version > %(version)s and o.ns = %(ns)s and o.key >= %(start)s and o.key < %(end)s
            and o.version <= %(version)s and o.superseded > %(version)s
        order by o.key {order} limit %(limit)s)
    ) b order by b.key {order} limit %(limit)s
) r on true
where h.ns = %(ns)s
order by r.key {order}
"""

_CHANGES = """
select {bounds}, c.version, c.ts, c.kind, c.key, {value}
from {{s}}.head h
left join lateral (
    select * from {{s}}.change g
    where g.ns = %(ns)s and g.version > %(since)s and g.version <= %(until)s
        and g.key >= %(start)s and (%(end)s::bytea is null or g.key < %(end)s::bytea)
    order by g.version, g.key limit %(limit)s
) c on true
{joins}
where h.ns = %(ns)s
order by c.version, c.key
"""
_VALUES = """
left join {s}.now n on c.kind = 1 and n.ns = h.ns and n.key = c.key and n.version = c.version
left join {s}.old o on c.kind = 1 and o.ns = h.ns and o.key = c.key and o.version = c.version
"""

_COMMIT = "select * from {s}.commit_many($1::integer, $2::bigint, $3::text, $4::boolean, $5::bigint, $6::{s}.request[])"


class Statements:
    """The statements for one schema."""

    def __init__(self, location: Location) -> None:
        def fill(text: str) -> bytes:
            return filled(text, location).encode()

        schema = "{s}"
        self.begin = Call("begin", fill(_BEGIN), 1)
        self.begin_with = Call("begin_with", fill(_BEGIN_WITH), 2)
        self.read = Call("read", fill(_READ), 3)
        self.commit = Call("commit", fill(_COMMIT), 6)
        self.scan, self.scan_back = (
            fill(_SCAN.format(bounds=_BOUNDS, order=order).replace("{{s}}", schema)) for order in ("", "desc")
        )
        self.changes = fill(
            _CHANGES.format(bounds=_BOUNDS, value="coalesce(n.value, o.value)", joins=_VALUES)
        )
        self.changed_keys = fill(_CHANGES.format(bounds=_BOUNDS, value="null::bytea", joins=""))
        self.tick = fill("select {s}.tick(%s)")
        self.outcome = fill("select version, at, r_kind, r_place, r_value from {s}.outcome_of(%s, %s)")
        self.newest = fill("select version, next_due, {clock} from {s}.head where ns = %s")
        self.figures = fill(
            "select version, floor, incarnation, timeline, expiry_time, next_due, swept_at"
            " from {s}.head where ns = %s"
        )
        self.find = fill("select ns from {s}.head where base = %s")
        self.add = fill(
            "insert into {s}.head (base, timeline) values (%s, {timeline}) on conflict do nothing"
        )
        self.namespaces = fill("select base from {s}.head where version > 0 order by base")
        self.request_type = fill("select '{s}.request'::regtype::oid::bigint, {clock}")
        self.sweep = fill("select {s}.sweep(%s, %s, %s, %s)")
        self.ended_sessions = fill("select session, ns from {s}.ended_sessions()")
        self.unbind = fill("select {s}.unbind(%s, %s, %s)")
        self.drop_session = fill("delete from {s}.session where session = %s and ended")
        self.keep_alive = fill("select {s}.keep_alive(%s, %s, %s)")
        self.end_session = fill("select {s}.end_session(%s)")
        self.forget_outcomes = fill("select {s}.forget_outcomes()")
        self.listen_until = fill(
            "update {s}.head set listen_until = {clock} + %s where ns = %s and listen_until < {clock} + %s"
        )
