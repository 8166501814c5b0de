"""No wait on the database is longer than its bound, and while it is away nobody waits at all."""

import asyncio
import contextlib

import asyncpg
import pytest

from memory.errors import StoreBusy, StoreError, StoreUnavailable
from memory.store.migrate import migrate
from memory.store.pool import WAIT_SECONDS, Pool
from tests.conftest import finish, open_pool, own_postgres, run_sql
from tests.faults import family, frozen, in_time, until


async def outcome(pool: Pool) -> str:
    """What becomes of a request's query."""
    try:
        async with pool.connection() as connection:
            await connection.fetchval("select 1")
    except StoreUnavailable:
        return "away"
    return "answered"


def outcome_at_once(pool: Pool) -> str:
    """The same of a request that waits for nothing."""
    try:
        outcome(pool).send(None)
    except StopIteration as ended:
        return str(ended.value)
    raise AssertionError("it waits")


@pytest.fixture(scope="module")
def fragile():
    with own_postgres() as server:
        finish(migrate(server.address.dsn))
        yield server


async def test_connections_run_as_a_role_that_row_level_security_binds(pool):
    async with pool.connection() as connection:
        assert await connection.fetchval("select current_user") == "infold_app"
        assert await connection.fetchval(
            "select not rolsuper and not rolbypassrls from pg_roles where rolname = current_user"
        )


async def test_the_tenant_ends_with_its_transaction(pool):
    async with open_pool(pool._dsn, 1) as one:
        async with one.tenant(b"t" * 16) as connection:
            assert await connection.fetchval("select current_setting('infold.tenant', true)") == (b"t" * 16).hex()
        with pytest.raises(ZeroDivisionError):
            async with one.tenant(b"u" * 16) as connection:
                raise ZeroDivisionError
        async with one.connection() as connection:
            assert await connection.fetchval("select current_setting('infold.tenant', true)") in ("", None)
            assert await connection.fetchval("select count(*) from infold.nodes") == 0


async def test_a_slow_query_is_given_up_in_time_and_the_connection_is_not_reused_half_way(pool):
    async def sleep() -> None:
        async with pool.connection(0.25) as connection:
            await connection.execute("select pg_sleep(20)")

    with pytest.raises(StoreUnavailable):
        await in_time(sleep())

    await until(lambda: pool.available)
    async with pool.connection(5) as connection:
        assert await connection.fetchval("select 41 + 1") == 42


async def test_an_error_of_the_query_is_no_outage(pool):
    with pytest.raises(StoreError) as caught:
        async with pool.connection() as connection:
            await connection.execute("select 1 / 0")

    assert not isinstance(caught.value, StoreUnavailable)
    assert pool.available


async def lock(connection: asyncpg.Connection, number: int) -> None:
    await connection.execute("select pg_advisory_xact_lock($1)", number)


async def test_a_lock_that_somebody_else_holds_is_no_outage(pool):
    async with pool.tenant(b"t" * 16) as holder:
        await lock(holder, 1)
        with pytest.raises(StoreBusy):
            async with pool.tenant(b"u" * 16) as connection:
                await lock(connection, 1)
    assert pool.available


async def test_two_who_wait_for_each_other_are_told_to_try_again(pool):
    both = asyncio.Barrier(2)

    async def take(first: int, second: int) -> None:
        async with pool.tenant(b"t" * 16) as connection:
            await connection.execute("select set_config('lock_timeout', '20s', true)")
            await lock(connection, first)
            await both.wait()
            await lock(connection, second)

    outcomes = await asyncio.gather(take(1, 2), take(2, 1), return_exceptions=True)
    assert [type(one) for one in outcomes if one is not None] == [StoreBusy]
    assert pool.available


async def test_readers_who_take_their_time_do_not_shut_the_others_out(pool):
    """An export holds its connection for as long as its client reads; eight of those are no outage."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(pool.tenant(b"t" * 16, 3600))
        with contextlib.suppress(StoreError):
            async with pool.connection(WAIT_SECONDS) as connection:
                await connection.fetchval("select 1")
        assert pool.available


async def test_a_server_that_cannot_be_reached_is_unavailable():
    pool = Pool("postgresql://nobody:x@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        await pool.open()
    assert not pool.available
    with pytest.raises(StoreUnavailable):
        async with pool.connection():
            pass
    await pool.close()


async def test_a_frozen_server_costs_one_bound_and_then_nothing(fragile):
    changes: list[bool] = []
    async with open_pool(fragile.address.dsn, 2, WAIT_SECONDS) as pool:
        pool.on_change(changes.append)
        with frozen(family(fragile.address.pid)):
            assert await in_time(outcome(pool)) == "away"
            for _ in range(4):
                assert outcome_at_once(pool) == "away"
            assert not pool.available
        await until(lambda: pool.available)
        async with pool.connection(5) as connection:
            assert await connection.fetchval("select 1") == 1
    assert changes == [False, True]


async def test_many_who_wait_for_a_frozen_server_are_all_let_go(fragile):
    async with open_pool(fragile.address.dsn, 2, WAIT_SECONDS) as pool:
        with frozen(family(fragile.address.pid)):

            async def all_of_them() -> list[str]:
                return await asyncio.gather(*(outcome(pool) for _ in range(40)))

            assert set(await in_time(all_of_them())) == {"away"}
        await until(lambda: pool.available)


async def test_connections_that_the_server_cut_are_replaced(pool, owner):
    async with pool.connection() as connection:
        await connection.fetchval("select 1")
    await owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'infold'")
    with contextlib.suppress(StoreUnavailable):
        async with pool.connection() as connection:
            await connection.fetchval("select 1")

    await until(lambda: pool.available)
    async with pool.connection(5) as connection:
        assert await connection.fetchval("select 1") == 1


async def test_cancelling_in_the_middle_gives_the_connection_back(dsn):
    async with open_pool(dsn, 1) as pool:
        for _ in range(20):

            async def ask() -> None:
                async with pool.connection(5) as connection:
                    await connection.execute("select pg_sleep(0.05)")

            task = asyncio.create_task(ask())
            await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        async with pool.connection(5) as connection:
            assert await connection.fetchval("select 1") == 1
        assert pool.available


async def test_closing_ends_the_probe_of_a_database_that_stays_away(new_database):
    with new_database() as dsn:
        pool = Pool(dsn)
        await pool.open()
    with pytest.raises(StoreUnavailable):
        async with pool.connection() as connection:
            await connection.fetchval("select 1")
    await pool.close()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_a_probe_that_is_refused_for_any_reason_tries_again(new_database, postgres):
    """A database that is dropped and made anew says "does not exist" in between, which is no connection error."""
    with new_database() as dsn:
        name = dsn.split("?")[0].rsplit("/", 1)[1]
        async with open_pool(dsn) as pool:
            run_sql(postgres.address.dsn, f"drop database {name} with (force)")
            with pytest.raises(StoreError):
                async with pool.connection() as connection:
                    await connection.fetchval("select 1")
            await asyncio.sleep(1.2)  # two probes
            run_sql(postgres.address.dsn, f"create database {name} template template_infold")
            await until(lambda: pool.available)


def test_a_pool_does_not_show_its_password():
    assert "secret" not in repr(Pool("postgresql://a:secret@localhost/b"))


async def test_row_level_security_binds_where_the_login_role_is_a_superuser(dsn):
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("select rolsuper from pg_roles where rolname = current_user")
    await connection.close()
