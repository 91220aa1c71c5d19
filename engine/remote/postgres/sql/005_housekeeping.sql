-- What any client does now and then: removing what has expired, ending sessions, forgetting what is old.

create function {s}.forget(h {s}.head, p_before bigint, p_count integer) returns {s}.head language plpgsql as $$
-- Forget what was committed before a time: changes, the values that they replaced, and the traces of deletes. The floor
-- rises with what is forgotten, so nobody misses it without being told. The caller holds the lock of the head.
declare
    v_floor bigint;
begin
    with gone as (
        delete from {s}.change c using (
            select f.version, f.key from (
                select g.version, g.key, g.ts from {s}.change g where g.ns = h.ns order by g.version, g.key limit p_count
            ) f where f.ts < p_before
        ) f where c.ns = h.ns and c.version = f.version and c.key = f.key
        returning c.version, c.key, c.kind
    ), replaced as (
        delete from {s}.old o using gone
        where o.ns = h.ns and o.key = gone.key and o.superseded = gone.version
    ), deleted as (
        delete from {s}.now n using gone
        where n.ns = h.ns and n.key = gone.key and n.value is null and (
            (gone.kind = 2 and n.version = gone.version and n.expires_at = 0)
            or (gone.kind = 3 and n.version < gone.version and n.expires_at <> 0))
    )
    select max(gone.version) into v_floor from gone;
    if v_floor > h.floor then
        h.floor := v_floor;
        delete from {s}.erased e where e.ns = h.ns and e.version <= v_floor;
    end if;
    return h;
end $$;

create function {s}.sweep(p_ns integer, p_age bigint, p_every bigint, p_count integer) returns boolean language plpgsql as $$
-- One piece of the work on a namespace, unless another client did it within `p_every`. Whether there is more to do.
-- p_age: how long old versions are kept, in nanoseconds. p_count: the most keys in one piece.
declare
    h {s}.head;
    v_before {s}.head;
    v_now bigint;
begin
    perform 1 from {s}.head where ns = p_ns and abs({clock} - swept_at) >= p_every for update skip locked;
    if not found then
        return false;
    end if;
    h := {s}.lock_head(p_ns);
    v_before := h;
    v_now := greatest({clock}, h.expiry_time);
    h := {s}.remove_expired(h, v_now, p_count);
    h := {s}.forget(h, v_now - p_age, p_count);
    if h.version > v_before.version or h.floor > v_before.floor then
        update {s}.head set version = h.version, expiry_time = h.expiry_time, next_due = h.next_due, floor = h.floor
            where ns = p_ns;
        if h.version > v_before.version and h.listen_until > v_now then
            perform pg_notify('{channel}', p_ns || ' ' || h.version);
        end if;
        return true;
    end if;
    update {s}.head set swept_at = {clock} where ns = p_ns;
    return false;
end $$;

create function {s}.unbind(p_ns integer, p_session bigint, p_count integer) returns integer language plpgsql as $$
-- Delete keys that are bound to a session that has ended, as a commit. How many.
declare
    h {s}.head := {s}.lock_head(p_ns);
    v_now bigint := greatest({clock}, h.expiry_time);
    v_key bytea[];
begin
    perform 1 from {s}.session where session = p_session and not ended;
    if found then
        return 0;
    end if;
    -- What has expired is left to its removal, which is not a write.
    v_key := array(
        select n.key from {s}.now n
        where n.session = p_session and n.ns = p_ns and n.value is not null
            and (n.expires_at = 0 or n.expires_at > v_now)
        order by n.version limit p_count);
    if v_key <> '{}' then
        h.version := h.version + 1;
        perform {s}.drop_keys(p_ns, h.version, v_now, v_key);
        if h.next_due <> 0 and h.next_due <= v_now then
            h := {s}.remove_expired(h, v_now, 1000);
        end if;
        update {s}.head set version = h.version, expiry_time = v_now, next_due = h.next_due where ns = p_ns;
        if h.listen_until > v_now then
            perform pg_notify('{channel}', p_ns || ' ' || h.version);
        end if;
    end if;
    return cardinality(v_key);
end $$;

create function {s}.ended_sessions() returns table (session bigint, ns integer) language plpgsql as $$
-- Mark the sessions whose time has passed as ended, and list the namespaces that hold keys of ended ones: 0 for none.
begin
    -- Waits for commits of these sessions that are under way, so no key is bound behind this.
    update {s}.session s set ended = true where s.alive_until <= {clock} and not s.ended;
    return query
        select distinct s.session, coalesce(n.ns, 0) from {s}.session s
        left join {s}.now n on n.session = s.session and n.session <> 0 and n.value is not null
        where s.ended;
end $$;

create function {s}.keep_alive(p_session bigint, p_ttl bigint, p_first boolean) returns boolean language plpgsql as $$
-- Begin to keep a session alive, or go on. False: it has ended.
begin
    perform set_config('synchronous_commit', case when p_first then 'on' else 'off' end, true);
    if p_first then
        insert into {s}.session (session, alive_until) values (p_session, {clock} + p_ttl) on conflict do nothing;
    end if;
    update {s}.session set alive_until = greatest(alive_until, {clock} + p_ttl)
        where session = p_session and not ended and alive_until > {clock};
    return found;
end $$;

create function {s}.end_session(p_session bigint) returns void language sql as $$
    update {s}.session set ended = true where session = p_session and not ended
$$;

create function {s}.forget_outcomes() returns void language sql as $$
-- Twice as long as a request may be under way (`commit_many`).
    delete from {s}.outcome where at < {clock} - 3600000000000;
$$;
