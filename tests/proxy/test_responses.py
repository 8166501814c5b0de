"""`POST /v1/responses` from the socket in to the socket out: bytes, records, refusals, what is left alone."""

import asyncio
import json
import random
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conversations import assistant, prose, user
from tests.faults import until
from tests.proxied import MODEL, Proxy, proxying
from tests.responses import Provider, call, event, events, message, output, reasoning, response, streamed
from tests.scripted import End, Got, ScriptedUpstream, answer, ask, connected, cut, sse

Json = dict[str, Any]
RESPONSES = b"/v1/responses"
KEY = (b"Authorization", b"Bearer sk-alice")


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def upstream(provider: Provider) -> Iterator[ScriptedUpstream]:
    with provider.serving() as serving:
        yield serving


@pytest.fixture
def proxy(upstream: ScriptedUpstream, dsn: str, tmp_path: Any) -> Iterator[Proxy]:
    with proxying(upstream.url, dsn, tmp_path) as running:
        yield running


def history(seed: int = 1, turns: int = 20) -> list[Json]:
    rng = random.Random(seed)
    return [item for _ in range(turns) for item in (user(prose(rng, 150)), assistant(prose(rng, 200)))]


def body_of(said: Any, **more: Any) -> bytes:
    return json.dumps({"model": MODEL, "input": said, "store": False, **more}).encode()


async def post(proxy: Proxy, said: Any, **more: Any) -> Got:
    return await ask(proxy.url, "POST", RESPONSES, [KEY], body_of(said, **({"max_output_tokens": 256} | more)))


def note(got: Got, name: str) -> str | None:
    value = got.header(f"x-infold-{name}".encode())
    return value.decode() if value is not None else None


def recorded(proxy: Proxy) -> list[Json]:
    return [line for line in proxy.export() if line["kind"] == "message"]


# Bytes


async def test_what_fits_goes_out_as_it_came(proxy, upstream):
    body = b'{ "input" : "hi\\u00e9" ,"model":"small-8k", "truncation":"auto", "zzz":[1.0e0,null], "include":[] }\n'
    got = await ask(proxy.url, "POST", b"/v1/responses?api-version=x", [KEY], body)

    assert (got.status, note(got, "mode")) == (200, "wire")
    assert upstream.requests[-1].body == body
    assert upstream.requests[-1].target == b"/v1/responses?api-version=x"


async def test_over_the_window_only_input_changes(proxy, upstream):
    head = b'{ "model":"small-8k" ,"temperature": 1.0e0, "truncation":"auto" , "instructions" : "b\\u00e9 brief",\n "input"  : '
    tail = b' , "max_output_tokens":256,"store": false, "include":["reasoning.encrypted_content"],"tools": [ ], "x":null }\n'
    said = json.dumps([*history(), user("and so?")]).encode()
    got = await ask(proxy.url, "POST", RESPONSES, [KEY], head + said + tail)
    seen = upstream.requests[-1].body

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert seen.startswith(head + b"[")
    assert seen.endswith(b"]" + tail)
    assert len(seen) < len(said)


STREAM = b"".join(map(event, events(response([reasoning(random.Random(1)), message("done")]))))
ENDINGS = {
    "as it should": STREAM,
    "without a blank line": STREAM[:-1],
    "with DONE behind it": STREAM + b"data: [DONE]\n\n",
    "with CRLF": STREAM.replace(b"\n", b"\r\n"),
    "without its last event": STREAM[: STREAM.index(b"event: response.completed")],
}


@pytest.mark.parametrize("body", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("size", [7, 400, 10**6])
async def test_a_stream_is_relayed_byte_for_byte_and_recorded(proxy, upstream, body, size):
    upstream.script = sse([body[i : i + size] for i in range(0, len(body), size)])
    got = await post(proxy, "hi", stream=True)

    assert got.body == body
    assert [line["content"] for line in recorded(proxy)] == ["hi", "done"]


async def test_the_end_of_a_stream_waits_until_the_turn_is_recorded(proxy, upstream):
    """The last event may come in pieces: none of it goes out before it is whole, and none before the record."""
    begins = STREAM.index(b"event: response.completed")
    pieces = [STREAM[:begins], STREAM[begins : begins + 200], STREAM[begins + 200 : -2], STREAM[-2:]]
    upstream.script = sse(pieces, pause=0.2)
    body = body_of("hi", stream=True)
    head = [b"POST /v1/responses HTTP/1.1", b"Host: proxy.test", b"%b: %b" % KEY, b"Content-Length: %d" % len(body)]
    seen = [b""]
    async with connected(proxy.url) as client, asyncio.timeout(60):
        await client.send(b"\r\n".join(head) + b"\r\n\r\n" + body)
        while b"event: response.completed" not in seen[-1]:
            seen.append(await client.reader.read(2**16))
        turns = recorded(proxy)

    assert [line["content"] for line in turns] == ["hi", "done"]
    assert STREAM[begins:] in seen[-1], "the last event waited until it was whole"
    assert b"output_text.delta" in b"".join(seen[:-1]), "what came before it did not wait"


@pytest.mark.parametrize("pieces", [1, 3])
async def test_an_end_that_says_so_behind_other_keys_waits_for_the_record_as_well(proxy, upstream, pieces):
    """Without an `event:` line it went out at once."""
    told = json.loads(STREAM[STREAM.rindex(b"data: ") + 6 :])
    last = b"data: " + json.dumps(dict(reversed(told.items()))).encode() + b"\n\n"
    begins = STREAM.index(b"event: response.completed")
    size = len(last) // pieces + 1
    parts = [last[i : i + size] for i in range(0, len(last), size)]
    upstream.script = sse([STREAM[:begins], *parts, b": and some time later\n\n"], pause=0.3)
    body = body_of("hi", stream=True)
    head = [b"POST /v1/responses HTTP/1.1", b"Host: proxy.test", b"%b: %b" % KEY, b"Content-Length: %d" % len(body)]
    seen = b""
    async with connected(proxy.url) as client, asyncio.timeout(10):
        await client.send(b"\r\n".join(head) + b"\r\n\r\n" + body)
        while last[-20:] not in seen:
            seen += await client.reader.read(2**16)
        turns = recorded(proxy)

    assert [line["content"] for line in turns] == ["hi", "done"]


ODD = {
    "nothing": b"",
    "no JSON": b"{this is not JSON",
    "a list": b'[{"input":"hi"}]',
    "no input": b'{"model":"small-8k"}',
    "input is a number": b'{"model":"small-8k","input":7}',
    "an item is a number": b'{"model":"small-8k","input":[7]}',
    "an item that the provider holds": b'{"model":"small-8k","input":[{"type":"item_reference","id":"msg_1"}]}',
    "invalid UTF-8": b'{"model":"small-8k","input":"\xff\xfe"}',
    "input twice": b'{"model":"small-8k","input":"a","input":"b"}',
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
async def test_an_odd_body_goes_upstream_as_it_came_and_is_recorded_without_loss(proxy, upstream, body):
    upstream.script = answer(json.dumps(response([message("ok")])).encode())
    got = await ask(proxy.url, "POST", RESPONSES, [KEY], body)
    (line,) = (line for line in recorded(proxy) if line["role"] == "raw")

    assert (got.status, got.body) == (200, json.dumps(response([message("ok")])).encode())
    assert upstream.requests[-1].body == body
    assert b64decode(line["bytes"]) == body


# Records


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_answered_is_recorded_as_the_client_will_send_it(proxy, upstream, stream):
    said = [
        reasoning(random.Random(1)) | {"id": "rs_1"},
        message("Let me look."),
        call("c1", {"q": "x"}),
        call("c2", {}),
    ]
    whole = response(said)
    upstream.script = streamed(whole) if stream else answer(json.dumps(whole).encode())
    got = await post(proxy, "look", stream=stream)
    upstream.script = answer(json.dumps(response([message("done")])).encode())
    outputs = [output("c1", "found"), output("c2", [{"type": "input_text", "text": "nothing"}])]
    again = await post(proxy, [user("look"), *said[1:], *outputs])
    lines = recorded(proxy)

    assert note(got, "session") == note(again, "session")
    assert [line["role"] for line in lines] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [line["parent"] for line in lines[1:]] == [line["id"] for line in lines[:-1]]
    assert [line["content"] for line in lines[:-1]] == [
        "look",
        'Let me look.\nlook({"q": "x"})\nlook({})',
        "found",
        [{"type": "input_text", "text": "nothing"}],
    ]
    assert lines[-1]["content"][0]["text"] == "done"
    assert json.dumps(lines[1]["message"][0]) == json.dumps(said[0])
    turn = proxy.explain(note(got, "turn") or "")
    assert [(made["id"], made["name"], made["success"]) for made in turn["calls"]] == [
        ("c1", "look", True),
        ("c2", "look", True),
    ]


async def test_usage_and_reasons_are_recorded(proxy, upstream):
    whole = response([message("ok")], 11, "incomplete", incomplete_details={"reason": "max_output_tokens"})
    for script in (streamed(whole), answer(json.dumps(whole).encode())):
        upstream.script = script
        got = await post(proxy, "hi")
        attempt = proxy.explain(note(got, "turn") or "")["attempts"][-1]
        assert attempt["usage"] == {"input_tokens": 11, "cached_tokens": 0, "output_tokens": 5}
        assert attempt["finish_reasons"] == ["max_output_tokens"]


async def test_a_failed_response_passes_and_its_error_is_recorded(proxy, upstream):
    whole = response([], 1, "failed", error={"code": "server_error", "message": "overloaded"})
    for script in (streamed(whole), answer(json.dumps(whole).encode())):
        upstream.script = script
        got = await post(proxy, "hi")
        assert got.status == 200
        assert proxy.explain(note(got, "turn") or "")["attempts"][-1]["error"] == "overloaded"


async def test_a_stream_that_breaks_off_keeps_what_was_said(proxy, upstream):
    whole = b"".join(map(event, events(response([message("one two three four five six seven eight nine")]))[:-4]))
    upstream.script = cut(sse([whole]), 10**9, End.RESET)
    await post(proxy, "hi", stream=True)
    await until(lambda: len(recorded(proxy)) == 2)

    assert recorded(proxy)[1]["content"][0]["text"].startswith("one two three")


@pytest.mark.parametrize(
    "more",
    [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}, {"prompt": {"id": "p"}}],
)
async def test_a_history_that_the_provider_keeps_is_passed_on_and_recorded_raw(proxy, upstream, more):
    upstream.script = answer(json.dumps(response([message("ok")])).encode())
    got = await post(proxy, [*history(), user("and so?")], **more)
    raw = [line for line in recorded(proxy) if line["role"] == "raw"]

    assert (got.status, note(got, "mode")) == (200, "wire")
    assert upstream.requests[-1].body == body_of([*history(), user("and so?")], max_output_tokens=256, **more)
    assert [line["content"].encode() for line in raw] == [upstream.requests[-1].body]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", b"/v1/responses/resp_1"),
        ("DELETE", b"/v1/responses/resp_1"),
        ("POST", b"/v1/responses/resp_1/cancel"),
        ("GET", b"/v1/responses/resp_1/input_items"),
        ("POST", b"/v1/responses/compact"),
        ("POST", b"/v1/responses/input_tokens"),
        ("GET", b"/v1/responses"),
    ],
)
async def test_all_else_below_it_is_relayed_and_leaves_no_trace(proxy, upstream, method, target):
    upstream.script = answer(b'{"ok":true}')
    body = body_of("hi") if method == "POST" else b""
    got = await ask(proxy.url, method, target, [KEY], body)

    assert (got.status, got.body, note(got, "mode")) == (200, b'{"ok":true}', None)
    assert (upstream.requests[-1].method, upstream.requests[-1].target, upstream.requests[-1].body) == (
        method,
        target,
        body,
    )
    assert recorded(proxy) == []


# Refusals


async def test_a_window_learned_from_a_refusal_compacts_the_same_request(proxy, provider):
    got = await post(proxy, [*history(), user("and so?")], model="mystery")

    assert (got.status, note(got, "mode")) == (200, "folded")
    assert len(provider.refused) == len(provider.prompts) == 1


async def test_a_refusal_inside_a_stream_passes_and_the_next_request_is_compacted(proxy, provider, upstream):
    said = [*history(), user("and so?")]
    words = "This model's maximum context length is 8192 tokens, however you requested 20000 tokens"
    error = {"code": "context_length_exceeded", "message": words}
    upstream.script = streamed(response([], 1, "failed", error=error))
    first = await post(proxy, said, model="mystery", stream=True)
    upstream.script = provider
    second = await post(proxy, said, model="mystery", stream=True)

    assert first.body == b"".join(map(event, events(response([], 1, "failed", error=error))))
    assert (second.status, note(second, "mode")) == (200, "folded")
    assert provider.refused == []


async def test_the_upstreams_own_refusal_comes_back_unchanged(proxy, upstream):
    refusal = b'{"error":{"message":"Unknown parameter","type":"invalid_request_error","param":"x","code":null}}'
    upstream.script = answer(refusal, 400)
    got = await post(proxy, "hi")

    assert (got.status, got.body) == (400, refusal)


def test_an_upstream_that_is_not_there_is_a_502_in_openais_shape(dsn, tmp_path):
    with proxying("http://127.0.0.1:9", dsn, tmp_path) as proxy, proxy.client() as sdk:
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.responses.create(model=MODEL, input="hi")
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
