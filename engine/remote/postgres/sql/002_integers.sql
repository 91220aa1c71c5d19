-- Integers as msgpack stores them: the same rules as engine/commit/_integer.pxd.

create function {s}.integer_of(p bytea) returns numeric language plpgsql immutable as $$
-- Null when the bytes are not an integer.
declare
    lead integer;
    width integer;
    bits bigint;
begin
    if length(p) = 0 then
        return null;
    end if;
    lead := get_byte(p, 0);
    if length(p) = 1 then
        return case when lead <= 127 then lead when lead >= 224 then lead - 256 end;
    end if;
    if lead not between 204 and 211 then
        return null;
    end if;
    width := 1 << ((lead - 204) & 3);
    if length(p) <> width + 1 then
        return null;
    end if;
    bits := ('x' || lpad(encode(substr(p, 2), 'hex'), 16, '0'))::bit(64)::bigint;
    if lead <= 207 then
        return case when bits < 0 then bits + 18446744073709551616 else bits end;
    end if;
    if width < 8 and bits >= 1::bigint << (8 * width - 1) then
        bits := bits - (1::bigint << (8 * width));
    end if;
    return bits;
end $$;

create function {s}.integer_bytes(p numeric) returns bytea language plpgsql immutable as $$
-- The shortest form, which is unique for each integer.
begin
    if p between -32 and 127 then
        return substr(int2send(p::smallint), 2);
    end if;
    if p >= 0 then
        return case
            when p < 256 then '\xcc'::bytea || substr(int2send(p::smallint), 2)
            when p < 65536 then '\xcd'::bytea || substr(int4send(p::integer), 3)
            when p < 4294967296 then '\xce'::bytea || substr(int8send(p::bigint), 5)
            when p < 9223372036854775808 then '\xcf'::bytea || int8send(p::bigint)
            else '\xcf'::bytea || int8send((p - 18446744073709551616)::bigint)
        end;
    end if;
    return case
        when p >= -128 then '\xd0'::bytea || substr(int2send(p::smallint), 2)
        when p >= -32768 then '\xd1'::bytea || int2send(p::smallint)
        when p >= -2147483648 then '\xd2'::bytea || int4send(p::integer)
        else '\xd3'::bytea || int8send(p::bigint)
    end;
end $$;
