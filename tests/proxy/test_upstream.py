"""The way to the provider: where requests go, what they carry, and what becomes of their connections."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.errors import BadFraming, Silent, Unreachable, UpstreamCut
from proxy.upstream import Reply, Upstream, forwardable, render_head
from tests.faults import HANG
from tests.scripted import End, ScriptedUpstream, answer, cut, sse


async def whole(reply: Reply) -> bytes:
    return b"".join([chunk async for chunk in reply.chunks()])


async def ask(upstream: Upstream, method: str = "POST", body: bytes | None = b"{}") -> bytes:
    async with upstream.send(method, b"/v1/x", b"", [], body) as reply:
        return await whole(reply)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[ScriptedUpstream, Upstream]]:
    with ScriptedUpstream() as scripted:
        upstream = Upstream(scripted.url)
        yield scripted, upstream
        await upstream.close()


# Where requests go


@pytest.mark.parametrize(
    ("base_url", "path", "query", "url"),
    [
        ("http://h:1", b"/v1/models", b"", "http://h:1/v1/models"),
        ("http://h:1/", b"/v1/models", b"", "http://h:1/v1/models"),
        ("http://h:1", b"/models", b"", "http://h:1/models"),
        ("https://h/v1", b"/v1/models", b"", "https://h/v1/models"),
        ("https://h/v1", b"/models", b"", "https://h/v1/models"),
        ("https://h/v1/", b"/v1/models", b"", "https://h/v1/models"),
        ("https://h/openai/v1", b"/v1/chat/completions", b"a=b", "https://h/openai/v1/chat/completions?a=b"),
        ("https://h/api", b"/v1", b"", "https://h/api"),
        ("https://h/api", b"/v1/", b"", "https://h/api/"),
        ("https://h/api", b"/v10/x", b"", "https://h/api/v10/x"),
        ("https://h/api", b"//v1/x", b"", "https://h/api//v1/x"),
        ("https://h/a%2Fb", b"/v1/c%2fd", b"e=%2F", "https://h/a%2Fb/c%2fd?e=%2F"),
        ("http://[::1]:8000/v1", b"/v1/x", b"", "http://[::1]:8000/v1/x"),
        ("http://h", b"/v1/../x/.//y", b"", "http://h/v1/../x/.//y"),
    ],
)
def test_a_path_of_the_upstream_replaces_the_clients_v1(base_url, path, query, url):
    assert Upstream(base_url).url_for(path, query) == url


@pytest.mark.parametrize(
    "base_url", ["", "api.openai.com/v1", "ftp://h/v1", "http:///v1", "http://u:p@h/", "http://h/#a"]
)
def test_a_url_that_is_no_base_is_refused_at_the_start(base_url):
    with pytest.raises(ValueError, match="upstream"):
        Upstream(base_url)


# What they carry


@pytest.mark.parametrize(
    ("came", "goes"),
    [
        pytest.param(
            [(b"Accept", b"*/*"), (b"accept", b"a")], [(b"Accept", b"*/*"), (b"accept", b"a")], id="as it came"
        ),
        pytest.param([(b"HOST", b"a"), (b"Content-Length", b"1"), (b"Expect", b"100-continue")], [], id="ours to set"),
        pytest.param([(b"TE", b"a"), (b"Upgrade", b"a"), (b"Transfer-Encoding", b"chunked")], [], id="hop by hop"),
        pytest.param([(b"a", b"1"), (b"B", b"2"), (b"Connection", b"close, A ,b")], [], id="named in Connection"),
        pytest.param([(b"X-Session-ID", b"a"), (b"X-INFOLD-Memory", b"off")], [], id="meant for us"),
        pytest.param([(b"x-infolder", b"a")], [(b"x-infolder", b"a")], id="like ours, but not ours"),
        pytest.param([(b"Cookie", b"a"), (b"X-Forwarded-For", b"b")], [(b"Cookie", b"a"), (b"X-Forwarded-For", b"b")]),
    ],
)
def test_forwardable_headers(came, goes):
    assert forwardable(came) == goes


@pytest.mark.parametrize("evil", [b"a\r\nX-Evil: 1", b"a\nb", b"a\x00b", b"a\rb"])
def test_no_header_can_end_its_line_early(evil):
    with pytest.raises(BadFraming):
        render_head("GET", b"/", b"h", [(b"x", evil)], -1)
    with pytest.raises(BadFraming):
        render_head("GET", b"/", b"h", [(evil, b"x")], -1)
    with pytest.raises(BadFraming):
        render_head("GET", b"/" + evil, b"h", [], -1)


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("POST", None, b"0"),
        ("POST", b"", b"0"),
        ("GET", None, None),
        ("DELETE", None, None),
        ("GET", b"{}", b"2"),
        ("POST", b"{}", b"2"),
    ],
)
async def test_a_length_is_told_where_a_body_is_or_could_be(pair, method, body, length):
    scripted, upstream = pair
    await ask(upstream, method, body)

    host = scripted.url.removeprefix("http://").encode()
    expected = [(b"host", host)] + ([(b"content-length", length)] if length else [])
    assert list(scripted.requests[0].headers) == expected


async def test_a_rewritten_body_gets_its_own_length(pair):
    scripted, upstream = pair
    async with upstream.send("POST", b"/", b"", [(b"content-length", b"999")], b"short") as reply:
        assert reply.status == 200

    assert scripted.requests[0].values(b"content-length") == [b"5"]
    assert scripted.requests[0].body == b"short"


async def test_the_replys_headers_keep_order_case_and_duplicates(pair):
    scripted, upstream = pair
    headers = ((b"Set-Cookie", b"a"), (b"x-ID", b"\xe9"), (b"Set-Cookie", b"b"))
    scripted.script = answer(b"", headers=[*headers, (b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=5")])
    async with upstream.send("GET", b"/", b"", [], None) as reply:
        assert reply.headers == (*headers, (b"Content-Length", b"0"))


async def test_interim_answers_are_not_the_answer(pair):
    scripted, upstream = pair
    scripted.script = [b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", 0.01, *answer(b"real")]

    assert await ask(upstream) == b"real"


async def test_a_client_environment_with_a_proxy_changes_nothing(pair, monkeypatch):
    scripted, upstream = pair
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    assert await ask(upstream) == b'{"ok":true}'
    assert scripted.requests[0].target == b"/v1/x"


# What becomes of connections


async def test_a_connection_that_the_upstream_closed_while_idle_is_not_used_again(pair):
    scripted, upstream = pair
    scripted.script = [*answer(b"one"), End.CLOSE]
    for _ in range(5):
        assert await ask(upstream) == b"one"
        await asyncio.sleep(0.02)

    assert scripted.connections == len(scripted.requests) == 5


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_a_request_is_sent_once_even_if_a_used_connection_dies_under_it(pair, method, end):
    scripted, upstream = pair
    assert await ask(upstream, method) == b'{"ok":true}'
    scripted.script = [end]
    with pytest.raises(Unreachable) as raised:
        await ask(upstream, method)

    assert len(scripted.requests) == 2
    assert (
        raised.value.should_retry is True
    )  # closed for idleness, as far as anybody can tell: the client may ask again


async def test_a_new_connection_that_dies_may_have_cost_money(pair):
    scripted, upstream = pair
    scripted.script = [End.CLOSE]
    with pytest.raises(Unreachable) as raised:
        await ask(upstream)

    assert raised.value.should_retry is False


async def test_leaving_a_reply_early_closes_its_connection(pair):
    scripted, upstream = pair
    scripted.script = sse([b"data: 1\n\n"] * 1_000, pause=0.005)
    async with upstream.send("POST", b"/", b"", [], b"{}") as reply:
        async for _ in reply.chunks():
            break

    await scripted.until(lambda u: len(u.closed_at) == 1)


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_what_came_before_a_cut_is_given_out_even_to_a_late_reader(pair, end):
    scripted, upstream = pair
    scripted.script = cut(answer(b"x" * 100), len(answer(b"x" * 100)[0]) + 50, end)
    async with upstream.send("GET", b"/", b"", [], None) as reply:
        await asyncio.sleep(0.1)
        chunks = reply.chunks()
        assert await anext(chunks) == b"x" * 50
        with pytest.raises(UpstreamCut):
            await anext(chunks)


async def test_an_answer_ends_the_upload_it_did_not_wait_for(pair):
    scripted, upstream = pair
    scripted.eager = answer(b"enough", 413)
    ended = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with upstream.send("POST", b"/", b"", [], pieces()) as reply:
        assert (reply.status, await whole(reply)) == (413, b"enough")
    await asyncio.wait_for(ended.wait(), HANG)


async def test_an_upload_to_an_upstream_that_reads_nothing_ends():
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    with ScriptedUpstream(reads=False) as scripted:
        upstream = Upstream(scripted.url, silence_timeout_seconds=0.3)
        with pytest.raises(Silent):
            async with upstream.send("POST", b"/", b"", [], endless()):
                pass
        await upstream.close()


async def test_closing_while_a_body_is_read_cuts_it(pair):
    scripted, upstream = pair
    scripted.script = [*sse([b"data: 1\n\n"])[:-1], End.HANG]
    async with upstream.send("GET", b"/", b"", [], None) as reply:
        chunks = reply.chunks()
        assert await anext(chunks) == b"data: 1\n\n"
        asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(upstream.close()))
        with pytest.raises(UpstreamCut):
            await asyncio.wait_for(anext(chunks), HANG)


async def test_no_connection_is_lost_to_a_cancellation_at_any_tick(pair):
    """A connection pool that forgets to free a place on an unlucky cancellation dies slowly (httpcore 1.0.9)."""
    scripted, upstream = pair
    scripted.script = sse([b"data: 1\n\n"] * 2, pause=0.002)
    for ticks in range(500):
        task = asyncio.create_task(ask(upstream))
        for _ in range(ticks % 25):
            await asyncio.sleep(0)
        if ticks % 3 == 0:
            await asyncio.sleep(0.001 * (ticks % 7))
        task.cancel()
        await asyncio.wait([task])

    assert await asyncio.gather(*(ask(upstream) for _ in range(100))) == [b"data: 1\n\n" * 2] * 100
    await scripted.until(lambda u: u.open <= 101)  # all that is open waits for its next request
    await upstream.close()
    await scripted.until(lambda u: u.open == 0)


async def test_idle_connections_that_are_reset_go_quietly(pair, caplog):
    scripted, upstream = pair
    scripted.script = [*answer(b"one"), End.RESET]
    for _ in range(3):
        assert await ask(upstream) == b"one"
        await asyncio.sleep(0.03)

    assert caplog.records == []


# TLS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make a certificate")
async def test_a_certificate_nobody_signed_is_not_accepted(tmp_path: Path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    upstream = Upstream(f"https://localhost:{server.sockets[0].getsockname()[1]}/v1")
    with pytest.raises(Unreachable, match="certificate is not accepted") as raised:
        await ask(upstream)

    assert raised.value.should_retry is True  # nothing was sent
    server.close()
    await upstream.close()
