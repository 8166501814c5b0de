"""A question to a person: the answer reaches whoever waits, once; what nobody answers expires by the clock."""

import asyncio
import contextlib
from datetime import timedelta

import pytest

from memory.errors import Conflict, InvalidRequest, NotFound
from memory.humans import Humans
from memory.identify import new_id, place
from memory.nouns import HumanStatus, Principal
from memory.store.signals import Signals
from tests.clock import Hands
from tests.conftest import open_pool
from tests.conversations import TENANT
from tests.faults import in_time
from tests.memory.store.test_signals import hearing

HOME = place(TENANT, "home")
ANN = Principal(TENANT, "key:1a2b3c4d", True)
STRANGER = bytes(16)
DAY = timedelta(hours=24)


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def humans(pool, dsn, hands):
    """Whose signals nobody runs: enough for all that does not wait."""
    return Humans(pool, hands, Signals(dsn), DAY)


@contextlib.asynccontextmanager
async def elsewhere(dsn, hands):
    """As in another process: a pool and a listening connection of its own."""
    async with open_pool(dsn, 2) as pool, hearing(dsn) as (signals, _):
        yield Humans(pool, hands, signals, DAY)


async def test_a_question_is_asked_and_answered(humans, hands):
    asked = await humans.ask(HOME, "Ship it?", 5, {"a": 1})
    assert (asked.status, asked.response, asked.session_id) == (HumanStatus.PENDING, None, "home")
    hands.forward(minutes=5)
    answered = await humans.answer(TENANT, asked.id, "Yes", ANN)
    assert (answered.status, answered.response, answered.answered_at) == (HumanStatus.ANSWERED, "Yes", hands.now)
    assert await humans.pending(HOME) == ()
    assert await humans.wait(TENANT, asked.id, 60) == answered


async def test_pending_come_by_priority_oldest_first(humans, hands):
    for question, priority in (("old", 0), ("new", 0), ("high", 9)):
        await humans.ask(HOME, question, priority)
        hands.forward(seconds=1)
    assert [asked.question for asked in await humans.pending(HOME)] == ["high", "old", "new"]
    assert await humans.pending(place(TENANT, "elsewhere")) == ()


async def test_the_first_answer_stays(humans):
    asked = await humans.ask(HOME, "Which?")
    first = await humans.answer(TENANT, asked.id, "A", ANN)
    assert await humans.answer(TENANT, asked.id, "A", ANN) == first
    with pytest.raises(Conflict, match="answered already"):
        await humans.answer(TENANT, asked.id, "B", ANN)


async def test_two_answers_at_once_leave_one(humans):
    asked = await humans.ask(HOME, "Which?")
    results = await asyncio.gather(
        *(humans.answer(TENANT, asked.id, said, ANN) for said in "ABCD"), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 3


async def test_what_nobody_answers_expires_by_the_clock(humans, hands):
    asked = await humans.ask(HOME, "Anybody?")
    hands.forward(hours=23.9)
    assert len(await humans.pending(HOME)) == 1
    hands.forward(hours=0.1)
    assert await humans.pending(HOME) == ()
    assert (await humans.wait(TENANT, asked.id, 60)).status is HumanStatus.EXPIRED
    with pytest.raises(Conflict, match="expired already"):
        await humans.answer(TENANT, asked.id, "late", ANN)
    assert (await humans.expire(TENANT), await humans.expire(TENANT)) == (1, 0)
    assert (await humans.wait(TENANT, asked.id, 60)).response is None


@pytest.fixture
def told_only(monkeypatch):
    """Whoever waits reads again when something is told, and not by the clock."""
    monkeypatch.setattr("memory.humans.READ_SECONDS", 3_600)


@pytest.mark.usefixtures("told_only")
async def test_an_answer_wakes_who_waits_in_another_process(humans, dsn, hands):
    asked = await humans.ask(HOME, "Ship it?")
    async with elsewhere(dsn, hands) as other:
        waiting = asyncio.create_task(other.wait(TENANT, asked.id, 60))
        await asyncio.sleep(0.3)  # until it waits
        assert not waiting.done()
        await humans.answer(TENANT, asked.id, "Yes", ANN)
        assert (await in_time(waiting)).response == "Yes"


@pytest.mark.usefixtures("told_only")
async def test_expiry_wakes_who_waits(humans, dsn, hands):
    asked = await humans.ask(HOME, "Ship it?")
    async with elsewhere(dsn, hands) as other:
        waiting = asyncio.create_task(other.wait(TENANT, asked.id, 60))
        await asyncio.sleep(0.3)
        hands.forward(days=2)
        await humans.expire(TENANT)
        assert (await in_time(waiting)).status is HumanStatus.EXPIRED


@pytest.mark.usefixtures("told_only")
async def test_a_question_wakes_who_waits_for_questions(humans, dsn, hands):
    async with elsewhere(dsn, hands) as other:
        waiting = asyncio.create_task(other.pending(HOME, 60))
        await asyncio.sleep(0.3)
        asked = await humans.ask(HOME, "Ship it?")
        assert await in_time(waiting) == (asked,)


async def test_waiting_ends_in_time(humans):
    asked = await humans.ask(HOME, "Anybody?")
    assert (await humans.wait(TENANT, asked.id, 0.05)).status is HumanStatus.PENDING
    assert await humans.pending(place(TENANT, "elsewhere"), 0.05) == ()


async def test_asking_again_with_the_same_id_changes_nothing(humans):
    id = new_id()
    asked = await humans.ask(HOME, "a", id=id)
    assert await humans.ask(HOME, "b", id=id) == asked


async def test_foreign_and_unknown_ids_are_not_found_in_the_same_words(humans):
    asked = await humans.ask(HOME, "a")
    said = set()
    for tenant, id in ((STRANGER, asked.id), (TENANT, str(new_id())), (TENANT, 7)):
        for call in (humans.answer(tenant, id, "x", ANN), humans.wait(tenant, id, 0)):
            with pytest.raises(NotFound) as missing:
                await call
            said.add(str(missing.value))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda humans, id: humans.ask(HOME, " "), "question"),
        (lambda humans, id: humans.ask(HOME, "a", -1), "priority"),
        (lambda humans, id: humans.ask(HOME, "a", 0, 7), "metadata"),
        (lambda humans, id: humans.answer(TENANT, id, "a\0", ANN), "response"),
        (lambda humans, id: humans.wait(TENANT, id, -1), "timeout_seconds"),
        (lambda humans, id: humans.pending(HOME, 61), "wait"),
    ],
)
async def test_bad_input_names_its_field(humans, call, field):
    asked = await humans.ask(HOME, "a")
    with pytest.raises(InvalidRequest) as refused:
        await call(humans, asked.id)
    assert refused.value.field == field
