-- A vector tells when it came, by the number of its transaction. Those below the oldest that still runs are over and
-- bring nothing more, so who has read so far asks for the rest. What is here already came first.
alter table infold.vectors add column arrived bigint not null default 0;
alter table infold.vectors alter column arrived set default pg_current_xact_id()::text::bigint;
drop index infold.vectors_bits;
create index vectors_bits on infold.vectors (tenant, space, session, arrived, item, ordinal) with (fillfactor = 100);
-- What is written once, a tenant's in the order of time, leaves no room for what comes later.
alter index infold.vectors_pkey set (fillfactor = 100);
alter index infold.passages_pkey set (fillfactor = 100);
-- Without ids it is a fifth smaller; items of one moment are sorted when they are read.
drop index infold.items_session;
create index items_session on infold.items (tenant, session, created_at);

-- Signs of sessions' live vectors behind a mark of each, in the order in which they came: at most p_most of a session.
--   horizon: what is below has arrived for good.   ahead: no transaction has come so far; what is beyond was restored
--   here from another cluster.
--   heads: of each 16 bytes item, 4 ordinal, 4 kind, 4 how many signs it has, 8 arrived.
--   signs: of each 4 bytes length, 48 bytes.
create function infold.load_signs(
    p_tenant bytea, p_space integer, p_sessions uuid[], p_arrived bigint[], p_items uuid[], p_ordinals integer[],
    p_most integer
) returns table (horizon bigint, ahead bigint, heads bytea, signs bytea) language plpgsql as $$
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    return query
        select pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
               pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
               coalesce(string_agg(
                   uuid_send(v.item) || int4send(v.ordinal) || int4send(v.kind)
                   || int4send(1 + (v.bits_2 is not null)::integer + (v.bits_3 is not null)::integer)
                   || int8send(v.arrived), '' order by v.arrived, v.item, v.ordinal), ''),
               coalesce(string_agg(
                   bit_send(v.bits) || coalesce(bit_send(v.bits_2), '') || coalesce(bit_send(v.bits_3), ''),
                   '' order by v.arrived, v.item, v.ordinal), '')
        from unnest(p_sessions, p_arrived, p_items, p_ordinals) with ordinality
            as mark (session, arrived, item, ordinal, place)
        left join lateral (
            select * from infold.vectors v
            where v.tenant = p_tenant and v.space = p_space and v.session = mark.session and v.live
            and (v.arrived, v.item, v.ordinal) > (mark.arrived, mark.item, mark.ordinal)
            order by v.arrived, v.item, v.ordinal limit p_most) v on true
        group by mark.place order by mark.place;
end $$;

-- As before, in floats, because a numeric costs ten times more, for each passage; weighed as memory/find.py weighs; and
-- of passages that are alike the newest come first, because which did was the planner's choice.
create or replace function infold.words(
    p_tenant bytea, p_scope uuid[], p_kinds integer[], p_archived boolean, p_terms integer[], p_passages integer,
    p_average real, p_k integer
) returns table (item uuid, ordinal integer, having_terms integer[]) language plpgsql stable security definer
set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    if p_tenant is distinct from decode(current_setting('infold.tenant', true), 'hex') then
        raise exception 'another tenant' using errcode = 'insufficient_privilege';
    end if;
    return query
        with postings as materialized (
            select p.item, p.ordinal, p.length, p.session, p.kind, p.live, w.place
            from unnest(p_terms) with ordinality as w (term, place)
            cross join lateral (
                select * from infold.passages p where p.tenant = p_tenant and p.terms @> array[w.term] offset 0) p),
        counted as (
            select w.place, count(p.place)::integer as passages
            from unnest(p_terms) with ordinality as w (term, place) left join postings p using (place)
            group by w.place),
        weighed as (
            select place, ln(1 + (greatest(p_passages, passages) - passages + 0.5::float8)
                                 / (passages + 0.5::float8)) ^ 1.25 as weight
            from counted)
        select p.item, p.ordinal, (select array_agg(c.passages order by c.place) from counted c)
        from postings p join weighed w using (place)
        where (p_scope is null or p.session = any(p_scope)) and (p_kinds is null or p.kind = any(p_kinds))
        and (p.live or p_archived)
        group by p.item, p.ordinal, p.length
        order by sum(w.weight * 2.2::float8
                     / (1 + 1.2::float8 * (0.7::float8 + 0.3::float8 * p.length / p_average))) desc,
                 p.item desc, p.ordinal
        limit p_k;
end $$;

-- How far a passage's segments are from a query, or the whole where it has none.
create function infold.distances(p_whole halfvec, p_segments halfvec[], p_query halfvec) returns double precision[]
language sql immutable parallel safe
return case when p_segments is null then array[p_whole <=> p_query]
       else array[p_segments[1] <=> p_query, p_segments[2] <=> p_query, p_segments[3] <=> p_query] end;

-- The second round trip of a search whose caller keeps the signs of p_scope, as infold.search_items has it.
--   p_near_*: what they say is near, and when it came.
--   still_there: of how many of these. Where it is not all, they stood in the way of others, and infold.search_items
--   knows more.
create function infold.search_kept(
    p_tenant bytea, p_scope uuid[], p_word_items uuid[], p_word_ordinals integer[], p_space integer, p_query halfvec,
    p_k integer, p_near_items uuid[], p_near_ordinals integer[], p_near_arrived bigint[]
) returns table (item uuid, ordinal integer, start integer, stop integer, length integer, terms integer[],
                 distances double precision[], stops integer[], still_there bigint)
language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    return query
    with near as materialized (
        select v.item, v.ordinal, v.stops, infold.distances(v.embedding, v.segments, p_query) as distances
        from unnest(p_near_items, p_near_ordinals, p_near_arrived) as n (item, ordinal, arrived)
        join infold.vectors v
        on v.tenant = p_tenant and v.item = n.item and v.space = p_space and v.ordinal = n.ordinal
        where v.arrived = n.arrived and v.session = any(p_scope) and v.live
    ),
    best as materialized (
        select * from near order by least(distances[1], distances[2], distances[3]) limit p_k
    ),
    both_sides as (
        select * from best
        union all
        select w.item, w.ordinal, v.stops, infold.distances(v.embedding, v.segments, p_query)
        from unnest(p_word_items, p_word_ordinals) as w (item, ordinal)
        left join infold.vectors v
        on v.tenant = p_tenant and v.item = w.item and v.space = p_space and v.ordinal = w.ordinal
        where not exists (select from best b where b.item = w.item and b.ordinal = w.ordinal)
    )
    select p.item, p.ordinal, p.start, p.stop, p.length, p.terms, b.distances, b.stops, (select count(*) from near)
    from both_sides b
    join infold.passages p on p.tenant = p_tenant and p.item = b.item and p.ordinal = b.ordinal;
end $$;
