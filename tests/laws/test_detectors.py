"""Keys in conversations: proposed, isolated or left alone, as `quarantine:` says; and no answer waits for it."""

import asyncio
import random
import threading

import httpx
import pytest

from tests.conversations import assistant, calling, prose, result, user
from tests.faults import until
from tests.memory.test_detect import CAPITALS, PEM, drawn
from tests.proxied import MODEL, proxying

KEY = f"AKIA{drawn(16, CAPITALS)}"


@pytest.fixture
def serve(upstream, dsn, tmp_path):
    return lambda mode: proxying(upstream.url, dsn, tmp_path, quarantine=mode)


async def talk(proxy, *messages, session=None):
    """Ask, and wait until all that follows is done."""

    def ask():
        headers = {"x-session-id": session} if session else {}
        with proxy.client(default_headers=headers) as client:
            client.chat.completions.create(model=MODEL, messages=messages, max_tokens=256)

    await asyncio.to_thread(ask)
    await until(lambda: not proxy.parts.background)


def listed(proxy):
    return proxy.get("/memory-manager/quarantine").raise_for_status().json()["contexts"]


async def kinds(owner):
    rows = await owner.fetch("select kind from infold.events where kind like 'quarantine%' order by id")
    return [row["kind"] for row in rows]


def mentions(key):
    """A key in what the user, a tool and the provider said; far below the trigger."""
    return [user(f"Deploy with {key}, please."), calling(("c1", '{"a": 1}')), result("c1", f"{PEM}\nread"), user("So?")]


async def test_suggest_proposes_each_once(serve, provider, owner):
    with serve("suggest") as proxy:
        provider.reply = lambda prompt: assistant(f"The answer of {KEY} is yes.")
        said = mentions(KEY)
        await talk(proxy, *said)
        said += [assistant(f"The answer of {KEY} is yes."), user("Once more.")]
        provider.reply = lambda prompt: assistant("Yes.")
        await talk(proxy, *said)
        found = await asyncio.to_thread(listed, proxy)
        assert [each["state"] for each in found] == ["proposed"] * 3
        assert {each["reason_for_isolation"] for each in found} == {"looks like: aws key", "looks like: private key"}
        assert KEY not in str(found)
        assert proxy.explain(found[0]["metadata"]["turn"])
    assert await kinds(owner) == ["quarantine_proposed"] * 3
    with serve("suggest") as proxy:  # a new process looks again, and proposes nothing twice
        await talk(proxy, *said)
    assert await kinds(owner) == ["quarantine_proposed"] * 3


async def test_a_proposal_stands_in_the_session_that_the_client_names(serve):
    with serve("suggest") as proxy:
        await talk(proxy, user(f"Deploy with {KEY}."), session="mine")
        assert await asyncio.to_thread(listed, proxy) == []
        headers = {"authorization": "Bearer sk-alice", "x-session-id": "mine"}
        reply = httpx.get(f"{proxy.url}/memory-manager/quarantine", headers=headers)
        assert reply.json()["count"] == 1


async def test_auto_seals_what_it_finds_and_later_prompts_do_not_tell_it(serve, provider):
    rng = random.Random(5)
    with serve("auto") as proxy:
        said = mentions(KEY)
        await talk(proxy, *said)
        found = await asyncio.to_thread(listed, proxy)
        assert [each["state"] for each in found] == ["isolated"] * 2
        turns = proxy.get("/memory-manager/export").text
        assert KEY not in turns
        assert "BEGIN RSA" not in turns
        assert turns.count('"quarantined":true') == 2

        said += [m for _ in range(26) for m in (assistant(prose(rng, 130)), user(prose(rng, 90)))]
        for _ in range(2):
            said += [assistant(prose(rng, 130)), user(f"Which key did I deploy with, what began with {KEY[:6]}?")]
            await talk(proxy, *said)
            prompt = provider.prompts[-1]
            assert len(prompt.messages) < len(said)
            assert KEY not in str(prompt.messages)
            assert "BEGIN RSA" not in str(prompt.messages)


async def test_off_looks_at_nothing(serve, owner):
    with serve("off") as proxy:
        await talk(proxy, *mentions(KEY))
        assert proxy.parts.whole.lookout._looked._weight == 0
        assert await asyncio.to_thread(listed, proxy) == []
        assert KEY in proxy.get("/memory-manager/export").text
    assert await kinds(owner) == []


async def test_no_answer_waits_for_a_detector(serve):
    with serve("suggest") as proxy:
        begun, may_end = threading.Event(), threading.Event()
        proxy.parts.whole.lookout._detect = lambda text: begun.set() or (may_end.wait(60) and ())

        def ask():
            with proxy.client() as client:
                said = [user("harbour " * 5_000)]
                list(client.chat.completions.create(model="wide-128k", messages=said, stream=True))
                assert client.chat.completions.create(model=MODEL, messages=[user("hello")])
                assert begun.wait(60)
                assert client.chat.completions.create(model=MODEL, messages=[user("hello")])

        await asyncio.to_thread(ask)
        assert proxy.parts.background
        may_end.set()
        await until(lambda: not proxy.parts.background)
