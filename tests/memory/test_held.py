"""What a process knows of quarantine is asked for rarely, and what it has to forget is one tenant's alone."""

import pytest

from memory.held import HEARD_SECONDS, UNHEARD_SECONDS, Held
from memory.identify import place
from memory.quarantine import Quarantine
from memory.settings import Settings
from memory.tokens import Counter
from tests.clock import Hands
from tests.conversations import TENANT

STRANGER = bytes(16)
CANARY = "the canary sings at dawn"


class Ticking:
    """A process that knows, the seconds on its clock, and what it was told to forget."""

    def __init__(self, pool, is_hearing):
        self.seconds = 0.0
        self.is_hearing = is_hearing
        self.forgotten = []
        self.held = Held(pool, self.forgotten.append, lambda: self.is_hearing, lambda: self.seconds)

    async def number(self, tenant=TENANT):
        return (await self.held.of(tenant)).number


@pytest.fixture
async def isolate(pool):
    async def isolate(tenant=TENANT):
        quarantine = Quarantine(pool, Counter(), Hands(), Settings())
        await quarantine.isolate(place(tenant, "home"), CANARY, "note", "odd")

    return isolate


@pytest.mark.parametrize(("is_hearing", "seconds"), [(True, HEARD_SECONDS), (False, UNHEARD_SECONDS)])
async def test_what_was_read_holds_for_long_while_signals_are_heard_else_a_second(pool, isolate, is_hearing, seconds):
    """Each request of a folded line waited for the database once a second, also of a tenant that isolates nothing."""
    process = Ticking(pool, is_hearing)
    assert await process.number() == 0
    await isolate()
    process.seconds += seconds - 0.1
    assert await process.number() == 0
    process.seconds += 0.1
    assert await process.number() == 1
    assert process.forgotten == [TENANT]


@pytest.mark.parametrize("told", [TENANT, None])
async def test_a_signal_is_believed_at_once(pool, isolate, told):
    process = Ticking(pool, True)
    assert await process.number() == 0
    await isolate()
    process.held.clear(told)
    assert await process.number() == 1


async def test_who_hears_no_longer_asks_after_a_second(pool, isolate):
    process = Ticking(pool, True)
    assert await process.number() == 0
    await isolate()
    process.is_hearing, process.seconds = False, UNHEARD_SECONDS
    assert await process.number() == 1


async def test_what_one_tenant_isolates_drops_nothing_of_another(pool, isolate):
    """Each isolation dropped what was made for everybody, and again as each tenant was read anew."""
    process = Ticking(pool, True)
    await isolate(STRANGER)
    known = await process.held.of(STRANGER)
    process.forgotten.clear()
    await isolate()
    process.held.clear(TENANT)
    assert await process.number() == 1
    assert process.held.is_current(STRANGER, known)
    assert await process.held.of(STRANGER) == known
    assert set(process.forgotten) == {TENANT}


@pytest.mark.parametrize("told", [TENANT, None])
async def test_what_was_known_before_a_signal_is_not_current(pool, told):
    process = Ticking(pool, True)
    known = await process.held.of(TENANT)
    assert process.held.is_current(TENANT, known)
    process.held.clear(told)
    assert not process.held.is_current(TENANT, known)
    assert process.held.is_current(TENANT, await process.held.of(TENANT))
