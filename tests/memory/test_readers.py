"""Who reads when a tenant asks its memory: engines over real sockets, where an adapter's name is a model's name."""

import itertools
import json

import pytest

from memory.ask import ENCODING, Ask
from memory.gather import Gather
from memory.identify import new_id, place
from memory.items import Items
from memory.learning import Learning
from memory.models import ModelTable
from memory.readers import Adapted
from memory.settings import Recall, Settings, Slm
from memory.slm.client import ModelAt
from memory.slm.naming import adapter_name
from memory.store import adapters
from tests.clock import Hands
from tests.conversations import COUNTER, TENANT
from tests.memory.store.test_turns import OTHER
from tests.memory.taught import LEARNING
from tests.memory.vectors import WordVectors
from tests.scripted import ScriptedUpstream, answer

FERRY, QUESTION = "The ferry to Skarholm leaves at 07:40 from pier 9.", "When does the ferry leave?"
NAMES = [adapter_name("small", number, TENANT) for number in (1, 2)]
HOLDS, DOES_NOT = "At 07:40 from pier 9.", "At 09:15 from pier 3."


class Reading:
    """An engine with a model and adapters, each of which says one thing, and what it was asked."""

    def __init__(self, **said):
        self.said = {"small": HOLDS, **said}
        self.asked = []

    def __call__(self, seen):
        if seen.method == "GET":
            return answer(json.dumps({"data": [{"id": "small", "max_model_len": 8_192}]}).encode())
        body = json.loads(seen.body)
        self.asked.append((body["model"], len(body["messages"])))
        if body["model"] not in self.said:
            return answer(b'{"error": {"message": "no such model"}}', 404)
        choice = {"message": {"role": "assistant", "content": self.said[body["model"]]}, "finish_reason": "stop"}
        return answer(json.dumps({"choices": [choice]}).encode())


@pytest.fixture
async def asking(pool):
    """`asking(engine, draws)`: an assistant that reads with a tenant's adapters; it knows when the ferry leaves."""
    items = Items(pool, COUNTER, ModelTable(), Settings(), Hands(), WordVectors())
    learning = Learning(pool, Slm(learning=LEARNING), Hands())
    for tenant in (TENANT, OTHER):
        await items.add(place(tenant, "home"), "gpt-4o", FERRY, "note")
        await learning.switch(tenant, True)

    def make(engine, *draws):
        def count(text):
            return COUNTER.text(text, ENCODING)

        url, given = f"{engine.url}/v1", itertools.cycle(draws or (1.0,))
        model = ModelAt(url, "small")
        readers = Adapted(pool, model, "small", lambda name: ModelAt(url, name), 0.1, lambda: next(given))
        gather = Gather(pool, items, None, count, Recall().floor)
        return Ask(gather, count, model, None, True, readers=readers)

    return make


async def add(pool, state, number, served=True, tenant=TENANT):
    id = new_id()
    async with pool.tenant(tenant) as connection:
        await adapters.begin_adapter(connection, tenant, id, "base", "none", (), Hands()())
        await adapters.set_state(connection, tenant, id, state, ["training"], Hands()(), number=number, served=served)
    return id


async def counted(pool, id):
    async with pool.tenant(TENANT) as connection:
        if id is None:
            row = await connection.fetchrow("select * from infold.learners where tenant = $1", TENANT)
        else:
            row = await connection.fetchrow("select * from infold.adapters where tenant = $1 and id = $2", TENANT, id)
    return row["asked"], row["accepted"], row["recent"]


async def test_without_an_adapter_the_bare_model_reads_and_is_counted(pool, asking):
    script = Reading()
    with ScriptedUpstream(script) as engine:
        found = await asking(engine).ask(TENANT, QUESTION)
    assert (found.answer, found.by) == (HOLDS, "model")
    assert [model for model, _ in script.asked] == ["small"]
    assert await counted(pool, None) == (1, 1, "1")


async def test_the_adapter_in_use_reads_without_examples_and_for_its_tenant_alone(pool, asking):
    id, script = await add(pool, "active", 1), Reading(**{NAMES[0]: HOLDS})
    with ScriptedUpstream(script) as engine:
        await asking(engine).ask(TENANT, QUESTION)
        await asking(engine).ask(OTHER, QUESTION)
    (mine, without), (others, examples) = script.asked
    assert (mine, others) == (NAMES[0], "small")
    assert without < examples
    assert await counted(pool, id) == (1, 1, "1")
    assert await counted(pool, None) == (0, 0, "")


async def test_one_on_trial_gets_its_share_of_the_questions_and_each_is_counted_for_whom_it_was(pool, asking):
    active, canary = await add(pool, "active", 1), await add(pool, "canary", 2)
    script = Reading(**{NAMES[0]: HOLDS, NAMES[1]: DOES_NOT})
    with ScriptedUpstream(script) as engine:
        ask = asking(engine, 0.5, 0.09, 0.1)
        told = [await ask.ask(TENANT, QUESTION) for _ in range(3)]
    assert [model for model, _ in script.asked] == [NAMES[0], NAMES[1], NAMES[0]]
    assert [one.by for one in told] == ["model", "passages", "model"]
    assert await counted(pool, active) == (2, 2, "11")
    assert await counted(pool, canary) == (1, 0, "0")


@pytest.mark.parametrize("state", ["stale", "retired", "refused", "evaluated"])
async def test_what_is_not_in_use_does_not_read(pool, asking, state):
    await add(pool, state, 1)
    script = Reading(**{NAMES[0]: HOLDS})
    with ScriptedUpstream(script) as engine:
        await asking(engine).ask(TENANT, QUESTION)
    assert [model for model, _ in script.asked] == ["small"]


async def test_one_that_no_engine_has_does_not_read_nor_any_of_who_turned_learning_off(pool, asking):
    await add(pool, "canary", 1, served=False)
    await add(pool, "active", 2)
    await Learning(pool, Slm(learning=LEARNING), Hands()).switch(TENANT, False)
    script = Reading(**dict.fromkeys(NAMES, HOLDS))
    with ScriptedUpstream(script) as engine:
        await asking(engine, 0.0).ask(TENANT, QUESTION)
        await Learning(pool, Slm(learning=LEARNING), Hands()).switch(TENANT, True)
        await asking(engine, 0.0).ask(TENANT, QUESTION)
    assert [model for model, _ in script.asked] == ["small", NAMES[1]]


async def test_where_the_engine_has_lost_an_adapter_the_bare_model_reads_and_nothing_is_counted(pool, asking):
    id, script = await add(pool, "active", 1), Reading()
    with ScriptedUpstream(script) as engine:
        found = await asking(engine).ask(TENANT, QUESTION)
    assert (found.answer, found.by) == (HOLDS, "model")
    assert [model for model, _ in script.asked] == [NAMES[0], "small"]
    assert await counted(pool, id) == (0, 0, "")
    assert await counted(pool, None) == (0, 0, "")
