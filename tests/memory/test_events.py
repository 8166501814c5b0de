"""Events are read as they happen, each once, by their tenant alone, and again behind any of them."""

from uuid import UUID

import pytest

from memory.events import LATE_MS, Events, before
from memory.identify import new_id
from memory.store.signals import Signals, tell
from tests.clock import NOON
from tests.conversations import TENANT


@pytest.fixture
def events(pool, dsn):
    return Events(pool, Signals(dsn))


@pytest.fixture
def say(pool):
    async def said(number, tenant=TENANT):
        async with pool.tenant(tenant) as connection:
            return await tell(connection, tenant, "task", "home", {"n": number}, NOON)

    return said


async def numbers(reading):
    return [event.data["n"] async for event in reading.more()]


async def test_what_happened_before_is_not_told_and_what_happens_is_told_once(events, say):
    await say(1)
    reading = await events.reading(TENANT)
    assert await numbers(reading) == []
    await say(2)
    await say(3)
    assert await numbers(reading) == [2, 3]
    assert await numbers(reading) == []


async def test_a_tenant_without_events_hears_its_first_one(events, say):
    reading = await events.reading(TENANT)
    await say(1)
    assert await numbers(reading) == [1]


async def test_it_is_told_again_behind_the_event_that_was_seen_last(events, say):
    first = await say(1)
    await say(2)
    assert await numbers(await events.reading(TENANT, first)) == [2]


async def test_an_event_that_is_committed_after_later_ones_is_told(events, say, pool):
    """Ids are given when an event is begun; the newest id that was seen says nothing of what is on its way."""
    reading = await events.reading(TENANT)
    async with pool.tenant(TENANT) as connection:
        await tell(connection, TENANT, "task", "home", {"n": "slow"}, NOON)
        await say("fast")
        assert await numbers(reading) == ["fast"]
    assert await numbers(reading) == ["slow"]
    assert await numbers(reading) == []


async def test_nobody_hears_of_another_tenant(events, say):
    reading = await events.reading(TENANT)
    await say(1, bytes(16))
    assert await numbers(reading) == []


async def test_more_than_a_page_is_told_whole(events, pool):
    reading = await events.reading(TENANT)
    async with pool.tenant(TENANT) as connection:
        await connection.executemany(
            "insert into infold.events (tenant, id, kind, data, at) values ($1, $2, 'task', $3, $4)",
            [(TENANT, new_id(), f'{{"n": {n}}}', NOON) for n in range(2_345)],
        )
    assert sorted(await numbers(reading)) == list(range(2_345))
    assert await numbers(reading) == []


def test_a_place_before_an_id_is_that_much_earlier():
    id = new_id()
    assert (id.int >> 80) - (before(id).int >> 80) == LATE_MS
    assert before(UUID(int=5)) == UUID(int=0)
