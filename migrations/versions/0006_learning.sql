-- A small model that learns from conversations: who allows it, what may be learnt, what was trained, what reads.
-- No function or default asks for the time: it is an argument.

-- Tenants that were asked whether a model may learn from what they say, and how the bare model reads for them.
create table infold.learners (
    tenant     bytea primary key,
    enabled    boolean not null,
    since      timestamptz not null,            -- what was said before is not learnt from
    scanned_at timestamptz not null,            -- turns before it have been looked at
    asked      bigint not null default 0,
    accepted   bigint not null default 0,
    recent     text not null default '',        -- what became of its newest answers: 1 held, 0 did not
    updated_at timestamptz not null
) with (fillfactor = 50);

-- One row a message; whether it may be learnt from is decided once, when the row is written.
create table infold.samples (
    tenant     bytea not null,
    node       bytea not null,
    session    text not null,
    digest     bytea not null,                  -- of the message's content, as in nodes and seals
    importance smallint not null,               -- facts in it, at most 10
    reason     text not null check (reason in ('', 'quarantined', 'secret', 'provider', 'tool', 'empty')),
    decided_at timestamptz not null,
    primary key (tenant, node)
);
create index samples_digest on infold.samples (digest, tenant);
create index samples_time on infold.samples (tenant, decided_at) where reason = '';

create table infold.trainings (
    tenant    bytea not null,
    id        uuid not null,
    state     text not null check (state in ('queued', 'running', 'done', 'refused', 'failed', 'stopped')),
    why       text not null check (why in ('manual', 'conversations', 'hours', 'importance')),
    force     boolean not null default false,   -- also with too few samples, or a model too large for a processor
    recipe    text not null default '',         -- JSON
    seed      bigint not null default 0,
    samples   integer not null default 0,
    tries     integer not null default 0,       -- how often a trainer was started for it
    metrics   text not null default '{}',       -- JSON of numbers
    error     text,
    queued_at timestamptz not null,
    begun_at  timestamptz,
    ended_at  timestamptz,
    primary key (tenant, id)
);
create unique index trainings_open on infold.trainings (tenant) where state in ('queued', 'running');
create index trainings_time on infold.trainings (tenant, queued_at desc);

-- An adapter has the id of its training.
create table infold.adapters (
    tenant       bytea not null,
    id           uuid not null,
    number       integer,                       -- of its folder, once it is published
    base         text not null,                 -- hash of the base model, in its quantization
    quantization text not null,
    state        text not null check (state in ('training', 'trained', 'evaluated', 'canary', 'active', 'retired',
                                                'refused', 'stale')),
    folder       text,                          -- below the data directory; null: there is none (any more)
    served       boolean not null default false,  -- an engine has loaded it
    verdict      text,                          -- JSON: the gate's table
    error        text,
    asked        bigint not null default 0,
    accepted     bigint not null default 0,
    recent       text not null default '',
    standard     double precision,              -- share of answers that held before it, when it was promoted
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (tenant, id)
) with (fillfactor = 50);
create unique index adapters_one_active on infold.adapters (tenant) where state = 'active';
create unique index adapters_one_canary on infold.adapters (tenant) where state = 'canary';

-- The messages that an adapter learns from.
create table infold.adapter_sources (
    tenant  bytea not null,
    node    bytea not null,
    adapter uuid not null,
    digest  bytea not null,
    primary key (tenant, node, adapter)
);
create index adapter_sources_digest on infold.adapter_sources (digest, tenant);
create index adapter_sources_adapter on infold.adapter_sources (adapter, tenant);

-- Who trains, of all processes: one at a time. A holder that no longer renews it has died.
create table infold.leases (
    name   text primary key,
    holder uuid not null,
    until  timestamptz not null
);
-- Folders below the data directory that nobody's row names any more: to be deleted.
create table infold.litter (
    folder text primary key
);
grant select, insert, update, delete on infold.leases, infold.litter to infold_app;

do $$
declare name text;
begin
    foreach name in array array['learners', 'samples', 'trainings', 'adapters', 'adapter_sources'] loop
        execute format('alter table infold.%I enable row level security', name);
        if name in ('samples', 'adapter_sources') then  -- see infold.learning, infold.trainings_waiting
            execute format('alter table infold.%I force row level security', name);
        end if;
        execute format($policy$create policy tenant on infold.%I
            using (tenant = (select decode(current_setting('infold.tenant', true), 'hex')))
            with check (tenant = (select decode(current_setting('infold.tenant', true), 'hex')))$policy$, name);
        execute format('grant select, insert, update, delete on infold.%I to infold_app', name);
    end loop;
end $$;

-- Tenants that allow learning, or still have an adapter's folder. As the owner, who alone sees all tenants; it gives ids
-- alone, as infold.calendar does.
create function infold.learning() returns table (tenant bytea)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select l.tenant from infold.learners l where l.enabled
    union
    select a.tenant from infold.adapters a where a.folder is not null or a.served
$$;

-- Trainings that wait or were begun, the oldest first; ids alone.
create function infold.trainings_waiting() returns table (tenant bytea, id uuid)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select t.tenant, t.id from infold.trainings t where t.state in ('queued', 'running')
    order by t.state desc, t.queued_at, t.id
$$;
revoke execute on function infold.learning, infold.trainings_waiting from public;

-- What is sealed is learnt from no more, and what has learnt from it is not used from this moment on: whoever seals it.
create function infold.spoil_sealed() returns trigger language plpgsql as $$
begin
    update infold.samples s set reason = 'quarantined' from fresh f
        where s.tenant = f.tenant and s.digest = f.digest and s.reason <> 'quarantined';
    update infold.adapters a set state = 'stale' where a.state not in ('stale', 'refused') and exists (
        select from fresh f join infold.adapter_sources d on d.tenant = f.tenant and d.digest = f.digest
        where d.tenant = a.tenant and d.adapter = a.id);
    return null;
end $$;
create trigger spoil_sealed after insert on infold.seals
    referencing new table as fresh for each statement execute function infold.spoil_sealed();

-- The same of what is deleted.
create function infold.spoil_deleted() returns trigger language plpgsql as $$
begin
    update infold.adapters a set state = 'stale' where a.state not in ('stale', 'refused') and exists (
        select from gone g join infold.adapter_sources d on d.tenant = g.tenant and d.node = g.node
        where d.tenant = a.tenant and d.adapter = a.id);
    delete from infold.samples s using gone g where s.tenant = g.tenant and s.node = g.node;
    return null;
end $$;
create trigger spoil_deleted after delete on infold.nodes
    referencing old table as gone for each statement execute function infold.spoil_deleted();

-- Folders outlive their rows until somebody who has the data directory deletes them.
create function infold.leave_litter() returns trigger language plpgsql as $$
begin
    if tg_table_name = 'adapters' then
        insert into infold.litter (folder) select g.folder from gone g where g.folder is not null on conflict do nothing;
    else
        insert into infold.litter (folder) select 'trainings/' || g.id from gone g on conflict do nothing;
    end if;
    return null;
end $$;
create trigger leave_litter after delete on infold.adapters
    referencing old table as gone for each statement execute function infold.leave_litter();
create trigger leave_litter after delete on infold.trainings
    referencing old table as gone for each statement execute function infold.leave_litter();
grant execute on all functions in schema infold to infold_app;
