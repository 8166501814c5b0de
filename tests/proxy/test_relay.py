"""A relayed request is a wire: what goes in comes out, in both directions, and so does what breaks."""

import asyncio
import gzip
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.relay import READ_AT_ONCE_BYTES
from proxy.upstream import IDLE_SECONDS
from tests.relayed import POST, relaying
from tests.scripted import RawClient, ScriptedUpstream, Seen, answer, ask, connected, sse

JSON = (b"content-type", b"application/json")
NOTES = [(b"x-infold-mode", b"wire")]


# What the upstream receives


async def test_the_upstream_receives_the_clients_headers_in_order_with_duplicates_and_nothing_else(wire):
    upstream, base_url = wire
    headers = [
        (b"Authorization", b"Bearer sk-test"),
        (b"X-Twice", b"one"),
        (b"x-stainless-retry-count", b"0"),
        (b"X-Twice", b"two"),
        (b"OpenAI-Organization", b"org"),
        (b"traceparent", b"00-ab-cd-01"),
        (b"Cookie", b"__cf_bm=1; a=b"),
        (b"X-Latin", b"caf\xe9"),
        (b"X-Utf8", "é中".encode()),
        (b"X-Empty", b""),
    ]
    got = await ask(base_url, "POST", b"/v1/files", headers, b"{}")

    seen = upstream.requests[-1]
    assert got.status == 200
    assert seen.headers == (
        (b"host", upstream.url.removeprefix("http://").encode()),
        *((name.lower(), value) for name, value in headers),  # the server lowers names; HTTP compares them so
        (b"content-length", b"2"),
    )


async def test_hop_by_hop_headers_and_our_own_stay_with_us(wire):
    upstream, base_url = wire
    headers = [
        (b"Connection", b"keep-alive, X-Mine"),
        (b"X-Mine", b"hop"),
        (b"Keep-Alive", b"timeout=5"),
        (b"TE", b"trailers"),
        (b"Proxy-Authorization", b"Basic x"),
        (b"X-Session-Id", b"s1"),
        (b"X-Infold-Memory", b"off"),
        (b"X-Other", b"stays"),
    ]
    await ask(base_url, "GET", b"/v1/models", headers)

    assert [name for name, _ in upstream.requests[-1].headers] == [b"host", b"x-other"]


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/models/ft:gpt-4o:acme::a1",
        b"/v1/models/ft%3Agpt-4o%2Fb%20c%c3%A9",
        b"/v1/files?limit=2&after=a%2Fb&x=?/+%20",
        b"/v1/a//b/../c/./..%2f..",
        b"//evil.test/v1/models",
        b"/",
        b"/engines/x;v=1/completions?api-version=2024-10-21&=&a",
        b"/v1/q?" + b"x=" + b"y" * 8_000,
    ],
)
async def test_paths_and_queries_keep_their_bytes(wire, target):
    upstream, base_url = wire
    await ask(base_url, "GET", target)

    assert upstream.requests[-1].target == target


async def test_the_host_of_an_absolute_target_leads_nowhere_else(wire):
    upstream, base_url = wire
    await ask(base_url, "GET", b"http://169.254.169.254/latest/meta-data")

    assert upstream.requests[-1].target == b"/latest/meta-data"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("body", [None, b"", b'{"a": null , "n":1e400}', b"\x00\xff" * 50])
async def test_any_method_passes_with_and_without_a_body(wire, method, body):
    upstream, base_url = wire
    got = await ask(base_url, method, b"/v1/x", [JSON], body)

    seen = upstream.requests[-1]
    assert (got.status, seen.method, seen.body) == (200, method, body or b"")
    if body:
        assert seen.values(b"content-length") == [b"%d" % len(body)]


async def test_large_multipart_uploads_pass_with_their_length(wire):
    upstream, base_url = wire
    body = b"--b\r\n" + random.Random(1).randbytes(3_000_000) + b"\r\n--b--\r\n"
    assert len(body) > READ_AT_ONCE_BYTES
    got = await ask(base_url, "POST", b"/v1/files", [(b"content-type", b"multipart/form-data; boundary=b")], body)

    seen = upstream.requests[-1]
    assert got.complete
    assert seen.body == body
    assert seen.header(b"content-length") == b"%d" % len(body)
    assert seen.header(b"transfer-encoding") is None


async def test_a_chunked_upload_streams_while_it_comes(wire):
    upstream, base_url = wire
    before = upstream.received_bytes, len(upstream.requests)
    async with connected(base_url) as client:
        await client.send(b"POST /v1/audio HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await upstream.until(lambda u: u.received_bytes > before[0] + len(b"5\r\nfirst\r\n"))
        assert len(upstream.requests) == before[1]  # the end is not there yet
        await client.send(b"6\r\nsecond\r\n0\r\n\r\n")
        got = await client.answer()

    assert got.status == 200
    assert upstream.requests[-1].body == b"firstsecond"
    assert upstream.requests[-1].header(b"transfer-encoding") == b"chunked"


async def test_expect_100_continue_is_answered(wire):
    upstream, base_url = wire
    async with connected(base_url) as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"{}")
        got = await client.answer()

    assert got.status == 200
    assert upstream.requests[-1].body == b"{}"


# What the client receives


async def test_the_client_receives_the_upstreams_headers_in_order_with_duplicates_and_nothing_else(wire):
    upstream, base_url = wire
    headers = [
        (b"Date", b"Mon, 01 Jan 2029 00:00:00 GMT"),
        (b"Server", b"cloud"),
        (b"Set-Cookie", b"a=1; Path=/"),
        (b"x-request-id", b"req_1"),
        (b"Set-Cookie", b"b=2"),
        (b"x-ratelimit-remaining-tokens", b"7"),
        (b"OpenAI-Processing-Ms", b"12"),
        (b"X-Odd", b"\xe9 \xc3\xa9"),
    ]
    hop_by_hop = [(b"Connection", b"keep-alive, x-hop"), (b"X-Hop", b"1"), (b"Keep-Alive", b"timeout=5")]
    upstream.script = answer(b'{"ok": true}', headers=[*headers, *hop_by_hop])
    got = await ask(base_url)

    assert got.body == b'{"ok": true}'
    assert got.headers == (*((name.lower(), value) for name, value in headers), (b"content-length", b"12"))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 302, 304, 400, 401, 404, 409, 422, 429, 500, 502, 503, 529])
async def test_any_status_passes_once_with_its_body_and_retry_after(wire, status):
    upstream, base_url = wire
    body = b"" if status in (204, 304) else b'{"error": {"code": "context_length_exceeded"} }'
    headers = [(b"retry-after", b"3"), (b"x-should-retry", b"true"), (b"location", b"http://127.0.0.1:9/elsewhere")]
    upstream.script = answer(body, status, headers, "length" if body else "none")
    before = len(upstream.requests)
    got = await ask(base_url, "POST", body=b"{}")

    assert (got.status, got.body, got.complete) == (status, body, True)
    assert got.headers[:3] == tuple(headers)
    assert len(upstream.requests) == before + 1  # no retry, no redirect followed


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"zstd", b"nonsense"])
async def test_content_encodings_are_not_touched(wire, framing, encoding):
    upstream, base_url = wire
    body = gzip.compress(b"hello" * 100, mtime=0) if encoding == b"gzip" else random.Random(2).randbytes(500)
    upstream.script = answer([body[:100], body[100:]], 200, [(b"Content-Encoding", encoding)], framing)
    got = await ask(base_url)

    assert got.body == body
    assert got.header(b"content-encoding") == encoding
    assert got.header(b"content-length") == (b"%d" % len(body) if framing == "length" else None)


async def test_head_keeps_the_length_and_the_connection(wire):
    upstream, base_url = wire
    upstream.script = lambda seen: answer(
        b"" if seen.method == "HEAD" else b"x", 200, [(b"content-length", b"1")], "none"
    )
    async with connected(base_url) as client:
        await client.send(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await client.answer("HEAD")
        await client.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        whole = await client.answer()

    assert head.header(b"content-length") == b"1"
    assert whole.body == b"x"


async def test_a_304_may_tell_a_length_without_breaking_the_connection(wire):
    upstream, base_url = wire
    upstream.script = [answer(b"", 304, [(b"etag", b"1"), (b"content-length", b"20")], "none"), answer(b"next")]
    upstream._served = 0
    async with connected(base_url) as client:
        for expected in (b"", b"next"):
            await client.send(b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
            got = await client.answer()
            assert (got.body, got.complete) == (expected, True)


async def test_events_pass_one_by_one_whatever_they_hold(wire):
    upstream, base_url = wire
    events = [
        b": comment\r\n\r\n",
        b"event: x\nid: 1\ndata: {}\n\n",
        "data: é".encode()[:-1],
        "é".encode()[1:] + b"\n\n",
        b"data: not json\n\n",
        b"data: " + b"m" * 1_000_000 + b"\n\n",
    ]
    upstream.script = sse(events, pause=0.03)
    delays, began = [], time.monotonic()
    async with connected(base_url) as client:
        await client.send(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        await client.head()
        for number, event in enumerate(events[:-1], start=1):
            line = await client.reader.readuntil(b"\r\n")
            assert await client.reader.readexactly(int(line, 16) + 2) == event + b"\r\n"
            delays.append(time.monotonic() - began - number * 0.03)
        got = await client.reader.readuntil(b"\r\n0\r\n\r\n")

    assert got.count(b"m") == 1_000_000
    assert sorted(delays)[len(delays) // 2] < 0.03  # Nagle's algorithm against delayed acknowledgement costs 40 ms


async def test_notes_of_ours_join_the_answer():
    with ScriptedUpstream() as upstream, relaying(upstream.url, notes=NOTES) as base_url:
        assert (await ask(base_url)).header(b"x-infold-mode") == b"wire"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_cookies_are_kept_for_nobody(host):
    script = answer(b"{}", headers=[(b"Set-Cookie", b"session=secret; Path=/; Max-Age=3600")])
    with ScriptedUpstream(script, host=host) as upstream, relaying(upstream.url) as base_url:
        first, second = await ask(base_url), await ask(base_url)
        third = await ask(base_url, headers=[(b"Cookie", b"mine=1")])

        assert all(got.header(b"set-cookie") for got in (first, second, third))
        assert [seen.header(b"cookie") for seen in upstream.requests] == [None, None, b"mine=1"]


# What we refuse


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 33_000 + b"\r\n\r\n", 431),
        (b"GET /v1/x HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: a\r\n" % n for n in range(4_000)) + b"\r\n", 431),
        (b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ", 400),
        (b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n", 400),
        (b"GET /v1/x HTTP/1.1\r\nhost: x\r\nx: a\nb: c\r\n\r\n", 400),
        (b"GET /v1/\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (
            b"POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            b"content-length: 2\r\n\r\n{}",
            400,
        ),
    ],
)
async def test_requests_that_could_be_read_in_two_ways_never_reach_the_upstream(wire, head, status):
    upstream, base_url = wire
    upstream.script = answer(b"reached")
    before = len(upstream.requests)
    async with connected(base_url) as client:
        await client.send(head)
        got = await client.answer()

    assert got.status == status
    assert len(upstream.requests) == before


async def test_an_offer_to_change_the_protocol_is_declined_and_ends_the_connection(wire):
    """Java's HttpClient offers h2c with each request; on a connection kept alive, uvicorn never saw its next one."""
    upstream, base_url = wire
    upstream.script = answer(b"{}")
    got = await ask(base_url, headers=[(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c")])

    assert (got.status, got.header(b"connection")) == (200, b"close")


# Many at once


async def test_connections_to_the_upstream_are_used_again():
    def script(seen: Seen) -> Any:
        whole = answer(b"{}")
        return whole[:1] if seen.method == "HEAD" else whole

    with ScriptedUpstream(script) as upstream, relaying(upstream.url) as base_url:
        for method in ("GET", "POST", "DELETE", "HEAD") * 5:
            await ask(base_url, method, body=b"{}" if method == "POST" else None)

        assert len(upstream.requests) == 20
        assert upstream.connections == 1


async def test_200_parallel_requests_each_get_their_own_answer():
    def script(seen: Seen) -> Any:
        return sse([b"data: " + seen.body + b"\n\n"] * 3, pause=0.1)

    async def one(number: int) -> None:
        got = await ask(base_url, "POST", b"/v1/x", [], b"%d" % number)
        assert got.body == b"data: %d\n\n" % number * 3

    with ScriptedUpstream(script) as upstream, relaying(upstream.url) as base_url:
        await asyncio.gather(*map(one, range(200)))

        assert upstream.connections > 100  # they really were parallel


async def test_500_clients_that_leave_at_unlucky_moments_leave_nothing_behind():
    chance = random.Random(3)

    async def unlucky() -> None:
        client = await RawClient.to(base_url)
        await client.send(POST)
        await asyncio.sleep(chance.random() * 0.02)
        client.reset() if chance.random() < 0.5 else await client.close()

    async def rows() -> AsyncIterator[int]:
        for _ in range(25):
            await asyncio.gather(*(unlucky() for _ in range(20)))
            yield upstream.open

    with ScriptedUpstream(sse([b"data: 1\n\n"] * 4, pause=0.003)) as upstream, relaying(upstream.url) as base_url:
        async for _ in rows():
            pass
        upstream.script = answer(b"fine")
        answers = await asyncio.gather(*(ask(base_url) for _ in range(50)))

        assert all(got.body == b"fine" for got in answers)
        await upstream.until(lambda u: u.open <= 50, IDLE_SECONDS + 15)  # what is still open waits for its next request


async def test_a_slow_reader_slows_the_upstream_down():
    piece, pieces = b"x" * 65_536, 640  # 40 MB
    with (
        ScriptedUpstream(answer([piece] * pieces, framing="chunked")) as upstream,
        relaying(upstream.url) as base_url,
    ):
        async with connected(base_url) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(b"GET /v1/big HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.sleep(0.3)
            held = upstream.sent_bytes
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            got = await client.answer()

        assert held < 24_000_000  # the kernel's own buffers take several MB on each side
        assert len(got.body) == len(piece) * pieces
