-- Effects and commits.

create function {s}.put(
    p_ns integer, p_version bigint, p_now bigint, p_key bytea[], p_value bytea[], p_expires bigint[], p_session bigint[]
) returns void language plpgsql as $$
-- New values; times and sessions may be null for "none". Each key is there once.
begin
    insert into {s}.old (ns, key, version, superseded, ts, expires_at, session, value)
        select n.ns, n.key, n.version, p_version, n.ts, n.expires_at, n.session, n.value from {s}.now n
        where n.ns = p_ns and n.key = any (p_key) and n.value is not null and n.version < p_version;
    insert into {s}.now (ns, key, version, ts, expires_at, session, value)
        select p_ns, w.key, p_version, p_now, coalesce(w.expires, 0), coalesce(w.session, 0), w.value
        from unnest(p_key, p_value, p_expires, p_session) w(key, value, expires, session)
        on conflict (key) do update set version = p_version, ts = p_now, expires_at = excluded.expires_at,
            session = excluded.session, value = excluded.value;
    insert into {s}.change (ns, version, key, kind, ts)
        select p_ns, p_version, w.key, 1, p_now from unnest(p_key) w(key)
        on conflict (ns, version, key) do update set kind = 1;
end $$;

create function {s}.drop_keys(p_ns integer, p_version bigint, p_now bigint, p_key bytea[])
returns void language plpgsql as $$
-- Delete the keys that have a value.
begin
    insert into {s}.old (ns, key, version, superseded, ts, expires_at, session, value)
        select n.ns, n.key, n.version, p_version, n.ts, n.expires_at, n.session, n.value from {s}.now n
        where n.ns = p_ns and n.key = any (p_key) and n.value is not null and n.version < p_version;
    with gone as (
        update {s}.now n set version = p_version, ts = p_now, value = null, expires_at = 0, session = 0
        where n.ns = p_ns and n.key = any (p_key) and n.value is not null returning n.key
    )
    insert into {s}.change (ns, version, key, kind, ts)
        select p_ns, p_version, gone.key, 2, p_now from gone
        on conflict (ns, version, key) do update set kind = 2;
end $$;

create function {s}.add_all(p_ns integer, p_version bigint, p_now bigint, q {s}.request, a {s}.reply)
returns {s}.reply language plpgsql as $$
-- The increments: each adds to the value that is there now, or to 0. Or the first that cannot be, with nothing written.
declare
    r record;
    total numeric;
    held numeric;
    keys bytea[];
    sums bytea[];
    times bigint[];
    sessions bigint[];
begin
    for r in
        select i.*, n.value, n.expires_at, n.session
        from unnest(q.a_key, q.a_by, q.a_most, q.a_least, q.a_how)
            with ordinality i(key, delta, most, least, how, place)
        left join {s}.now n on n.ns = p_ns and n.key = i.key and n.value is not null
            and (n.expires_at = 0 or n.expires_at > p_now)
            and not exists (select from unnest(q.d_low, q.d_high) d(low, high) where i.key >= d.low and i.key < d.high)
        order by i.place
    loop
        held := case when r.value is null then 0 else {s}.integer_of(r.value) end;
        total := held + r.delta;
        if held is null then
            a.status := 4;
        elsif total not between -9223372036854775808 and 18446744073709551615 then
            a.status := 5;
        elsif total > {s}.integer_of(r.most) or total < {s}.integer_of(r.least) then
            a.status := 10;
            a.r_kind := array[2];
            a.r_place := array[r.place];
            a.r_value := array[{s}.integer_bytes(held)];
        end if;
        if a.status <> 0 then
            if a.status <> 10 then
                a.r_kind := null;           -- the results of earlier ones are void
            end if;
            a.place := r.place;
            return a;
        end if;
        keys := keys || r.key;
        sums := sums || {s}.integer_bytes(total);
        times := times || coalesce(r.expires_at, 0);
        sessions := sessions || coalesce(r.session, 0);
        if r.how & 2 <> 0 then
            a.r_kind := a.r_kind || 2::smallint;
            a.r_place := a.r_place || r.place::integer;
            a.r_value := a.r_value || {s}.integer_bytes(total);
        end if;
    end loop;
    if q.d_low is not null then
        perform {s}.drop_ranges(p_ns, p_version, p_now, q);
    end if;
    perform {s}.put(p_ns, p_version, p_now, keys, sums, times, sessions);
    return a;
end $$;

create function {s}.drop_ranges(p_ns integer, p_version bigint, p_now bigint, q {s}.request)
returns void language plpgsql as $$
declare
    r record;
begin
    for r in select * from unnest(q.d_low, q.d_high) d(low, high) loop
        perform {s}.drop_keys(p_ns, p_version, p_now, array(
            select n.key from {s}.now n
            where n.ns = p_ns and n.key >= r.low and n.key < r.high and n.value is not null));
        insert into {s}.erased (ns, version, low, high) values (p_ns, p_version, r.low, r.high);
    end loop;
end $$;

create function {s}.apply(
    p_ns integer, p_version bigint, p_now bigint, p_session bigint, q {s}.request, a {s}.reply
) returns {s}.reply language plpgsql as $$
-- The effects of a request that writes no key twice. Increments come first because they alone can fail, and then nothing
-- must have been written. `add_all` deletes the ranges, if there are increments.
begin
    if q.a_key is not null then
        a := {s}.add_all(p_ns, p_version, p_now, q, a);
        if a.status <> 0 then
            return a;
        end if;
    elsif q.d_low is not null then
        perform {s}.drop_ranges(p_ns, p_version, p_now, q);
    end if;
    if q.w_key is not null then
        perform {s}.put(p_ns, p_version, p_now, q.w_key, q.w_value, q.w_expires,
            case when 4 = any (q.w_how) or 5 = any (q.w_how)
                then array(select case when how & 4 <> 0 then p_session else 0 end from unnest(q.w_how) how) end);
    end if;
    if q.x_key is not null then
        if 2 = any (q.x_how) or 3 = any (q.x_how) then
            select a.r_kind || array_agg(1::smallint order by x.place),
                a.r_place || array_agg(x.place::integer order by x.place),
                a.r_value || array_agg(case when n.key is null then '\x00'::bytea else '\x01' end order by x.place)
            into a.r_kind, a.r_place, a.r_value
            from unnest(q.x_key, q.x_how) with ordinality x(key, how, place)
            left join {s}.now n on n.ns = p_ns and n.key = x.key and n.value is not null
                and (n.expires_at = 0 or n.expires_at > p_now)
            where x.how & 2 <> 0;
        end if;
        perform {s}.drop_keys(p_ns, p_version, p_now, array(
            select n.key from {s}.now n where n.ns = p_ns and n.key = any (q.x_key) and n.value is not null
                and (n.expires_at = 0 or n.expires_at > p_now)));
    end if;
    return a;
end $$;

create function {s}.apply_in_order(
    p_ns integer, p_version bigint, p_now bigint, p_session bigint, q {s}.request, a {s}.reply
) returns {s}.reply language plpgsql as $$
-- The effects of a request that writes some key more than once: one after the other, and none if one fails.
declare
    empty {s}.reply := a;
    one {s}.request;
    step {s}.reply;
    kind smallint;
    w integer := 0;
    x integer := 0;
    i integer := 0;
begin
    if q.d_low is not null then
        perform {s}.drop_ranges(p_ns, p_version, p_now, q);
    end if;
    foreach kind in array q.order_of loop
        one := null;
        if kind = 1 then
            w := w + 1;
            one.w_key := array[q.w_key[w]];
            one.w_value := array[q.w_value[w]];
            one.w_expires := array[q.w_expires[w]];
            one.w_how := array[q.w_how[w]];
        elsif kind = 2 then
            x := x + 1;
            one.x_key := array[q.x_key[x]];
            one.x_how := array[q.x_how[x]];
        else
            i := i + 1;
            one.a_key := array[q.a_key[i]];
            one.a_by := array[q.a_by[i]];
            one.a_most := array[q.a_most[i]];
            one.a_least := array[q.a_least[i]];
            one.a_how := array[q.a_how[i]];
        end if;
        step := {s}.apply(p_ns, p_version, p_now, p_session, one, empty);
        if step.status <> 0 then
            step.place := i;
            step.r_place := case when step.r_place is not null then array[i] end;
            raise exception using errcode = 'OC009', message = 'one of the effects failed';
        end if;
        if step.r_kind is not null then
            a.r_kind := a.r_kind || step.r_kind;
            a.r_place := a.r_place || case when kind = 2 then x else i end;
            a.r_value := a.r_value || step.r_value;
        end if;
    end loop;
    return a;
exception when sqlstate 'OC009' then
    return step;
end $$;

create function {s}.adopt(h {s}.head) returns {s}.head language plpgsql as $$
-- The log has another timeline: another server was promoted, which may lack the newest commits of the one before. Their
-- versions are never given out again, and snapshots of them have expired.
begin
    if h.timeline <> 0 then
        h.floor := greatest(h.floor, h.gap_high);
        h.gap_low := h.version;
        h.gap_high := h.version + 4294967296;
        h.version := h.gap_high;
        h.incarnation := h.incarnation + 1;
    end if;
    h.timeline := {timeline};
    update {s}.head set floor = h.floor, gap_low = h.gap_low, gap_high = h.gap_high, version = h.version,
        incarnation = h.incarnation, timeline = h.timeline where ns = h.ns;
    return h;
end $$;

create function {s}.lock_head(p_ns integer) returns {s}.head language plpgsql as $$
-- The head row, locked until the transaction ends.
declare
    h {s}.head;
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = 'OC001', message = 'occamdb needs transactions that are "read committed"';
    end if;
    select * into h from {s}.head where ns = p_ns for update;
    if not found then
        raise exception using errcode = 'OC004', message = 'this namespace was removed';
    end if;
    if h.timeline <> {timeline} then
        h := {s}.adopt(h);
    end if;
    return h;
end $$;

create function {s}.remove_expired(h {s}.head, p_now bigint, p_count integer) returns {s}.head language plpgsql as $$
-- Remove values that have expired, as a commit of its own. The caller holds the lock of the head.
declare
    v_key bytea[];
begin
    v_key := array(
        select n.key from {s}.now n
        where n.ns = h.ns and n.expires_at <= p_now and n.expires_at <> 0 and n.value is not null
        order by n.expires_at limit p_count);
    -- The others that have expired, if there are more, are left to `sweep`.
    select coalesce(min(n.expires_at), 0) into h.next_due from {s}.now n
        where n.ns = h.ns and n.expires_at > p_now and n.expires_at <> 0 and n.value is not null;
    if v_key = '{}' then
        return h;
    end if;
    h.expiry_time := p_now;
    h.version := h.version + 1;
    insert into {s}.old (ns, key, version, superseded, ts, expires_at, session, value)
        select n.ns, n.key, n.version, h.version, n.ts, n.expires_at, n.session, n.value from {s}.now n
        where n.ns = h.ns and n.key = any (v_key);
    -- The record keeps its version and its time: that it is gone is not a write.
    update {s}.now n set value = null, session = 0 where n.ns = h.ns and n.key = any (v_key);
    insert into {s}.change (ns, version, key, kind, ts) select h.ns, h.version, k, 3, p_now from unnest(v_key) k;
    return h;
end $$;

create function {s}.commit_many(
    p_ns integer, p_session bigint, p_sync text, p_kept boolean, p_sent bigint, p_requests {s}.request[]
) returns setof {s}.reply language plpgsql as $$
-- Judge and apply requests of one session, one after the other. All of them commit together.
-- p_sync: what to wait for: 'off', 'on', 'durable' (on, and refused if the server does not sync its log) or 'always' (and
-- if it has no synchronous standbys, which may have changed since the client asked). p_kept: keys are bound to the session, so it must be alive. p_sent: the server's clock
-- when the request was sent, as far as the client knows it: a copy that comes too late to be known by its name is refused.
declare
    h {s}.head;
    q {s}.request;
    a {s}.reply;
    v_now bigint;
    v_before bigint;
    v_due bigint;
    v_still boolean;
begin
    if p_sync in ('durable', 'always') and (current_setting('fsync') <> 'on'
            or (p_sync = 'always' and current_setting('synchronous_standby_names') = '')) then
        raise exception using errcode = 'OC005', message = 'the server no longer waits for what was asked';
    end if;
    perform set_config('synchronous_commit', case when p_sync = 'off' then 'off' else 'on' end, true);
    h := {s}.lock_head(p_ns);
    -- Never earlier than any T that was given out, nor than the time by which the commit before this one judged.
    v_now := greatest({clock}, h.expiry_time);
    if abs(v_now - p_sent) > 1800000000000 then
        raise exception using errcode = 'OC003', message = 'the request was sent too long ago';
    end if;
    if p_kept then
        -- The lock keeps the session from being ended before this commit is.
        perform 1 from {s}.session where session = p_session and not ended and alive_until > v_now for share;
        if not found then
            raise exception using errcode = 'OC002', message = 'the session has ended';
        end if;
    end if;
    v_before := h.version;
    v_due := nullif(h.next_due, 0);
    foreach q in array p_requests loop
        a := null;
        a.sequence := q.sequence;
        a.status := 0;
        a.at := v_now;
        if q.flags & 1 = 0 and (q.start < h.floor or q.start > h.version
                or (q.start > h.gap_low and q.start < h.gap_high)) then
            a.status := 100;
            return next a;
            continue;
        end if;
        -- No value expires between the head's expiry time and its next_due.
        v_still := q.read_time >= h.expiry_time and (h.next_due = 0 or h.next_due > v_now);
        if not {s}.is_clean(p_ns, q, v_now, h.version, h.last_erased, v_still) then
            a := {s}.conflicts(p_ns, q, v_now, a);
        elsif q.flags & 4 <> 0 then
            a.version := 0;
        elsif q.w_key is null and q.x_key is null and q.a_key is null and q.d_low is null then
            a.version := h.version;
        else
            a.version := h.version + 1;
            insert into {s}.outcome (session, sequence, version, at) values (p_session, q.sequence, a.version, v_now)
                on conflict (session, sequence) do nothing;
            if not found then
                -- A copy of this request was committed, or its session gave it up.
                select case when o.version is null then 101 else 0 end, o.version, o.at, o.r_kind, o.r_place, o.r_value
                    into a.status, a.version, a.at, a.r_kind, a.r_place, a.r_value
                    from {s}.outcome o where o.session = p_session and o.sequence = q.sequence;
                return next a;
                continue;
            end if;
            if q.order_of is null then
                a := {s}.apply(p_ns, a.version, v_now, p_session, q, a);
            else
                a := {s}.apply_in_order(p_ns, a.version, v_now, p_session, q, a);
            end if;
            if a.status <> 0 then
                a.version := 0;
                delete from {s}.outcome where session = p_session and sequence = q.sequence;
            else
                h.version := a.version;
                if q.d_low is not null then
                    h.last_erased := h.version;
                end if;
                if q.w_expires is not null then
                    v_due := least(v_due, (select min(t) from unnest(q.w_expires) t where t <> 0));
                end if;
                if a.r_kind is not null then
                    update {s}.outcome set r_kind = a.r_kind, r_place = a.r_place, r_value = a.r_value
                        where session = p_session and sequence = q.sequence;
                end if;
            end if;
        end if;
        return next a;
    end loop;
    if h.version = v_before then
        -- Only the head's lock was written, and there is nothing to wait for.
        perform set_config('synchronous_commit', 'off', true);
        return;
    end if;
    h.next_due := coalesce(v_due, 0);
    if v_due <= v_now then
        h := {s}.remove_expired(h, v_now, 1000);
    end if;
    update {s}.head set version = h.version, expiry_time = v_now, next_due = h.next_due, last_erased = h.last_erased
        where ns = p_ns;
    if h.listen_until > v_now then
        perform pg_notify('{channel}', p_ns || ' ' || h.version);
    end if;
end $$;

create function {s}.tick(p_ns integer) returns void language plpgsql as $$
-- Raise the expiry time, because a value has expired since, and note another timeline.
declare
    h {s}.head := {s}.lock_head(p_ns);
    v_before bigint := h.version;
    v_now bigint := greatest({clock}, h.expiry_time);
begin
    if h.next_due = 0 or h.next_due > v_now then
        return;
    end if;
    h := {s}.remove_expired(h, v_now, 1000);
    update {s}.head set version = h.version, expiry_time = v_now, next_due = h.next_due where ns = p_ns;
    if h.version > v_before and h.listen_until > v_now then
        perform pg_notify('{channel}', p_ns || ' ' || h.version);
    end if;
end $$;

create function {s}.outcome_of(p_session bigint, p_sequence bigint) returns {s}.outcome language plpgsql as $$
-- What became of a request. If it was not committed until now, it never will be: its name is taken.
declare
    o {s}.outcome;
begin
    -- Waits for a commit of that name that is under way.
    insert into {s}.outcome (session, sequence, at) values (p_session, p_sequence, {clock})
        on conflict (session, sequence) do nothing;
    select * into o from {s}.outcome where session = p_session and sequence = p_sequence;
    return o;
end $$;
