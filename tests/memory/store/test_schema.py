"""The functions that items are stored and searched by: again changes nothing, nobody sees another's, indexes are used."""

import re

import asyncpg
import numpy as np
import pytest
from pgvector.asyncpg import register_vector

from memory.errors import StoreError
from memory.identify import new_id, place
from memory.nouns import NIL
from memory.store.passages import candidate
from tests.conftest import finish, open_pool
from tests.conversations import TENANT
from tests.memory.store.schema import (
    HOME,
    LOG,
    SPACE,
    add,
    fill,
    find_words,
    retrieve,
    save_vectors,
    search,
    terms,
)
from tests.memory.vectors import cloud, vector

OTHER = bytes(16)
AWAY = place(TENANT, "away")
STRANGER = place(OTHER, "home")
SCOPE = HOME.scope
PLANS = {"exact": {"exact": 10_000}, "bits": {"exact": 0}, "graph": {"exact": 0, "bits": 0}}


@pytest.fixture
async def connection(pool):
    async with pool.connection(60) as made:
        yield made


@pytest.fixture
async def owner(owner):
    await register_vector(owner)
    return owner


async def counters(owner, at=HOME):
    row = await owner.fetchrow("select * from infold.states where tenant = $1 and id = $2", at.tenant, at.id)
    return {name: row[name] for name in ("tokens", "used", "embedded", "compressions", "untidied")}


async def test_an_item_that_is_added_again_changes_nothing(connection, owner):
    id = new_id()
    first = await add(connection, id, ("one two", "three four"), form=1, job=True)
    again = await add(connection, id, ("one two", "three four"), form=1, job=True)

    assert (first["tokens"], first["used"], first["untidied"], first["added"]) == (100, 10, 1, True)
    assert (again["tokens"], again["used"], again["untidied"], again["added"]) == (100, 10, 1, False)
    assert await counters(owner) == {"tokens": 100, "used": 10, "embedded": 0, "compressions": 1, "untidied": 1}
    assert await owner.fetchval("select passages from infold.tenants") == 2
    (job,) = await owner.fetch("select * from infold.pgqueuer")
    assert (job["entrypoint"], job["payload"].decode()) == ("embed_item", f"{TENANT.hex()} {id}")
    rows = await owner.fetch("select ordinal, start, stop, length, terms from infold.passages order by ordinal")
    assert [tuple(row) for row in rows] == [(0, 0, 7, 2, terms("one two")), (1, 8, 18, 2, terms("three four"))]
    assert [row["tenant"] for row in await owner.fetch("select tenant from infold.calendar")] == [TENANT]


async def test_a_read_counts_unless_it_is_not_to(connection, owner):
    id = new_id()
    await add(connection, id)
    assert (await retrieve(connection, id, count=False))["access_count"] == 0
    assert (await retrieve(connection, id))["access_count"] == 1
    assert (await retrieve(connection, id, full=False))["access_count"] == 2
    row = await owner.fetchrow("select decompressions, cache_hits from infold.states")
    assert (row["decompressions"], row["cache_hits"]) == (1, 1)


async def test_a_read_does_not_wait_for_the_disk_and_the_next_write_does(connection):
    id = new_id()
    await add(connection, id)
    async with connection.transaction():
        await retrieve(connection, id)
        assert await connection.fetchval("show synchronous_commit") == "off"
    assert await connection.fetchval("show synchronous_commit") == "on"


async def test_an_item_is_found_by_its_tenant_alone_and_not_in_quarantine(connection, owner):
    id = new_id()
    await add(connection, id)
    assert await retrieve(connection, id, tenant=OTHER) is None
    await owner.execute("update infold.items set status = 2")
    for count in (True, False):
        assert await retrieve(connection, id, count=count) is None
    assert await owner.fetchval("select access_count from infold.items") == 0


async def test_vectors_are_written_once_and_never_for_what_is_in_quarantine(connection, owner):
    kept, sealed = new_id(), new_id()
    await add(connection, kept, ("one", "two"))
    await add(connection, sealed)
    await owner.execute("update infold.items set status = 2 where id = $1", sealed)

    assert await save_vectors(connection, kept, [vector("one"), vector("two")]) == 2
    assert await save_vectors(connection, kept, [vector("one"), vector("two")]) == 0
    assert await save_vectors(connection, sealed, [vector("one")]) == 0
    assert await save_vectors(connection, new_id(), [vector("one")]) == 0
    assert await save_vectors(connection, kept, [vector("one")], tenant=OTHER) == 0
    assert (await counters(owner))["embedded"] == await owner.fetchval("select embedded from infold.tenants") == 2


async def test_words_find_the_passages_that_hold_most_of_them_first(connection, owner):
    both, one, away, shared, old = (new_id() for _ in range(5))
    await add(connection, one, ("red apple", "nothing here"))
    await add(connection, both, ("red green",))
    await add(connection, away, ("red green",), at=AWAY)
    await add(connection, shared, ("green",), at=AWAY, shared=True, kind=LOG)
    await add(connection, old, ("red",))
    await owner.execute("update infold.passages set live = false where item = $1", old)
    await add(connection, new_id(), ("red green",), at=STRANGER)

    found = await find_words(connection, "red green", scope=SCOPE)
    assert found[0] == (both, 0)
    assert set(found) == {(both, 0), (one, 0), (shared, 0)}
    assert set(await find_words(connection, "red green")) == {(both, 0), (one, 0), (shared, 0), (away, 0)}
    assert await find_words(connection, "red green", scope=SCOPE, kinds=[LOG]) == [(shared, 0)]
    assert (old, 0) in await find_words(connection, "red", scope=SCOPE, archived=True)
    assert await find_words(connection, "unheard") == []


async def test_the_search_by_words_refuses_a_tenant_that_is_not_the_transactions(connection):
    await add(connection, new_id())
    ask = "select * from infold.words($1, null, null, false, $2, 10, 3, 50)"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch(ask, TENANT, terms("one"))
    async with connection.transaction():
        await connection.execute("select set_config('infold.tenant', $1, true)", OTHER.hex())
        assert await connection.fetch(ask, OTHER, terms("one")) == []
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(ask, TENANT, terms("one"))


async def test_a_search_tells_of_both_sides_for_everything_that_either_found(connection):
    near, named = new_id(), new_id()
    await add(connection, near, ("apple pie",))
    await add(connection, named, ("green car",))
    await save_vectors(connection, near, [vector("apple pie")])

    rows = await search(connection, vector("apple pie"), scope=SCOPE, words=[(named, 0)])
    found = {row["item"]: candidate(row, set(terms("green pie tree"))) for row in rows}
    assert found.keys() == {near, named}
    assert found[near].distance == pytest.approx(0, abs=1e-3)
    assert (found[named].distance, found[named].near) == (None, None)
    assert (found[near].matched, found[named].matched) == (tuple(terms("pie")), tuple(terms("green")))
    assert (found[near].start, found[near].stop, found[near].length) == (0, 9, 2)

    (only,) = await search(connection, None, scope=SCOPE, words=[(named, 0)])
    assert (only["item"], only["plan"]) == (named, "words")


ARCHIVED = 3  # the position of the one that is


@pytest.fixture(scope="module")
def library(new_database):
    """2,000 vectors at home, some in another session and shared; as many of a stranger, who has every one of ours, too."""
    here, ids = cloud(2_000, 1), []

    async def write(dsn):
        owner = await asyncpg.connect(dsn)
        await register_vector(owner)
        ids.append(await fill(owner, HOME, here))
        ids.append(await fill(owner, AWAY, cloud(501, 2)))
        ids.append(await fill(owner, AWAY, cloud(300, 3), shared=True, kind=LOG))
        await fill(owner, STRANGER, np.concatenate([here, here[:1]]))
        await owner.execute("update infold.vectors set live = false where item = $1", ids[0][ARCHIVED])
        await owner.execute("vacuum analyze infold.vectors, infold.passages")
        await owner.close()

    with new_database() as dsn:
        finish(write(dsn))
        yield dsn, *ids


@pytest.fixture
async def reading(library):
    async with open_pool(library[0], 1) as pool, pool.connection(60) as made:
        yield made


@pytest.mark.parametrize("plan", PLANS)
async def test_every_plan_finds_what_is_nearest_and_only_there(reading, library, plan):
    _, ids, _away, shared = library
    mine = dict(zip([*ids, *shared], np.concatenate([cloud(2_000, 1), cloud(300, 3)]), strict=True))
    del mine[ids[ARCHIVED]]
    hits = 0
    for query in cloud(10, 4):
        rows = await search(reading, query, scope=SCOPE, k=50, **PLANS[plan])
        assert {row["plan"] for row in rows} == {plan}
        assert len(rows) == 50
        assert {row["item"] for row in rows} <= mine.keys()
        nearest = sorted(mine, key=lambda id: -float(mine[id] @ query))[:10]
        hits += len({row["item"] for row in rows} & set(nearest))
    assert hits >= 95


@pytest.mark.parametrize("plan", PLANS)
async def test_every_plan_knows_kinds_archives_and_the_whole_tenant(reading, library, plan):
    _, ids, away, shared = library
    (query,) = cloud(1, 5)
    by_kind = await search(reading, query, scope=SCOPE, kinds=[LOG], **PLANS[plan])
    assert len(by_kind) == 10
    assert {row["item"] for row in by_kind} <= set(shared)
    tenant_wide = {**PLANS[plan], "bits": 0 if plan == "graph" else 10_000, "exact": 10_000 if plan == "exact" else 0}
    everywhere = await search(reading, cloud(501, 2)[7], **tenant_wide)
    assert {row["plan"] for row in everywhere} == {plan}
    assert away[7] in {row["item"] for row in everywhere}
    assert {row["item"] for row in everywhere} <= {*ids, *away, *shared}
    asked = cloud(2_000, 1)[ARCHIVED]
    assert ids[ARCHIVED] not in {row["item"] for row in await search(reading, asked, scope=SCOPE, **PLANS[plan])}
    assert ids[ARCHIVED] in {
        row["item"] for row in await search(reading, asked, scope=SCOPE, archived=True, **PLANS[plan])
    }


async def test_the_graph_gives_all_that_are_asked_for(reading, library):
    rows = await search(reading, cloud(1, 6)[0], scope=SCOPE, **(PLANS["graph"] | {"k": 1_500}))
    assert ({row["plan"] for row in rows}, len(rows)) == ({"graph"}, 1_500)


async def test_the_plan_goes_by_how_much_there_is(reading, library):
    (query,) = cloud(1, 6)

    async def plan(**more):
        return {row["plan"] for row in await search(reading, query, **more)}.pop()

    assert await plan(scope=SCOPE, exact=2_300) == "exact"  # with what is shared
    assert await plan(scope=SCOPE, exact=2_299) == "bits"
    assert await plan(scope=[AWAY.id], exact=501) == "exact"
    assert await plan(exact=2_801) == "exact"
    assert await plan(exact=2_800) == "bits"
    assert await plan(exact=100, bits=2_800) == "graph"


USED = {"exact": {"vectors_bits"}, "bits": {"vectors_bits", "vectors_pkey"}, "graph": {"vectors_graph"}}


async def scans(reading) -> dict[str, int]:
    """How often this transaction looked into each index; sequential scans of the table under its own name."""
    rows = await reading.fetch(
        "select relname, pg_stat_get_xact_numscans(oid) as scans from pg_class"
        " where relname in ('vectors', 'vectors_bits', 'vectors_graph', 'vectors_pkey', 'passages', 'passages_terms')"
        " and relnamespace = 'infold'::regnamespace"
    )
    return {row["relname"]: row["scans"] for row in rows}


@pytest.mark.parametrize("plan", PLANS)
async def test_every_plan_goes_by_its_index_also_after_ten_runs(reading, library, plan):
    """plpgsql takes one plan for all arguments after five runs."""
    for query in cloud(10, 7):
        await search(reading, query, scope=SCOPE, **PLANS[plan])
    async with reading.transaction():
        before = await scans(reading)
        await search(reading, cloud(1, 8)[0], scope=SCOPE, k=10, **PLANS[plan])
        after = await scans(reading)
    used = {name for name in after if after[name] > before[name]}
    assert USED[plan] <= used
    assert not used & {"vectors", "passages"}
    assert ("vectors_graph" in used) == (plan == "graph")


def inner_select(source: str, plan: str) -> str:
    """The search of a plan within a scope, as the function has it, with numbers for names."""
    statement = re.findall(rf"at = '{plan}'.*?then(?:\s+perform[^;]*;)?.*?from \(\n(.*?)\) n;", source, re.DOTALL)[0]
    if plan != "graph":
        statement = re.search(rf"elsif at = '{plan}' then.*?from \(\n(.*?)\) n;", source, re.DOTALL)[1]
    names = ("p_tenant", "p_space", "p_scope", "p_kinds", "p_archived", "p_query", "signs", "p_k")
    for number, name in enumerate(names, 1):
        statement = re.sub(rf"\b{name}\b", f"${number}", statement)
    return statement


@pytest.mark.parametrize(
    ("plan", "shape"),
    [
        ("exact", r"Limit.*Sort.*(vectors_bits|vectors_pkey)"),
        ("bits", r"Limit.*Sort.*Index Scan using vectors_bits.*vectors_pkey"),
        ("graph", r"Limit.*Index Scan using vectors_graph"),
    ],
)
async def test_the_plan_that_stays_is_the_one_that_was_meant(reading, library, plan, shape):
    source = await reading.fetchval("select prosrc from pg_proc where proname = 'search_items'")
    async with reading.transaction():
        await reading.execute("set local plan_cache_mode = force_generic_plan")
        if plan == "graph":
            await reading.execute("set local enable_sort = off; set local enable_seqscan = off")
        await reading.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        await reading.execute(
            "prepare asked (bytea, integer, uuid[], integer[], boolean, halfvec, bit(384), integer) as "
            + inner_select(source, plan)
        )
        zeros = "[" + ",".join(["0.1"] * 384) + "]"
        explained = await reading.fetch(
            f"explain execute asked ('\\x{TENANT.hex()}', {SPACE}, '{{{HOME.id},{NIL}}}', null, false, '{zeros}',"
            f" binary_quantize('{zeros}'::halfvec)::bit(384), 10)"
        )
        await reading.execute("deallocate asked")
    told = " ".join(row[0] for row in explained)
    assert re.search(shape, told), told
    assert "Seq Scan" not in told
    assert plan != "graph" or "Sort" not in told


async def test_words_go_by_their_index_and_not_through_all_passages(reading, library):
    ids = library[1]
    for _ in range(10):
        await find_words(reading, "some words")
    async with reading.transaction():
        await reading.execute("select set_config('infold.tenant', $1, true)", TENANT.hex())
        before = await scans(reading)
        rows = await reading.fetch("select * from infold.words($1, $2, null, false, $3, 10, 3, 50)", TENANT, SCOPE, [7])
        after = await scans(reading)
    assert (ids[6], 0) in {(row["item"], row["ordinal"]) for row in rows}
    assert after["passages_terms"] == before["passages_terms"] + 1
    assert after["passages"] == before["passages"]


async def test_a_search_leaves_no_setting_behind(reading, library):
    async with reading.transaction():
        for options in PLANS.values():
            await search(reading, cloud(1, 9)[0], scope=SCOPE, **options)
        assert [await reading.fetchval(f"show {name}") for name in ("enable_sort", "enable_seqscan")] == ["on", "on"]


ROWS = {  # a row for each table: columns behind `tenant`, and their values
    "tenants": ("created_at", "now()"),
    "states": ("id, name, created_at, updated_at", "$2, 's', now(), now()"),
    "items": (
        "id, session, shared, content_type, digest, content, tokens, summary_tokens, last_accessed, created_at, updated_at",
        "$2, $2, false, 't', '', 'c', 1, 1, now(), now(), now()",
    ),
    "passages": ("item, ordinal, session, kind, start, stop, length, terms", "$2, 0, $2, 1, 0, 1, 1, '{1}'"),
    "vectors": (
        "item, ordinal, space, session, kind, embedding, bits",
        "$2, 0, 1, $2, 1, array_fill(1, array[384])::halfvec, repeat('1', 384)::bit(384)",
    ),
    "tasks": ("id, session, title, created_at, updated_at", "$2, $2, 't', now(), now()"),
    "dependencies": ("task, needs, place", "$2, (select id from infold.tasks where id <> $2 limit 1), 0"),
    "agents": ("id, session, name, type, capabilities, created_at, updated_at", "$2, $2, 'n', 't', '{}', now(), now()"),
    "human_requests": ("id, session, question, created_at, expires_at", "$2, $2, 'q', now(), now()"),
    "quarantine": (
        "id, thread, session, state, context_type, reason, content, tokens, created_at, updated_at",
        "$2, 't', $2, 'isolated', 't', 'r', 'c', 1, now(), now()",
    ),
    "seals": ("digest, thread", "uuid_send($2), 't'"),
    "audit": ("id, at, actor, action, target", "$2, now(), 'a', 'b', 'c'"),
    "events": ("id, kind, data, at", "$2, 'k', '{}', now()"),
    "usage": ("attempt, at, session, model", "$2, now(), 's', 'm'"),
}


@pytest.mark.parametrize("table", ROWS)
async def test_a_foreign_tenant_sees_changes_and_writes_nothing(pool, owner, table):
    columns, values = ROWS[table]
    insert = f"insert into infold.{table} (tenant, {columns}) select $1, {values} where $2::uuid is not null"
    id = new_id()
    if table == "dependencies":
        for task in (id, new_id()):
            await owner.execute(
                "insert into infold.tasks (tenant, id, session, title, created_at, updated_at)"
                " values ($1, $2, $2, 't', now(), now())", TENANT, task,
            )  # fmt: skip
    async with pool.tenant(TENANT) as connection:
        await connection.execute(insert, TENANT, id)
        assert await connection.fetchval(f"select count(*) from infold.{table}") == 1
    async with pool.tenant(OTHER) as connection:
        assert await connection.fetchval(f"select count(*) from infold.{table}") == 0
        if table != "audit":
            assert await connection.execute(f"update infold.{table} set tenant = tenant") == "UPDATE 0"
            assert await connection.execute(f"delete from infold.{table}") == "DELETE 0"
    values_of_another = "$2, $2, 0" if table == "dependencies" else values
    with pytest.raises(StoreError, match="row-level security"):
        async with pool.tenant(OTHER) as connection:
            await connection.execute(insert.replace(values, values_of_another), TENANT, new_id())
    async with pool.connection() as connection:
        assert await connection.fetchval(f"select count(*) from infold.{table}") == 0
    assert await owner.fetchval(f"select count(*) from infold.{table}") == 1


@pytest.mark.parametrize("change", ["update infold.audit set actor = 'x'", "delete from infold.audit"])
async def test_an_audit_is_only_added_to(pool, change):
    with pytest.raises(StoreError, match="permission denied"):
        async with pool.tenant(TENANT) as connection:
            await connection.execute(change)
