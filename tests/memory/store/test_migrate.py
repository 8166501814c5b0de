"""A database is brought up to this release by whoever comes first, once, and never to a state that leaks."""

import asyncio
import re

import asyncpg
import pytest

from memory.errors import StoreError
from memory.store.migrate import check_role, current, folder, head, migrate, prepare_owner
from memory.store.secrets import load_pepper
from tests.conftest import named, run_sql

TENANT_TABLES = {
    *("nodes", "sessions", "turns", "attempts", "folds", "chunks"),
    *("tenants", "states", "items", "passages", "vectors", "tasks", "dependencies", "agents", "human_requests"),
    *("quarantine", "seals", "audit", "events", "usage"),
    *("learners", "samples", "trainings", "adapters", "adapter_sources"),
}
WITHOUT_POLICY = {"calendar"}  # ids of tenants alone, like the queue
# Their owner may look: see infold.words, infold.overdue, infold.learning, infold.trainings_waiting.
NOT_FORCED = {"passages", "human_requests", "events", "learners", "trainings", "adapters"}


@pytest.fixture
def empty(postgres):
    """A database without a schema."""
    name = "test_empty"
    run_sql(postgres.address.dsn, f"create database {name}")
    yield named(postgres.address.dsn, name)
    run_sql(postgres.address.dsn, f"drop database {name} with (force)")


async def test_four_processes_that_start_at_once_migrate_once_and_share_a_pepper(empty):
    await asyncio.gather(*(migrate(empty) for _ in range(4)))
    connection = await asyncpg.connect(empty)
    peppers = await connection.fetch("select value from infold.secrets where name = 'pepper'")
    revision = await current(connection)
    await connection.close()

    assert len(peppers) == 1
    assert len(peppers[0]["value"]) == 32
    assert revision == head()


async def test_migrating_again_keeps_data_and_pepper(empty):
    await migrate(empty)
    connection = await asyncpg.connect(empty)
    before = await load_pepper(connection)
    await connection.execute("insert into infold.sessions (tenant, id) values ('\\x00', 's')")
    await migrate(empty)
    assert await load_pepper(connection) == before
    assert await connection.fetchval("select count(*) from infold.sessions") == 1
    await connection.close()


async def test_a_migration_that_was_killed_half_way_is_done_by_the_next_start(empty):
    first = asyncio.create_task(migrate(empty))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.sleep(0.05)
    await migrate(empty)

    connection = await asyncpg.connect(empty)
    assert await current(connection) == head()
    assert len(await load_pepper(connection)) == 32
    await connection.close()


async def test_a_database_of_the_first_release_keeps_its_rows_and_becomes_the_same_as_a_fresh_one(empty, owner):
    connection = await asyncpg.connect(empty)
    await prepare_owner(connection)
    await connection.execute(
        "create table infold.alembic_version (version_num varchar(32) constraint alembic_version_pkc primary key)"
    )
    await connection.execute("insert into infold.alembic_version values ('0001')")
    await connection.execute((folder() / "versions" / "0001_first.sql").read_text())
    await connection.execute("insert into infold.sessions (tenant, id) values ('\\x00', 's')")
    await migrate(empty)

    assert await current(connection) == head()
    assert await connection.fetchval("select count(*) from infold.sessions") == 1
    assert await shape(connection) == await shape(owner)
    await connection.close()


async def shape(connection: asyncpg.Connection) -> list[tuple[str, ...]]:
    """Columns, indexes and functions of a database, as text."""
    rows = await connection.fetch(
        "select table_name || '.' || column_name, data_type || coalesce(column_default, '') || is_nullable"
        " from information_schema.columns where table_schema = 'infold'"
        " union all select indexname, indexdef from pg_indexes where schemaname = 'infold'"
        " union all select proname, pg_get_functiondef(oid) from pg_proc where pronamespace = 'infold'::regnamespace"
        " order by 1, 2"
    )
    return [tuple(row) for row in rows]


async def test_a_start_that_was_killed_before_it_made_the_pepper_is_made_good(empty):
    """Without a pepper there are no tenants, so every request would go without memory for ever."""
    await migrate(empty)
    run_sql(empty, "delete from infold.secrets")
    await migrate(empty)
    connection = await asyncpg.connect(empty)
    assert len(await load_pepper(connection) or b"") == 32
    await connection.close()


async def test_every_table_with_a_tenant_is_bound_by_row_level_security_even_for_its_owner(owner):
    tables = await owner.fetch(
        "select relname, relrowsecurity, relforcerowsecurity from pg_class c join pg_namespace n on n.oid = relnamespace"
        " where nspname = 'infold' and relkind = 'r' and exists (select from pg_attribute where attrelid = c.oid"
        " and attname = 'tenant')"
    )
    assert {row["relname"] for row in tables} == TENANT_TABLES | WITHOUT_POLICY
    assert {row["relname"] for row in tables if row["relrowsecurity"]} == TENANT_TABLES
    assert {row["relname"] for row in tables if row["relforcerowsecurity"]} == TENANT_TABLES - NOT_FORCED


async def test_policies_are_plain_without_a_way_around(owner):
    """An OR in a policy lets pgvector filter behind its index: recall .07."""
    policies = await owner.fetch(
        "select tablename, permissive, roles, cmd, qual, with_check from pg_policies where schemaname = 'infold'"
    )
    assert {row["tablename"] for row in policies} == TENANT_TABLES
    assert len(policies) == len(TENANT_TABLES)
    for policy in policies:
        assert policy["cmd"] == "ALL"
        assert "tenant = " in policy["qual"]
        assert not re.search(r"\bor\b", policy["qual"], re.I)
        assert policy["with_check"] == policy["qual"]


async def test_the_runtime_role_owns_nothing_and_functions_that_run_as_their_owner_fix_where_names_are_looked_up(owner):
    assert not await owner.fetchval("select count(*) from pg_class where relowner = 'infold_app'::regrole")
    functions = await owner.fetch(
        "select proname, prosecdef, proconfig, proowner::regrole::text as owner,"
        " has_function_privilege('public', oid, 'execute') as open from pg_proc where pronamespace = 'infold'::regnamespace"
    )
    assert "infold_app" not in {row["owner"] for row in functions}
    definers = [row for row in functions if row["prosecdef"]]
    assert {row["proname"] for row in definers} == {
        "words",
        "overdue",
        "questions_pending",
        "learning",
        "trainings_waiting",
    }
    assert all(row["proconfig"] == ["search_path=pg_catalog, pg_temp"] for row in definers)
    assert not any(row["open"] for row in definers)


async def test_the_tenant_begins_every_key(owner):
    keys = await owner.fetch(
        "select c.relname, a.attname from pg_index i join pg_class c on c.oid = i.indrelid"
        " join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]"
        " where n.nspname = 'infold' and c.relname = any($1) and i.indisprimary",
        list(TENANT_TABLES),
    )
    assert {row["relname"] for row in keys} == TENANT_TABLES
    assert {row["attname"] for row in keys} == {"tenant"}


async def test_the_runtime_role_can_neither_change_the_schema_nor_see_without_a_tenant(pool, owner):
    await owner.execute("insert into infold.sessions (tenant, id) values ('\\x00', 's')")
    async with pool.connection() as connection:
        assert await connection.fetchval("select count(*) from infold.sessions") == 0
        for command in (
            "alter table infold.nodes disable row level security",
            "drop policy tenant on infold.nodes",
            "create table infold.mine (a int)",
            "truncate infold.nodes",
            "insert into infold.sessions (tenant, id) values ('\\x01', 'x')",
        ):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(command)


async def test_a_role_that_would_bypass_the_policies_is_refused_with_the_sql_that_mends_it(postgres, owner):
    await owner.execute("alter role infold_app bypassrls")
    try:
        with pytest.raises(StoreError, match="nobypassrls"):
            await check_role(owner)
    finally:
        await owner.execute("alter role infold_app nobypassrls")
    await check_role(owner)


@pytest.fixture
def weak(empty, postgres):
    """The same database for a login that may do nothing there, as a managed PostgreSQL gives it out."""
    run_sql(postgres.address.dsn, "create role weak login password 'weak'")
    yield re.sub(r"//infold:[^@]*@", "//weak:weak@", empty)
    run_sql(empty, "drop schema if exists infold cascade", "drop owned by weak")
    run_sql(postgres.address.dsn, "drop role weak")


async def test_a_login_without_rights_is_told_sql_that_makes_the_next_start_succeed(empty, weak):
    with pytest.raises(StoreError) as caught:
        await migrate(weak)
    told = str(caught.value).split("\n\n", 1)[1]
    run_sql(empty, told)  # by the administrator
    await migrate(weak)

    connection = await asyncpg.connect(weak)
    assert await current(connection) == head()
    await connection.close()


def test_revisions_lie_where_they_are_looked_for():
    assert (folder() / "env.py").is_file()
    assert head() == max(path.stem.split("_")[0] for path in (folder() / "versions").glob("*.sql"))
