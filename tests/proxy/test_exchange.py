"""An exchange is a request as it came, and notices when nobody is left to answer."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest

from memory.errors import Conflict, InvalidRequest, LLMMemoryError, NotAllowed, NotFound, StoreUnavailable, TooLarge
from proxy.errors import BadFraming, BodyTooLarge, ClientGone, HeadersTooLarge, Silent, Unreachable, error_body
from proxy.exchange import Exchange, while_client_stays
from tests.faults import HANG
from tests.scripted import RawClient, ask, connected, serve_asgi

Handler = Callable[[Exchange], Awaitable[None]]


class Stage:
    """One server for the whole file; each test puts its own handler on it."""

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.base_url = ""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.handler is not None
        await self.handler(Exchange(scope, receive, send))

    def __call__(self, handler: Handler) -> str:
        self.handler = handler
        return self.base_url


@pytest.fixture(scope="module")
def serving() -> Iterator[Stage]:
    stage = Stage()
    with serve_asgi(stage.app, lifespan="off") as base_url:
        stage.base_url = base_url
        yield stage


async def reply(exchange: Exchange, body: bytes) -> None:
    await exchange.start(200, [(b"content-length", b"%d" % len(body))])
    await exchange.send(body, more=False)


async def test_a_request_comes_as_it_was_sent(serving):
    async def handler(exchange: Exchange) -> None:
        said = [exchange.method, exchange.path, exchange.query, exchange.header(b"x-a"), exchange.header(b"x-b")]
        await reply(exchange, repr(said).encode() + await exchange.body(None))

    base_url = serving(handler)
    got = await ask(base_url, "PUT", b"/a%2Fb/%c3?c=%20", [(b"X-A", b"1"), (b"x-a", b"2")], b"\x00body")

    assert got.body == repr(["PUT", b"/a%2Fb/%c3", b"c=%20", b"1", None]).encode() + b"\x00body"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000])
async def test_a_body_is_read_whole(chunked, size, serving):
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async def handler(exchange: Exchange) -> None:
        assert not exchange.started
        await reply(exchange, await exchange.body(size))
        assert exchange.started

    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % size
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked and size else b"0\r\n\r\n" if chunked else body
    base_url = serving(handler)
    async with connected(base_url) as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n%b" % (framing, sent))
        got = await client.answer()

    assert got.body == body


@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked", b"content-length: 12"])
async def test_a_body_over_the_limit_is_a_413_that_says_the_limit(framing, serving):
    async def handler(exchange: Exchange) -> None:
        try:
            await exchange.body(10)
        except BodyTooLarge as error:
            await exchange.refuse(error, notes=[(b"x-infold-note", b"1")])

    body = b"c\r\nhello, world\r\n0\r\n\r\n" if b"chunked" in framing else b"hello, world"
    base_url = serving(handler)
    async with connected(base_url) as client:
        await client.send(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n%b" % (framing, body))
        got = await client.answer()

    assert (got.status, got.header(b"x-infold-note")) == (413, b"1")
    error = orjson.loads(got.body)["error"]
    assert "10 bytes" in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")


def exchange_with(*headers: tuple[bytes, bytes]) -> Exchange:
    async def never() -> Any:
        raise AssertionError("nothing is to be read")

    scope = {"method": "POST", "raw_path": b"/", "query_string": b"", "headers": list(headers)}
    return Exchange(scope, never, never)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([(b"x", b"a" * 40_000)], HeadersTooLarge),
        ([(b"x-%d" % n, b"") for n in range(5_000)], HeadersTooLarge),
        ([(b"content-length", b"1"), (b"transfer-encoding", b"chunked")], BadFraming),
        ([(b"transfer-encoding", b"gzip, chunked")], BadFraming),
        ([(b"transfer-encoding", b"identity")], BadFraming),
    ],
)
def test_check_refuses(headers, error):
    with pytest.raises(error):
        exchange_with(*headers).check()


@pytest.mark.parametrize(
    ("headers", "declared"),
    [([], 0), ([(b"content-length", b"7")], 7), ([(b"transfer-encoding", b"Chunked")], None)],
)
def test_the_declared_length_of_a_body(headers, declared):
    exchange = exchange_with(*headers, (b"x", b"a" * 32_000))
    exchange.check()

    assert exchange.declared_body_bytes == declared


class Told:
    """What a handler wants to tell the test, from its own thread and loop."""

    def __init__(self) -> None:
        self.words: list[str] = []

    async def hears(self, *words: str) -> None:
        async with asyncio.timeout(HANG):
            while self.words != list(words):
                await asyncio.sleep(0.005)


async def test_work_is_cancelled_when_the_client_leaves(serving):
    told = Told()

    async def work() -> None:
        told.words.append("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.words.append("cancelled")
            raise

    async def handler(exchange: Exchange) -> None:
        await exchange.body(None)
        try:
            await while_client_stays(exchange, work())
        except ClientGone:
            task = asyncio.current_task()
            assert task is not None
            told.words.append(f"gone, {task.cancelling()} cancellations left")
            await asyncio.sleep(0)  # what comes after, such as recording the turn, runs undisturbed
            told.words.append("after")

    base_url = serving(handler)
    client = await RawClient.to(base_url)
    await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await told.hears("begun")
    await client.close()
    await told.hears("begun", "cancelled", "gone, 0 cancellations left", "after")


async def test_a_client_that_leaves_while_sending_is_noticed_before_and_within_the_work(serving):
    told = Told()

    async def work(exchange: Exchange) -> None:
        async for part in exchange.stream():
            told.words.append(part.decode())

    async def handler(exchange: Exchange) -> None:
        try:
            await while_client_stays(exchange, work(exchange))
        except ClientGone:
            told.words.append("gone")

    base_url = serving(handler)
    client = await RawClient.to(base_url)
    await client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nfirst")
    await told.hears("first")
    await client.close()
    await told.hears("first", "gone")


async def test_work_that_ends_gives_its_result_and_a_finished_answer_is_no_hang_up(serving):
    told = Told()

    async def work(exchange: Exchange) -> str:
        await reply(exchange, b"done")
        await asyncio.sleep(0.05)  # as recording the turn would: the client has all it wants and may go
        return "whole"

    async def handler(exchange: Exchange) -> None:
        await exchange.body(None)
        told.words.append(await while_client_stays(exchange, work(exchange)))

    base_url = serving(handler)
    async with connected(base_url) as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer()).body == b"done"
    await told.hears("whole")


async def test_errors_of_the_work_and_cancellations_by_others_pass_through():
    async def never() -> Any:
        await asyncio.Event().wait()

    async def failing() -> None:
        raise KeyError("mine")

    scope = {"method": "GET", "raw_path": b"/", "query_string": b"", "headers": []}
    exchange = Exchange(scope, never, never)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="mine"):
        await while_client_stays(exchange, failing())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await while_client_stays(exchange, never())
    task = asyncio.create_task(while_client_stays(exchange, never()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_answer_without_its_end_is_seen_as_broken_off(serving):
    async def handler(exchange: Exchange) -> None:
        await exchange.start(200, [])
        await exchange.send(b"half")

    base_url = serving(handler)
    got = await ask(base_url)

    assert (got.body, got.complete) == (b"half", False)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (NotFound(), 404, "invalid_request_error", "not_found"),
        (InvalidRequest("priority must be 0 to 10", "priority"), 400, "invalid_request_error", "invalid_request"),
        (
            TooLarge("content must have at most 5 bytes, got 6", "priority"),
            413,
            "invalid_request_error",
            "request_too_large",
        ),
        (Conflict(), 409, "invalid_request_error", "conflict"),
        (NotAllowed(), 401, "authentication_error", "not_allowed"),
        (StoreUnavailable(), 503, "server_error", "store_unavailable"),
        (LLMMemoryError("odd"), 500, "server_error", None),
        (BodyTooLarge(5), 413, "invalid_request_error", "request_too_large"),
        (HeadersTooLarge(5), 431, "invalid_request_error", "headers_too_large"),
        (Unreachable("The upstream is off."), 502, "upstream_error", "upstream_unreachable"),
        (Silent("The upstream is silent.", sent=True), 504, "upstream_error", "upstream_silent"),
    ],
)
def test_errors_have_openais_shape(error, status, kind, code):
    got_status, body = error_body(error)

    field = "priority" if isinstance(error, InvalidRequest) else None
    assert got_status == status
    assert orjson.loads(body) == {"error": {"message": str(error), "type": kind, "param": field, "code": code}}


def test_errors_have_anthropics_shape_where_asked_for():
    status, body = error_body(BodyTooLarge(5), "anthropic")

    assert status == 413
    assert orjson.loads(body) == {
        "type": "error",
        "error": {"type": "request_too_large", "message": str(BodyTooLarge(5))},
        "request_id": None,
    }


def test_the_text_of_a_foreign_error_stays_inside():
    status, body = error_body(RuntimeError("postgres://user:secret@host"))

    assert status == 500
    assert b"secret" not in body
