-- What the model asked of the memory before an answer hangs on that answer's node.
alter table infold.folds drop constraint folds_kind_check;
alter table infold.folds add constraint folds_kind_check check (kind in ('frozen', 'block', 'aside'));

-- What is known of a line: how far it is stored, where its client cut it, its newest frozen prompts, and what hangs on
-- its nodes from there on. As before, and asides beside blocks.
create or replace function infold.find_line(p_tenant bytea, p_nodes bytea[])
returns table (kind text, node bytea, depth integer, data bytea, session text, age double precision)
language plpgsql as $$
declare known integer := cardinality(p_nodes); high integer; since integer := 1;
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    loop
        if known = 0 then return; end if;
        return query
            select 'known', n.node, known - 1, null::bytea, n.session, extract(epoch from now() - n.created_at)::float8
            from infold.nodes n where n.tenant = p_tenant and n.node = p_nodes[known];
        exit when found;
        known := known - 1;
    end loop;
    return query
        select 'continues', n.continues, n.depth, null::bytea, null::text, null::float8
        from infold.nodes n where n.tenant = p_tenant and n.node = p_nodes[1] and n.continues is not null;
    high := known;
    while high > 0 loop
        since := greatest(high - 63, 1);
        return query
            select f.kind, f.node, f.depth, f.data, null::text, null::float8
            from infold.folds f
            where f.tenant = p_tenant and f.node = any(p_nodes[since:high]) and f.kind = 'frozen'
            order by f.depth desc limit 4;
        exit when found;
        high := high - 64;
    end loop;
    return query
        select f.kind, f.node, f.depth, f.data, null::text, null::float8
        from infold.folds f where f.tenant = p_tenant and f.node = any(p_nodes[since:known]) and f.kind in ('block', 'aside');
end $$;
