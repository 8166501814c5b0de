"""Law 1: below the trigger Infold is a wire. What comes in goes out, both ways, byte for byte, and is recorded whole."""

import gzip
import json
import re
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg
import orjson
import pytest

from tests.conftest import NewDatabase
from tests.conversations import body_of, calling, prose, result, system, user
from tests.faults import in_time
from tests.proxied import Provider, Proxy, proxying
from tests.scripted import Got, ScriptedUpstream, Seen, answer, ask, connected, sse

CHAT = b"/v1/chat/completions"
KEY = (b"Authorization", b"Bearer sk-wire")
JSON = (b"Content-Type", b"application/json")
OURS = re.compile(rb"x-infold-", re.I)

ANSWER = (
    b'{ "id":"c1", "object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"caf\xc3\xa9 '
    b'\\u0000 \\ud800","refusal":null,"x":1.0e5},"finish_reason":"stop","logprobs":null}],"usage":null }\n'
)
HEADERS = [
    (b"content-type", b"application/json"),
    (b"x-request-id", b"req_1"),
    (b"Set-Cookie", b"a=1"),
    (b"Set-Cookie", b"b=2"),
    (b"OpenAI-Processing-Ms", b"12"),
    (b"x-ratelimit-remaining-tokens", b"99"),
    (b"Date", b"Mon, 01 Jan 2001 00:00:00 GMT"),
    (b"Server", b"them"),
]
STREAM = [
    b": a comment\n\n",
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}\n\n',
    b'event: odd\r\nid: 7\r\ndata: {"choices":[{"index":0,"delta":{"content":"lo \\u00e9"}}]}\r\n\r\n',
    b"data: this is no JSON\n\n",
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]

PLAIN = body_of([user("hello")])
ODD = {
    "NUL": b'{"model":"small-8k","messages":[{"role":"user","content":"a\\u0000b"}]}',
    "half a surrogate pair": rb'{"model":"small-8k","messages":[{"role":"user","content":"\ud83d and \udc00"}]}',
    "NaN": b'{"model":"small-8k","temperature":NaN,"messages":[{"role":"user","content":"nan"}]}',
    "a key twice": b'{"model":"a","model":"small-8k","messages":[{"role":"user","content":"twice"}]}',
    "a key twice in a message": b'{"model":"small-8k","messages":[{"role":"user","content":"x","content":"y"}]}',
    "10,000 deep": b'{"model":"small-8k","messages":[{"role":"user","content":"deep"}],"x":'
    + b"[" * 10_000
    + b"]" * 10_000
    + b"}",
    "10,000 deep and open": b'{"model":"small-8k","messages":' + b"[" * 10_000,
    "a million spaces": b'{"model":"small-8k","messages":[{"role":"user","content":"' + b" " * 1_000_000 + b'"}]}',
    "a million spaces between": b'{"model":"small-8k",'
    + b" " * 1_000_000
    + b'"messages":[{"role":"user","content":"s"}]}',
    "no JSON": b"{this is not JSON",
    "nothing": b"",
    "a list": b'[{"role":"user","content":"hi"}]',
    "a number": b"42",
    "messages are text": b'{"model":"small-8k","messages":"hi"}',
    "no messages": b'{"model":"small-8k"}',
    "empty messages": b'{"model":"small-8k","messages":[]}',
    "a message is a number": b'{"model":"small-8k","messages":[1]}',
    "no role": b'{"model":"small-8k","messages":[{"content":"x"}]}',
    "content is a number": b'{"model":"small-8k","messages":[{"role":"user","content":7}]}',
    "model is a number": b'{"model":7,"messages":[{"role":"user","content":"m"}]}',
    "model is missing": b'{"messages":[{"role":"user","content":"m2"}]}',
    "invalid UTF-8": b'{"model":"small-8k","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "a byte order mark": b'\xef\xbb\xbf{"model":"small-8k","messages":[{"role":"user","content":"bom"}]}',
    "a number of 300 digits": b'{"model":"small-8k","seed":'
    + b"9" * 300
    + b',"messages":[{"role":"user","content":"n"}]}',
    "unknown fields": b'{"model":"small-8k","messages":[{"role":"user","content":"u","zzz":{"a":[1]}}],"top_k":5,"x":null}',
    "an unknown role": b'{"model":"small-8k","messages":[{"role":"martian","content":"hi"}]}',
    "spacing": b'\n{ "messages" :\t[ { "content" : "hi" , "role":"user" } ] , "model" : "small-8k" }\r\n ',
    "binary": bytes(range(256)) * 40,
}
FOR_THE_ROLE_OF = re.compile(rb'\{[^{}]*"role"')


@dataclass
class Wire:
    upstream: ScriptedUpstream
    proxy: Proxy
    dsn: str

    async def post(self, body: bytes, *headers: tuple[bytes, bytes], target: bytes = CHAT) -> Got:
        return await ask(self.proxy.url, "POST", target, [KEY, JSON, *headers], body)

    @property
    def seen(self) -> Seen:
        """What the upstream received last; the list of models is asked for beside the requests."""
        return next(one for one in reversed(self.upstream.requests) if one.target != b"/v1/models")

    async def raws(self) -> list[bytes]:
        """All that was recorded."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return [row["raw"] for row in await connection.fetch("select raw from infold.nodes")]
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def wire(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with (
        new_database() as dsn,
        ScriptedUpstream(answer(ANSWER, headers=HEADERS)) as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("wire")) as proxy,
    ):
        yield Wire(upstream, proxy, dsn)


@pytest.fixture(autouse=True)
def usual(wire: Wire) -> None:
    wire.upstream.script = answer(ANSWER, headers=HEADERS)


def ours(got: Got) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in got.headers if OURS.match(name)}


def theirs(got: Got) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in got.headers if not OURS.match(name)]


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
async def test_an_odd_body_goes_upstream_as_it_came_and_is_recorded_without_loss(wire, body):
    got = await wire.post(body)

    assert wire.seen.body == body
    assert (got.status, got.body, got.complete) == (200, ANSWER, True)
    stored = await wire.raws()
    assert body in stored or any(raw in body and FOR_THE_ROLE_OF.match(raw) for raw in stored if len(raw) > 20)


async def test_every_odd_body_is_kept_and_none_takes_anothers_place(wire):
    """They are all "one raw message": but not the same one."""
    bodies = [b"{odd %d" % i for i in range(5)]
    for body in bodies:
        await wire.post(body)
    assert set(bodies) <= set(await wire.raws())


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503, 529])
async def test_the_upstreams_own_refusal_comes_back_unchanged(wire, status):
    refusal = b'{ "error": {"message":"no","type":"invalid_request_error","param":null,"code":"x"} }'
    wire.upstream.script = answer(refusal, status, [*HEADERS, (b"Retry-After", b"7"), (b"x-should-retry", b"true")])
    before = len(wire.upstream.requests)
    got = await wire.post(b'{"messages": 7')

    assert (got.status, got.body) == (status, refusal)
    assert got.header(b"retry-after") == b"7"
    assert len(wire.upstream.requests) == before + 1  # no retries of ours


async def test_an_answer_has_the_upstreams_headers_in_order_with_duplicates_and_ours_beside_them(wire):
    got = await wire.post(PLAIN)

    assert theirs(got) == [
        *((name.lower(), value) for name, value in HEADERS),
        (b"content-length", b"%d" % len(ANSWER)),
    ]
    assert ours(got)[b"x-infold-mode"] == b"wire"
    assert {b"x-infold-session", b"x-infold-turn", b"x-infold-tokens", b"x-infold-mode"} == set(ours(got))
    asked, forwarded = ours(got)[b"x-infold-tokens"].split(b"/")
    assert asked == forwarded


async def test_a_request_has_the_clients_headers_and_none_of_ours(wire):
    headers = [(b"X-Twice", b"1"), (b"X-Twice", b"2"), (b"Cookie", b"c=1"), (b"x-stainless-retry-count", b"0")]
    await wire.post(PLAIN, *headers, (b"X-Session-Id", b"s1"))
    seen = wire.seen.headers

    assert seen[1:-1] == (
        (b"authorization", b"Bearer sk-wire"),
        (b"content-type", b"application/json"),
        *((name.lower(), value) for name, value in headers),
    )


async def test_a_stream_is_relayed_byte_for_byte_and_ends_as_it_ended(wire):
    wire.upstream.script = sse(STREAM, headers=[(b"x-request-id", b"r")])
    got = await wire.post(body_of([user("stream it")], stream=True))

    assert (got.body, got.complete) == (b"".join(STREAM), True)


@pytest.mark.parametrize("ending", [b"", b"data: [DONE]\n", b"data: [DONE]\n\n: bye\n\n", b"data:[DONE]\n\n"])
async def test_no_terminal_event_is_added_or_lost(wire, ending):
    events = [*STREAM[:-1], *([ending] if ending else [])]
    wire.upstream.script = sse(events)
    got = await wire.post(body_of([user(f"ending {ending!r}")], stream=True))

    assert (got.body, got.complete) == (b"".join(events), True)


async def test_events_arrive_when_they_are_sent_not_when_the_stream_ends(wire):
    goes_on = threading.Event()
    wire.upstream.script = [*sse(STREAM[:2])[:-1], goes_on, *sse(STREAM[2:])[1:]]
    async with connected(wire.proxy.url) as client:
        body = body_of([user("slowly")], stream=True)
        await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (CHAT, len(body), body))
        await client.head()
        assert b"Hel" in await in_time(client.reader.readuntil(b"null}]}\n\n"))
        goes_on.set()
        assert b"[DONE]" in await in_time(client.reader.readuntil(b"0\r\n\r\n"))


async def test_an_encoded_answer_keeps_its_encoding(wire):
    packed = gzip.compress(ANSWER)
    wire.upstream.script = answer(packed, headers=[*HEADERS, (b"Content-Encoding", b"gzip")])
    got = await wire.post(PLAIN, (b"Accept-Encoding", b"gzip"))

    assert (got.body, got.header(b"content-encoding")) == (packed, b"gzip")


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [(b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"gzip", lambda body: b"no gzip at all")],
    ids=["gzip", "deflate", "broken"],
)
async def test_an_encoded_request_is_looked_into_and_forwarded_as_it_came(wire, encoding, pack):
    packed = pack(body_of([user("packed with " + encoding.decode())]))
    await wire.post(packed, (b"Content-Encoding", encoding))
    seen = wire.seen

    assert (seen.body, seen.header(b"content-encoding")) == (packed, encoding)


async def test_a_zip_bomb_is_forwarded_without_being_unpacked(wire):
    bomb = gzip.compress(bytes(200 * 2**20), 1)
    got = await wire.post(bomb, (b"Content-Encoding", b"gzip"))

    assert got.status == 200
    assert wire.seen.body == bomb


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", b"/v1/models", None),
        ("DELETE", b"/v1/files/a%2Fb", None),
        ("PATCH", b"/v1/anything?x=%20y", b"{}"),
        ("POST", b"/v1/embeddings", b'{"input":[1,2,3]}'),
        ("POST", b"/v1/audio/transcriptions", b"--b\r\n\r\n\0\xff\r\n--b--"),
        ("GET", CHAT, None),
        ("GET", CHAT + b"/chatcmpl-1/messages", None),
        ("OPTIONS", CHAT, None),
        ("POST", CHAT + b"/", PLAIN),
        ("POST", b"/v1/healthz", b"{}"),
        ("GET", b"/v1/metrics", None),
    ],
)
async def test_everything_that_is_not_ours_is_relayed(wire, method, target, body):
    before = len(wire.upstream.requests)
    got = await ask(wire.proxy.url, method, target, [KEY], body)
    seen = wire.upstream.requests[before:]

    assert [(one.method, one.target, one.body) for one in seen] == [(method, target, body or b"")]
    assert (got.status, got.body) == (200, ANSWER)


@pytest.mark.parametrize("target", [b"/healthz-of-theirs", b"/metrics/of/theirs", b"/readyz2", b"/memory-managers/x"])
async def test_only_our_own_paths_are_ours(wire, target):
    before = len(wire.upstream.requests)
    await ask(wire.proxy.url, "GET", target, [KEY])
    assert [one.target for one in wire.upstream.requests[before:]] == [b"/v1" + target]


@pytest.mark.parametrize("spelling", [b"off", b"OFF", b" Off ", b"false", b"no", b"0"])
async def test_memory_off_is_a_pure_wire_that_leaves_no_trace(wire, spelling):
    body = body_of([user("do not remember the word heliotrope")])
    got = await wire.post(body, (b"X-Infold-Memory", spelling))

    assert wire.seen.body == body
    assert (got.status, got.body, ours(got)) == (200, ANSWER, {})
    assert not any(b"heliotrope" in raw for raw in await wire.raws())


async def test_memory_off_holds_for_what_is_over_the_window_too(wire):
    body = body_of([user(prose_of(12_000))])
    await wire.post(body, (b"X-Infold-Memory", b"OFF"))

    assert wire.seen.body == body


async def test_azures_paths_are_managed_too(wire):
    got = await wire.post(PLAIN, target=b"/openai/deployments/gpt/chat/completions?api-version=1")
    assert ours(got)[b"x-infold-mode"] == b"wire"


async def test_a_head_and_an_empty_answer_pass(wire):
    wire.upstream.script = answer(b"", 204, framing="none")
    assert (await wire.post(PLAIN)).status == 204
    wire.upstream.script = answer(b"")
    got = await wire.post(PLAIN)
    assert (got.status, got.body, got.complete) == (200, b"", True)


async def test_a_chat_with_everything_a_client_may_send_passes_untouched(wire):
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 50
    messages = [
        system("be brief", "developer"),
        user([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": picture, "detail": "low"}}]),
        calling(("call_1", '{"a" : 1}'), ("call_2", "not json")),
        result("call_1", ""),
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "part"}]},
        system("late"),
        {"role": "assistant", "content": None, "refusal": "no", "audio": {"id": "a1"}, "name": "bot"},
        user(""),
        user("go", name="ann"),
    ]
    more = {"tools": [{"type": "function", "function": {"name": "look", "strict": True}}], "stream": False, "n": 1}
    body = json.dumps({"model": "small-8k", "messages": messages, **more}, indent=2).encode()
    await wire.post(body)

    assert wire.seen.body == body


# Larger than we take


@pytest.fixture(scope="module")
def narrow(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with (
        new_database() as dsn,
        ScriptedUpstream(answer(ANSWER)) as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("narrow"), max_body_mib=1) as proxy,
    ):
        yield Wire(upstream, proxy, dsn)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_in_openais_shape_with_the_limit(narrow, chunked):
    body = body_of([user("x" * 2**20)])
    if chunked:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT
        async with connected(narrow.proxy.url) as client:
            await client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            got = await client.answer("POST")
    else:
        got = await narrow.post(body)
    error = orjson.loads(got.body)["error"]

    assert got.status == 413
    assert "1,048,576" in error["message"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "request_too_large", None)
    assert narrow.upstream.requests == []


async def test_a_relayed_body_has_no_limit(narrow):
    body = bytes(3 * 2**20)
    got = await narrow.post(body, target=b"/v1/files")

    assert got.status == 200
    assert narrow.upstream.requests.pop().body == body


async def test_with_the_sdk_errors_are_the_providers_own(tmp_path, dsn):
    import openai

    provider = Provider(window=100)
    with provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path) as proxy, proxy.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="small-8k", messages=[{"role": "user", "content": "word " * 200}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def prose_of(words: int) -> str:
    import random

    return prose(random.Random(1), words)
