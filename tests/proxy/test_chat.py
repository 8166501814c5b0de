"""The managed endpoint from the socket in to the socket out: what a client sees, and what the provider does."""

import asyncio
import gzip
import json
import random
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.conversations import assistant, body_of, calling, prose, result, system, user
from tests.faults import Stalls, until
from tests.proxied import MODEL, Prompt, Provider, Proxy, plain, proxying, streamed
from tests.scripted import Got, ScriptedUpstream, answer, ask, connected, sse

Json = dict[str, Any]
CHAT = b"/v1/chat/completions"
KEY = (b"Authorization", b"Bearer sk-alice")


def history(seed: int = 1, turns: int = 20) -> list[Json]:
    rng = random.Random(seed)
    return [m for _ in range(turns) for m in (user(prose(rng, 150)), assistant(prose(rng, 200)))]


async def post(
    proxy: Proxy, messages: list[Json], *headers: tuple[bytes, bytes], model: str = MODEL, **more: Any
) -> Got:
    body = body_of(messages, model, **({"max_tokens": 256} | more))
    return await ask(proxy.url, "POST", CHAT, [KEY, *headers], body)


def note(got: Got, name: str) -> str | None:
    value = got.header(f"x-infold-{name}".encode())
    return value.decode() if value is not None else None


# What the client reads in our headers


async def test_headers_say_what_was_asked_and_what_was_forwarded(proxy, provider):
    short = await post(proxy, [user("hello")])
    long = await post(proxy, [*history(), user("and so?")])
    asked, forwarded = map(int, (note(long, "tokens") or "").split("/"))

    assert (note(short, "mode"), note(long, "mode")) == ("wire", "folded")
    assert note(short, "tokens") == f"{provider.prompts[0].tokens}/{provider.prompts[0].tokens}"
    assert asked > 8_192 > forwarded
    assert abs(forwarded - provider.prompts[1].tokens) <= 0.02 * forwarded


async def test_dollars_are_said_only_where_prices_are_known(proxy):
    priced = await post(proxy, [*history(), user("and so?")], model="priced-8k")
    unpriced = await post(proxy, [*history(), user("and so?")])

    assert float(note(priced, "saved-usd") or "nan") != 0
    assert note(unpriced, "saved-usd") is None


async def test_what_fits_saves_nothing_and_says_no_more_than_zero(proxy):
    got = await post(proxy, [user("hi")], model="priced-8k")
    assert float(note(got, "saved-usd") or 0) == 0


async def test_a_blocks_tokens_are_said(proxy, provider):
    fact = [user("The otter pool opens at 6:45."), assistant("Fine.")]
    got = await post(proxy, [*fact, *history(), user("When does the otter pool open?")])
    assert fact[0]["content"] in provider.prompts[-1].block
    assert int(note(got, "block-tokens") or 0) > 50


# What the provider gets above the trigger


async def test_only_messages_change_and_all_other_bytes_stay(proxy, upstream):
    messages = json.dumps([*history(), user("and so?")])
    head = b'{ "model":"small-8k" ,"temperature": 1.0e0, "metadata":{"a":"\\u00e9"},\n "messages"  : '
    tail = b' , "max_tokens":256,"tools": [ {"type":"function","function":{"name":"x"}} ], "top_k":null }\n'
    await ask(proxy.url, "POST", CHAT, [KEY], head + messages.encode() + tail)
    seen = upstream.requests[-1].body

    assert seen.startswith(head)
    assert seen.endswith(tail)
    assert len(seen) < len(messages)


async def test_a_packed_request_over_the_window_goes_on_unpacked_and_not_called_packed(proxy, provider, upstream):
    body = gzip.compress(body_of([*history(), user("and so?")], max_tokens=256))
    got = await ask(proxy.url, "POST", CHAT, [KEY, (b"Content-Encoding", b"gzip")], body)

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert upstream.requests[-1].header(b"content-encoding") is None


async def test_our_request_headers_stay_with_us(proxy, upstream):
    await post(proxy, [user("hi")], (b"X-Infold-Memory", b"on"), (b"X-Session-Id", b"s"), (b"X-Other", b"1"))
    names = {name for name, _ in upstream.requests[-1].headers}
    assert b"x-other" in names
    assert not {name for name in names if name.startswith(b"x-infold") or name == b"x-session-id"}


# Answers


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_sees_what_the_provider_said(client, provider, stream):
    call = calling(("call_1", '{"q": "x"}'), content="Let me look.")
    provider.reply = lambda prompt: call
    reply = client.chat.completions.create(model=MODEL, messages=[user("look")], stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in reply]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        calls = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
        reason = chunks[-1].finish_reason
    else:
        message = reply.choices[0].message
        text, calls, reason = message.content, message.tool_calls, reply.choices[0].finish_reason

    assert text == "Let me look."
    assert [(each.id, each.function.arguments) for each in calls] == [("call_1", '{"q": "x"}')]
    assert reason == "tool_calls"


@pytest.mark.parametrize("make", [plain, streamed], ids=["plain", "stream"])
async def test_what_was_answered_is_recorded_as_the_client_will_send_it(proxy, upstream, make):
    call = calling(("call_1", '{"q": "x"}'), content="Let me look.")
    upstream.script = make(call)
    got = await post(proxy, [user("look")], stream=make is streamed)
    upstream.script = plain(assistant("done"))
    again = await post(proxy, [user("look"), call, result("call_1", "found")])
    lines = [line for line in proxy.export() if line["kind"] == "message"]

    assert note(got, "session") == note(again, "session")
    assert [line["role"] for line in lines] == ["user", "assistant", "tool", "assistant"]
    assert [line["parent"] for line in lines[1:]] == [line["id"] for line in lines[:-1]]


@pytest.mark.parametrize("said", [("yes", "yes"), ("yes", "no")])
async def test_several_choices_are_siblings(proxy, upstream, said):
    choices = [{"index": i, "message": assistant(text), "finish_reason": "stop"} for i, text in enumerate(said)]
    upstream.script = answer(json.dumps({"choices": choices}).encode())
    got = await post(proxy, [user("yes or no?")], n=2)
    lines = proxy.export()
    answers = {line["content"] for line in lines if line.get("role") == "assistant"}

    assert got.status == 200
    assert answers == set(said)
    assert proxy.metric("infold_turns_total", kept="committed") == 1


@pytest.mark.parametrize("packed", [False, True])
async def test_usage_and_reasons_are_recorded(proxy, upstream, packed):
    choices = [{"index": 0, "message": assistant("ok"), "finish_reason": "length"}]
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}
    body = json.dumps({"choices": choices, "usage": usage}).encode()
    kind = (b"content-type", b"application/json")
    headers = [kind, (b"content-encoding", b"gzip")] if packed else [kind]
    upstream.script = answer(gzip.compress(body) if packed else body, headers=headers)
    got = await post(proxy, [user("hi")], (b"Accept-Encoding", b"gzip"))
    (attempt,) = proxy.explain(note(got, "turn") or "")["attempts"]

    assert attempt["usage"] == {"input_tokens": 11, "cached_tokens": 3, "output_tokens": 7}
    assert attempt["finish_reasons"] == ["length"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("megabytes", [1, 17])
async def test_that_an_answer_said_more_than_is_kept_is_recorded(proxy, upstream, stream, megabytes):
    said = "x" * 1_000_000
    if stream:
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % said.encode()
        upstream.script = sse([*[event] * megabytes, b"data: [DONE]\n\n"])
    else:
        whole = {"choices": [{"index": 0, "message": assistant(said * megabytes), "finish_reason": "stop"}]}
        upstream.script = answer(json.dumps(whole).encode())
    got = await post(proxy, [user("hi")], stream=stream)
    (attempt,) = proxy.explain(note(got, "turn") or "")["attempts"]

    assert len(got.body) > megabytes * 1_000_000
    assert attempt["truncated"] is (megabytes > 16)


async def test_an_error_in_the_middle_of_a_stream_passes_and_is_recorded(proxy, upstream):
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
        b'data: {"error":{"message":"overloaded"}}\n\n',
    ]
    upstream.script = sse(events)
    got = await post(proxy, [user("hi")], stream=True)
    (attempt,) = proxy.explain(note(got, "turn") or "")["attempts"]

    assert got.body == b"".join(events)
    assert "overloaded" in str(attempt["error"])


async def test_an_upstream_that_is_not_there_is_a_502_in_openais_shape(dsn, tmp_path):
    with proxying("http://127.0.0.1:9", dsn, tmp_path) as proxy:
        got = await post(proxy, [user("hi")])
        with proxy.client() as sdk, pytest.raises(openai.InternalServerError) as caught:
            sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])

    assert got.status == 502
    assert set(json.loads(got.body)["error"]) == {"message", "type", "param", "code"}
    assert "127.0.0.1:9" in str(caught.value)


# Clients that leave


async def test_a_client_that_leaves_before_the_first_byte_frees_the_upstream(proxy, upstream):
    upstream.script = [30.0, *plain(assistant("late"))]
    async with connected(proxy.url) as client:
        body = body_of([user("never mind")])
        await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT, len(body), body))
        await upstream.until(lambda u: bool([seen for seen in u.requests if seen.method == "POST"]))
        client.reset()
    await upstream.until(lambda u: bool(u.closed_at))


async def test_a_client_that_leaves_in_the_middle_frees_the_upstream(proxy, upstream):
    upstream.script = sse([b'data: {"choices":[]}\n\n'] * 200, pause=0.1)
    async with connected(proxy.url) as client:
        body = body_of([user("stop")], stream=True)
        await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT, len(body), body))
        await client.reader.readuntil(b"choices")
        client.reset()
    await upstream.until(lambda u: bool(u.closed_at))


async def test_many_streams_at_once_are_all_answered_whole(proxy, provider):
    async def one(number: int) -> tuple[bool, bytes]:
        provider_said = f"Noted, number {1}."
        got = await post(proxy, [user(f"stream {number}")], stream=True)
        words = re.findall(rb'"content": "([^"]*)"', got.body)
        return got.complete and got.body.endswith(b"data: [DONE]\n\n"), b"".join(words) if provider_said else b""

    done = await asyncio.gather(*(one(number) for number in range(30)))
    assert all(complete for complete, _ in done)
    assert {text for _, text in done} == {b"Noted, number 1."}


def test_conversations_at_once_do_not_mix(proxy, provider):
    """The provider answers with what it was asked; each client gets its own answer back, turn after turn."""
    provider.reply = lambda prompt: assistant("You said " + prompt.messages[-1]["content"].split(":")[0])
    wrong = []

    def talk(number: int) -> None:
        rng = random.Random(number)
        said: list[Json] = []
        with proxy.client(f"sk-{number % 3}") as sdk:
            for step in range(12):
                name = f"client {number} step {step}"
                said.append(user(f"{name}: {prose(rng, 200)}"))
                reply = sdk.chat.completions.create(model=MODEL, messages=said, max_tokens=256)  # type: ignore[arg-type]
                text = reply.choices[0].message.content or ""
                if text != f"You said {name}":
                    wrong.append((name, text))
                said.append(assistant(text + prose(rng, 200)))

    with ThreadPoolExecutor(6) as many:
        list(many.map(talk, range(6)))
    assert wrong == []
    for prompt in provider.prompts:
        names = set(re.findall(r"client (\d+) step", json.dumps(prompt.messages)))
        assert len(names) == 1


# Windows that nobody told us


@pytest.fixture
def unknown(dsn: str, tmp_path: Any) -> Iterator[tuple[Provider, ScriptedUpstream, Proxy]]:
    provider = Provider()
    with provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path) as proxy:
        yield provider, upstream, proxy


async def test_the_window_of_an_unknown_model_is_asked_of_the_upstream_once_with_the_clients_key(unknown):
    provider, _, proxy = unknown
    provider.models = json.dumps({"data": [{"id": "mystery", "max_model_len": 8192}]}).encode()
    await post(proxy, [user("hi")], model="mystery")
    await until(lambda: bool(provider.asked_models))
    await until(
        lambda: proxy.parts.memory.models.find("mystery", proxy.parts.upstreams.default.base_url).window == 8192
    )
    got = await post(proxy, [*history(), user("and so?")], model="mystery")

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert len(provider.asked_models) == 1
    assert provider.asked_models[0].header(b"authorization") == b"Bearer sk-alice"


FRAMINGS = {
    "with a length": ("length", None),
    "chunked": ("chunked", None),
    "until it closes": ("close", None),
    "packed": ("length", "gzip"),
    "packed and chunked": ("chunked", "gzip"),
}


@pytest.mark.parametrize(("framing", "encoding"), FRAMINGS.values(), ids=FRAMINGS)
async def test_a_window_learned_from_a_refusal_compacts_the_same_request(unknown, framing, encoding):
    """OpenAI's refusals come packed and chunked to clients that take gzip, as the SDKs do."""
    provider, _upstream, proxy = unknown

    def refuse(objection: str, prompt: Prompt) -> Any:
        error = {
            "message": objection,
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json")]
        if encoding:
            body, headers = gzip.compress(body), [*headers, (b"content-encoding", b"gzip")]
        return answer(body, 400, headers, framing)  # type: ignore[arg-type]

    provider.refusal = refuse  # type: ignore[method-assign]
    got = await post(proxy, [*history(), user("and so?")], model="mystery")

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert len(provider.refused) == 1
    assert len(provider.prompts) == 1


async def test_what_is_refused_twice_is_not_sent_a_third_time(unknown):
    provider, upstream, proxy = unknown
    provider.window = 300
    got = await post(proxy, [*history(), user(prose(random.Random(1), 900))], model="mystery")

    assert got.status == 400
    assert json.loads(got.body)["error"]["code"] == "context_length_exceeded"
    assert len([seen for seen in upstream.requests if seen.method == "POST"]) <= 2


async def test_a_refusal_about_something_else_is_not_sent_again(unknown):
    _provider, upstream, proxy = unknown
    refusal = b'{"error":{"message":"Rate limit reached for tokens per min","code":"rate_limit_exceeded"}}'
    upstream.script = lambda seen: answer(b'{"data":[]}') if seen.method == "GET" else answer(refusal, 429)
    got = await post(proxy, [*history(), user("and so?")], model="mystery")

    assert (got.status, got.body) == (429, refusal)
    assert len([seen for seen in upstream.requests if seen.method == "POST"]) == 1


async def test_both_attempts_are_of_one_turn(unknown):
    _, _, proxy = unknown
    got = await post(proxy, [*history(), user("and so?")], model="mystery")
    told = proxy.explain(note(got, "turn") or "")

    assert told["status"] == "answered"
    assert [attempt["status"] for attempt in told["attempts"]] == ["failed", "answered"]


@pytest.mark.parametrize("model", [MODEL, "gpt-4", "mystery"])
@pytest.mark.parametrize("factor", [1.1, 1.3, 1.8])
async def test_a_provider_that_counts_more_than_we_do_is_served(unknown, factor, model):
    """Another vocabulary: what fits by our count does not by its own. It is asked once more, and then we know."""
    provider, _, proxy = unknown
    provider.factor = factor
    rng = random.Random(1)
    said: list[Json] = []
    for number in range(30):
        said.append(user(f"{number} {prose(rng, 150)}"))
        got = await post(proxy, said, model=model)
        assert got.status == 200, json.loads(got.body)
        said.append(assistant(prose(rng, 150)))
    assert len(provider.refused) <= 3


async def test_the_sdk_never_notices_that_a_window_was_unknown(unknown):
    provider, _, proxy = unknown
    rng = random.Random(2)
    said: list[Json] = []
    with proxy.client() as sdk:
        for number in range(40):
            said.append(user(f"{number} {prose(rng, 250)}"))
            reply = await asyncio.to_thread(sdk.chat.completions.create, model="mystery", messages=said, max_tokens=256)
            said.append(assistant(reply.choices[0].message.content))
    assert len(provider.refused) == 1
    assert len(provider.prompts) == 40


# The operator's key


@pytest.fixture
def lender(dsn: str, upstream: ScriptedUpstream, tmp_path: Any) -> Iterator[Proxy]:
    with proxying(upstream.url, dsn, tmp_path, openai_api_key="sk-operators") as proxy:
        yield proxy


def authorization(upstream: ScriptedUpstream) -> list[bytes]:
    return upstream.requests[-1].values(b"authorization")


async def test_a_keyless_client_at_home_may_borrow_the_operators_key(lender, upstream):
    await ask(lender.url, "POST", CHAT, [], body_of([user("hi")]))
    assert authorization(upstream) == [b"Bearer sk-operators"]


async def test_a_borrowed_key_serves_every_endpoint(lender, upstream):
    await ask(lender.url, "POST", b"/v1/embeddings", [], b"{}")
    assert authorization(upstream) == [b"Bearer sk-operators"]


@pytest.mark.parametrize(
    "header", [KEY, (b"api-key", b"azure"), (b"x-api-key", b"theirs"), (b"Authorization", b"Basic eDp5")]
)
async def test_who_has_a_key_gets_no_other_beside_it(lender, upstream, header):
    await ask(lender.url, "POST", CHAT, [header], body_of([user("hi")]))
    assert b"Bearer sk-operators" not in authorization(upstream)


@pytest.mark.parametrize(
    ("origin", "key"),
    [
        (b"http://localhost:3000", [b"Bearer sk-operators"]),
        (b"https://example.com", []),
        (b"null", []),
        (b"http://[", []),
    ],
)
async def test_a_page_from_elsewhere_does_not_spend_the_operators_key(lender, upstream, origin, key):
    """A browser lets any page send such a request to this machine."""
    for path in (CHAT, b"/v1/embeddings"):
        await ask(lender.url, "POST", path, [(b"Origin", origin)], body_of([user("hi")]))
        assert authorization(upstream) == key


async def test_elsewhere_nobody_borrows(dsn, upstream, tmp_path):
    with proxying(upstream.url, dsn, tmp_path, openai_api_key="sk-operators", host="0.0.0.0") as proxy:
        await ask(proxy.url, "POST", CHAT, [], body_of([user("hi")]))
    assert authorization(upstream) == []


# Odds and ends


async def test_a_deflated_body_is_understood(proxy, upstream):
    upstream.script = plain(assistant("ok"))
    body = zlib.compress(body_of([user("deflated")]))
    got = await ask(proxy.url, "POST", CHAT, [KEY, (b"Content-Encoding", b"deflate")], body)
    assert note(got, "tokens") is not None


async def test_requests_on_one_connection_follow_each_other(proxy):
    async with connected(proxy.url) as client:
        for number in range(5):
            body = body_of([user(f"turn {number}")], stream=number % 2 == 1)
            await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT, len(body), body))
            got = await client.answer("POST")
            assert (got.status, got.complete) == (200, True)


def test_a_first_request_of_half_a_megabyte_leaves_others_their_pace(proxy, provider):
    """A cold history is counted, folded and stored beside a stream that goes on."""
    rng = random.Random(3)
    cold = [m for _ in range(150) for m in (user(prose(rng, 250)), assistant(prose(rng, 250)))]
    stalls, stop = Stalls(), False

    def beat() -> None:
        with httpx.Client() as quick:
            while not stop:
                with stalls.turn():
                    quick.get(f"{proxy.url}/healthz", timeout=60)

    with ThreadPoolExecutor(1) as aside, proxy.client() as sdk:
        sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "warm"}])
        running = aside.submit(beat)
        sdk.chat.completions.create(model=MODEL, messages=[*cold, user("and so?")], max_tokens=256)  # type: ignore[list-item]
        stop = True
        running.result()
    assert stalls.longest_seconds < 1.0  # of the client and the provider, too, which are of the same process


def test_system_messages_of_the_providers_dialect_stand_in_front(client, provider):
    messages = [system("one", "developer"), system("two"), *history(), user("and so?")]
    client.chat.completions.create(model=MODEL, messages=messages, max_tokens=256)
    assert provider.prompts[-1].messages[:2] == messages[:2]
