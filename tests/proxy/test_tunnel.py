"""A WebSocket is let through as it is: frames, subprotocols, closing, refusals, and what breaks."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from proxy.tunnel import End as Side
from proxy.upstream import notice_death
from tests.faults import HANG
from tests.proxied import proxying
from tests.relayed import relaying
from tests.scripted import End, RawClient, ScriptedUpstream, answer, ask, connected
from tests.sockets import Provider, providing

HANDSHAKE = [
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]
AGREED = b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: upgrade\r\nx-request-id: r1\r\n\r\n"


# What passes


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_text_and_binary_of_any_size_pass_both_ways_as_such(compression):
    noise = random.Random(1).randbytes(5_000_000)
    messages = ["", "héllo", "x" * 1_500_000, b"", b"\x00\xff", noise, "é" * 100_000]
    async with providing(compression=compression) as provider, provider.dial(compression=compression) as client:
        for message in messages:
            await client.send(message)
            assert await asyncio.wait_for(client.recv(), HANG) == message


async def test_fragments_stay_fragments_and_pings_are_the_others_to_answer():
    parts: list[object] = []

    async def talk(connection: ServerConnection) -> None:
        async for part in connection.recv_streaming():
            parts.append(part)
        await connection.send("whole")

    async with providing(talk, ping_interval=None) as provider, provider.dial(ping_interval=None) as client:
        latency = await asyncio.wait_for(await client.ping(b"are you there"), HANG)
        await client.send(["one", "two", "three"])
        assert await asyncio.wait_for(client.recv(), HANG) == "whole"

    assert latency > 0
    assert [part for part in parts if part] == ["one", "two", "three"]


async def test_the_handshake_has_the_clients_headers_path_and_query_and_none_of_ours():
    given = [("Authorization", "Bearer sk-1"), ("OpenAI-Beta", "realtime=v1"), ("X-Twice", "1"), ("X-Twice", "2")]
    ours = [("X-Session-Id", "s"), ("X-Infold-Memory", "off")]
    async with providing() as provider:
        dialled = provider.dial("/v1/responses?a=%2Fb", additional_headers=[*given, *ours], user_agent_header="test/1")
        async with dialled:
            pass
        (request,) = provider.requests

    headers = [(name.lower(), value) for name, value in request.headers.raw_items()]
    assert request.path == "/v1/responses?a=%2Fb"
    assert [pair for pair in headers if not pair[0].startswith("sec-websocket")] == [
        ("host", provider.url.removeprefix("http://")),
        *((name.lower(), value) for name, value in given),
        ("user-agent", "test/1"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
    ]


async def test_the_subprotocol_and_headers_that_the_upstream_chooses_reach_the_client():
    def more(connection: ServerConnection, request: Request, response: Response) -> None:
        response.headers["x-request-id"] = "req_1"
        response.headers["Set-Cookie"] = "a=1"
        response.headers["Set-Cookie"] = "b=2"

    offered = [Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.sk-1")]
    async with providing(subprotocols=[Subprotocol("realtime")], process_response=more) as provider:
        async with provider.dial(subprotocols=offered) as client:
            assert client.response is not None
            assert client.subprotocol == "realtime"
            assert client.response.headers["x-request-id"] == "req_1"
            assert client.response.headers.get_all("set-cookie") == ["a=1", "b=2"]
        assert "openai-insecure-api-key.sk-1" in provider.requests[0].headers["sec-websocket-protocol"]


async def test_what_comes_with_the_handshakes_answer_is_not_lost():
    frame = b"\x81\x05hello"
    script = [AGREED + frame, 0.05, frame, End.HANG]
    with ScriptedUpstream(script) as upstream, relaying(upstream.url) as base_url:
        async with connected(base_url) as client:
            await client.send(handshake())
            head = await client.head()
            assert await asyncio.wait_for(client.reader.readexactly(14), HANG) == frame * 2

    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nx-request-id: r1\r\n" in head


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_a_last_word_with_the_handshakes_answer_arrives(end):
    with ScriptedUpstream([AGREED + b"\x88\x02\x03\xf3", end]) as upstream, relaying(upstream.url) as base_url:
        for _ in range(20):
            async with connected(base_url) as client:
                await client.send(handshake())
                await client.head()
                assert await asyncio.wait_for(client.reader.read(), HANG) == b"\x88\x02\x03\xf3"


async def test_20_tunnels_at_once_each_hear_their_own():
    async def one(number: int) -> None:
        async with provider.dial() as client:
            for turn in range(20):
                await client.send(f"{number} {turn}")
                assert await client.recv() == f"{number} {turn}"
                await asyncio.sleep(0.005)

    async with providing() as provider:
        async with asyncio.timeout(60):
            await asyncio.gather(*map(one, range(20)))
        assert len(provider.connections) == 20


async def test_a_slow_reader_slows_the_upstream_down():
    sent = 0

    async def talk(connection: ServerConnection) -> None:
        nonlocal sent
        for _ in range(640):
            await connection.send(b"x" * 65_536)
            sent += 65_536

    with_no_hurry: dict[str, object] = {"compression": None, "ping_interval": None}
    async with providing(talk, **with_no_hurry) as provider:
        async with provider.dial(**with_no_hurry) as client:
            client.transport.pause_reading()
            await asyncio.sleep(0.5)
            held = sent
            client.transport.resume_reading()
            got = [len(await asyncio.wait_for(client.recv(), HANG)) for _ in range(640)]

    assert held < 24_000_000  # of 42 million; the kernel's own buffers take several MB on each side
    assert sum(got) == 640 * 65_536


async def tied(linger_seconds: float) -> tuple[socket.socket, Side, Side]:
    """A client whose connection takes a few KB at a time, its end of a tunnel, and the upstream's end."""
    far, near = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    far.setblocking(False)
    client, upstream = Side(linger_seconds), Side(linger_seconds)
    client.other, upstream.other = upstream, client
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: client, sock=near)
    client.take(transport)
    return far, client, upstream


async def test_the_last_bytes_reach_a_slow_reader_after_the_upstream_has_gone():
    far, _, upstream = await tied(60)
    upstream.data_received(b"x" * 60_000)
    upstream.eof_received()
    got = b""
    while piece := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 1_000), HANG):
        got += piece
    far.close()

    assert got == b"x" * 60_000


async def test_a_reader_that_takes_nothing_is_not_waited_for_for_ever():
    far, client, upstream = await tied(0.1)
    upstream.data_received(b"x" * 60_000)
    upstream.connection_lost(None)
    await asyncio.wait_for(client.ended.wait(), HANG)
    far.close()


# How it ends


async def test_the_upstream_hears_how_a_client_closes():
    async with providing() as provider:
        async with provider.dial() as client:
            await client.send("last")
            await client.close(4001, "enough, é")
        assert await provider.told() == (4001, "enough, é")


async def test_the_client_hears_how_the_upstream_closes():
    async def talk(connection: ServerConnection) -> None:
        await connection.send("last")
        await connection.close(1011, "out of memory")

    async with providing(talk) as provider, provider.dial() as client:
        assert await client.recv() == "last"
        with pytest.raises(ConnectionClosedError) as closed:
            await asyncio.wait_for(client.recv(), HANG)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "out of memory")
        assert (await provider.told())[0] == 1011


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_an_upstream_that_dies_without_a_word_is_an_abnormal_end_for_the_client(how):
    async def talk(connection: ServerConnection) -> None:
        await connection.send("last")
        await asyncio.sleep(0.05)
        getattr(connection.transport, how)()

    async with providing(talk) as provider, provider.dial() as client:
        assert await client.recv() == "last"
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(client.recv(), HANG)
        assert client.close_code == 1006


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("busy", [False, True])
async def test_the_upstream_sees_a_client_vanish_at_once(how, busy):
    async def talk(connection: ServerConnection) -> None:
        while busy:
            await connection.send("x" * 1_000)
            await asyncio.sleep(0.01)
        await connection.recv()

    async with providing(talk) as provider:
        client = await provider.dial()
        await asyncio.sleep(0.1)
        getattr(client.transport, how)()
        code, _ = await provider.told()

    assert code == 1006


async def test_a_client_that_leaves_in_the_handshake_ends_it():
    with ScriptedUpstream([End.HANG]) as upstream, relaying(upstream.url) as base_url:
        client = await RawClient.to(base_url)
        await client.send(handshake())
        await upstream.until(lambda u: len(u.requests) == 1)
        await asyncio.sleep(0.1)
        await client.close()

        await upstream.until(lambda u: len(u.closed_at) == 1)


async def test_100_clients_that_leave_at_unlucky_moments_leave_nothing_behind():
    chance = random.Random(4)

    async def unlucky() -> None:
        client = await RawClient.to(base_url)
        await client.send(handshake())
        await asyncio.sleep(chance.random() * 0.3)
        client.reset() if chance.random() < 0.5 else await client.close()

    script = [0.005, AGREED, *[b"\x81\x05hello", 0.005] * 4, End.HANG]
    with ScriptedUpstream(script) as upstream, relaying(upstream.url) as base_url:
        await asyncio.gather(*(unlucky() for _ in range(100)))

        await upstream.until(lambda u: u.open == 0)
        upstream.script = answer(b"fine")
        assert (await ask(base_url)).body == b"fine"


async def test_a_process_that_stops_lets_an_answer_end_and_waits_for_no_silent_client():
    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        for number in range(30):
            await connection.send(f"word {number}")
            await asyncio.sleep(0.1)
        await connection.recv()

    async with serve(talk, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        serving = contextlib.ExitStack()
        base_url = serving.enter_context(relaying(url, uvicorn={"timeout_graceful_shutdown": 90}))
        async with connect(base_url.replace("http", "ws") + "/v1/responses", proxy=None) as client:
            await client.send("tell")
            await client.recv()
            began = time.monotonic()
            stopping = asyncio.get_running_loop().run_in_executor(None, serving.close)
            words = [await client.recv() for _ in range(29)]
            with pytest.raises(ConnectionClosed):
                await client.recv()
            await stopping

    assert words[-1] == "word 29"
    assert time.monotonic() - began < 45


async def test_a_handshake_under_way_when_the_process_stops_does_not_hold_it_up():
    with ScriptedUpstream([0.5, AGREED, End.HANG]) as upstream:
        serving = contextlib.ExitStack()
        base_url = serving.enter_context(relaying(upstream.url, uvicorn={"timeout_graceful_shutdown": 90}))
        async with connected(base_url) as client:
            await client.send(handshake())
            await upstream.until(lambda u: len(u.requests) == 1)
            began = time.monotonic()
            await asyncio.get_running_loop().run_in_executor(None, serving.close)

    assert time.monotonic() - began < 45


def test_only_other_machines_are_asked_whether_they_are_there():
    """Under `uvicorn --uds` clients come over a unix socket, which knows no such option."""
    near, far = socket.socketpair()
    with near, far, socket.socket() as tcp:
        notice_death(near)
        notice_death(tcp)
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


# What is refused


def handshake(method: bytes = b"GET", more: bytes = b"") -> bytes:
    lines = [b"%b: %b\r\n" % pair for pair in HANDSHAKE]
    return method + b" /v1/realtime HTTP/1.1\r\nHost: x\r\n" + b"".join(lines) + more + b"\r\n"


async def test_an_upstreams_refusal_is_the_answer_with_its_status_headers_and_body():
    body = b'{ "error": {"message":"Incorrect API key","type":"invalid_request_error","param":null,"code":"bad"} }'
    headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"r"),
        (b"Set-Cookie", b"a"),
        (b"Set-Cookie", b"b"),
    ]
    with ScriptedUpstream(answer(body, 401, headers)) as upstream, relaying(upstream.url) as base_url:
        got = await ask(base_url, headers=HANDSHAKE)
        with pytest.raises(InvalidStatus) as refused:
            await connect(base_url.replace("http", "ws") + "/v1/realtime", proxy=None)

    assert (got.status, got.body, got.complete) == (401, body, True)
    assert got.headers[:4] == tuple((name.lower(), value) for name, value in headers)
    assert refused.value.response.status_code == 401
    assert refused.value.response.body == body
    assert len(upstream.requests) == 2  # no retries of ours


async def test_a_refusal_that_is_cut_is_cut():
    script = [*answer(b"x" * 100, 401)[:1], b"x" * 50, End.CLOSE]
    with ScriptedUpstream(script) as upstream, relaying(upstream.url) as base_url:
        got = await ask(base_url, headers=HANDSHAKE)
    assert (got.status, got.body, got.complete) == (401, b"x" * 50, False)


async def test_an_upstream_that_cannot_be_reached_is_a_502_in_openais_shape():
    with relaying("http://127.0.0.1:9") as base_url:
        got = await ask(base_url, headers=HANDSHAKE)

    error = json.loads(got.body)["error"]
    assert (got.status, got.header(b"x-should-retry")) == (502, b"true")
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "upstream_unreachable"
    assert "Connection refused" in error["message"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(handshake(more=b"x-long: " + b"a" * 33_000 + b"\r\n"), 431, id="headers without measure"),
        pytest.param(handshake(more=b"Content-Length: 2\r\n") + b"{}", 400, id="a body"),
        pytest.param(handshake(more=b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", 400, id="a chunked body"),
        pytest.param(handshake(b"POST"), 400, id="no GET"),
        pytest.param(handshake() + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", 200, id="a second request behind it"),
    ],
)
async def test_a_handshake_that_could_hide_another_request_reaches_the_upstream_as_one_or_not_at_all(request_, status):
    with ScriptedUpstream(answer(b"{}")) as upstream, relaying(upstream.url) as base_url:
        async with connected(base_url) as client:
            await client.send(request_)
            got = await client.answer()
            assert (got.status, got.header(b"connection")) == (status, b"close")
            assert await client.reader.read() == b""

    assert [seen.target for seen in upstream.requests] == ([b"/v1/realtime"] if status == 200 else [])


async def test_after_a_refusal_the_upstreams_connection_is_used_again():
    with ScriptedUpstream(answer(b"{}", 403)) as upstream, relaying(upstream.url) as base_url:
        for _ in range(5):
            await ask(base_url, headers=HANDSHAKE)
        assert upstream.connections == 1


# TLS

OVER_TLS = """
import asyncio, random, ssl, sys
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from tests.relayed import relaying

async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    closed = asyncio.get_running_loop().create_future()

    async def echo(connection):
        await connection.send(await connection.recv())
        await connection.wait_closed()
        closed.set_result((connection.close_code, connection.close_reason))

    async with serve(echo, "127.0.0.1", 0, ssl=context, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with relaying(f"https://localhost:{port}") as base_url:
            url = base_url.replace("http", "ws") + "/v1/realtime"
            async with connect(url, proxy=None, max_size=None, compression=None) as client:
                noise = random.Random(1).randbytes(5_000_000)
                await client.send(noise)
                assert await client.recv() == noise
                await client.close(4001, "enough")
            assert await asyncio.wait_for(closed, 60) == (4001, "enough")

asyncio.run(main())
"""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make a certificate")
def test_a_tunnel_goes_over_tls_as_well(tmp_path: Path):
    """In a process of its own, whose trust in the certificate is there before aiohttp looks."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    environment = {**os.environ, "SSL_CERT_FILE": str(certificate), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, "-c", OVER_TLS, str(certificate), str(key)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr


# In the whole application


@pytest.fixture
async def house(tmp_path: Path, dsn: str) -> AsyncIterator[Provider]:
    provider = Provider()
    async with serve(provider.serve, "127.0.0.1", 0) as server:
        provider.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with proxying(provider.url, dsn, tmp_path, openai_api_key=SecretStr("sk-operator")) as proxy:
            provider.proxy = proxy.url
            yield provider


def key_of(request: Request) -> str | None:
    return request.headers.get("authorization")


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        ({}, "Bearer sk-operator"),
        ({"Authorization": "Bearer sk-mine"}, "Bearer sk-mine"),
        ({"Origin": "http://localhost:3000"}, "Bearer sk-operator"),
        ({"Origin": "https://evil.example"}, None),
        ({"Origin": "null"}, None),
        ({"Origin": "http://[::1"}, None),
    ],
    ids=["none", "its own", "a page of this machine", "a foreign page", "a page of nowhere", "no origin at all"],
)
async def test_the_operators_key_is_lent_to_local_clients_without_one_but_not_to_foreign_pages(house, given, arrives):
    async with house.dial(additional_headers=given) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
    assert key_of(house.requests[0]) == arrives


@pytest.mark.parametrize("path", ["/healthz", "/memory-manager/items", "/"])
async def test_our_own_paths_are_not_tunnelled(house, path):
    with pytest.raises(InvalidStatus):
        await house.dial(path)
    assert house.requests == []


async def test_the_sdks_realtime_client_talks_through_it(house):
    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            event = json.loads(message)
            await connection.send(
                json.dumps({"type": "error", "event_id": "e1", "error": {"type": "x", "message": event["type"]}})
            )

    house.talk = talk
    async with openai.AsyncOpenAI(base_url=f"{house.proxy}/v1", api_key="sk-realtime") as client:
        async with client.realtime.connect(model="gpt-realtime") as connection:
            await connection.session.update(session={"type": "realtime", "instructions": "be brief"})
            event = await asyncio.wait_for(connection.recv(), HANG)

    assert event.type == "error"
    assert event.error.message == "session.update"
    assert house.requests[0].path == "/v1/realtime?model=gpt-realtime"
    assert key_of(house.requests[0]) == "Bearer sk-realtime"
