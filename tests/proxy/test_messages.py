"""The Messages API from the socket in to the socket out: what a client of Anthropic's sees, and what the provider does."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.conversations import prose
from tests.laws.test_messages import png
from tests.proxied import MODEL, Proxy, proxying
from tests.proxy.wire.test_deltas import CONTENTS
from tests.scripted import Got, answer, ask, sse
from tests.spoken_to import MessagesPrompt, MessagesProvider, blocks_of, events, marks_in, sdk

Json = dict[str, Any]
MESSAGES = b"/v1/messages"
SLACK = 6  # tokens: the frame of a message of ours that joins another, a mark's "type"
KEY = (b"x-api-key", b"sk-alice")
CALL = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}


@pytest.fixture
def provider() -> MessagesProvider:
    return MessagesProvider()


def user(content: Any) -> Json:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Json:
    return {"role": "assistant", "content": content}


def history(seed: int = 1, turns: int = 20) -> list[Json]:
    rng = random.Random(seed)
    return [m for _ in range(turns) for m in (user(prose(rng, 150)), assistant(prose(rng, 200)))]


async def post(
    proxy: Proxy, messages: list[Json], *headers: tuple[bytes, bytes], path: bytes = MESSAGES, **more: Any
) -> Got:
    body = json.dumps({"model": MODEL, "max_tokens": 256, "messages": messages, **more}).encode()
    return await ask(proxy.url, "POST", path, [*(headers or (KEY,)), (b"anthropic-version", b"2023-06-01")], body)


def note(got: Got, name: str) -> str:
    return (got.header(f"x-infold-{name}".encode()) or b"").decode()


async def test_what_fits_is_a_wire_and_what_does_not_is_folded(proxy, provider, upstream):
    short, long = await post(proxy, [user("hello")]), await post(proxy, [*history(), user("and so?")])
    asked, forwarded = map(int, note(long, "tokens").split("/"))

    assert (note(short, "mode"), note(long, "mode")) == ("wire", "folded")
    assert json.loads(upstream.requests[0].body)["messages"] == [user("hello")]
    assert asked > 8_192 > forwarded
    assert 0 <= forwarded - provider.prompts[1].tokens <= 0.02 * forwarded


@pytest.mark.parametrize("name", CONTENTS)
async def test_a_streamed_answer_arrives_byte_for_byte_and_is_recorded(proxy, upstream, name):
    said = events(CONTENTS[name], 50)
    upstream.script = sse(said)
    got = await post(proxy, [user("hi")], stream=True)
    told = proxy.explain(note(got, "turn"))
    attempt = told["attempts"][0]

    assert got.body == b"".join(said)
    assert (told["status"], attempt["status"]) == ("answered", "answered")
    assert attempt["usage"] == {"input_tokens": 50, "cached_tokens": 37, "output_tokens": 5}
    recorded = [line for line in proxy.export() if line["kind"] == "message" and line["role"] == "assistant"]
    assert [line["content"] for line in recorded] == [CONTENTS[name]]


@pytest.mark.parametrize(
    "headers",
    [(KEY,), ((b"authorization", b"Bearer sk-alice"),), (KEY, (b"authorization", b"Bearer sk-alice"))],
)
async def test_the_key_is_read_from_where_anthropics_clients_put_it(proxy, headers):
    await post(proxy, [user("hi")], *headers)
    assert len([line for line in proxy.export("sk-alice") if line["kind"] == "turn"]) == 1


@pytest.mark.parametrize("path", [b"/v1/messages/count_tokens", b"/v1/messages/batches"])
async def test_what_counts_or_batches_is_relayed(proxy, upstream, path):
    upstream.script = answer(b'{"input_tokens":14}')
    got = await post(proxy, [*history(), user("and so?")], path=path)

    assert (got.status, got.body, note(got, "mode")) == (200, b'{"input_tokens":14}', "")
    assert json.loads(upstream.requests[-1].body)["messages"] == [*history(), user("and so?")]
    assert proxy.export() == []


@pytest.mark.parametrize("path", [MESSAGES, b"/v1/messages/count_tokens"])
async def test_an_error_of_ours_is_one_that_anthropics_sdk_reads(dsn, tmp_path, path):
    with proxying("http://127.0.0.1:9", dsn, tmp_path) as proxy:
        got = await post(proxy, [user("hi")], path=path)
        with sdk(proxy) as client, pytest.raises(anthropic.InternalServerError) as caught:
            await asyncio.to_thread(client.messages.create, model=MODEL, max_tokens=5, messages=[user("hi")])

    told = json.loads(got.body)
    assert got.status == 502
    assert (told["type"], told["error"]["type"], told["request_id"]) == ("error", "api_error", None)
    assert "127.0.0.1:9" in caught.value.body["error"]["message"]  # type: ignore[call-overload,index]


# Windows that nobody told us


@pytest.fixture
def unknown(dsn: str, tmp_path: Path) -> Iterator[tuple[MessagesProvider, Proxy]]:
    provider = MessagesProvider()
    with provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path, models={}) as proxy:
        yield provider, proxy


@pytest.mark.parametrize("turns", [10, 20], ids=["with max_tokens", "by itself"])
async def test_a_window_learned_from_a_refusal_compacts_the_same_request(unknown, turns):
    provider, proxy = unknown
    provider.window = 8_192 if turns == 20 else 3_600
    got = await post(proxy, [*history(turns=turns), user("and so?")], model="mystery")
    told = proxy.explain(note(got, "turn"))

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert len(provider.refused) == len(provider.prompts) == 1
    assert [attempt["status"] for attempt in told["attempts"]] == ["failed", "answered"]


async def test_a_vocabulary_is_learned_also_where_there_are_pictures(proxy, provider):
    """Their tokens are known; so what the provider counts beyond ours is in the words."""
    provider.factor = 1.4
    said = [user([{"type": "text", "text": "look"}, png(280, 280)]), assistant("I see."), *history()]
    got = await post(proxy, [*said, user("and so?")], max_tokens=3_000)
    more = await post(proxy, [*said, user(prose(random.Random(2), 2_000))], max_tokens=3_000)

    assert (got.status, more.status) == (200, 200)
    assert len(provider.refused) <= 1


async def test_a_window_is_read_from_anthropics_list_of_models(unknown):
    provider, proxy = unknown
    provider.models = json.dumps({"data": [{"id": "mystery", "type": "model", "max_input_tokens": 8_192}]}).encode()
    await post(proxy, [user("hi")], model="mystery")
    for _ in range(100):
        if proxy.parts.memory.models.find("mystery", proxy.parts.upstreams.default.base_url).window == 8_192:
            break
        await asyncio.sleep(0.05)
    got = await post(proxy, [*history(), user("and so?")], model="mystery")

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert provider.asked_models[0].header(b"x-api-key") == b"sk-alice"
    assert provider.asked_models[0].header(b"anthropic-version") == b"2023-06-01"


# Results larger than the window


@pytest.mark.parametrize("words", [(9_000,), (6_000, 6_000, 10), (3, 9_000), (1_500, 1_500, 1_500, 1_500, 1_500)])
async def test_results_larger_than_what_is_left_are_shortened_each_by_itself(proxy, provider, words):
    rng = random.Random(4)
    calls = [{**CALL, "id": f"t{n}"} for n in range(len(words))]
    results = [
        {
            "type": "tool_result",
            "tool_use_id": call["id"],
            "content": prose(rng, many).replace(".", f" of {call['id']}."),
        }
        for call, many in zip(calls, words, strict=True)
    ]
    beside = {"type": "text", "text": prose(rng, 3_500), "cache_control": {"type": "ephemeral"}}
    got = await post(proxy, [user("look at it"), assistant(calls), user([*results, beside])], max_tokens=300)
    prompt = provider.prompts[0]
    sent = prompt.messages[-1]["content"]
    _, forwarded = map(int, note(got, "tokens").split("/"))

    assert got.status == 200
    assert 0 <= forwarded - prompt.tokens <= SLACK
    assert [block["tool_use_id"] for block in sent[:-1]] == [call["id"] for call in calls]
    assert sent[-1]["text"] == beside["text"]
    for block, result, many in zip(sent, results, words, strict=False):
        assert (block["content"] == result["content"]) == (many <= 10)
        assert ("the whole is kept as [#" in block["content"]) == (many > 10)
        assert set(re.findall(r"of (t\d)\.", block["content"])) <= {block["tool_use_id"]}


async def test_a_picture_in_a_result_that_does_not_fit_goes_with_its_words(proxy, provider):
    rng = random.Random(5)
    shot = {
        "type": "tool_result",
        "tool_use_id": "t0",
        "content": [{"type": "text", "text": prose(rng, 9)}, png(2_000, 2_000)],
    }
    page = {"type": "tool_result", "tool_use_id": "t1", "content": prose(rng, 6_000)}
    calls = [{**CALL, "id": "t0"}, {**CALL, "id": "t1"}]
    got = await post(proxy, [user("look at it"), assistant(calls), user([shot, page])], max_tokens=300)

    assert got.status == 200
    assert 0 <= int(note(got, "tokens").split("/")[1]) - provider.prompts[0].tokens <= SLACK


# What is told of a conversation


async def test_results_are_told_with_the_role_in_which_they_were_sent(proxy):
    results = [{"type": "tool_result", "tool_use_id": "t1", "content": "a copper lantern"}]
    got = await post(proxy, [user("what is there?"), assistant([CALL]), user(results)])
    asked = proxy.explain(note(got, "turn"))["asked"]
    exported = [line for line in proxy.export() if line["kind"] == "message"]

    assert [(m["role"], m.get("sent_as")) for m in asked] == [("user", None), ("assistant", None), ("tool", "user")]
    assert [(m["role"], m.get("sent_as")) for m in exported[:3]] == [(m["role"], m.get("sent_as")) for m in asked]
    assert exported[2]["content"] == results
    assert asked[2]["message"] == user(results)


async def test_an_answer_that_goes_on_is_not_folded(proxy, provider):
    """A prefill, or a turn that the provider paused."""
    paused = assistant([{"type": "text", "text": prose(random.Random(6), 2_500)}])
    got = await post(proxy, [*history(), user("write a poem"), paused])

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert provider.prompts[0].messages[-1] == paused


async def test_without_the_database_the_end_of_the_conversation_is_served(unknown, tmp_path):
    """Nobody's memory: the store-less plan is as valid as any."""
    provider, proxy = unknown
    proxy.parts.memory.models.learn(MODEL, proxy.parts.upstreams.default.base_url, 8_192)
    got = await post(proxy, [*history(), user("and so?")], (b"authorization", b"Basic dTpw"))

    assert (got.status, note(got, "mode")) == (200, "degraded")
    assert "held back" in json.dumps(provider.prompts[0].messages[0])
    assert provider.refused == []


async def test_a_conversation_moves_between_dialects(proxy, upstream):
    """The same words are the same line; what was frozen in one dialect is not sent in the other."""
    said = [*history(), user("and so?")]
    got = await post(proxy, said)
    chat = json.dumps({"model": MODEL, "messages": said, "max_tokens": 256}).encode()
    other = await ask(proxy.url, "POST", b"/v1/chat/completions", [KEY], chat)
    forwarded = json.loads(upstream.requests[-1].body)["messages"]

    assert (note(got, "mode"), note(other, "mode")) == ("folded", "folded")
    assert note(got, "session") == note(other, "session")
    assert all(isinstance(message["content"], str) for message in forwarded)


async def test_marks_move_on_and_never_are_too_many(proxy, provider):
    rng = random.Random(8)
    said, counts = history(turns=16), []
    for _ in range(6):
        said.append(user(prose(rng, 60)))
        marked = [
            {**m, "content": [{**blocks_of(m["content"])[-1], "cache_control": {"type": "ephemeral"}}]}
            for m in said[-3:]
        ]
        got = await post(proxy, [*said[:-3], *marked])
        assert got.status == 200
        prompt = provider.prompts[-1]
        assert isinstance(prompt, MessagesPrompt)
        counts.append(len(marks_in(prompt.body)))
        said.append(assistant("ok"))
    assert set(counts) == {3, 4}  # three where the frozen prefix ends with a message that the client marked
