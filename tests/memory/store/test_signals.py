"""What one process tells is heard by the others at once, also after a lost connection."""

import asyncio
import contextlib

from memory.store.signals import AGAIN, Signals, delete_events, events_after, load_event, tell
from tests.clock import NOON
from tests.conversations import TENANT

STRANGER = bytes(16)


@contextlib.asynccontextmanager
async def hearing(dsn):
    """Signals that listen already, and what they were told."""
    signals, told, ready = Signals(dsn), [], asyncio.Event()

    def call(tenant, kind, id):
        told.append((tenant, kind, id))
        ready.set()

    signals.listen(call)
    running = asyncio.create_task(signals.run())
    await asyncio.wait_for(ready.wait(), 60)
    try:
        yield signals, told
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def say(pool, kind, tenant=TENANT, now=NOON, **data):
    async with pool.tenant(tenant) as connection:
        return await tell(connection, tenant, kind, "home", data, now)


async def test_an_event_is_heard_in_another_process(pool, dsn):
    async with hearing(dsn) as (signals, told):
        with signals.watch(TENANT, ("task",)) as watch:
            id = await say(pool, "task", task_id="1")
            assert await watch.wait(60)
        assert told == [(None, AGAIN, ""), (TENANT, "task", str(id))]


async def test_a_watch_hears_what_came_between_two_waits_and_nothing_else(pool, dsn):
    async with hearing(dsn) as (signals, told):
        with signals.watch(TENANT, ("task",)) as watch, signals.watch(STRANGER, ("task",)) as other:
            await say(pool, "task")
            await say(pool, "job")
            while len(told) < 3:
                await asyncio.sleep(0.01)
            assert await watch.wait(0)
            assert not await watch.wait(0)
            assert not await other.wait(0)


async def test_what_was_not_committed_is_not_told(pool, dsn):
    async with hearing(dsn) as (_, told):
        with contextlib.suppress(ZeroDivisionError):
            async with pool.tenant(TENANT) as connection:
                await tell(connection, TENANT, "task", "home", {}, NOON)
                raise ZeroDivisionError
        await say(pool, "job")
        while len(told) < 2:
            await asyncio.sleep(0.01)
        assert [kind for _, kind, _ in told] == [AGAIN, "job"]


async def test_after_a_lost_connection_listeners_are_told_to_look_again(pool, dsn, owner):
    async with hearing(dsn) as (signals, told):
        with signals.watch(TENANT, ("task",)) as watch:
            await owner.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%' or"
                " (query = 'select 1' and application_name = 'infold')"
            )
            assert await watch.wait(60)
            assert told[-1] == (None, AGAIN, "")
            await say(pool, "task")
            assert await watch.wait(60)


async def test_whether_a_signal_would_be_heard_is_known(dsn):
    signals = Signals(dsn)
    assert not signals.is_connected
    async with hearing(dsn) as (signals, _):
        assert signals.is_connected
    assert not signals.is_connected


async def test_events_can_be_read_again_by_their_tenant_alone(pool):
    first = await say(pool, "task", n=1)
    second = await say(pool, "job", now=NOON.replace(day=6))
    async with pool.tenant(TENANT) as connection:
        assert [event.kind for event in await events_after(connection, TENANT, None)] == ["task", "job"]
        assert [event.id for event in await events_after(connection, TENANT, first)] == [str(second)]
        event = await load_event(connection, TENANT, first)
        assert (event.data, event.session_id, event.at) == ({"n": 1}, "home", NOON)
        await delete_events(connection, TENANT, NOON.replace(hour=13))
        assert await load_event(connection, TENANT, first) is None
    async with pool.tenant(STRANGER) as connection:
        assert await events_after(connection, STRANGER, None) == ()
        assert await load_event(connection, TENANT, second) is None
