"""Jobs of items: embedded in the end whatever breaks off, tidied by session and by calendar."""

import asyncio
import contextlib
import random
from datetime import timedelta
from uuid import UUID

import pytest

from memory import worker
from memory.embed import OnnxEmbedder
from memory.errors import ModelError, StoreUnavailable
from memory.humans import Humans
from memory.identify import place
from memory.items import Items
from memory.models import ModelTable
from memory.quarantine import Quarantine
from memory.queue import Handler, Scheduled, run_queue, take_jobs
from memory.settings import Hygiene, Settings
from memory.store import sealed
from memory.store.signals import Signals, events_after, tell
from memory.store.turns import NodeRow, save_nodes
from memory.worker import embed_item, expire, hygiene, item_handlers
from tests.clock import Hands
from tests.conversations import COUNTER, TENANT, prose
from tests.faults import in_time
from tests.memory.vectors import WordVectors

HOME = place(TENANT, "home")
STRANGER = place(bytes(16), "elsewhere")
LONG = prose(random.Random(1), 3_000)


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def items(pool, hands):
    return Items(pool, COUNTER, ModelTable(), Settings(hygiene=Hygiene(every_items=2)), hands, WordVectors())


async def add(items, text=LONG, at=HOME):
    return await items.add(at, "gpt-4o", text, "note")


async def vectors(owner):
    return await owner.fetchval("select count(*) from infold.vectors"), await owner.fetchval(
        "select sum(embedded)::integer from infold.states"
    )


@contextlib.asynccontextmanager
async def working(dsn, *handlers, schedules=()):
    task = asyncio.create_task(run_queue(dsn, handlers, schedules))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(done, seconds=60):
    async with asyncio.timeout(seconds):
        while not await done():
            await asyncio.sleep(0.05)


async def test_a_short_item_is_embedded_when_it_is_added_and_a_long_one_by_a_job(items, owner):
    await add(items, "short")
    assert await vectors(owner) == (1, 1)
    assert await owner.fetchval("select count(*) from infold.pgqueuer") == 0
    await add(items)
    assert await owner.fetchval("select count(*) from infold.pgqueuer where entrypoint = 'embed_item'") == 1


async def test_a_sentence_among_code_is_near_to_a_question_about_it(pool, owner, hands):
    embedder = OnnxEmbedder()
    items = Items(pool, COUNTER, ModelTable(), Settings(), hands, embedder)
    lines = [f"    value_{n} = self.table[{n}].read(offset={8 * n}, size=8)" for n in range(400)]
    lines.insert(200, "The dentist plays chess by mail with a lighthouse keeper.")
    added = await items.add(HOME, "gpt-4o", "\n".join(lines), "code")
    await embed_item(pool, embedder, TENANT, added.id)
    (hit,) = await items.search(HOME, "Who has a board game by post with a man guarding a beacon?", 1)
    assert "lighthouse" in hit.full_content[hit.passage.start : hit.passage.stop]
    assert hit.distance < 0.65  # the whole passage is at 0.67
    await items.add(HOME, "gpt-4o", "first line of a note\nsecond line, of another thing", "note")
    assert await owner.fetchval("select count(*) from infold.vectors where segments is not null") > 10
    assert await owner.fetchval("select count(*) from infold.vectors where segments is null") == 1
    await embedder.close()


async def test_embedding_twice_embeds_once(items, pool, owner):
    id = (await add(items)).id
    model = WordVectors()
    done = await embed_item(pool, model, TENANT, id, batch=4)
    assert done == len(model.asked) == await owner.fetchval("select count(*) from infold.passages") > 10
    assert await embed_item(pool, model, TENANT, id) == 0
    assert await vectors(owner) == (done, done)
    assert await embed_item(pool, model, bytes(16), id) == 0


async def test_a_worker_that_dies_loses_one_batch(items, pool, owner):
    class Dies(WordVectors):
        async def embed(self, texts):
            if len(self.asked) >= 8:
                raise ModelError
            return await super().embed(texts)

    id = (await add(items)).id
    with pytest.raises(ModelError):
        await embed_item(pool, Dies(), TENANT, id, batch=4)
    assert await vectors(owner) == (8, 8)
    model = WordVectors()
    await embed_item(pool, model, TENANT, id, batch=4)
    assert len(model.asked) + 8 == (await vectors(owner))[0]


async def test_what_is_quarantined_or_corrected_meanwhile_leaves_no_vector_of_its_old_text(items, pool, owner, hands):
    class Meanwhile(WordVectors):
        def __init__(self, change):
            super().__init__()
            self.change = change

        async def embed(self, texts):
            if self.change:
                await self.change()
                self.change = None
            return await super().embed(texts)

    first, second = (await add(items)).id, (await add(items, prose(random.Random(2), 3_000))).id

    async def seal():
        await Quarantine(pool, COUNTER, hands, Settings()).isolate(HOME, LONG, "note", "odd")

    async def correct():
        await items.change(TENANT, second, content="quite another text")

    assert await embed_item(pool, Meanwhile(seal), TENANT, first) == 0
    assert await vectors(owner) == (0, 0)
    assert await embed_item(pool, Meanwhile(correct), TENANT, second) == 1
    (hit,) = await items.search(HOME, "quite another text")
    assert hit.distance == pytest.approx(0, abs=1e-3)


async def test_the_queue_takes_what_items_left_for_it(items, pool, owner, dsn):
    await add(items)
    await add(items)
    async with working(dsn, *item_handlers(pool, items, WordVectors())):

        async def all_done():
            passages = await owner.fetchval("select count(*) from infold.passages")
            untidied = await owner.fetchval("select untidied from infold.states")
            return await vectors(owner) == (passages, passages) and untidied == 0

        await until(all_done)
        await add(items)  # it hears of new ones while it runs
        await until(all_done_with(owner))


def all_done_with(owner):
    async def done():
        passages = await owner.fetchval("select count(*) from infold.passages")
        return await vectors(owner) == (passages, passages)

    return done


async def test_an_embedder_that_is_silent_is_asked_again_and_hygiene_asks_once_more(
    items, pool, owner, hands, monkeypatch
):
    monkeypatch.setattr(worker, "TRY_AGAIN_SECONDS", 0.001)

    class Silent(WordVectors):
        async def embed(self, texts):
            self.asked.append("")
            raise ModelError

    id = (await add(items)).id
    silent = Silent()
    await worker.embed_patiently(pool, silent, TENANT, id)
    assert len(silent.asked) == worker.TRIES
    await owner.execute("delete from infold.pgqueuer")
    await hygiene(pool, items, WordVectors(), hands)
    (payload,) = [row["payload"] for row in await owner.fetch("select payload from infold.pgqueuer")]
    assert worker.parse_item(payload) == (TENANT, UUID(id))


async def events(pool, tenant=TENANT):
    async with pool.tenant(tenant) as connection:
        return await events_after(connection, tenant, None)


async def test_a_job_that_is_done_is_told_with_ids_and_numbers_alone(items, pool, owner, hands):
    id = (await add(items)).id
    embed, tidy, _ = item_handlers(pool, items, WordVectors(), hands)
    await embed.run(f"{TENANT.hex()} {id}".encode())
    await tidy.run(f"{TENANT.hex()} {HOME.id}".encode())
    await hygiene(pool, items, None, hands)
    embedded, tidied, cleaned = await events(pool)
    assert {event.kind for event in (embedded, tidied, cleaned)} == {"job"}
    count = await owner.fetchval("select count(*) from infold.passages")
    assert (embedded.session_id, embedded.at) == ("home", hands.now)
    assert embedded.data == {"name": "embed_item", "item_id": id, "passages": count}
    kept = {"compressed": 0, "archived": 0, "deleted": 0, "kept": 1}
    assert (tidied.session_id, tidied.data) == ("home", {"name": "tidy", **kept})
    assert (cleaned.session_id, cleaned.data) == (None, {"name": "hygiene", "sessions": 1, **kept})


async def test_a_job_whose_embedder_stays_silent_is_not_told_as_done(items, pool, hands, monkeypatch):
    monkeypatch.setattr(worker, "TRY_AGAIN_SECONDS", 0.001)

    class Silent(WordVectors):
        async def embed(self, texts):
            raise ModelError

    id = (await add(items)).id
    embed, *_ = item_handlers(pool, items, Silent(), hands)
    await embed.run(f"{TENANT.hex()} {id}".encode())
    assert await events(pool) == ()


async def test_each_minute_what_has_expired_is_written_down_and_old_events_go(pool, dsn, owner, hands):
    humans = Humans(pool, hands, Signals(dsn), timedelta(hours=10))
    mine, theirs = await humans.ask(HOME, "May I?"), await humans.ask(STRANGER, "And I?")
    hands.forward(hours=9)
    later = await humans.ask(HOME, "And this?")
    proxied = bytes(15) + b"r"  # a tenant of the proxy alone
    async with pool.tenant(proxied) as connection:
        await tell(connection, proxied, "rollover", "s", {}, hands.now)

    await expire(pool, humans, hands)
    assert await owner.fetchval("select count(*) from infold.events") == 4
    hands.forward(hours=2)
    await expire(pool, humans, hands)
    statuses = dict(await owner.fetch("select id::text, status from infold.human_requests"))
    assert statuses == {mine.id: "expired", theirs.id: "expired", later.id: "pending"}
    assert [event.data["hil_id"] for event in await events(pool) if event.kind == "human_expired"] == [mine.id]
    hands.forward(hours=14)
    await expire(pool, humans, hands)
    assert [event.kind for event in await events(pool)] == ["human_request", "human_expired", "human_expired"]
    assert [event.kind for event in await events(pool, STRANGER.tenant)] == ["human_expired"]
    hands.forward(hours=9)
    await expire(pool, humans, hands)
    assert await events(pool, proxied) == ()


async def test_hygiene_goes_through_all_tenants(items, pool, owner, hands):
    mine, theirs = await add(items, "mine"), await add(items, "theirs", STRANGER)
    hands.forward(days=8)
    await hygiene(pool, items, None, hands)
    for tenant, item in ((TENANT, mine), (STRANGER.tenant, theirs)):
        assert (await items.retrieve(tenant, item.id)).form == "summary"
    assert {row["tidied"] for row in await owner.fetch("select tidied from infold.calendar")} == {hands.now}


async def test_a_tenant_that_cannot_be_tidied_keeps_nobody_else_waiting(items, owner, hands, pool):
    mine, theirs = await add(items, "mine"), await add(items, "theirs", STRANGER)
    hands.forward(days=8)
    first = await owner.fetchval("select min(tenant) from infold.calendar")
    await owner.execute(
        "create function infold.fails() returns trigger language plpgsql as $$ begin raise 'no'; end $$;"
        " create trigger fails before update of form on infold.items for each row"
        f" when (old.tenant = '\\x{first.hex()}') execute function infold.fails()"
    )
    await hygiene(pool, items, None, hands)
    forms = {tenant: (await items.retrieve(tenant, item.id)).form for tenant, item in
             ((TENANT, mine), (STRANGER.tenant, theirs))}  # fmt: skip
    assert forms.pop(first) == "full"
    assert list(forms.values()) == ["summary"]
    assert {row["tidied"] for row in await owner.fetch("select tidied from infold.calendar")} == {hands.now}


async def test_what_is_scheduled_waits_for_its_time(dsn, owner):
    async def never():
        raise AssertionError

    async def nothing(payload):
        pass

    async with working(dsn, Handler("nothing", nothing), schedules=[Scheduled("hygiene", "17 3 * * *", never)]):

        async def planned():
            return await owner.fetchval("select count(*) from infold.pgqueuer_schedules where next_run > now()") == 1

        await until(planned)


async def test_a_queue_outlives_the_loss_of_its_connections(items, pool, owner, dsn):
    async with working(dsn, *item_handlers(pool, items, WordVectors())):
        await add(items)
        await until(all_done_with(owner))
        await owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'infold jobs'"
        )
        await add(items)
        await until(all_done_with(owner), 120)  # PgQueuer looks by itself every 30 s, should it miss a call


async def test_a_queue_that_lost_a_connection_ends_at_once(dsn, owner):
    """PgQueuer itself looks every 30 s, and may then wait for ever for a connection that nobody gives back."""

    async def nothing(payload):
        pass

    ended = asyncio.create_task(take_jobs(dsn, [Handler("nothing", nothing)]))
    connections = "from pg_stat_activity where application_name = 'infold jobs' and query ilike 'listen%'"
    await until(lambda: owner.fetchval(f"select count(*) > 0 {connections}"))
    await owner.execute(f"select pg_terminate_backend(pid) {connections}")
    with pytest.raises(StoreUnavailable, match="lost"):
        await in_time(ended)


async def test_a_message_is_looked_at_again_until_the_database_lets_it(pool, owner, monkeypatch):
    """A job that fails is gone, and the message would never be sealed."""
    monkeypatch.setattr(worker, "TRY_AGAIN_SECONDS", 0.01)
    thread = await Quarantine(pool, COUNTER, Hands(), Settings()).isolate(HOME, "a word of its own", "note", "odd")
    said = b'{"role":"user","content":"it is a word of its own"}'
    async with pool.connection() as connection:
        await save_nodes(connection, TENANT, None, [NodeRow(b"n", None, 0, True, "user", b"digest", said, 1)], "s")
    await owner.execute("delete from infold.seals where digest = 'digest'")
    await owner.execute("alter table infold.nodes rename to gone")
    tried = []

    async def seal_late(*given):
        tried.append(given)
        await sealed.seal_late(*given)

    monkeypatch.setattr(worker, "seal_late", seal_late)
    sealing = asyncio.create_task(worker.seal_patiently(pool, TENANT, b"n"))
    await until(lambda: asyncio.sleep(0, len(tried) > 1))
    await owner.execute("alter table infold.gone rename to nodes")
    await sealing
    found = await owner.fetch("select thread from infold.seals where digest = 'digest'")
    assert [row["thread"] for row in found] == [thread]
