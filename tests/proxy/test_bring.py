"""Stored items come back into the conversations that name their session, and into no others. Over real HTTP."""

import asyncio
import json
import random
from uuid import UUID

import httpx
import pytest

from memory.identify import item_hint
from tests.conversations import Json, assistant, body_of, calling, prose, result, user
from tests.proxied import MODEL, Prompt, Provider, Proxy
from tests.proxy.rest.conftest import Caller

FACT = "The vault of the harbour museum opens with the word xylophonist."
QUESTION = "With which word does the vault of the harbour museum open?"
WORD = "xylophonist"


@pytest.fixture
def proxy(proxy: Proxy) -> Proxy:
    """One that has patience: a machine that tests share may take longer than a request waits."""
    bring = proxy.parts.memory._bring
    assert bring is not None
    bring._wait_seconds = 30.0
    return proxy


def history(seed: int, turns: int = 26) -> list[Json]:
    """Longer than the trigger of a window of 8,192 tokens."""
    rng = random.Random(seed)
    return [m for _ in range(turns) for m in (user(prose(rng, 90)), assistant(prose(rng, 130)))]


def ask(
    proxy: Proxy, provider: Provider, messages: list[Json], session: str | None = "work", key: str = "sk-alice"
) -> tuple[Prompt, dict[str, str]]:
    """One chat: the prompt that went upstream, and the headers of the answer."""
    headers = {"x-session-id": session} if session else {}
    with proxy.client(key) as client:
        reply = client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=messages,  # type: ignore[arg-type]
            max_tokens=256,
            extra_headers=headers,
        )
    return provider.prompts[-1], dict(reply.headers)


def at_work(proxy: Proxy, key: str = "sk-alice", session: str = "work") -> Caller:
    return Caller(proxy.url, key, session)


# Whose conversations


def test_an_item_comes_back_into_a_conversation_that_names_its_session(proxy, provider):
    id = at_work(proxy).add(FACT)
    prompt, headers = ask(proxy, provider, [*history(1), user(QUESTION)])

    assert FACT in prompt.block
    assert prompt.messages[-1]["content"] == QUESTION
    attempt = proxy.explain(headers["x-infold-turn"])["attempts"][-1]
    (told,) = attempt["block"]["items"]
    assert (told["id"], told["content_type"], told["start"], told["stop"]) == (id, "note", 0, len(FACT))
    assert f"[#{told['hint']}] stored note, " in prompt.block


def test_no_other_conversation_gets_it(proxy, provider):
    """Neither another session's nor one without a name nor another tenant's, though it names the same session."""
    at_work(proxy).add(FACT)
    asked = [*history(2), user(QUESTION)]
    assert WORD in ask(proxy, provider, asked)[0]
    for session, key in (("home", "sk-alice"), (None, "sk-alice"), ("work", "sk-bob")):
        prompt, headers = ask(proxy, provider, asked, session, key)
        assert headers["x-infold-mode"] == "folded"
        assert WORD not in prompt


def test_what_the_whole_tenant_shares_comes_back_everywhere_in_it(proxy, provider):
    at_work(proxy).add(FACT, scope="tenant")
    for number, session in enumerate(("work", "home", None)):
        assert WORD in ask(proxy, provider, [*history(number), user(QUESTION)], session)[0].block
    assert WORD not in ask(proxy, provider, [*history(9), user(QUESTION)], "work", "sk-bob")[0]


def test_its_id_in_the_newest_message_brings_an_item_there_alone(proxy, provider):
    id = at_work(proxy).add(FACT)
    named = [*history(3), user(f"xylem? [#{item_hint_of(id)}]")]
    prompt, headers = ask(proxy, provider, named)
    assert FACT in prompt.block
    assert proxy.explain(headers["x-infold-turn"])["attempts"][-1]["block"]["items"][0]["score"] == 1.0
    assert WORD not in ask(proxy, provider, named, "home")[0]
    assert WORD not in ask(proxy, provider, named, "work", "sk-bob")[0]


def item_hint_of(id: str) -> str:
    return item_hint(UUID(id))


# When


def test_what_fits_goes_out_byte_for_byte(proxy, provider):
    at_work(proxy).add(FACT)
    body = body_of([*history(4, 4), user(QUESTION)], max_tokens=256)
    headers = {"authorization": "Bearer sk-alice", "x-session-id": "work", "content-type": "application/json"}
    reply = httpx.post(f"{proxy.url}/v1/chat/completions", content=body, headers=headers, timeout=60)

    assert reply.headers["x-infold-mode"] == "wire"
    assert provider.prompts[-1].seen.body == body


def test_a_block_with_items_stands_byte_for_byte_through_a_tool_loop(proxy, provider):
    at_work(proxy).add(FACT)
    messages = [*history(5), user(QUESTION)]
    first, _ = ask(proxy, provider, messages)
    at_work(proxy).add("And again: the vault of the harbour museum opens with a glockenspiel.")
    for step in range(3):
        messages += [calling((f"c{step}", json.dumps({"look": "vault"}))), result(f"c{step}", "the vault is shut")]
        prompt, headers = ask(proxy, provider, messages)
        assert prompt.block == first.block
        assert prompt.messages[: len(first.messages)] == first.messages
        assert int(headers["x-infold-block-tokens"]) > 0
    messages += [assistant("It is shut."), user(f"And again: {QUESTION}")]
    assert "glockenspiel" in ask(proxy, provider, messages)[0].block


def test_the_same_words_are_not_told_twice_while_they_stand_in_the_prompt(proxy, provider):
    id = at_work(proxy).add(FACT)
    messages = [*history(6), user(QUESTION)]
    first, _ = ask(proxy, provider, messages)
    assert str(first.messages).count(WORD) == 1
    messages += [assistant("It does."), user(QUESTION)]
    assert str(ask(proxy, provider, messages)[0].messages).count(WORD) == 1

    at_work(proxy).ask("PATCH", f"items/{id}", {"correction": FACT.replace(WORD, "glockenspiel")}).raise_for_status()
    messages += [assistant("It does."), user(f"Now, {QUESTION}")]
    assert "glockenspiel" in ask(proxy, provider, messages)[0].block


def test_a_first_item_is_noticed_by_conversations_that_had_none(proxy, provider):
    messages = [*history(7), user(QUESTION)]
    assert WORD not in ask(proxy, provider, messages)[0]
    at_work(proxy).add(FACT)
    messages += [assistant("I do not know."), user(QUESTION)]
    assert WORD in ask(proxy, provider, messages)[0].block


# What never comes back


def test_what_is_archived_deleted_or_in_quarantine_never_comes(proxy, provider):
    work = at_work(proxy)
    archived, deleted = work.add(f"Archived: {FACT}"), work.add(f"Deleted: {FACT}")
    work.add(f"Held: {FACT}")
    work.ask("PATCH", f"items/{archived}", {"archived": True}).raise_for_status()
    work.ask("DELETE", f"items/{deleted}").raise_for_status()
    work.post("quarantine", content=f"Held: {FACT}", context_type="note", reason="odd")
    work.add("Which word opens the vault of the harbour museum? With Mondays it is open.")

    names = " ".join(f"[#{item_hint_of(id)}]" for id in (archived, deleted))
    prompt, _ = ask(proxy, provider, [*history(8), user(f"{QUESTION} {names}")])
    assert "With Mondays" in prompt.block
    assert WORD not in prompt

    work.ask("PATCH", f"items/{archived}", {"archived": False}).raise_for_status()
    assert "Archived" in ask(proxy, provider, [*history(8), assistant("so"), user(QUESTION)])[0].block


async def test_an_item_that_goes_into_quarantine_takes_the_blocks_that_told_it_along(proxy, provider, owner):
    work = at_work(proxy)
    work.add(f"{FACT} The guard is called Zephyrine.")
    messages = [*history(10), user(QUESTION)]
    prompt, headers = await asyncio.to_thread(ask, proxy, provider, messages)
    assert "Zephyrine" in prompt.block
    other = [*history(11), user("And what of the lantern?")]
    _, untold = await asyncio.to_thread(ask, proxy, provider, other, None)
    blocks = await owner.fetchval("select count(*) from infold.folds where kind = 'block'")

    work.post("quarantine", content=WORD, context_type="note", reason="odd")

    assert await owner.fetchval("select count(*) from infold.folds where kind = 'block'") == blocks - 1
    turn = proxy.explain(headers["x-infold-turn"])["attempts"][-1]
    assert turn["redacted"] is True
    assert "Zephyrine" not in str(turn)
    assert "redacted" not in proxy.explain(untold["x-infold-turn"])["attempts"][-1]
    messages += [calling(("c", "{}")), result("c", "nothing")]
    prompt, _ = await asyncio.to_thread(ask, proxy, provider, messages)
    assert "Zephyrine" not in prompt
    assert WORD not in prompt


async def test_what_a_deleted_item_said_leaves_the_blocks_when_it_goes_into_quarantine(proxy, provider, owner):
    work, secret = at_work(proxy), "\u30bb\u30ad\u30e5\u30ea\u30c6\u30a3\u306e\u8a00\u8449"
    id = work.add(f"{FACT} {secret}")
    prompt, headers = await asyncio.to_thread(ask, proxy, provider, [*history(13), user(f"[#{item_hint_of(id)}]")])
    assert secret in prompt.block
    work.ask("DELETE", f"items/{id}").raise_for_status()

    work.post("quarantine", content=secret, context_type="note", reason="odd")

    assert await owner.fetchval("select count(*) from infold.folds where kind = 'block'") == 0
    assert proxy.explain(headers["x-infold-turn"])["attempts"][-1]["redacted"] is True


# When the store does not answer


def test_without_the_store_of_items_the_request_is_served(proxy, provider):
    at_work(proxy).add(FACT)
    messages = [*history(12), user(QUESTION)]
    store = proxy.parts.whole.items._pool
    kept, store._pool = store._pool, None
    prompt, headers = ask(proxy, provider, messages)
    store._pool = kept
    assert headers["x-infold-mode"] == "folded"
    assert WORD not in prompt
