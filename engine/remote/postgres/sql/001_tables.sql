-- The tables of occamdb. {s} is the schema, {clock} and {timeline} are expressions of migrations.py.
--
-- 1. Every change of a namespace is made by a transaction that holds the lock of its head row. Therefore the
--    order of the locks is the order of the commits, and the holder of the lock sees all commits before its own.
-- 2. Reads take no lock. Each is one statement, and so sees one state of all tables.
-- 3. Times are nanoseconds since the epoch by the server's clock.

create table {s}.meta (
    one boolean primary key default true check (one),
    program text not null,
    format integer not null
);

-- One row a namespace: the newest state, as `begin` reads it and a commit changes it.
create table {s}.head (
    ns integer generated always as identity primary key,
    base bytea not null unique,                 -- what the stored keys of the namespace begin with
    version bigint not null default 0,          -- of the newest commit
    expiry_time bigint not null default 0,      -- T of the newest snapshot: what expires up to it is absent
    next_due bigint not null default 0,         -- no value expires between expiry_time and this; 0: none does
    last_erased bigint not null default 0,      -- version of the newest deletion of a range
    floor bigint not null default 0,            -- older versions are no longer kept
    gap_low bigint not null default 0,          -- versions between these two were lost in a failover
    gap_high bigint not null default 0,
    timeline integer not null default 0,        -- of the server's log when the row was last written
    incarnation integer not null default 1,     -- how often a failover may have lost commits, plus 1
    listen_until bigint not null default 0,     -- somebody listens for notifications until then
    swept_at bigint not null default 0
) with (fillfactor = 10);

-- The newest record of each key. No value: a delete by `version`. No value, but a time: the value of `version` expired
-- then and was removed, which is not a write.
create table {s}.now (
    ns integer not null,
    key bytea not null,
    version bigint not null,
    ts bigint not null,
    expires_at bigint not null default 0,
    session bigint not null default 0,          -- that the key is bound to
    value bytea,
    primary key (key)
) with (fillfactor = 80);
create index now_due on {s}.now (ns, expires_at) where expires_at <> 0 and value is not null;
create index now_bound on {s}.now (session, ns) where session <> 0;

-- Values that were replaced, deleted or removed at `superseded`, as long as a snapshot may need them.
create table {s}.old (
    ns integer not null,
    key bytea not null,
    version bigint not null,
    superseded bigint not null,
    ts bigint not null,
    expires_at bigint not null,
    session bigint not null,
    value bytea not null,
    primary key (key, version)
);

-- What each commit after the floor changed: 1 put, 2 delete, 3 removal of an expired value. Sweeping follows it.
create table {s}.change (
    ns integer not null,
    version bigint not null,
    key bytea not null,
    kind smallint not null,
    ts bigint not null,
    primary key (ns, version, key)
);

-- Deleted ranges. Each counts as a write of every key that it could hold.
create table {s}.erased (
    ns integer not null,
    version bigint not null,
    low bytea not null,
    high bytea not null
);
create index erased_version on {s}.erased (ns, version);

-- What became of a request. Without a version: it was not committed, and never will be.
create table {s}.outcome (
    session bigint not null,
    sequence bigint not null,
    version bigint,
    at bigint not null,
    r_kind smallint[],
    r_place integer[],
    r_value bytea[],
    primary key (session, sequence)
);
create index outcome_at on {s}.outcome (at);

-- Sessions with keys bound to them. A session whose row is gone, or whose time has passed, commits nothing.
create table {s}.session (
    session bigint primary key,
    alive_until bigint not null,
    ended boolean not null default false
);

-- A request as it is sent. The operations of each kind keep their order; an array without elements is null.
create type {s}.request as (
    sequence bigint,
    start bigint,
    read_time bigint,
    flags smallint,                             -- 1 blind, 4 judge only
    r_key bytea[], r_version bigint[],          -- read
    g_low bytea[], g_high bytea[],              -- scanned ranges
    c_key bytea[], c_version bigint[],          -- compared
    d_low bytea[], d_high bytea[], d_how smallint[],    -- deleted ranges; 1 unchecked
    w_key bytea[], w_value bytea[], w_expires bigint[], w_how smallint[],   -- puts; 1 unchecked, 4 bound to the session
    x_key bytea[], x_how smallint[],            -- deletes; 1 unchecked, 2 with a result
    a_key bytea[], a_by bigint[], a_most bytea[], a_least bytea[], a_how smallint[],    -- increments; 1, 2 as above
    order_of smallint[]                         -- null: no key is written twice; else 1 put, 2 delete, 3 increment
);

create type {s}.reply as (
    sequence bigint,
    status smallint,                            -- `Status` of messages.py; 100: the snapshot is too old
    version bigint,
    at bigint,
    place integer,                              -- which increment failed
    r_kind smallint[], r_place integer[], r_value bytea[],
    found bigint,
    k_rule smallint[], k_place integer[], k_found bigint[]
);
