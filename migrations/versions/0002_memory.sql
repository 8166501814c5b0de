-- The memory that programs use: items and their search, the work board, quarantine, human requests.
-- No function or default asks for the time: it is an argument.

-- What a tenant holds, for the choice of a search plan. One narrow row; half-empty pages keep its updates cheap.
create table infold.tenants (
    tenant     bytea primary key,
    passages   integer not null default 0,
    embedded   integer not null default 0,
    created_at timestamptz not null
) with (fillfactor = 50);

-- A named session: its counters. `id` is a keyed hash of the name, so nobody has to look it up.
create table infold.states (
    tenant         bytea not null,
    id             uuid not null,
    name           text not null,
    model          text not null default '',
    tokens         bigint not null default 0,   -- of the active items, in full
    used           bigint not null default 0,   -- of the active items, each in its form
    embedded       integer not null default 0,  -- vectors of this session's items
    input_tokens   bigint not null default 0,
    output_tokens  bigint not null default 0,
    cost_usd       double precision not null default 0,
    compressions   bigint not null default 0,
    decompressions bigint not null default 0,
    cache_hits     bigint not null default 0,
    untidied       integer not null default 0,  -- items added since the last hygiene
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    primary key (tenant, id)
) with (fillfactor = 50);
create index states_time on infold.states (tenant, created_at, id);

create table infold.items (
    tenant         bytea not null,
    id             uuid not null,
    session        uuid not null,
    shared         boolean not null,
    status         smallint not null default 0 check (status between 0 and 2),  -- active, archived, quarantined
    form           smallint not null default 0 check (form between 0 and 3),    -- full, summary, hint, none
    priority       smallint not null default 0 check (priority between 0 and 10),
    pinned         boolean not null default false,
    auto_compress  boolean not null default true,
    content_type   text not null,
    digest         bytea not null,             -- of the text: finds what a quarantine seals
    content        text not null,
    summary        text,                       -- null: the first 500 characters of the content
    tokens         integer not null,
    summary_tokens integer not null,
    access_count   integer not null default 0,
    last_accessed  timestamptz not null,
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    metadata       text,                       -- JSON; null: {}
    primary key (tenant, id)
) with (fillfactor = 95);
-- Large ones are read back whole, without unpacking.
alter table infold.items alter column content set storage external;
create index items_session on infold.items (tenant, session, created_at, id);
-- What stands in the prompt, and what all sessions see: few, however many items there are.
create index items_standing on infold.items (tenant, session) where status = 0 and form < 3;
create index items_shared on infold.items (tenant, created_at, id) where shared;

-- What is searched by words. A term is a 32-bit hash keyed by the tenant, so a posting list is one tenant's own.
create table infold.passages (
    tenant   bytea not null,
    item     uuid not null,
    ordinal  integer not null,
    session  uuid not null,              -- nil for shared items
    kind     integer not null,           -- hash of the content type
    live     boolean not null default true,  -- false: archived
    start    integer not null,           -- characters of the item's content
    stop     integer not null,
    length   integer not null,           -- words
    terms    integer[] not null,         -- distinct, keyed hashes
    primary key (tenant, item, ordinal)
);
create index passages_terms on infold.passages using gin (terms) with (fastupdate = off);

-- What is searched by meaning. Written once, by a job, so no row is written twice.
create table infold.vectors (
    tenant    bytea not null,
    item      uuid not null,
    ordinal   integer not null,
    space     integer not null,          -- hash of the embedder's name; spaces never mix
    session   uuid not null,             -- nil for shared items
    kind      integer not null,
    live      boolean not null default true,
    embedding halfvec(384) not null,
    segments  halfvec(384)[],            -- up to three, of a passage that speaks of several things: the nearest counts
    stops     integer[],                 -- characters of the passage at which each of them ends
    bits      bit(384) not null,         -- the signs of the first segment, or of the whole
    bits_2    bit(384),
    bits_3    bit(384),
    primary key (tenant, item, space, ordinal)
);
alter table infold.vectors alter column embedding set storage plain, alter column segments set storage plain;
create index vectors_bits on infold.vectors (tenant, space, session)
    include (kind, live, item, ordinal, bits, bits_2, bits_3);
create index vectors_graph on infold.vectors using hnsw (embedding halfvec_cosine_ops)
    with (m = 12, ef_construction = 96);

create table infold.tasks (
    tenant         bytea not null,
    id             uuid not null,
    session        uuid not null,
    title          text not null,
    description    text not null default '',
    status         text not null default 'pending'
                   check (status in ('pending', 'in_progress', 'completed', 'cancelled')),
    priority       smallint not null default 0 check (priority between 0 and 10),
    assigned_agent text,
    progress       double precision not null default 0 check (progress between 0 and 100),
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    completed_at   timestamptz,
    metadata       text,
    primary key (tenant, id)
);
create index tasks_session on infold.tasks (tenant, session, priority desc, created_at desc);

create table infold.dependencies (
    tenant bytea not null,
    task   uuid not null,
    needs  uuid not null,
    place  integer not null,
    primary key (tenant, task, needs),
    foreign key (tenant, task) references infold.tasks on delete cascade,
    foreign key (tenant, needs) references infold.tasks on delete cascade,
    check (task <> needs)
);
create index dependencies_needs on infold.dependencies (tenant, needs);

create table infold.agents (
    tenant       bytea not null,
    id           uuid not null,
    session      uuid not null,
    name         text not null,
    type         text not null,
    capabilities text[] not null,
    tools        text[] not null default '{}',
    is_active    boolean not null default true,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    metadata     text,
    primary key (tenant, id)
);
create index agents_session on infold.agents (tenant, session, created_at desc);

create table infold.human_requests (
    tenant      bytea not null,
    id          uuid not null,
    session     uuid not null,
    question    text not null,
    response    text,
    status      text not null default 'pending' check (status in ('pending', 'answered', 'expired')),
    priority    smallint not null default 0 check (priority between 0 and 10),
    created_at  timestamptz not null,
    answered_at timestamptz,
    expires_at  timestamptz not null,
    metadata    text,
    primary key (tenant, id)
);
create index human_requests_pending on infold.human_requests (tenant, session, priority desc, created_at)
    where status = 'pending';
create index human_requests_expiry on infold.human_requests (expires_at) where status = 'pending';

create table infold.quarantine (
    tenant       bytea not null,
    id           uuid not null,
    thread       text not null,            -- thread_ and 128 random bits
    session      uuid not null,
    state        text not null check (state in ('proposed', 'isolated', 'released')),
    context_type text not null,
    reason       text not null,
    content      text not null,
    tokens       integer not null,
    items        uuid[] not null default '{}',   -- of ours, that it took away
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    metadata     text,
    primary key (tenant, id)
);
create unique index quarantine_thread on infold.quarantine (tenant, thread);
create index quarantine_session on infold.quarantine (tenant, session, created_at desc);

-- What may not be told, quoted, embedded or exported: digests of messages and of texts.
create table infold.seals (
    tenant bytea not null,
    digest bytea not null,
    thread text not null,
    primary key (tenant, digest, thread)
);

-- Who did what; ids and counts, never content. No update, no delete.
create table infold.audit (
    tenant  bytea not null,
    id      uuid not null,
    at      timestamptz not null,
    actor   text not null,                 -- "key:1a2b3c4d", "local", "job", "cli"
    action  text not null,                 -- "quarantine.read", "quarantine.release", "erase", "import", ...
    target  text not null,
    detail  text,                          -- JSON of numbers
    primary key (tenant, id)
);

-- Small events for whoever listens; kept for a day.
create table infold.events (
    tenant  bytea not null,
    id      uuid not null,                 -- version 7: sorts by time
    session text,
    kind    text not null,
    data    text not null,                 -- JSON of ids and numbers
    at      timestamptz not null,
    primary key (tenant, id)
);
create index events_time on infold.events (at);

-- What a turn cost and would have cost: one narrow row an attempt.
create table infold.usage (
    tenant        bytea not null,
    attempt       uuid not null,
    at            timestamptz not null,
    session       text not null,
    model         text not null,
    input_tokens  bigint not null default 0,
    cached_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    cost_usd      double precision,
    direct_usd    double precision,
    own_usd       double precision not null default 0,   -- what our own calls of models cost
    primary key (tenant, attempt)
);
create index usage_time on infold.usage (tenant, at);

-- Which tenants have something to tidy: ids alone, like the queue, so no row-level security.
create table infold.calendar (
    tenant bytea primary key,
    tidied timestamptz
);
grant select, insert, update, delete on infold.calendar to infold_app;

do $$
declare name text;
begin
    foreach name in array array['tenants', 'states', 'items', 'passages', 'vectors', 'tasks', 'dependencies', 'agents',
                                'human_requests', 'quarantine', 'seals', 'audit', 'events', 'usage'] loop
        execute format('alter table infold.%I enable row level security', name);
        if name not in ('passages', 'human_requests', 'events') then  -- see infold.words, infold.overdue
            execute format('alter table infold.%I force row level security', name);
        end if;
        -- The subselect is asked once a query, not once a row.
        execute format($policy$create policy tenant on infold.%I
            using (tenant = (select decode(current_setting('infold.tenant', true), 'hex')))
            with check (tenant = (select decode(current_setting('infold.tenant', true), 'hex')))$policy$, name);
        if name = 'audit' then
            execute format('grant select, insert on infold.%I to infold_app', name);
        else
            execute format('grant select, insert, update, delete on infold.%I to infold_app', name);
        end if;
    end loop;
end $$;

-- Sets the tenant and makes its rows of counters. Called first by every function below that writes.
create function infold.enter(p_tenant bytea, p_session uuid, p_name text, p_model text, p_now timestamptz) returns void
language plpgsql as $$
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true), set_config('lock_timeout', '5s', true);
    if p_name is not null
    and not exists (select from infold.states s where s.tenant = p_tenant and s.id = p_session) then
        insert into infold.tenants (tenant, created_at) values (p_tenant, p_now) on conflict do nothing;
        insert into infold.calendar (tenant) values (p_tenant) on conflict do nothing;
        insert into infold.states (tenant, id, name, model, created_at, updated_at)
            values (p_tenant, p_session, p_name, p_model, p_now, p_now) on conflict do nothing;
    end if;
end $$;

-- One item by its id, counted as read. A counter is not worth waiting for the disk.
-- Any of the tenant's: an id is enough. A quarantined item is nobody's.
create function infold.retrieve_item(p_tenant bytea, p_id uuid, p_full boolean, p_now timestamptz, p_count boolean)
returns setof infold.items language plpgsql as $$
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    if not p_count then
        return query select * from infold.items i where i.tenant = p_tenant and i.id = p_id and i.status <> 2;
        return;
    end if;
    perform set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '5s', true);
    return query update infold.items i set access_count = i.access_count + 1, last_accessed = p_now
        where i.tenant = p_tenant and i.id = p_id and i.status <> 2 returning i.*;
    update infold.states s set decompressions = s.decompressions + p_full::integer,
                               cache_hits = s.cache_hits + (not p_full)::integer
        where s.tenant = p_tenant
        and s.id = (select i.session from infold.items i where i.tenant = p_tenant and i.id = p_id and i.status <> 2);
end $$;

-- Items by id in one round trip, without counting; without `p_content` the first 500 characters stand for it.
create function infold.load_items(p_tenant bytea, p_ids uuid[], p_content boolean) returns setof infold.items
language plpgsql as $$
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    return query select i.tenant, i.id, i.session, i.shared, i.status, i.form, i.priority, i.pinned, i.auto_compress,
                        i.content_type, i.digest, case when p_content then i.content else left(i.content, 500) end,
                        i.summary, i.tokens, i.summary_tokens, i.access_count, i.last_accessed, i.created_at, i.updated_at,
                        i.metadata
        from infold.items i where i.tenant = p_tenant and i.id = any(p_ids) and i.status <> 2;
end $$;

-- Vectors of an item; again changes nothing. Nothing is written for an item that is gone or in quarantine.
--   p_segments, p_stops: of all passages, one after the other; p_counts: how many each has, 0 to 3.
create function infold.save_vectors(
    p_tenant bytea, p_item uuid, p_space integer, p_kind integer, p_ordinals integer[], p_vectors halfvec[],
    p_segments halfvec[], p_stops integer[], p_counts integer[]
) returns integer language plpgsql as $$
declare owner infold.items; written integer;
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true), set_config('lock_timeout', '5s', true);
    select * into owner from infold.items i
        where i.tenant = p_tenant and i.id = p_item and i.status <> 2 for share;  -- a quarantine waits, then deletes
    if not found then return 0; end if;
    insert into infold.vectors
        (tenant, item, ordinal, space, session, kind, live, embedding, segments, stops, bits, bits_2, bits_3)
        select p_tenant, p_item, new.ordinal, p_space,
               case when owner.shared then '00000000-0000-0000-0000-000000000000'::uuid else owner.session end,
               p_kind, owner.status = 0, new.vector, parts.segments, parts.stops,
               binary_quantize(coalesce(parts.segments[1], new.vector))::bit(384),
               binary_quantize(parts.segments[2])::bit(384), binary_quantize(parts.segments[3])::bit(384)
        from (select *, sum(counted) over (order by place)::integer as until
              from unnest(p_ordinals, p_vectors, p_counts) with ordinality as one (ordinal, vector, counted, place)) new
        left join lateral (select p_segments[new.until - new.counted + 1 : new.until] as segments,
                                  p_stops[new.until - new.counted + 1 : new.until] as stops) parts on new.counted > 0
        on conflict do nothing;
    get diagnostics written = row_count;
    update infold.tenants t set embedded = t.embedded + written where t.tenant = p_tenant;
    update infold.states s set embedded = s.embedded + written where s.tenant = p_tenant and s.id = owner.session;
    return written;
end $$;

-- How far a passage is from a query: its nearest segment, or the whole where it has none.
create function infold.nearest(p_whole halfvec, p_segments halfvec[], p_query halfvec) returns double precision
language sql immutable parallel safe
return coalesce(least(p_segments[1] <=> p_query, p_segments[2] <=> p_query, p_segments[3] <=> p_query),
                p_whole <=> p_query);

-- Passages that hold the rarest words of a query, by BM25, and with each row in how many passages of the tenant each term
-- stands, in the order of p_terms: a sample cannot tell a word that stands once from one that stands fifty times.
-- As the owner, because `@>` is not leakproof: under row-level security PostgreSQL would ask the policy first, row by row,
-- and never use the index (so `passages` has no FORCE). It gives ids and counts alone, refuses any tenant but the
-- transaction's own, and its caller reads the rows under the policy.
create function infold.words(p_tenant bytea, p_scope uuid[], p_kinds integer[], p_archived boolean, p_terms integer[],
                             p_passages integer, p_average real, p_k integer)
returns table (item uuid, ordinal integer, having_terms integer[]) language plpgsql stable security definer
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
            from unnest(p_terms) with ordinality as w (term, place) left join postings p using (place) group by w.place),
        weighed as (
            select place, ln(1 + (greatest(p_passages, passages) - passages + 0.5) / (passages + 0.5)) as weight
            from counted)
        select p.item, p.ordinal, (select array_agg(c.passages order by c.place) from counted c)
        from postings p join weighed w using (place)
        where (p_scope is null or p.session = any(p_scope)) and (p_kinds is null or p.kind = any(p_kinds))
        and (p.live or p_archived)
        group by p.item, p.ordinal, p.length
        order by sum(w.weight * 2.2 / (1 + 1.2 * (0.6 + 0.4 * p.length / p_average))) desc
        limit p_k;
end $$;

-- The first round trip of a search, beside the embedding of the query.
create function infold.find_words(p_tenant bytea, p_scope uuid[], p_kinds integer[], p_archived boolean,
                                  p_terms integer[], p_passages integer, p_average real, p_k integer)
returns table (item uuid, ordinal integer, having_terms integer[]) language plpgsql as $$
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    return query
        select * from infold.words(p_tenant, p_scope, p_kinds, p_archived, p_terms, p_passages, p_average, p_k);
end $$;

-- The second: what is near, and those found by words, each with what the other side says of it: all its terms, and how
-- far its segments are, or the whole where it has none (null without a vector).
--   p_scope: sessions (nil for shared items); null: the whole tenant.   p_query null: by words alone.
-- Small scopes are compared one by one, larger ones by signs first, the largest by the graph, which knows whole passages
-- alone: there a segment counts only once its passage is found.
create function infold.search_items(
    p_tenant bytea, p_scope uuid[], p_kinds integer[], p_archived boolean, p_word_items uuid[],
    p_word_ordinals integer[], p_space integer, p_query halfvec, p_k integer, p_exact integer, p_bits integer
) returns table (item uuid, ordinal integer, start integer, stop integer, length integer, terms integer[],
                 distances double precision[], stops integer[], plan text)
language plpgsql as $$
#variable_conflict use_column
declare
    rows integer := 0; signs bit(384); at text := 'words';
    near_items uuid[] := '{}'; near_ordinals integer[] := '{}';
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    if p_query is not null then
        signs := binary_quantize(p_query)::bit(384);
        if p_scope is null then
            select coalesce(max(t.embedded), 0) into rows from infold.tenants t where t.tenant = p_tenant;
        else  -- shared items are counted under the session that added them, so look first
            select count(*) into rows from (select from infold.vectors v where v.tenant = p_tenant and v.space = p_space
                and v.session = any(p_scope) limit p_exact + 1) as few;
            if rows > p_exact then
                select rows + coalesce(sum(s.embedded), 0) into rows from infold.states s
                where s.tenant = p_tenant and s.id = any(p_scope);
            end if;
        end if;
        at := case when rows <= p_exact then 'exact' when rows <= p_bits then 'bits' else 'graph' end;
    end if;
    -- A condition that may be absent is no condition of an index, so each has a statement of its own.
    if at = 'exact' and p_scope is null then
        select array_agg(n.item), array_agg(n.ordinal) into near_items, near_ordinals from (
            select v.item, v.ordinal from infold.vectors v
            where v.tenant = p_tenant and v.space = p_space
            and (p_kinds is null or v.kind = any(p_kinds)) and (v.live or p_archived)
            order by infold.nearest(v.embedding, v.segments, p_query) limit p_k) n;
    elsif at = 'exact' then
        select array_agg(n.item), array_agg(n.ordinal) into near_items, near_ordinals from (
            select v.item, v.ordinal from infold.vectors v
            where v.tenant = p_tenant and v.space = p_space and v.session = any(p_scope)
            and (p_kinds is null or v.kind = any(p_kinds)) and (v.live or p_archived)
            order by infold.nearest(v.embedding, v.segments, p_query) limit p_k) n;
    elsif at = 'bits' and p_scope is null then
        select array_agg(n.item), array_agg(n.ordinal) into near_items, near_ordinals from (
            select c.item, c.ordinal from (
                select v.item, v.ordinal from infold.vectors v
                where v.tenant = p_tenant and v.space = p_space
                and (p_kinds is null or v.kind = any(p_kinds)) and (v.live or p_archived)
                order by least(v.bits <~> signs, v.bits_2 <~> signs, v.bits_3 <~> signs) limit 4 * p_k) c
            join infold.vectors v
            on v.tenant = p_tenant and v.item = c.item and v.space = p_space and v.ordinal = c.ordinal
            order by infold.nearest(v.embedding, v.segments, p_query) limit p_k) n;
    elsif at = 'bits' then
        select array_agg(n.item), array_agg(n.ordinal) into near_items, near_ordinals from (
            select c.item, c.ordinal from (
                select v.item, v.ordinal from infold.vectors v
                where v.tenant = p_tenant and v.space = p_space and v.session = any(p_scope)
                and (p_kinds is null or v.kind = any(p_kinds)) and (v.live or p_archived)
                order by least(v.bits <~> signs, v.bits_2 <~> signs, v.bits_3 <~> signs) limit 4 * p_k) c
            join infold.vectors v
            on v.tenant = p_tenant and v.item = c.item and v.space = p_space and v.ordinal = c.ordinal
            order by infold.nearest(v.embedding, v.segments, p_query) limit p_k) n;
    elsif at = 'graph' then
        perform set_config('hnsw.ef_search', least(1000, greatest(120, p_k))::text, true),  -- pgvector takes no more
                set_config('hnsw.iterative_scan', 'relaxed_order', true),
                set_config('enable_sort', 'off', true), set_config('enable_seqscan', 'off', true);
        select array_agg(n.item), array_agg(n.ordinal) into near_items, near_ordinals from (
            select v.item, v.ordinal from infold.vectors v
            where v.tenant = p_tenant and v.space = p_space and (p_scope is null or v.session = any(p_scope))
            and (p_kinds is null or v.kind = any(p_kinds)) and (v.live or p_archived)
            order by v.embedding <=> p_query limit p_k) n;
        perform set_config('enable_sort', 'on', true), set_config('enable_seqscan', 'on', true);
    end if;
    return query
    with both_sides as (
        select w.item, w.ordinal from unnest(p_word_items, p_word_ordinals) as w (item, ordinal)
        union select n.item, n.ordinal from unnest(near_items, near_ordinals) as n (item, ordinal)
    )
    select p.item, p.ordinal, p.start, p.stop, p.length, p.terms,
           case when v.segments is null then array[v.embedding <=> p_query]
           else array[v.segments[1] <=> p_query, v.segments[2] <=> p_query, v.segments[3] <=> p_query] end, v.stops, at
    from both_sides b
    join infold.passages p on p.tenant = p_tenant and p.item = b.item and p.ordinal = b.ordinal
    left join infold.vectors v
    on v.tenant = p_tenant and v.item = b.item and v.space = p_space and v.ordinal = b.ordinal;
end $$;

-- Tenants that have questions whose time is over, or events older than p_oldest. As the owner, who alone sees all tenants
-- (so the two tables have no FORCE); it gives ids alone, as infold.calendar does.
create function infold.overdue(p_now timestamptz, p_oldest timestamptz) returns table (tenant bytea)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select h.tenant from infold.human_requests h where h.status = 'pending' and h.expires_at <= p_now
    union
    select e.tenant from infold.events e where e.at < p_oldest
$$;

-- How many questions wait for an answer, of all tenants: a number for an operator.
create function infold.questions_pending(p_now timestamptz) returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select count(*) from infold.human_requests h where h.status = 'pending' and h.expires_at > p_now
$$;
revoke execute on function infold.words, infold.overdue, infold.questions_pending from public;
grant execute on all functions in schema infold to infold_app;
