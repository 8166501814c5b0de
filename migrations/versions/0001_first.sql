-- The first schema. Everything lives in `infold`; the tenant is in every key, so tables distribute by it.

create table infold.secrets (
    name  text primary key,
    value bytea not null
);

-- A conversation is a path in a tree of messages; a node names a message after its ancestors.
create table infold.nodes (
    tenant     bytea not null,
    node       bytea not null,
    parent     bytea,                      -- null: the first message of a history
    continues  bytea,                      -- for a first message: the node after which the client cut its history
    depth      integer not null,           -- 0 for a first message
    session    text not null,
    sent       boolean not null,           -- the client sent it; false: so far only answered by the provider
    role       text not null,
    digest     bytea not null,             -- of the content alone, without ancestors
    raw        bytea not null,             -- the message as it was sent: bytea holds NUL and lone surrogates, too
    tokens     integer not null,
    created_at timestamptz not null default now(),
    primary key (tenant, node)
);
-- The tenant comes last: with it first, each of these would do for a search by node, too, and a planner that has no
-- statistics yet takes one that reads all of a tenant's rows.
create index nodes_parent on infold.nodes (parent, tenant);
create index nodes_digest on infold.nodes (digest, tenant);
create index nodes_session on infold.nodes (session, depth, tenant);

create table infold.sessions (
    tenant     bytea not null,
    id         text not null,
    label      text,                       -- X-Session-Id, where the client names its session
    created_at timestamptz not null default now(),
    primary key (tenant, id)
);
create index sessions_label on infold.sessions (tenant, label) where label is not null;

-- A turn: what was asked at a node. Each upstream call for it is an attempt.
create table infold.turns (
    tenant     bytea not null,
    node       bytea not null,             -- the newest message asked
    session    text not null,
    model      text not null,
    status     text not null check (status in ('open', 'answered', 'partial', 'failed')),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant, node)
);
create index turns_time on infold.turns (tenant, created_at);

create table infold.attempts (
    tenant     bytea not null,
    id         uuid not null,
    node       bytea not null,
    status     text not null,
    answers    bytea[] not null default '{}',
    record     bytea not null,             -- JSON: plan, numbers, usage, cost; bytea because titles may hold NUL
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (tenant, id)
);
create index attempts_turn on infold.attempts (tenant, node);

-- Frozen prompts and re-injected blocks hang on the node where they were made.
create table infold.folds (
    tenant     bytea not null,
    node       bytea not null,
    kind       text not null check (kind in ('frozen', 'block')),
    depth      integer not null,
    data       bytea not null,
    created_at timestamptz not null default now(),
    primary key (tenant, node, kind)
);

create table infold.chunks (
    tenant     bytea not null,
    node       bytea not null,
    space      text not null,              -- the embedder that made the vector; spaces never mix
    ordinal    integer not null,
    start      integer not null,           -- characters of the message's text
    stop       integer not null,
    embedding  halfvec(384) not null,
    primary key (tenant, node, space, ordinal)
);

do $$
declare name text;
begin
    foreach name in array array['nodes', 'sessions', 'turns', 'attempts', 'folds', 'chunks'] loop
        execute format('alter table infold.%I enable row level security', name);
        execute format('alter table infold.%I force row level security', name);
        execute format($policy$create policy tenant on infold.%I
            using (tenant = decode(current_setting('infold.tenant', true), 'hex'))
            with check (tenant = decode(current_setting('infold.tenant', true), 'hex'))$policy$, name);
        execute format('grant select, insert, update, delete on infold.%I to infold_app', name);
    end loop;
end $$;
grant usage on schema infold to infold_app;
grant select on infold.secrets to infold_app;
grant select on infold.alembic_version to infold_app;

-- What we know of a line of conversation: its deepest known node, the node after which the client cut its history,
-- the newest frozen prompts, and the blocks made about then and since. Looks from the newest message back: what it wants is near.
create function infold.find_line(p_tenant bytea, p_nodes bytea[])
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
        from infold.folds f where f.tenant = p_tenant and f.node = any(p_nodes[since:known]) and f.kind = 'block';
end $$;

-- The node after which a client cut its history. Its request must be the end of a line that we know and of no other:
-- all but its new messages stand there in a row, up to the last answer (which clients alter), at least three with 200
-- bytes of the user's.
-- Else the newest message of the session that it names.
create function infold.find_cut(p_tenant bytea, p_label text, p_digests bytea[], p_roles text[]) returns bytea
language plpgsql as $$
declare found bytea;
begin
    with recursive run as (
        select n.parent as before, n.node, 1 as length,
               case when n.role = 'user' then octet_length(n.raw) else 0 end as bytes
        from infold.nodes n where n.tenant = p_tenant and n.digest = p_digests[1] and n.parent is not null
        union all
        select run.before, n.node, run.length + 1,
               run.bytes + case when n.role = 'user' then octet_length(n.raw) else 0 end
        from run join infold.nodes n
        on n.tenant = p_tenant and n.parent = run.node and n.digest = p_digests[run.length + 1]
    ), ends as (
        select distinct run.before from run
        where run.length >= 3 and run.bytes >= 200 and not ('assistant' = any(p_roles[run.length + 2:]))
        and not exists (
            select from infold.nodes n where n.tenant = p_tenant and n.parent = run.node and n.sent
        )
    )
    select (array_agg(ends.before))[1] into found from ends having count(*) = 1;
    if found is null and p_label is not null then
        select n.node into found from infold.sessions s join infold.nodes n
        on n.tenant = s.tenant and n.session = s.id and n.depth >= 0
        where s.tenant = p_tenant and s.label = p_label order by n.created_at desc, n.depth desc limit 1;
    end if;
    return found;
end $$;

-- Write new messages of a line; the first one's parent is known or null. Gives the session they belong to.
-- A line goes on in its session until another message the client sent hangs on the same node: then it forks.
-- System messages stand outside the tree, at depth -1, behind the line's messages.
create function infold.save_nodes(
    p_tenant bytea, p_label text, p_nodes bytea[], p_parents bytea[], p_depths integer[], p_sent boolean[],
    p_roles text[], p_digests bytea[], p_raws bytea[], p_tokens integer[], p_session text
) returns text language plpgsql as $$
declare line text; above bytea := p_parents[1]; cut bytea; begins boolean := false;
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    if cardinality(p_nodes) = 0 then return p_session; end if;
    if p_depths[1] >= 0 then
        select n.session into line from infold.nodes n where n.tenant = p_tenant and n.node = p_nodes[1];
        if line is null and p_depths[1] = 0 and (cardinality(p_digests) >= 3 or p_label is not null) then
            cut := infold.find_cut(
                p_tenant, p_label,
                array(select asked.digest from unnest(p_digests, p_sent) as asked (digest, sent) where asked.sent),
                array(select asked.role from unnest(p_roles, p_sent) as asked (role, sent) where asked.sent)
            );
            above := cut;
        end if;
        if line is null and above is not null then
            select n.session into line from infold.nodes n
            where n.tenant = p_tenant and n.node = above and (cut is not null or not p_sent[1] or not exists (
                select from infold.nodes other
                where other.tenant = p_tenant and other.parent = above and other.sent and other.session = n.session
            ));
        end if;
        begins := line is null;
    end if;
    line := coalesce(line, p_session);
    if begins or p_label is not null then
        insert into infold.sessions (tenant, id, label) values (p_tenant, line, p_label)
            on conflict (tenant, id) do update set label = coalesce(excluded.label, infold.sessions.label);
    end if;
    insert into infold.nodes (tenant, node, parent, continues, depth, session, sent, role, digest, raw, tokens)
        select distinct on (node) p_tenant, node, parent, case when depth = 0 then cut end, depth,
            case when depth < 0 then '' else line end, sent, role, digest, raw, tokens
        from unnest(p_nodes, p_parents, p_depths, p_sent, p_roles, p_digests, p_raws, p_tokens)
            as new (node, parent, depth, sent, role, digest, raw, tokens)
        on conflict (tenant, node) do update set sent = true where not infold.nodes.sent and excluded.sent;
    if p_sent[1] and p_parents[1] is not null then
        update infold.nodes set sent = true where tenant = p_tenant and node = p_parents[1] and not sent;
    end if;
    return line;
end $$;

-- The queue: PgQueuer 1.6.0's own schema, as `pgq --schema infold sql install` prints it. It holds only tenant and ids.
CREATE TYPE infold.pgqueuer_status AS ENUM ('queued', 'picked', 'successful', 'exception', 'canceled', 'deleted', 'failed');

CREATE TABLE infold.pgqueuer (
    id bigserial NOT NULL PRIMARY KEY,
    priority integer NOT NULL,
    queue_manager_id uuid,
    created timestamp with time zone NOT NULL DEFAULT now(),
    updated timestamp with time zone NOT NULL DEFAULT now(),
    heartbeat timestamp with time zone NOT NULL DEFAULT now(),
    execute_after timestamp with time zone NOT NULL DEFAULT now(),
    status infold.pgqueuer_status NOT NULL,
    entrypoint text NOT NULL,
    dedupe_key text,
    payload bytea,
    headers jsonb,
    attempts integer NOT NULL DEFAULT 0,
    slot bigint
);

CREATE TABLE infold.pgqueuer_log (
    id bigint GENERATED BY DEFAULT AS IDENTITY NOT NULL PRIMARY KEY,
    created timestamp with time zone NOT NULL DEFAULT now(),
    job_id bigint NOT NULL,
    status infold.pgqueuer_status NOT NULL,
    priority integer NOT NULL,
    entrypoint text NOT NULL,
    traceback jsonb,
    aggregated boolean DEFAULT false
);

CREATE TABLE infold.pgqueuer_schedules (
    id bigserial NOT NULL PRIMARY KEY,
    expression text NOT NULL,
    entrypoint text NOT NULL,
    heartbeat timestamp with time zone NOT NULL DEFAULT now(),
    created timestamp with time zone NOT NULL DEFAULT now(),
    updated timestamp with time zone NOT NULL DEFAULT now(),
    next_run timestamp with time zone NOT NULL DEFAULT now(),
    last_run timestamp with time zone,
    status infold.pgqueuer_status DEFAULT 'queued'::infold.pgqueuer_status,
    UNIQUE (expression, entrypoint)
);

CREATE TABLE infold.pgqueuer_statistics (
    id bigserial NOT NULL PRIMARY KEY,
    created timestamp with time zone NOT NULL DEFAULT date_trunc('sec'::text, now()),
    count bigint NOT NULL,
    priority integer NOT NULL,
    status infold.pgqueuer_status NOT NULL,
    entrypoint text NOT NULL
);

CREATE INDEX pgqueuer_ep_ea_idx ON infold.pgqueuer USING btree (entrypoint, execute_after) WHERE (status = 'queued'::infold.pgqueuer_status);

CREATE INDEX pgqueuer_ep_prio_id_idx ON infold.pgqueuer USING btree (entrypoint, priority DESC, id) WHERE (status = 'queued'::infold.pgqueuer_status);

CREATE INDEX pgqueuer_log_created ON infold.pgqueuer_log USING btree (created);

CREATE INDEX pgqueuer_log_job_id_status ON infold.pgqueuer_log USING btree (job_id, created DESC);

CREATE INDEX pgqueuer_log_not_aggregated ON infold.pgqueuer_log USING btree ((1)) WHERE (NOT aggregated);

CREATE INDEX pgqueuer_log_status ON infold.pgqueuer_log USING btree (status);

CREATE INDEX pgqueuer_picked_heartbeat_idx ON infold.pgqueuer USING btree (heartbeat) WHERE (status = 'picked'::infold.pgqueuer_status);

CREATE UNIQUE INDEX pgqueuer_picked_slot_idx ON infold.pgqueuer USING btree (entrypoint, slot) WHERE ((status = 'picked'::infold.pgqueuer_status) AND (slot IS NOT NULL));

CREATE INDEX pgqueuer_priority_id_id1_idx ON infold.pgqueuer USING btree (priority, id DESC) INCLUDE (id) WHERE (status = 'queued'::infold.pgqueuer_status);

CREATE INDEX pgqueuer_queue_manager_id_idx ON infold.pgqueuer USING btree (queue_manager_id) WHERE (queue_manager_id IS NOT NULL);

CREATE UNIQUE INDEX pgqueuer_statistics_unique_count ON infold.pgqueuer_statistics USING btree (priority, date_trunc('sec'::text, timezone('UTC'::text, created)), status, entrypoint);

CREATE UNIQUE INDEX pgqueuer_unique_dedupe_key ON infold.pgqueuer USING btree (dedupe_key) WHERE ((status = ANY (ARRAY['queued'::infold.pgqueuer_status, 'picked'::infold.pgqueuer_status])) AND (dedupe_key IS NOT NULL));

CREATE INDEX pgqueuer_updated_id_id1_idx ON infold.pgqueuer USING btree (updated, id DESC) INCLUDE (id) WHERE (status = 'picked'::infold.pgqueuer_status);

CREATE FUNCTION infold.fn_pgqueuer_changed() RETURNS TRIGGER AS $$
DECLARE
    to_emit BOOLEAN := false;  -- Flag to decide whether to emit a notification
BEGIN
    -- Check operation type and set the emit flag accordingly
    IF TG_OP = 'UPDATE' AND OLD IS DISTINCT FROM NEW THEN
        to_emit := true;
    ELSIF TG_OP = 'DELETE' THEN
        to_emit := true;
    ELSIF TG_OP = 'INSERT' THEN
        to_emit := true;
    ELSIF TG_OP = 'TRUNCATE' THEN
        to_emit := true;
    END IF;

    -- Perform notification if the emit flag is set
    IF to_emit THEN
        PERFORM pg_notify(
            'ch_pgqueuer',
            json_build_object(
                'channel', 'ch_pgqueuer',
                'operation', lower(TG_OP),
                'sent_at', NOW(),
                'table', TG_TABLE_NAME,
                'type', 'table_changed_event'
            )::text
        );
    END IF;

    -- Return appropriate value based on the operation
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' THEN
        RETURN OLD;
    ELSE
        RETURN NULL; -- For TRUNCATE and other non-row-specific contexts
    END IF;

END;
$$ LANGUAGE plpgsql;

CREATE TRIGGER tg_pgqueuer_changed
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON infold.pgqueuer
EXECUTE FUNCTION infold.fn_pgqueuer_changed();
grant select, insert, update, delete on infold.pgqueuer, infold.pgqueuer_log, infold.pgqueuer_schedules,
    infold.pgqueuer_statistics to infold_app;
grant usage on all sequences in schema infold to infold_app;

-- One round trip for a turn: its new messages, its attempt, what was frozen for it, and the jobs that follow.
-- Written again with the same ids it changes nothing: a turn is answered once, an attempt counts once.
create function infold.record_turn(
    p_tenant bytea, p_label text, p_nodes bytea[], p_parents bytea[], p_depths integer[], p_sent boolean[],
    p_roles text[], p_digests bytea[], p_raws bytea[], p_tokens integer[], p_session text,
    p_turn bytea, p_attempt uuid, p_status text, p_model text, p_answers bytea[], p_record bytea,
    p_fold_nodes bytea[], p_fold_kinds text[], p_fold_depths integer[], p_folds bytea[],
    p_jobs text[], p_relaxed boolean
) returns text language plpgsql as $$
declare line text;
begin
    if p_relaxed then perform set_config('synchronous_commit', 'off', true); end if;
    line := infold.save_nodes(p_tenant, p_label, p_nodes, p_parents, p_depths, p_sent, p_roles, p_digests, p_raws,
                              p_tokens, p_session);
    if cardinality(p_nodes) = 0 or p_depths[1] < 0 then  -- every message of the line is known
        select coalesce(max(n.session), p_session) into line from infold.nodes n
        where n.tenant = p_tenant and n.node = p_turn;
    end if;
    if not exists (select from infold.nodes n where n.tenant = p_tenant and n.node = p_turn) then
        raise exception 'the message asked is not stored' using errcode = 'foreign_key_violation';
    end if;
    insert into infold.turns (tenant, node, session, model, status) values (p_tenant, p_turn, line, p_model, p_status)
        on conflict (tenant, node) do update set updated_at = now(), status = case
            when infold.turns.status = 'answered' or excluded.status = 'open' then infold.turns.status
            else excluded.status end;
    insert into infold.attempts (tenant, id, node, status, answers, record)
        values (p_tenant, p_attempt, p_turn, p_status, p_answers, p_record)
        on conflict (tenant, id) do update
            set updated_at = now(), status = excluded.status, answers = excluded.answers, record = excluded.record
            where excluded.status <> 'open';
    if cardinality(p_folds) > 0 then
        insert into infold.folds (tenant, node, kind, depth, data)
            select p_tenant, node, kind, depth, data
            from unnest(p_fold_nodes, p_fold_kinds, p_fold_depths, p_folds) as new (node, kind, depth, data)
            on conflict do nothing;
    end if;
    if cardinality(p_jobs) > 0 then  -- the queue wakes its workers for every statement, also for one without rows
        insert into infold.pgqueuer (priority, entrypoint, payload, status, dedupe_key)
            select 0, job, convert_to(encode(p_tenant, 'hex') || ' ' || encode(p_turn, 'hex'), 'utf8'), 'queued',
                   job || ' ' || encode(p_tenant, 'hex') || ' ' || line
            from unnest(p_jobs) as job
            on conflict do nothing;
    end if;
    return line;
end $$;
grant execute on all functions in schema infold to infold_app;
