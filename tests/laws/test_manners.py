"""Drop-in manners of the whole application, where `test_wire.py` and the tests of relaying look elsewhere.

The same promises hold for a managed chat and for what is relayed: how a request is framed and encoded, what browsers
ask, what a client's patience decides, and that nothing is shared between clients, asked twice or answered from memory.
"""

import asyncio
import base64
import gzip
import json
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import brotli
import openai
import orjson
import pytest
import zstandard

from tests.conftest import NewDatabase
from tests.conversations import body_of, user
from tests.proxied import Proxy, proxying
from tests.scripted import End, RawClient, ScriptedUpstream, Seen, answer, ask, connected, sse

CHAT, FILES = b"/v1/chat/completions", b"/v1/files"
KEY = (b"Authorization", b"Bearer sk-manners")
JSON = (b"content-type", b"application/json")
ANSWER = b'{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"}}]}'
PATHS = pytest.mark.parametrize("target", [CHAT, FILES], ids=["chat", "relayed"])


@dataclass
class House:
    upstream: ScriptedUpstream
    proxy: Proxy

    @property
    def seen(self) -> list[Seen]:
        """What arrived, without our own questions for the models' windows."""
        return [one for one in self.upstream.requests if one.target != b"/v1/models"]

    @property
    def last(self) -> Seen:
        return self.seen[-1]


@pytest.fixture(scope="module")
def house(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The upstream has a name: cookie jars treat names and addresses differently."""
    with (
        new_database() as dsn,
        ScriptedUpstream(host="localhost") as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("manners")) as proxy,
    ):
        yield House(upstream, proxy)


@pytest.fixture(autouse=True)
def usual(house: House) -> None:
    house.upstream.script = answer(ANSWER, headers=[JSON])


def chunked(target: bytes, pieces: list[bytes], *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % target, b"Host: x", b"Authorization: Bearer sk-manners", *headers]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + body


# How a request is framed and encoded


@PATHS
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_a_chunked_body_arrives_with_the_same_bytes(house, target, packed):
    body = body_of([user("in pieces, wherever they are cut: é" * 200)])
    body, headers = (gzip.compress(body), [b"Content-Encoding: gzip"]) if packed else (body, [])
    pieces = [body[at : at + 97] for at in range(0, len(body), 97)]
    async with connected(house.proxy.url) as client:
        await client.send(chunked(target, pieces, *headers))
        got = await client.answer("POST")

    assert (got.status, got.body) == (200, ANSWER)
    assert house.last.body == body
    assert house.last.header(b"content-encoding") == (b"gzip" if packed else None)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        (b"br", brotli.compress),
        (b"zstd", zstandard.compress),
        (b"x-gzip", gzip.compress),
        (b"gzip, br", lambda body: brotli.compress(gzip.compress(body))),
        (b"snappy", bytes),
    ],
    ids=["br", "zstd", "x-gzip", "two", "unknown"],
)
async def test_a_body_in_any_encoding_is_forwarded_as_it_came(house, encoding, pack):
    packed = pack(body_of([user("packed in " + encoding.decode())]))
    got = await ask(house.proxy.url, "POST", CHAT, [KEY, JSON, (b"Content-Encoding", encoding)], packed)

    assert got.status == 200
    assert (house.last.body, house.last.values(b"content-encoding")) == (packed, [encoding])


@PATHS
async def test_expect_100_continue_is_answered_before_the_body_is_sent(house, target):
    body = body_of([user("may I?")])
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (target, len(body))
    async with connected(house.proxy.url) as client:
        await client.send(head)
        assert await client.head(2) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        got = await client.answer("POST")

    assert (got.status, house.last.body) == (200, body)
    assert house.last.header(b"expect") is None


@PATHS
@pytest.mark.parametrize(
    ("more", "body", "status", "says"),
    [
        (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n", 400, b""),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{} ", 400, b""),
        (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n", 400, b""),
        (b"Content-Length: 2\r\nx-long: " + b"a" * 33_000 + b"\r\n", b"{}", 431, b"32,768"),
    ],
    ids=["length and chunked", "two lengths", "two codings", "large headers"],
)
async def test_what_could_be_read_in_two_ways_or_has_no_measure_is_refused(house, target, more, body, status, says):
    before = len(house.seen)
    async with connected(house.proxy.url) as client:
        await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n%b" % (target, more, body))
        got = await client.answer("POST")

    assert got.status == status
    assert says in got.body
    assert len(house.seen) == before


async def test_20_megabytes_of_pictures_pass_untouched_and_count_as_pictures(house):
    noise = random.Random(1)
    pictures = [base64.b64encode(b"\x89PNG\r\n\x1a\n" + noise.randbytes(3_750_000)).decode() for _ in range(4)]
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one}"}} for one in pictures]
    body = body_of([user([{"type": "text", "text": "compare"}, *parts])], model="wide-128k")
    assert len(body) > 20_000_000
    got = await ask(house.proxy.url, "POST", CHAT, [KEY, JSON], body)
    asked, forwarded = (got.header(b"x-infold-tokens") or b"0/0").split(b"/")

    assert (got.status, got.header(b"x-infold-mode")) == (200, b"wire")
    assert house.last.body == body
    assert asked == forwarded
    assert int(asked) < 20_000


async def test_a_multipart_upload_arrives_with_its_own_boundary(house):
    body = b'--x"y\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n\x00\xff\r\n--x"y--\r\n'
    kind = (b"content-type", b'multipart/form-data; boundary="x\\"y"')
    await ask(house.proxy.url, "POST", b"/v1/audio/transcriptions", [KEY, kind], body)

    assert (house.last.body, house.last.values(b"content-type")) == (body, [kind[1]])


# Paths and methods


@pytest.mark.parametrize(
    ("asked", "arrives", "managed"),
    [
        (b"/v1/chat/completions", b"/v1/chat/completions", True),
        (b"/chat/completions", b"/v1/chat/completions", True),
        (b"/v1/completions", b"/v1/completions", False),
        (b"/completions", b"/v1/completions", False),
        (b"/v1/models/ft%3Agpt-4o%3Aacme%2Fx", b"/v1/models/ft%3Agpt-4o%3Aacme%2Fx", False),
        (b"/v1/threads/a/runs?limit=%32&x=", b"/v1/threads/a/runs?limit=%32&x=", False),
    ],
)
async def test_a_path_leads_to_the_same_place_with_and_without_v1(house, asked, arrives, managed):
    body = body_of([user(f"by {asked!r}")])
    got = await ask(house.proxy.url, "POST", asked, [KEY, JSON], body)

    assert (house.last.target, house.last.body) == (arrives, body)
    assert (got.header(b"x-infold-mode") is not None) == managed


async def test_a_legacy_completion_streams_through(house):
    events = [b'data: {"object":"text_completion","choices":[{"text":"h\xc3\xa9"}]}\n\n', b"data: [DONE]\n\n"]
    house.upstream.script = sse(events)
    body = b'{"model":"gpt-3.5-turbo-instruct","prompt":"hi","stream":true}'
    got = await ask(house.proxy.url, "POST", b"/v1/completions", [KEY, JSON], body)

    assert (got.body, got.complete, house.last.body) == (b"".join(events), True, body)


@PATHS
async def test_a_browsers_preflight_and_its_answer_pass(house, target):
    asked = [
        (b"Origin", b"https://app.example"),
        (b"Access-Control-Request-Method", b"POST"),
        (b"Access-Control-Request-Headers", b"authorization,content-type"),
    ]
    allowed = [
        (b"access-control-allow-origin", b"https://app.example"),
        (b"access-control-allow-headers", b"authorization,content-type"),
        (b"access-control-max-age", b"600"),
        (b"vary", b"Origin"),
    ]
    house.upstream.script = answer(b"", 204, allowed, "none")
    got = await ask(house.proxy.url, "OPTIONS", target, asked)

    assert (got.status, got.headers) == (204, tuple(allowed))
    assert house.last.method == "OPTIONS"
    assert [pair for pair in house.last.headers if pair[0] != b"host"] == [(n.lower(), value) for n, value in asked]


@PATHS
async def test_head_is_head(house, target):
    house.upstream.script = answer(b"", 200, [(b"content-length", b"77"), (b"x-request-id", b"r")], "none")
    got = await ask(house.proxy.url, "HEAD", target, [KEY])

    assert (house.last.method, got.status) == ("HEAD", 200)
    assert got.header(b"content-length") == b"77"


# Each client alone


@PATHS
async def test_a_cookie_that_one_client_was_given_is_sent_by_nobody_else(house, target):
    given = [(b"Set-Cookie", b"__cf_bm=secret; Path=/; Max-Age=3600"), (b"Set-Cookie", b"b=2; Path=/")]
    house.upstream.script = answer(ANSWER, headers=[JSON, *given])
    body = body_of([user("no cookies here")])
    first = await ask(house.proxy.url, "POST", target, [KEY, JSON], body)
    await ask(house.proxy.url, "POST", target, [(b"Authorization", b"Bearer sk-other"), JSON], body)
    other = house.last
    await ask(house.proxy.url, "POST", target, [KEY, JSON, (b"Cookie", b"mine=1")], body)

    assert first.values(b"set-cookie") == [value for _, value in given]
    assert other.values(b"cookie") == []
    assert house.last.values(b"cookie") == [b"mine=1"]


@PATHS
async def test_the_same_request_is_asked_each_time_and_an_error_once(house, target):
    body = body_of([user("tell me again")])
    before = len(house.seen)
    for status in (200, 200, 500, 429, 408):
        house.upstream.script = answer(ANSWER, status, [JSON])
        assert (await ask(house.proxy.url, "POST", target, [KEY, JSON], body)).status == status

    assert len(house.seen) - before == 5


async def test_20_clients_on_connections_kept_alive_each_hear_their_own(house):
    house.upstream.script = lambda seen: answer(
        json.dumps({"choices": [{"message": {"role": "assistant", "content": seen.body[-60:].decode()}}]}).encode()
    )

    async def one(number: int) -> None:
        async with connected(house.proxy.url) as client:
            for turn in range(5):
                word = f"client {number} turn {turn}"
                body = body_of([user(word)])
                head = b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-%d\r\n" % (CHAT, number)
                await client.send(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                got = await client.answer("POST")
                assert (got.status, word.encode() in got.body) == (200, True)
                assert got.header(b"connection") is None

    await asyncio.gather(*map(one, range(24)))


# What breaks


@PATHS
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_client_that_leaves_before_the_first_byte_frees_the_upstream_at_once(house, target, stream):
    house.upstream.script = [End.HANG]
    body = body_of([user("never mind")], stream=stream)
    seen, closed = len(house.seen), len(house.upstream.closed_at)
    client = await RawClient.to(house.proxy.url)
    await client.send(
        b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-manners\r\nContent-Length: %d\r\n\r\n%b"
        % (target, len(body), body)
    )
    await house.upstream.until(lambda _: len(house.seen) > seen)
    await client.close()

    await house.upstream.until(lambda u: len(u.closed_at) > closed)


@PATHS
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_a_stream_that_is_cut_is_cut_for_the_client(house, target, end):
    event = b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'
    house.upstream.script = [*sse([event])[:-1], 0.05, end]
    got = await ask(house.proxy.url, "POST", target, [KEY, JSON], body_of([user("cut")], stream=True))

    assert (got.status, got.body, got.complete) == (200, event, False)


def sdk_sees(house: House, call: Callable[[openai.OpenAI], object]) -> None:
    with house.proxy.client("sk-manners") as client, pytest.raises(openai.APIConnectionError):
        call(client)


def test_the_sdk_notices_a_plain_answer_that_was_cut(house):
    house.upstream.script = [answer(ANSWER, headers=[JSON])[0], ANSWER[:40], End.CLOSE]
    sdk_sees(house, lambda client: client.chat.completions.create(model="small-8k", messages=[user("x")]))


# Bombs: the bound is of the whole process, so each one has a process of its own.

BOMB = """
import re, sys
from pathlib import Path
from proxy.wire.encoding import decoded

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

encoding, path = sys.argv[1:]
bomb, before = Path(path).read_bytes(), most()
assert decoded(bomb, encoding) is None
print(most() - before)
"""
BOMB_BYTES = 400 * 2**20


def packed(encoding: str) -> bytes:
    """400 MB of zeros, packed."""
    piece = bytes(2**24)
    packer = {
        "gzip": lambda: zlib.compressobj(1, wbits=31),
        "br": lambda: brotli.Compressor(quality=2),
        "zstd": lambda: zstandard.ZstdCompressor(level=3).compressobj(),
    }[encoding]()
    feed = packer.process if encoding == "br" else packer.compress
    end = packer.finish if encoding == "br" else packer.flush
    return b"".join([*(feed(piece) for _ in range(BOMB_BYTES // len(piece))), end()])


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
async def test_a_bomb_is_forwarded_untouched_and_never_unfolds(house, encoding, tmp_path):
    bomb = packed(encoding)
    got = await ask(house.proxy.url, "POST", CHAT, [KEY, JSON, (b"Content-Encoding", encoding.encode())], bomb)
    path = tmp_path / "bomb"
    path.write_bytes(bomb)
    script = [sys.executable, "-c", BOMB, encoding, str(path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=240, check=True)

    assert len(bomb) < 2_000_000
    assert (got.status, house.last.body) == (200, bomb)
    assert int(done.stdout) < 200 * 1024  # kilobytes; half of what it would unfold to


def test_errors_of_ours_are_json_whatever_was_asked(house):
    """A client of any endpoint can read why."""
    got = asyncio.run(ask(house.proxy.url, "GET", b"/v1/models", [(b"x", b"a" * 33_000)]))
    assert orjson.loads(got.body)["error"]["code"] == "headers_too_large"
