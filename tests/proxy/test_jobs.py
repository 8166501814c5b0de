"""The job worker: what it does by the clock, and what it tells when a job is done."""

import asyncio
import os

from memory.humans import WAIT_SECONDS
from memory.identify import place, text_id
from memory.models import ModelTable
from memory.nouns import utc_now
from memory.recorder import Recorder
from memory.slm.at_hand import AtHand
from memory.slm.at_hand import told as engine_told
from memory.slm.bases import Bases
from memory.spool import Spool
from memory.store.signals import events_after
from memory.tending import Tending
from memory.tokens import Counter
from memory.trainer import Trainer
from memory.whole import memory
from proxy.config import Config
from proxy.jobs import Beside, learner, line_embedder, schedules, train_on, work
from tests.clock import Hands
from tests.conversations import TENANT, user
from tests.memory.store.test_turns import answers, asked_for, whole_turn
from tests.memory.test_worker import LONG, until
from tests.memory.vectors import WordVectors
from tests.scripted import ScriptedUpstream, answer

HOME = place(TENANT, "home")


def whole_of(pool, dsn, config, hands, model=None):
    return memory(pool, dsn, Counter(), ModelTable(), config.settings, hands, model)


def test_questions_and_events_are_looked_at_each_minute_and_hygiene_where_it_is_set(pool, dsn):
    for cron, names in (("", ["expire"]), ("17 3 * * *", ["expire", "hygiene"])):
        config = Config(hygiene={"schedule": cron})
        made = schedules(config, pool, whole_of(pool, dsn, config, Hands()), None)
        assert [scheduled.name for scheduled in made] == names
        assert made[0].cron == "* * * * *"


async def test_what_is_scheduled_each_minute_expires_questions(pool, dsn, owner):
    hands, config = Hands(), Config()
    whole = whole_of(pool, dsn, config, hands)
    await whole.humans.ask(HOME, "May I?")
    hands.forward(hours=25)
    await schedules(config, pool, whole, None)[0].run()
    assert await owner.fetchval("select status from infold.human_requests") == "expired"


async def test_a_line_that_is_embedded_is_told_by_its_turn(pool, dsn, tmp_path):
    hands, asked = Hands(), asked_for([user("a quokka called Marvin")])
    await whole_turn(Recorder(pool, Spool(tmp_path / "turns")), asked, answers("Noted."))
    await line_embedder(pool, WordVectors(), hands)(f"{TENANT.hex()} {asked.line.tip.hex()}".encode())
    async with pool.tenant(TENANT) as connection:
        (event,) = await events_after(connection, TENANT, None)
    assert (event.kind, event.at) == ("job", hands.now)
    assert event.data == {"name": "embed", "turn": text_id(asked.line.tip), "messages": 1}


async def test_the_worker_takes_jobs_and_tells_that_they_are_done(pool, dsn):
    hands, config = Hands(), Config(database_url=dsn)
    item = await whole_of(pool, dsn, config, hands, WordVectors()).items.add(HOME, "gpt-4o", LONG, "note")
    working = asyncio.create_task(work(config, dsn, WordVectors(), hands))

    async def told():
        async with pool.tenant(TENANT, WAIT_SECONDS) as connection:
            return [event.data.get("item_id") for event in await events_after(connection, TENANT, None)] == [item.id]

    try:
        await until(told)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class Counted(Tending):
    times = 0

    async def tend(self):
        await super().tend()
        self.times += 1


async def test_the_worker_sees_that_a_training_is_due_and_what_comes_of_it(pool, dsn, tmp_path):
    """With weights that are missing: what was wanted is begun, and its history says what is wrong. The engine is looked
    after at once, not only by the clock."""
    section = {"enabled": True, "trigger": "fixed", "conversations": 2, "least_samples": 2}
    config = Config(
        database_url=dsn, data_dir=tmp_path / "data", trainable_outputs=True,
        slm={"backend": "transformers", "learning": section},
    )  # fmt: skip
    whole = whole_of(pool, dsn, config, utc_now)
    await whole.learning.switch(TENANT, True, past=True)
    recorder = Recorder(pool, Spool(tmp_path / "turns"))
    for text in ("The lamp is blue.", "The boat is red."):
        await whole_turn(recorder, asked_for([user(text)]), answers("Noted."))
    bases = Bases(config.slm_settings, config.models_home, {})
    trainer = Trainer(pool, config.data_dir, config.slm_settings, utc_now, bases)
    tending = Counted(pool, config.data_dir, config.slm_settings, utc_now, bases)
    await learner(whole.learning, tending).run()
    (waiting,) = (await whole.learning.state(TENANT)).trainings
    assert (waiting.state, waiting.why) == ("queued", "conversations")

    working = asyncio.create_task(train_on(trainer, tending, pause_seconds=0.01))

    async def over():
        return tending.times == 3  # by the clock, at the start, and when the training had ended

    try:
        await until(over)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    ended = await whole.learning.training(TENANT, waiting.id)
    assert ended.state == "failed"
    assert "the weights of smollm2-135m-instruct are not there" in ended.error


class Told:
    """What is looked after, and with which engine."""

    def __init__(self):
        self.urls = []

    def __call__(self, slm):
        self.slm = slm
        return self

    async def tend(self):
        self.urls.append(self.slm.url)


async def test_adapters_are_looked_after_beside_an_engine_and_by_no_worker_elsewhere(tmp_path):
    """A second worker without the engine told each minute that no adapter was loaded."""
    elsewhere, told = Config(data_dir=tmp_path), Told()
    worker = Beside(elsewhere, told)
    await worker.tend()
    assert told.urls == []
    await Beside(
        Config(data_dir=tmp_path, supervised=True), told
    ).tend()  # our server's own, where none runs: it clears
    assert told.urls.pop() is None
    with ScriptedUpstream(answer(b'{"data": [{"id": "small"}]}')) as engine:
        url = f"{engine.url}/v1"
        with engine_told(tmp_path, AtHand(url, "small", "transformers", 2_048, "none", os.getpid())):
            await worker.tend()
        await worker.tend()
        slm = {"backend": "openai", "url": url, "model": "small"}
        await Beside(Config(data_dir=tmp_path, slm=slm), told).tend()
    assert told.urls == [url, url]


async def test_where_learning_is_off_nothing_is_looked_at(pool, dsn, tmp_path, owner):
    config = Config(database_url=dsn, data_dir=tmp_path / "data")
    whole = whole_of(pool, dsn, config, utc_now)
    await whole.learning.switch(TENANT, True, past=True)
    await whole_turn(Recorder(pool, Spool(tmp_path / "turns")), asked_for([user("hello")]), answers("Noted."))
    bases = Bases(config.slm_settings, config.models_home, {})
    await learner(whole.learning, Tending(pool, config.data_dir, config.slm_settings, utc_now, bases)).run()
    assert await owner.fetchval("select count(*) from infold.samples") == 0
