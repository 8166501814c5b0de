"""What is in quarantine is told nowhere: not by what was stored of conversations, not by what was made of them."""

import asyncio
import json
import random
import time

import asyncpg
import httpx
import numpy as np
import pytest
from msgspec.structs import replace

from memory.held import Known
from memory.identify import key_tenant, line, place
from memory.manager import MemoryManager
from memory.models import ModelOverride, ModelTable
from memory.nouns import Principal
from memory.prepared import Caller
from memory.quarantine import Quarantine
from memory.recorder import Ended, Kept, Recorder
from memory.settings import Settings
from memory.spool import Spool
from memory.store.chunks import save_chunks
from memory.store.export import export_lines
from memory.store.pool import Pool
from memory.store.secrets import load_pepper
from memory.store.turns import NodeRow, save_nodes
from memory.tokens import Counter
from memory.worker import item_handlers
from proxy.wire import openai
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser
from tests.clock import Hands
from tests.conftest import finish, open_pool
from tests.conversations import TENANT, assistant, body_of, calling, prose, result, user
from tests.faults import until
from tests.proxied import MODEL, PATIENT, WINDOW, noted

HOME = place(TENANT, "home")
CANARY = "the canary's word is xylophonist-4711"


def talk(proxy, messages):
    with proxy.client("sk-alice") as client:
        reply = client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, max_tokens=256)
        return dict(reply.headers)


@pytest.fixture
def history():
    rng = random.Random(7)
    lines = [m for _ in range(26) for m in (user(prose(rng, 90)), assistant(prose(rng, 130)))]
    return [user(f"Remember: {CANARY}."), assistant(f"I will remember that {CANARY}."), *lines]


@pytest.fixture
async def quarantine(pool):
    return Quarantine(pool, Counter(), Hands(), Settings())


async def tenant_of(owner):
    return await owner.fetchval("select distinct tenant from infold.nodes")


async def everywhere(owner):
    """Tables in which the canary's word stands, but the messages themselves and the quarantine."""
    tables = await owner.fetch("select table_name as name from information_schema.tables where table_schema = 'infold'")
    found = set()
    for (name,) in tables:
        rows = await owner.fetch(f"select * from infold.{name}")
        if any(b"xylophonist" in part for row in rows for part in bytes_of(row)):
            found.add(name)
    return found - {"nodes", "quarantine"}


def bytes_of(row):
    return [value if isinstance(value, bytes) else str(value).encode() for value in row.values()]


async def test_what_was_made_of_a_message_goes_with_it(proxy, owner, quarantine, history):
    headers = await asyncio.to_thread(talk, proxy, [*history, user("What is the canary's word?")])
    assert await everywhere(owner) >= {"folds", "attempts"}

    home = place(await tenant_of(owner), "home")
    thread = await quarantine.isolate(home, CANARY, "message", "odd")

    assert await everywhere(owner) == set()
    turn = await asyncio.to_thread(proxy.get, f"/memory-manager/turns/{headers['x-infold-turn']}", "sk-alice")
    export = await asyncio.to_thread(proxy.get, "/memory-manager/export", "sk-alice")
    for told in (turn.text, export.text):
        assert "xylophonist" not in told
        assert '"quarantined":true' in told
    assert turn.json()["attempts"][0]["redacted"] is True
    lines = [json.loads(line) for line in export.text.splitlines()]
    assert sum("quarantined" in line for line in lines if line["kind"] == "message") == 2

    person = Principal(home.tenant, "cli", is_person=True)
    await quarantine.release(person, thread)
    export = await asyncio.to_thread(proxy.get, "/memory-manager/export", "sk-alice")
    assert CANARY in export.text


def isolate_while_answering(provider, dsn, isolates=CANARY):
    """The provider has a text isolated when it is asked: after the request was planned, before it is recorded."""

    async def isolate():
        async with open_pool(dsn) as pool:
            quarantine = Quarantine(pool, Counter(), Hands(), Settings())
            await quarantine.isolate(place(await tenant_of_key(dsn), "home"), isolates, "message", "odd")

    def reply(prompt):
        provider.reply = noted
        finish(isolate())
        return noted(prompt)

    provider.reply = reply


async def tenant_of_key(dsn, key="sk-alice"):
    connection = await asyncpg.connect(dsn)
    try:
        return key_tenant(await load_pepper(connection), key)
    finally:
        await connection.close()


async def test_what_was_planned_before_and_recorded_after_leaves_nothing(proxy, provider, owner, dsn, history):
    isolate_while_answering(provider, dsn)
    messages = [*history, user("What is the canary's word?")]
    headers = await asyncio.to_thread(talk, proxy, messages)
    assert headers["x-infold-mode"] == "folded"
    assert "xylophonist" in str(provider.prompts[0].messages)  # it was told before it was isolated

    assert await everywhere(owner) == set()
    assert await owner.fetchval("select count(*) from infold.folds") == 0
    turn = proxy.explain(headers["x-infold-turn"])
    assert turn["attempts"][0]["redacted"] is True
    assert turn["attempts"][0]["status"] == "answered"
    assert "xylophonist" not in str(turn) + str(proxy.export())
    await next_prompts_are_silent(proxy, provider, messages)
    assert await everywhere(owner) == set()
    assert await owner.fetchval("select count(*) from infold.folds") > 0


async def next_prompts_are_silent(proxy, provider, messages):
    rng = random.Random(9)
    for _ in range(2):
        messages = [*messages, assistant(prose(rng, 130)), user("Tell me the word of the canary, please.")]
        await asyncio.to_thread(talk, proxy, messages)
        assert "xylophonist" not in str(provider.prompts[-1].messages)
        assert len(provider.prompts[-1].messages) < len(messages)  # it was folded


async def test_other_tenants_and_other_lines_keep_what_was_made(proxy, owner, quarantine, history):
    await asyncio.to_thread(talk, proxy, [*history[2:], user("What is up?")])
    before = await owner.fetchval("select count(*) from infold.folds")
    assert before
    await quarantine.isolate(place(await tenant_of(owner), "home"), CANARY, "message", "odd")
    assert await owner.fetchval("select count(*) from infold.folds") == before


async def test_the_next_prompts_do_not_tell_it(proxy, provider, owner, quarantine, history):
    """Digests and blocks are made anew without it; bytes that the client sends itself go out as they came."""
    rng = random.Random(8)
    messages = [*history, user("What is the canary's word?")]
    await asyncio.to_thread(talk, proxy, messages)
    assert "xylophonist" in str(provider.prompts[-1].messages)

    await quarantine.isolate(place(await tenant_of(owner), "home"), CANARY, "message", "odd")
    proxy.parts.memory.heard(None, "again", "")  # as a signal would
    for _ in range(3):
        messages += [assistant(prose(rng, 130)), user("Tell me the word of the canary, please.")]
        await asyncio.to_thread(talk, proxy, messages)
        told = str(provider.prompts[-1].messages)
        assert "xylophonist" not in told
        assert len(provider.prompts[-1].messages) < len(messages)  # it was folded
    assert await everywhere(owner) == set()


async def test_another_process_learns_of_it_without_a_signal(proxy, provider, owner, quarantine, history):
    messages = [*history, user("What is the canary's word?")]
    await asyncio.to_thread(talk, proxy, messages)
    memory = proxy.parts.memory
    tenant = await tenant_of(owner)
    await quarantine.isolate(place(tenant, "home"), CANARY, "message", "odd")
    memory._held._known.put(tenant, (time.monotonic() - 900, Known()))  # known long ago, with no signal since
    await asyncio.to_thread(talk, proxy, [*messages, assistant("It is so."), user("And the canary's word?")])
    assert "xylophonist" not in str(provider.prompts[-1].messages)


async def test_who_isolates_nothing_does_not_wait_for_the_database_again(proxy, provider, owner, history):
    messages = [*history, user("What is the canary's word?")]
    await asyncio.to_thread(talk, proxy, messages)
    tenant, known = await tenant_of(owner), proxy.parts.memory._held._known
    _, before = known.get(tenant)
    known.put(tenant, (time.monotonic() - 60, before))
    await asyncio.to_thread(talk, proxy, [*messages, assistant("It is so."), user("And the canary's word?")])
    assert len(provider.prompts[-1].messages) < len(messages)  # it was folded
    assert known.get(tenant)[0] < time.monotonic() - 50


async def test_what_one_tenant_isolates_leaves_what_was_made_for_another(proxy, quarantine, owner, history):
    await asyncio.to_thread(talk, proxy, [*history, user("What is the canary's word?")])
    memory, made = proxy.parts.memory, set(proxy.parts.memory._known._frozen._entries)
    assert {tenant for tenant, _ in made} == {await tenant_of(owner)}
    memory.heard(TENANT, "quarantine", "")
    assert set(memory._known._frozen._entries) == made
    memory.heard(await tenant_of(owner), "quarantine", "")
    assert not memory._known._frozen._entries


async def test_a_message_on_its_way_while_its_text_is_isolated_is_sealed_when_it_comes(pool, tmp_path):
    spool = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)
    manager, prepared = await planned(pool, spool, [user(f"My word: {CANARY}, keep it.")])
    await Quarantine(pool, Counter(), Hands(), Settings()).isolate(HOME, CANARY, "message", "odd")
    assert await manager.record(prepared, None, Ended("answered", (), {})) is Kept.COMMITTED
    spool.close()
    async with pool.reader(TENANT) as connection:
        told = [json.loads(each) async for each in export_lines(connection, TENANT)]
    assert [each["quarantined"] for each in told if each["kind"] == "message" and "quarantined" in each] == [True]
    assert "xylophonist" not in str(told)


async def test_a_message_that_comes_later_and_holds_it_is_told_nowhere(
    proxy, provider, owner, quarantine, dsn, history
):
    """Also in the request that brings it, and though it writes the text in another way."""
    await quarantine.isolate(place(await tenant_of_key(dsn), "home"), f"{CANARY} überall", "message", "odd")
    escaped = user([{"type": "text", "text": f"Remember that {CANARY} \u00fcberall and always."}])
    messages = [escaped, assistant(f"So {CANARY} überall."), *history[2:], user("What is the canary's word?")]
    await asyncio.to_thread(talk, proxy, messages)
    assert len(provider.prompts[-1].messages) < len(messages)
    assert "xylophonist" not in str(provider.prompts[-1].messages)
    assert "xylophonist" not in str(proxy.export())
    await next_prompts_are_silent(proxy, provider, messages)
    assert await everywhere(owner) == set()


async def test_a_turn_that_waited_on_disk_leaves_nothing_when_it_is_replayed(pool, owner, dsn, tmp_path, history):
    spool = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)
    _, prepared = await planned(pool, spool, history)
    away = Recorder(Pool(dsn), spool)  # that never reached the database
    assert prepared.folds
    assert await away.close(prepared.to_record(), None, Ended("answered", (), {})) is Kept.SPOOLED

    await Quarantine(pool, Counter(), Hands(), Settings()).isolate(HOME, CANARY, "message", "odd")
    assert await Recorder(pool, spool).drain() == 1
    spool.close()
    assert await owner.fetchval("select count(*) from infold.attempts") == 1
    assert await everywhere(owner) == set()
    assert await owner.fetchval("select count(*) from infold.folds") == 0


async def test_what_a_process_remembers_of_a_plan_that_was_overtaken_is_not_used_again(pool, tmp_path, history):
    """The signal comes while the plan is made: what it makes must not be remembered after what the signal dropped."""
    spool = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)
    manager, prepared = await planned(
        pool, spool, history, while_planning=lambda manager: manager.heard(None, "again", "")
    )
    assert prepared.folds
    assert len(manager._known._frozen) == len(manager._known._blocks) == 0
    spool.close()


async def planned(pool, spool, history, while_planning=None):
    """A request of the canary's conversation, planned and not recorded."""
    recorder = Recorder(pool, spool)
    models = ModelTable({MODEL: ModelOverride(context_window=WINDOW)})
    manager = MemoryManager(Settings(), pool, recorder, models, Counter())
    if while_planning is not None:
        store_line = recorder.store_line

        async def overtaken(asked, known):
            await store_line(asked, known)
            while_planning(manager)

        recorder.store_line = overtaken
    asked = Parser(SHAPE).parse(body_of([*history, user("What is the canary's word?")], model=MODEL, max_tokens=256))
    return manager, await manager.prepare(Caller(TENANT), asked, openai)


async def test_an_embedding_under_way_is_not_written(pool, owner, quarantine):
    """The worker has read the message, then it is isolated, then the vectors come."""
    said = user(f"Remember: {CANARY}.")
    raw = json.dumps(said).encode()
    path = line(TENANT, Parser(SHAPE).parse(body_of([said])).messages)
    async with pool.connection() as connection:
        row = NodeRow(path.tip, None, 0, True, "user", path.messages[0].digest, raw, 1)
        await save_nodes(connection, TENANT, None, [row], "s")
    await quarantine.isolate(HOME, CANARY, "message", "odd")
    async with pool.tenant(TENANT) as connection:
        await save_chunks(connection, TENANT, "space", path.tip, [(0, 5)], np.ones((1, 384), np.float32))
    assert await owner.fetchval("select count(*) from infold.chunks") == 0


async def test_names_of_calls_and_errors_of_providers_tell_nothing(proxy, provider, owner, quarantine):
    word = "xylophonist-4711-word"
    call = {"id": word, "type": "function", "function": {"name": word, "arguments": "{}"}}
    provider.reply = lambda prompt: assistant(None, tool_calls=[call])
    headers = await asyncio.to_thread(talk, proxy, [user("Which word?")])
    assert proxy.explain(headers["x-infold-turn"])["calls"][0]["name"] == word
    await quarantine.isolate(place(await tenant_of(owner), "home"), word, "message", "odd")
    turn = proxy.explain(headers["x-infold-turn"])
    assert turn["calls"] == []
    assert "xylophonist" not in str(turn) + str(proxy.export())


async def test_a_commit_searches_no_more_than_it_has_room_for_and_a_job_the_rest(pool, owner, tmp_path, history):
    """Whoever has much in quarantine and says much keeps nobody waiting; what holds it is sealed a moment later."""
    quarantine = Quarantine(pool, Counter(), Hands(), Settings())
    await quarantine.isolate(HOME, CANARY, "message", "odd")
    await owner.execute(
        "insert into infold.quarantine (tenant, id, thread, session, state, context_type, reason, content, tokens,"
        " created_at, updated_at, plain) select tenant, gen_random_uuid(), 'thread ' || n, session, state, 'note', '',"
        " 'text ' || n, 1, now(), now(), array[convert_to('a text of the number ' || n, 'utf8')]"
        " from infold.quarantine, generate_series(1, 20000) n"
    )
    spool = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)
    manager, prepared = await planned(pool, spool, history)
    assert prepared.folds
    assert await manager.record(prepared, None, Ended("answered", (), {})) is Kept.COMMITTED
    jobs = await owner.fetch("select payload from infold.pgqueuer where entrypoint = 'seal'")
    assert len(jobs) > len(history) // 2
    assert await owner.fetchval("select count(*) from infold.seals where thread like 'thread!_%' escape '!'") == 1

    (seal,) = (handler.run for handler in item_handlers(pool, None, None) if handler.name == "seal")
    for job in [*jobs, jobs[0]]:  # twice with the same result
        await seal(job["payload"])
    assert await everywhere(owner) == set()
    async with pool.reader(TENANT) as connection:
        assert "xylophonist" not in str([each async for each in export_lines(connection, TENANT)])
    for again in (prepared, (await planned(pool, spool, history))[1]):
        await manager.record(replace(again, attempt=bytes(16)), None, Ended("answered", (), {}))
        assert await everywhere(owner) == set()
    spool.close()


async def test_an_error_with_a_nul_is_redacted_before_and_after(pool, tmp_path, owner):
    """What a provider says may hold what PostgreSQL's JSON refuses."""
    spool = Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds)
    said = {"error": f"\0 {CANARY}", "finish_reasons": ["\0"], "status": 500}
    for record in ({}, {"n": 1}):  # recorded before the text is isolated, and planned before and recorded after
        manager, prepared = await planned(pool, spool, [user(f"My word: {CANARY}.")])
        prepared = replace(prepared, held=Known())
        if record:
            await Quarantine(pool, Counter(), Hands(), Settings()).isolate(HOME, CANARY, "message", "odd")
        assert await manager.record(prepared, None, Ended("failed", (), {**said, **record})) is Kept.COMMITTED
    spool.close()
    records = [json.loads(row["record"]) for row in await owner.fetch("select record from infold.attempts")]
    assert len(records) == 2
    for record in records:
        assert (record["redacted"], record["finish_reasons"], record["status"]) == (True, ["\0"], 500)
        assert "error" not in record
    assert await everywhere(owner) == set()


async def test_no_page_tells_it(proxy, provider, owner, history):
    """One canary in an item, its metadata, a user's words, a call, its result and an answer; then every page is read."""
    call = calling(("c1", json.dumps({"word": CANARY})))
    provider.reply = lambda prompt: assistant(f"Noted: {CANARY}.")
    messages = [*history, call, result("c1", f"stored: {CANARY}"), user("What is the canary's word?")]
    headers = await asyncio.to_thread(talk, proxy, messages)
    with httpx.Client(base_url=f"{proxy.url}/memory-manager/", headers={"authorization": "Bearer sk-alice"}) as client:
        for more in ({"content": f"A note: {CANARY}."}, {"content": "harmless", "metadata": {"word": CANARY}}):
            assert client.post("items/add", json={"content_type": "note", **more}).status_code == 200
        isolated = client.post("quarantine", json={"content": CANARY, "context_type": "word", "reason": "odd"})
        thread = isolated.json()["thread_id"]
        await until(lambda: not proxy.parts.memory._known._frozen._weight)  # the process has heard of it

        told = {path: client.get(path.format(turn=headers["x-infold-turn"])) for path in PAGES}
        told |= {name: client.post(f"tools/{name}", json=arguments) for name, arguments in TOOLS.items()}
        told["search"] = client.post("items/search", json={"query": "the canary's word", "limit": 50})
        for session in ({}, {"x-session-id": "home"}):
            asked = client.post("ask", json={"question": "What is the canary's word?"}, headers=session)
            told[f"ask {session}"] = asked
        told["hygiene"] = client.post("hygiene", json={"dry_run": True})
        for path, reply in told.items():
            assert reply.status_code == 200, path
            assert "xylophonist" not in reply.text + str(reply.headers), path
        assert CANARY in client.get(f"quarantine/{thread}").text

        refused = client.post("items/add", json={"content": f"Again: {CANARY}", "content_type": "note"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (409, "content")
        assert "xylophonist" not in refused.text
        id = client.post("items/add", json={"content": "a bridge", "content_type": "note"}).json()["item_id"]
        refused = client.patch(f"items/{id}", json={"correction": CANARY})
        assert (refused.status_code, refused.json()["error"]["param"]) == (409, "content")
        stored = client.post("tools/memory_store", json={"content": CANARY})
        assert stored.status_code == 409
    for path in ("/metrics", "/healthz", "/readyz", "/"):
        assert "xylophonist" not in proxy.get(path).text
    again = await asyncio.to_thread(talk, proxy, [*messages, assistant("It is so."), user("Thank you.")])
    assert "xylophonist" not in str(again)


PAGES = (
    "items", "state", "state/export", "context", "tasks", "agents", "quarantine", "hil/pending", "sessions", "turns",
    "turns/{turn}", "export", "usage", "tools",
)  # fmt: skip
TOOLS = {
    "memory_search": {"query": "the canary's word"},
    "get_context": {},
    "summarize_memory": {},
}
