-- Quarantine without gaps: what is written beside an isolation, and what comes after it.

alter table infold.tenants add column held bigint not null default 0;  -- how often something was isolated
-- What stands in every writing of the content as JSON, in UTF-8 or escaped to ASCII: a message with all of either
-- holds it. '{}': no such thing.
alter table infold.quarantine add column plain bytea[] not null default '{}',
                              add column escaped bytea[] not null default '{}';

create index quarantine_isolated on infold.quarantine (tenant) where state = 'isolated';

-- Writers of text share this lock, an isolation has it alone: either it finds what they wrote, or they see it.
create function infold.door(p_tenant bytea) returns bigint language sql immutable
return hashtextextended(encode(p_tenant, 'hex'), 3);

-- Threads whose text a message holds. `room`: bytes to search; below 0 afterwards: it was too little, and nothing is
-- known. The longest piece comes first: it is hardly ever there. A thread without seals is about to be released.
create function infold.held_in(p_tenant bytea, p_raw bytea, inout room bigint, out threads text[])
language plpgsql as $$
begin
    if room < 0 then return; end if;
    select room - count(*) * (length(p_raw) + 2000) into room  -- what a thread costs beside its search
        from infold.quarantine q where q.tenant = p_tenant and q.state = 'isolated';
    if room < 0 then return; end if;
    threads := array(
        select q.thread from infold.quarantine q where q.tenant = p_tenant and q.state = 'isolated'
        and (position(q.plain[1] in p_raw) > 0 or position(q.escaped[1] in p_raw) > 0));
    if threads = '{}' then return; end if;
    select room - sum(cardinality(q.plain) + cardinality(q.escaped)) * length(p_raw) into room
        from infold.quarantine q where q.tenant = p_tenant and q.thread = any(threads);
    if room < 0 then return; end if;
    threads := array(
        select q.thread from infold.quarantine q where q.tenant = p_tenant and q.thread = any(threads)
        and exists (select from infold.seals s where s.tenant = p_tenant and s.thread = q.thread)
        and (q.plain <> '{}' and not exists (
                 select from unnest(q.plain) as piece where position(piece in p_raw) = 0)
             or q.escaped <> '{}' and not exists (
                 select from unnest(q.escaped) as piece where position(piece in p_raw) = 0)));
end $$;

-- Messages that come after a text was isolated and hold it are sealed as they come. A commit has room to search 32 MB,
-- some 60 ms; what it has no room for is left to a job.
create function infold.seal_arrivals(p_tenant bytea, p_nodes bytea[], p_digests bytea[], p_raws bytea[]) returns void
language plpgsql as $$
declare room bigint := coalesce(nullif(current_setting('infold.room', true), '')::bigint, 32000000); found text[];
begin
    for n in 1 .. cardinality(p_nodes) loop
        select h.room, h.threads into room, found from infold.held_in(p_tenant, p_raws[n], room) h;
        if room < 0 then
            insert into infold.pgqueuer (priority, entrypoint, payload, status, dedupe_key)
                select 0, 'seal', convert_to(payload, 'utf8'), 'queued', 'seal ' || payload from (
                    select encode(p_tenant, 'hex') || ' ' || encode(node, 'hex') as payload
                    from unnest(p_nodes[n:]) as node) late
                on conflict do nothing;
            exit;
        end if;
        insert into infold.seals (tenant, digest, thread) select p_tenant, p_digests[n], unnest(found)
            on conflict do nothing;
    end loop;
    perform set_config('infold.room', room::text, true);
end $$;

-- Refuses an item's content, or its metadata, that holds a text in quarantine; a short one where it is that text.
create function infold.refuse_held(p_tenant bytea, p_content text, p_metadata text) returns void
language plpgsql as $$
declare blanks text := E' \t\n\r\f\v'; whole text := btrim(p_content, blanks);  -- once, and not for each text
begin
    perform pg_advisory_xact_lock_shared(infold.door(p_tenant));
    if exists (select from infold.tenants t where t.tenant = p_tenant and t.held > 0) and exists (
        select from infold.quarantine q cross join lateral (select btrim(q.content, blanks) as words) t
        where q.tenant = p_tenant and q.state = 'isolated'
        and exists (select from infold.seals s where s.tenant = p_tenant and s.thread = q.thread)
        and (whole = words or length(words) >= 8 and (
            position(words in p_content) > 0 or p_metadata is not null
            and position(substr(to_json(words)::text, 2, length(to_json(words)::text) - 2) in p_metadata) > 0))
    ) then
        raise exception 'held in quarantine' using errcode = 'IF409';
    end if;
end $$;

-- As before, and new messages that hold what is in quarantine are sealed.
create or replace function infold.save_nodes(
    p_tenant bytea, p_label text, p_nodes bytea[], p_parents bytea[], p_depths integer[], p_sent boolean[],
    p_roles text[], p_digests bytea[], p_raws bytea[], p_tokens integer[], p_session text
) returns text language plpgsql as $$
declare line text; above bytea := p_parents[1]; cut bytea; begins boolean := false;
begin
    perform set_config('infold.tenant', encode(p_tenant, 'hex'), true);
    perform pg_advisory_xact_lock_shared(infold.door(p_tenant));
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
    if exists (select from infold.tenants t where t.tenant = p_tenant and t.held > 0) then
        perform infold.seal_arrivals(p_tenant, p_nodes, p_digests, p_raws);
    end if;
    return line;
end $$;

-- As before; `p_held` is what its plan knew of quarantine, null for a turn in whose making no message was told. What
-- was made of messages before something was isolated is not written after it: the record is `p_redacted` then. `p_waits`: for an
-- isolation that is under way; else it fails at once.
drop function infold.record_turn(bytea, text, bytea[], bytea[], integer[], boolean[], text[], bytea[], bytea[],
                                 integer[], text, bytea, uuid, text, text, bytea[], bytea, bytea[], text[], integer[],
                                 bytea[], text[], boolean);
create function infold.record_turn(
    p_tenant bytea, p_label text, p_nodes bytea[], p_parents bytea[], p_depths integer[], p_sent boolean[],
    p_roles text[], p_digests bytea[], p_raws bytea[], p_tokens integer[], p_session text,
    p_turn bytea, p_attempt uuid, p_status text, p_model text, p_answers bytea[], p_record bytea,
    p_fold_nodes bytea[], p_fold_kinds text[], p_fold_depths integer[], p_folds bytea[],
    p_jobs text[], p_relaxed boolean, p_held bigint default 0, p_redacted bytea default null,
    p_waits boolean default true
) returns text language plpgsql as $$
declare line text; stale boolean; told bytea := p_record;
begin
    if p_relaxed then perform set_config('synchronous_commit', 'off', true); end if;
    if not p_waits and not pg_try_advisory_xact_lock_shared(infold.door(p_tenant)) then
        raise exception 'an isolation is under way' using errcode = 'lock_not_available';
    end if;
    line := infold.save_nodes(p_tenant, p_label, p_nodes, p_parents, p_depths, p_sent, p_roles, p_digests, p_raws,
                              p_tokens, p_session);
    if p_held is not null then
        stale := p_held <> coalesce((select t.held from infold.tenants t where t.tenant = p_tenant), 0);
        if stale then told := coalesce(p_redacted, p_record); end if;
    end if;
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
        values (p_tenant, p_attempt, p_turn, p_status, p_answers, told)
        on conflict (tenant, id) do update
            set updated_at = now(), status = excluded.status, answers = excluded.answers, record = excluded.record
            where excluded.status <> 'open';
    if cardinality(p_folds) > 0 and stale is not true then
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

-- One round trip for a new item. Again with the same id it changes nothing. Gives the session's counters after it.
-- What holds a text in quarantine is refused.
create function infold.add_item(
    p_tenant bytea, p_session uuid, p_name text, p_model text, p_now timestamptz, p_id uuid, p_shared boolean,
    p_form smallint, p_priority smallint, p_auto boolean, p_type text, p_digest bytea, p_content text, p_summary text,
    p_tokens integer, p_summary_tokens integer, p_form_tokens integer, p_metadata text, p_kind integer,
    p_starts integer[], p_stops integer[], p_lengths integer[], p_terms text[],   -- each `{1,2,3}`
    p_job boolean, p_last_accessed timestamptz
) returns table (tokens bigint, used bigint, untidied integer, added boolean) language plpgsql as $$
#variable_conflict use_column
declare
    place uuid := case when p_shared then '00000000-0000-0000-0000-000000000000'::uuid else p_session end;
    fresh boolean;
begin
    perform infold.enter(p_tenant, p_session, p_name, p_model, p_now);
    perform infold.refuse_held(p_tenant, p_content, p_metadata);
    insert into infold.items (tenant, id, session, shared, form, priority, auto_compress, content_type, digest, content,
                              summary, tokens, summary_tokens, last_accessed, created_at, updated_at, metadata)
        values (p_tenant, p_id, p_session, p_shared, p_form, p_priority, p_auto, p_type, p_digest, p_content, p_summary,
                p_tokens, p_summary_tokens, p_last_accessed, p_now, p_now, p_metadata)
        on conflict (tenant, id) do nothing;
    fresh := found;
    if fresh then
        insert into infold.passages (tenant, item, ordinal, session, kind, start, stop, length, terms)
            select p_tenant, p_id, n - 1, place, p_kind, p_starts[n], p_stops[n], p_lengths[n], p_terms[n]::integer[]
            from generate_subscripts(p_starts, 1) as n;
        update infold.tenants t set passages = t.passages + cardinality(p_starts) where t.tenant = p_tenant;
        if p_job then
            insert into infold.pgqueuer (priority, entrypoint, payload, status, dedupe_key)
                values (0, 'embed_item', convert_to(encode(p_tenant, 'hex') || ' ' || p_id, 'utf8'), 'queued',
                        'embed_item ' || encode(p_tenant, 'hex') || ' ' || p_id) on conflict do nothing;
        end if;
        return query update infold.states s
            set tokens = s.tokens + p_tokens, used = s.used + p_form_tokens, untidied = s.untidied + 1,
                compressions = s.compressions + (p_form > 0)::integer, updated_at = p_now
            where s.tenant = p_tenant and s.id = p_session
            returning s.tokens, s.used, s.untidied, true;
    else
        return query select s.tokens, s.used, s.untidied, false
            from infold.states s where s.tenant = p_tenant and s.id = p_session;
    end if;
end $$;
grant execute on all functions in schema infold to infold_app;
