"""What is in quarantine is told nowhere: not by what was stored of conversations, not by what was made of them."""

import asyncio
import json
import random
import time

import pytest

from memory.identify import place
from memory.nouns import Principal
from memory.quarantine import Quarantine
from memory.settings import Settings
from memory.tokens import Counter
from tests.clock import Hands
from tests.conversations import assistant, prose, user
from tests.proxied import MODEL

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
    memory._seals.put(tenant, (time.monotonic() - 60, frozenset()))  # what it knew a minute ago, with no signal since
    await asyncio.to_thread(talk, proxy, [*messages, assistant("It is so."), user("And the canary's word?")])
    assert "xylophonist" not in str(provider.prompts[-1].messages)
