"""The parts together: a secret in an item, taken away and given back; nothing tells it meanwhile."""

import json
from datetime import datetime

import msgspec
import pytest

from memory.errors import Conflict, NotFound
from memory.identify import new_id, place
from memory.meter import UNCOUNTED, Meter
from memory.models import ModelOverride, ModelTable
from memory.nouns import Principal
from memory.settings import Settings
from memory.tokens import Counter
from memory.whole import memory
from tests.clock import Hands
from tests.conversations import TENANT
from tests.memory.test_detect import CAPITALS, drawn
from tests.memory.vectors import WordVectors

HOME = place(TENANT, "home")
ANN = Principal(TENANT, "key:1a2b3c4d", is_person=True)
KEY = f"AKIA{drawn(16, CAPITALS)}"
SECRET = f"the deployment key of the harbour crane is {KEY}"


@pytest.fixture
def make(pool, dsn):
    def made(meter=UNCOUNTED, **settings):
        return memory(pool, dsn, Counter(), ModelTable(), Settings(**settings), Hands(), WordVectors(), meter=meter)

    return made


async def told(whole):
    """All that the memory tells, as text."""
    found = await whole.items.search(HOME, "the deployment key of the harbour crane", 10)
    context = await whole.items.working_context(HOME, "gpt-4o")
    state = await whole.items.state(HOME, "gpt-4o")
    items, _ = await whole.items.listed(HOME, TENANT, None)
    return json.dumps(msgspec.to_builtins([found, context, state, items]))


async def test_what_is_isolated_is_told_nowhere_and_comes_back(make):
    whole = make(quarantine="off")
    item = await whole.items.add(HOME, "gpt-4o", SECRET, "note")
    await whole.items.add(HOME, "gpt-4o", "the harbour opens at nine", "note")
    assert KEY in await told(whole)

    thread = await whole.quarantine.isolate(HOME, KEY, "credentials", "it is a key")
    after = await told(whole)
    assert KEY not in after
    assert item.id not in after
    assert "opens at nine" in after
    assert await whole.items.retrieve(TENANT, item.id) is None
    with pytest.raises(NotFound):
        await whole.items.change(TENANT, item.id, priority=5)

    await whole.quarantine.release(ANN, thread)
    assert (await whole.items.retrieve(TENANT, item.id)).full_content == SECRET
    found = await whole.items.search(HOME, "the deployment key of the harbour crane", 10)
    assert found[0].id == item.id


async def test_free_content_comes_back_as_an_item(make):
    whole = make()
    thread = await whole.quarantine.isolate(HOME, "the moon is made of cheese", "claim", "doubtful")
    await whole.quarantine.release(ANN, thread)
    (found,) = await whole.items.search(HOME, "moon cheese")
    assert (found.content_type, found.full_content, found.session_id) == ("claim", "the moon is made of cheese", "home")


async def test_detectors_propose(make):
    whole = make(quarantine="suggest")
    item = await whole.items.add(HOME, "gpt-4o", SECRET, "note")
    (proposed,) = await whole.quarantine.listed(HOME)
    assert (proposed.state, proposed.metadata["item_id"]) == ("proposed", item.id)
    assert KEY in await told(whole)


async def test_detectors_isolate_where_so_is_set_and_a_person_overrules_them(make):
    whole = make(quarantine="auto")
    item = await whole.items.add(HOME, "gpt-4o", SECRET, "note")
    assert await whole.items.retrieve(TENANT, item.id) is None
    assert KEY not in await told(whole)
    (isolated,) = await whole.quarantine.listed(HOME)
    await whole.quarantine.release(ANN, isolated.thread_id)
    assert (await whole.items.retrieve(TENANT, item.id)).full_content == SECRET
    assert KEY in await told(whole)


async def test_tokens_that_a_program_tracks_are_in_the_sums(make):
    whole = make()
    await whole.items.track_usage(HOME, "gpt-4o", 1000, 100)
    (row,) = await whole.usage.sums(TENANT, "session")
    assert (row.key, row.input_tokens, row.output_tokens) == ("home", 1000, 100)
    assert row.bill_usd == (await whole.items.state(HOME, "gpt-4o")).token_usage_stats.total_cost > 0


async def test_tokens_that_are_tracked_again_with_the_same_id_count_once(make):
    """A call is tried again when a connection is lost, which may be after its commit."""
    counted = []

    class Counting(Meter):
        def spent(self, spent):
            counted.append(spent.attempt)

    whole, id = make(meter=Counting()), new_id()
    for _ in range(2):
        await whole.items.track_usage(HOME, "gpt-4o", 1000, 100, id)
    await whole.items.track_usage(HOME, "gpt-4o", 1, 1)
    (row,) = await whole.usage.sums(TENANT, "session")
    assert len(counted) == len(set(counted)) == 2
    stats = (await whole.items.state(HOME, "gpt-4o")).token_usage_stats
    assert (row.calls, row.input_tokens, row.output_tokens) == (2, 1001, 101)
    assert (stats.input_tokens, stats.output_tokens) == (1001, 101)
    assert stats.total_cost == pytest.approx(row.bill_usd)


async def test_a_models_own_shares_count_whoever_asks(pool, dsn):
    """The class, the proxy and the worker go by the same trigger and the same safe share."""
    models = ModelTable({"own": ModelOverride(context_window=10_000, trigger_share=0.5, safe_share=0.2)})
    whole = memory(pool, dsn, Counter(), models, Settings(), Hands(), WordVectors())
    assert (await whole.items.working_context(HOME, "own")).available_tokens == 2_000


def test_a_clock_without_a_zone_is_refused(pool, dsn):
    with pytest.raises(ValueError, match="time zone"):
        memory(pool, dsn, Counter(), ModelTable(), Settings(), lambda: datetime(2026, 1, 1))


async def test_what_is_in_quarantine_is_not_stored_again(make):
    whole = make(quarantine="off")
    harbour = await whole.items.add(HOME, "gpt-4o", "the harbour opens at nine", "note")
    thread = await whole.quarantine.isolate(HOME, SECRET, "credentials", "it is a key")
    for held in (SECRET, f"\n{SECRET} ", f"It is said that {SECRET}, always."):
        with pytest.raises(Conflict, match="held in quarantine") as refused:
            await whole.items.add(HOME, "gpt-4o", held, "note")
        assert refused.value.field == "content"
        with pytest.raises(Conflict, match="held in quarantine"):
            await whole.items.change(TENANT, harbour.id, content=held)
        with pytest.raises(Conflict):
            await whole.items.add(HOME, "gpt-4o", "harmless", "note", metadata={"said": held})
        with pytest.raises(Conflict):
            await whole.items.change(TENANT, harbour.id, metadata={"said": held})
    assert KEY not in await told(whole)
    assert (await whole.items.retrieve(TENANT, harbour.id)).full_content == "the harbour opens at nine"
    other = place(bytes(16), "home")
    assert await whole.items.add(other, "gpt-4o", SECRET, "note")  # another tenant's

    await whole.quarantine.release(ANN, thread)
    assert await whole.items.add(HOME, "gpt-4o", SECRET, "note")


async def test_a_short_text_in_quarantine_refuses_that_text_alone(make):
    whole = make(quarantine="off")
    await whole.quarantine.isolate(HOME, "4711", "pin", "a code")
    with pytest.raises(Conflict):
        await whole.items.add(HOME, "gpt-4o", "4711 ", "note")
    assert await whole.items.add(HOME, "gpt-4o", "the bottle says 4711", "note")


async def test_what_two_threads_hold_comes_back_with_the_last(make):
    whole = make(quarantine="off")
    threads = [await whole.quarantine.isolate(HOME, SECRET, "credentials", "it is a key") for _ in range(2)]
    await whole.quarantine.release(ANN, threads[0])
    assert KEY not in await told(whole)
    await whole.quarantine.release(ANN, threads[1])
    assert KEY in await told(whole)
