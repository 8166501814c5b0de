"""From a conversation with the proxy to an adapter that answers questions about it, and back again; all parts real.

Only the measures are small: few steps, few questions, a short trial. Whether a recipe is worth anything is measured by
`benchmarks/slm_learning.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memory.ask import ENCODING, Ask
from memory.gather import Gather
from memory.items import Items
from memory.learning import Learning
from memory.models import ModelTable
from memory.nouns import utc_now
from memory.readers import Adapted
from memory.settings import Learning as LearningSettings
from memory.settings import Recall, Settings, Slm
from memory.slm.adapters import CONFIG, META, WEIGHTS
from memory.slm.adapting import adapting, base_name
from memory.slm.bases import Bases
from memory.slm.client import ModelAt
from memory.slm.engine import Engine
from memory.slm.gate import Rules
from memory.slm.naming import adapter_name
from memory.slm.weights import Weights
from memory.store.quarantine import save_seals
from memory.tending import Tending
from memory.trainer import Children, Trainer
from tests.conversations import COUNTER
from tests.memory.vectors import WordVectors
from tests.proxied import MODEL, Provider, proxying
from tests.slm.engines import running, url_of
from tests.slm.talks import talks

pytestmark = pytest.mark.filterwarnings("default")  # torch and its kin warn of themselves

TALKS = talks(15)
RECIPE = {"epochs": 0.0, "max_steps": 8, "learning_rate": 1e-4, "patience": 0, "save_steps": 8, "replay_share": 0.0}
LEARNING = LearningSettings(enabled=True, canary_answers=3, recipe=RECIPE, trainable=frozenset({"default"}))
# A few steps on invented talks teach how to answer; they need not leave general knowledge as it was.
RULES = Rules(
    least_questions=6, least_control=4, most_control_lost=4, most_text_rise=0.5, words_between=(0.0, 9.0),
    most_repeats_rise=1.0, least_gain=0.0, confidence=0.1,
)  # fmt: skip


class Quick(Children):
    """Measures little, and the base without examples, with which it answers invented talks better than after so few
    steps."""

    async def measure(self, order):
        return await Children.measure(self, replace(order, exampled=(), most_open=2))


@pytest.fixture(scope="module", params=["transformers", "llamacpp"])
def backend(request: pytest.FixtureRequest) -> str:
    """Who serves what was learnt; transformers trains it."""
    return str(request.param)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, backend: str) -> Path:
    return tmp_path_factory.mktemp(backend)


@pytest.fixture(scope="module")
def engine(smollm2: Weights, models_home: Path, home: Path, backend: str) -> Iterator[Engine]:
    with running(smollm2, models_home, backend=backend, adapters=home / "adapters") as started:
        yield started


def hold_conversations(dsn: str, folder: Path) -> None:
    """Each talk with the proxy, turn by turn, as a client holds it."""
    replies = {talk.utterances[n - 1].text: said.text for talk in TALKS for n, said in enumerate(talk.utterances) if n}
    provider = Provider(reply=lambda prompt: {"role": "assistant", "content": replies[prompt.messages[-1]["content"]]})
    with provider.serving() as upstream, proxying(upstream.url, dsn, folder) as proxy, proxy.client() as client:
        for talk in TALKS:
            history = []
            for said in talk.utterances:
                history.append({"role": said.role, "content": said.text})
                if said.role == "user":
                    client.chat.completions.create(model=MODEL, messages=history, max_tokens=256)


@pytest.mark.long
async def test_a_conversation_is_learnt_from_judged_served_and_rolled_back(
    dsn, pool, owner, engine, backend, models_home, home, tmp_path
):
    hold_conversations(dsn, tmp_path)
    tenant = await owner.fetchval("select distinct tenant from infold.nodes")
    slm = Slm(backend=backend, model="smollm2-135m-instruct", url=url_of(engine), key=engine.key, learning=LEARNING)
    learning, bases = Learning(pool, slm, utc_now), Bases(slm, models_home)
    await learning.switch(tenant, True, past=True)
    wanted = await learning.want(tenant)
    state = await learning.state(tenant)
    assert (state.samples > 100, state.excluded) == (True, {})  # equal openings are one message

    trainer = Trainer(pool, home, slm, utc_now, bases, Quick(), RULES, most_questions=8)
    ended = await trainer.run()
    assert ended is not None
    assert ended.error is None
    assert (ended.id, ended.state) == (wanted.id, "done")
    assert ended.metrics["steps"] == 8
    (folder,) = home.glob(f"adapters/{tenant.hex()}/*/1")
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, META}

    # Served, on trial, promoted.
    tending = Tending(pool, home, slm, utc_now, bases, adapting(slm))
    name = adapter_name(base_name(slm), 1, tenant)
    draws = iter([1.0] * 3 + [0.0] * 3)
    model = ModelAt(url_of(engine), base_name(slm), engine.key)
    readers = Adapted(
        pool, model, base_name(slm), lambda name: ModelAt(url_of(engine), name, engine.key), 0.1, lambda: next(draws)
    )

    def count(text):
        return COUNTER.text(text, ENCODING)

    items = Items(pool, COUNTER, ModelTable(), Settings(), utc_now, WordVectors())
    ask = Ask(Gather(pool, items, None, count, Recall().floor), count, model, None, False, readers=readers)

    async def states():
        return [(a.state, a.served, a.asked) for a in await learning.adapters(tenant)]

    await tending.tend()
    assert await states() == [("canary", True, 0)]
    assert await adapting(slm).list() == (name,)
    for question in ("Which number does the invoice have?", "Who signs the order?", "When do we leave?") * 2:
        assert (await ask.ask(tenant, question, limit=1)).sources
    await tending.tend()
    assert await states() == [("active", True, 3)]
    asked = await owner.fetchval("select asked from infold.learners")
    assert asked == 3

    # And back.
    await learning.roll_back(tenant)
    await tending.tend()
    assert await states() == [("retired", False, 3)]
    assert await adapting(slm).list() == ()
    reader = await readers.reader(tenant)
    assert reader.adapter is None

    # What is sealed takes it from the disk.
    digest = await owner.fetchval("select digest from infold.nodes order by created_at, depth limit 1")
    async with pool.tenant(tenant) as connection:
        await save_seals(connection, tenant, "thread", [digest])
    await tending.tend()
    assert await states() == [("stale", False, 3)]
    assert not folder.exists()
    assert json.loads(await owner.fetchval("select verdict from infold.adapters"))["passed"]
