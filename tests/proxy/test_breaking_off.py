"""What breaks on one side of a relayed request breaks on the other, soon and visibly."""

import asyncio

import orjson
import pytest

from tests.relayed import POST, relaying
from tests.scripted import End, RawClient, ScriptedUpstream, answer, ask, connected, cut, sse

# When the client leaves


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param([End.HANG], id="before the first byte"),
        pytest.param([*answer(b"", framing="chunked")[:1], End.HANG], id="after the headers"),
        pytest.param([*sse([b"data: 1\n\n"])[:-1], End.HANG], id="in a silent stream"),
        pytest.param(sse([b"data: 1\n\n"] * 500, pause=0.01), id="in a busy stream"),
        pytest.param([*answer(b"x" * 100)[:1], b"x" * 50, End.HANG], id="in a plain answer"),
    ],
)
async def test_the_upstream_sees_a_client_leave_at_once(wire, how, script):
    upstream, base_url = wire
    upstream.script = script
    requests, closed = len(upstream.requests), len(upstream.closed_at)
    client = await RawClient.to(base_url)
    await client.send(POST)
    await upstream.until(lambda u: len(u.requests) > requests)
    await asyncio.sleep(0.05)
    if how == "close":
        await client.close()
    else:
        client.reset()

    await upstream.until(lambda u: len(u.closed_at) > closed)


async def test_the_upstream_sees_a_client_leave_in_an_upload():
    with ScriptedUpstream() as upstream, relaying(upstream.url) as base_url:
        client = await RawClient.to(base_url)
        await client.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await upstream.until(lambda u: u.received_bytes > 0)
        await client.close()

        await upstream.until(lambda u: len(u.closed_at) == 1)
        assert upstream.requests == []  # it never saw a whole request


async def test_the_upstream_sees_a_client_leave_in_an_upload_that_it_answers_already():
    with ScriptedUpstream() as upstream, relaying(upstream.url) as base_url:
        client = await RawClient.to(base_url)
        upstream.eager = [*sse([b"data: 1\n\n"])[:-1], End.HANG]
        await client.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await client.head()
        await client.close()

        await upstream.until(lambda u: len(u.closed_at) == 1)


async def test_an_answer_before_the_end_of_the_upload_reaches_the_client():
    with ScriptedUpstream() as upstream, relaying(upstream.url) as base_url:
        upstream.eager = answer(b"too much", 413)
        async with connected(base_url) as client:
            await client.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 10_000)
            got = await client.answer()

        assert (got.status, got.body) == (413, b"too much")


# When the upstream breaks off

EVENTS = [b'data: {"n": %d, "text": "h\xc3\xa9llo"}\n\n' % n for n in range(40)] + [b"data: [DONE]\n\n"]


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_cut_upstream_is_a_cut_client_at_every_offset(wire, end, framing):
    upstream, base_url = wire
    steps = answer(EVENTS, 200, [(b"content-type", b"text/event-stream")], framing)
    head, whole = len(steps[0]), b"".join(EVENTS)
    for wire_bytes in range(1, sum(map(len, steps)), 50):
        upstream.script = cut(steps, wire_bytes, end)
        got = await ask(base_url, "POST", body=b"{}")

        assert not got.complete or got.status == 502
        if wire_bytes < head:
            assert orjson.loads(got.body)["error"]["code"] == "upstream_unreachable"
        elif framing == "length":
            assert got.body == whole[: wire_bytes - head]
        else:
            assert whole.startswith(got.body)
            assert len(got.body) >= (wire_bytes - head) * 0.8 - 50  # all but the chunk sizes


async def test_a_reset_is_no_end_for_a_body_that_ends_with_the_connection(wire):
    upstream, base_url = wire
    upstream.script = [b"HTTP/1.1 200 OK\r\n\r\n", b"hello", 0.02, End.RESET]
    got = await ask(base_url)

    assert (got.body, got.complete) == (b"hello", False)


async def test_a_broken_chunk_is_a_cut(wire):
    upstream, base_url = wire
    upstream.script = [*answer([b"hello"], framing="chunked")[:-1], 0.02, b"zz\r\n"]
    got = await ask(base_url)

    assert (got.body, got.complete) == (b"hello", False)


async def test_a_missing_done_is_not_invented(wire):
    upstream, base_url = wire
    upstream.script = sse(EVENTS[:3])
    got = await ask(base_url)

    assert (got.body, got.complete) == (b"".join(EVENTS[:3]), True)


async def test_a_stalled_stream_is_cut_after_the_silence_timeout():
    script = [*sse([b"data: 1\n\n"])[:-1], End.HANG]
    with ScriptedUpstream(script) as upstream, relaying(upstream.url, silence_timeout_seconds=2) as base_url:
        got = await ask(base_url)

        assert (got.status, got.body, got.complete) == (200, b"data: 1\n\n", False)
        await upstream.until(lambda u: u.open == 0)


async def test_an_upstream_that_never_answers_is_a_504_and_not_asked_again():
    with (
        ScriptedUpstream([End.HANG]) as upstream,
        relaying(upstream.url, silence_timeout_seconds=0.2) as base_url,
    ):
        got = await ask(base_url, "POST", body=b"{}")

        assert (got.status, got.header(b"x-should-retry")) == (504, b"false")
        assert orjson.loads(got.body)["error"]["code"] == "upstream_silent"
        assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-host.invalid:8000", "its name does not resolve"),
        ("https://{plain}", "TLS failed"),
    ],
)
async def test_an_upstream_that_cannot_be_reached_is_a_502_that_says_what_to_check(url, cause):
    plain = ScriptedUpstream()
    plain.eager = [b"HTTP/1.1 400 Bad Request\r\n\r\n", End.CLOSE]  # what a server without TLS says to a TLS greeting
    with plain, relaying(url.format(plain=plain.url.removeprefix("http://"))) as base_url:
        got = await ask(base_url, "POST", body=b"{}")

    error = orjson.loads(got.body)["error"]
    assert (got.status, got.header(b"content-type"), error["code"]) == (
        502,
        b"application/json",
        "upstream_unreachable",
    )
    assert got.header(b"x-should-retry") == b"true"  # nothing was sent, so asking again is free
    assert set(error) == {"message", "type", "param", "code"}
    assert cause in error["message"]
    assert "Check the upstream's URL" in error["message"]
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 999 Denied\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_502(wire, said):
    upstream, base_url = wire
    upstream.script = [said, End.CLOSE]
    got = await ask(base_url)

    assert (got.status, got.header(b"x-should-retry")) == (502, b"false")
