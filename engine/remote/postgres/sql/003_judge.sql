-- What conflicts: the rules of tests/support/conflict_model.py over the tables. The caller holds the head's lock.
--
-- The newest record of a key is its row in `now`. Its `version` is that of the last write, be it a delete; the removal
-- of an expired value keeps the version and the time. So one row answers every rule:
--     version now          0 if there is no value, or if it has expired, else `version`
--     written since start  version > start
--     expired since        read_time < expires_at <= now
-- A request begins after the floor, so what has been swept is no newer than its start.

create function {s}.is_clean(
    p_ns integer, q {s}.request, p_now bigint, p_version bigint, p_erased bigint, p_still boolean
) returns boolean language plpgsql as $$
-- Whether nothing conflicts.
-- p_version: of the newest commit. p_erased: of the newest deletion of a range. p_still: nothing has expired since the
-- request's snapshot.
declare
    checked boolean := q.flags & 1 = 0;
    quiet boolean := q.start >= p_version;      -- nothing was written since
begin
    if q.r_key is not null then
        perform 1 from unnest(q.r_key, q.r_version) r(key, version)
            left join {s}.now n on n.ns = p_ns and n.key = r.key
            where r.version <> case when n.value is null or (n.expires_at <> 0 and n.expires_at <= p_now)
                then 0 else n.version end;
        if found then
            return false;
        end if;
    end if;
    if q.c_key is not null then
        perform 1 from unnest(q.c_key, q.c_version) c(key, version)
            left join {s}.now n on n.ns = p_ns and n.key = c.key
            where c.version <> case when n.value is null or (n.expires_at <> 0 and n.expires_at <= p_now)
                then 0 else n.version end;
        if found then
            return false;
        end if;
    end if;
    if not checked or (quiet and (p_still or q.g_low is null)) then
        return true;
    end if;
    if q.g_low is not null then
        if p_still and p_version - q.start < 1000 then
            -- The few changes since the snapshot are quicker to look through than the range.
            perform 1 from unnest(q.g_low, q.g_high) g(low, high)
                where exists (select from {s}.change c where c.ns = p_ns and c.version > q.start
                    and c.key >= g.low and c.key < g.high and c.kind <> 3);
        else
            perform 1 from unnest(q.g_low, q.g_high) g(low, high)
                where exists (select from {s}.now n where n.ns = p_ns and n.key >= g.low and n.key < g.high
                    and (n.version > q.start or (n.expires_at > q.read_time and n.expires_at <= p_now)));
        end if;
        if found then
            return false;
        end if;
    end if;
    if quiet then
        return true;
    end if;
    if q.w_key is not null then
        perform 1 from unnest(q.w_key, q.w_how) w(key, how)
            join {s}.now n on n.ns = p_ns and n.key = w.key where w.how & 1 = 0 and n.version > q.start;
        if found then
            return false;
        end if;
    end if;
    if q.x_key is not null then
        perform 1 from unnest(q.x_key, q.x_how) x(key, how)
            join {s}.now n on n.ns = p_ns and n.key = x.key where x.how & 1 = 0 and n.version > q.start;
        if found then
            return false;
        end if;
    end if;
    if q.d_low is not null then
        perform 1 from unnest(q.d_low, q.d_high, q.d_how) d(low, high, how) where d.how & 1 = 0 and exists (
            select from {s}.now n where n.ns = p_ns and n.key >= d.low and n.key < d.high and n.version > q.start);
        if found then
            return false;
        end if;
    end if;
    return p_erased <= q.start or not {s}.meets_erased(p_ns, q);
end $$;

create function {s}.meets_erased(p_ns integer, q {s}.request) returns boolean language sql stable as $$
-- Whether a range was deleted since that holds a key which the request writes, adds to or expects to be absent, or that
-- meets a range which it deletes.
    select exists (
        select from {s}.erased e
        where e.ns = p_ns and e.version > q.start and (
            exists (select from unnest(q.c_key, q.c_version) c(key, version)
                where c.version = 0 and c.key >= e.low and c.key < e.high)
            or exists (select from unnest(q.w_key, q.w_how) w(key, how)
                where w.how & 1 = 0 and w.key >= e.low and w.key < e.high)
            or exists (select from unnest(q.x_key, q.x_how) x(key, how)
                where x.how & 1 = 0 and x.key >= e.low and x.key < e.high)
            or exists (select from unnest(q.a_key, q.a_how) i(key, how)
                where i.how & 1 = 0 and i.key >= e.low and i.key < e.high)
            or exists (select from unnest(q.d_low, q.d_high, q.d_how) d(low, high, how)
                where d.how & 1 = 0 and greatest(d.low, e.low) < least(d.high, e.high))))
$$;

create function {s}.erased_since(p_ns integer, p_key bytea, p_start bigint) returns bigint language sql stable as $$
    select max(e.version) from {s}.erased e
    where e.ns = p_ns and e.version > p_start and p_key >= e.low and p_key < e.high
$$;

create function {s}.conflicts(p_ns integer, q {s}.request, p_now bigint, a {s}.reply)
returns {s}.reply language plpgsql as $$
-- The reply with all conflicts counted, and the first of them listed in the order of the model. Each is a rule (1 read,
-- 2 range, 3 compared, 4 compared with nothing in a deleted range, 5 put, 6 delete, 7 increment, 8 deleted range), the
-- place among the request's operations of that kind, and the version found.
declare
    checked boolean := q.flags & 1 = 0;
begin
    with k(rule, place, seen) as (
        select 1, r.place, r.seen from (
            select r.place, r.version, case when n.value is null or (n.expires_at <> 0 and n.expires_at <= p_now)
                then 0 else n.version end as seen
            from unnest(q.r_key, q.r_version) with ordinality r(key, version, place)
            left join {s}.now n on n.ns = p_ns and n.key = r.key) r
        where r.seen <> r.version
        union all
        select 2, g.place, g.seen from (
            select g.place, (
                select n.version from {s}.now n where n.ns = p_ns and n.key >= g.low and n.key < g.high
                    and (n.version > q.start or (n.expires_at > q.read_time and n.expires_at <= p_now))
                order by n.key limit 1) as seen
            from unnest(q.g_low, q.g_high) with ordinality g(low, high, place)) g
        where g.seen is not null and checked
        union all
        select case when c.seen <> c.version then 3 else 4 end, c.place,
            case when c.seen <> c.version then c.seen else c.gone end from (
            select c.place, c.version, case when n.value is null or (n.expires_at <> 0 and n.expires_at <= p_now)
                then 0 else n.version end as seen,
                case when c.version = 0 and checked then {s}.erased_since(p_ns, c.key, q.start) end as gone
            from unnest(q.c_key, q.c_version) with ordinality c(key, version, place)
            left join {s}.now n on n.ns = p_ns and n.key = c.key) c
        where c.seen <> c.version or c.gone is not null
        union all
        select w.rule, w.place, w.seen from (
            select w.rule, w.place, case when n.version > q.start then n.version
                else {s}.erased_since(p_ns, w.key, q.start) end as seen
            from (
                select 5, key, how, place from unnest(q.w_key, q.w_how) with ordinality w(key, how, place)
                union all
                select 6, key, how, place from unnest(q.x_key, q.x_how) with ordinality x(key, how, place)
            ) w(rule, key, how, place)
            left join {s}.now n on n.ns = p_ns and n.key = w.key
            where w.how & 1 = 0) w
        where w.seen is not null and checked
        union all
        select 7, i.place, i.seen from (
            select i.place, {s}.erased_since(p_ns, i.key, q.start) as seen
            from unnest(q.a_key, q.a_how) with ordinality i(key, how, place) where i.how & 1 = 0) i
        where i.seen is not null and checked
        union all
        select 8, d.place, d.seen from (
            select d.place, coalesce(
                (select n.version from {s}.now n where n.ns = p_ns and n.key >= d.low and n.key < d.high
                    and n.version > q.start order by n.key limit 1),
                (select max(e.version) from {s}.erased e where e.ns = p_ns and e.version > q.start
                    and greatest(d.low, e.low) < least(d.high, e.high))) as seen
            from unnest(q.d_low, q.d_high, q.d_how) with ordinality d(low, high, how, place)
            where d.how & 1 = 0) d
        where d.seen is not null and checked
    ), listed as (
        select rule, place, seen from k order by rule, place limit 16
    )
    select (select count(*) from k), array_agg(rule::smallint order by rule, place),
        array_agg(place::integer order by rule, place), array_agg(seen order by rule, place)
    into a.found, a.k_rule, a.k_place, a.k_found from listed;
    a.status := 1;
    return a;
end $$;
