-- As before, but the tenant is compared with what a term has found: as a condition beside the term it made PostgreSQL read
-- its whole part of the primary key, too, for each term.
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
                select * from infold.passages p where p.terms @> array[w.term] offset 0) p  -- terms are keyed by tenant
            where p.tenant = p_tenant),
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
