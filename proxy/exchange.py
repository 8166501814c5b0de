"""One request and its answer: our thin name for ASGI's scope, receive and send.

Nothing here knows what is asked or answered; that is `chat.py` and `relay.py`. Starlette's own request and response
objects would double the cost of a request, so the data plane does without them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, TypeVar

from proxy.errors import BadFraming, BodyTooLarge, ClientGone, Dialect, HeadersTooLarge, error_body, error_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

T = TypeVar("T")

HEADER_LIMIT_BYTES = 32 * 1024
WATCH_AFTER_SECONDS = 0.05


class Exchange:
    """One HTTP request as it came, and the way to answer it."""

    __slots__ = (
        "_body_read",
        "_finished",
        "_left",
        "_receive",
        "_send",
        "headers",
        "method",
        "path",
        "query",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]  # percent-encoding as received
        self.query: bytes = scope["query_string"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]  # order and duplicates as received; lower case
        self.started = False  # the status line is out, so an error can no longer have one of its own
        self._receive = receive
        self._send = send
        self._body_read = asyncio.Event()
        self._finished = False

    def __repr__(self) -> str:
        return f"<Exchange {self.method} {self.path.decode('ascii', 'replace')}>"

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def check(self, header_limit_bytes: int = HEADER_LIMIT_BYTES) -> None:
        """Refuse headers without measure, which uvicorn 0.54 takes, and a body whose end is told in two ways.

        Raises:
            HeadersTooLarge: names and values together are over `header_limit_bytes`.
            BadFraming: see `declared_body_bytes`.
        """
        if sum(len(name) + len(value) + 4 for name, value in self.headers) > header_limit_bytes:
            raise HeadersTooLarge(header_limit_bytes)
        _ = self.declared_body_bytes

    @property
    def declared_body_bytes(self) -> int | None:
        """What Content-Length says; 0 when the request has no body, None when its end shows only when it comes.

        Raises:
            BadFraming: two programs could disagree where the body ends (request smuggling; RFC 9112, 6.1 and 6.3).
                httptools 0.9 refuses the same and more before we see it; other servers leave it to us.
        """
        length = coding = None
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                coding = value
        if coding is None:
            return int(length) if length is not None else 0
        if length is not None:
            raise BadFraming("The request has both Content-Length and Transfer-Encoding; send one of them.")
        if coding.lower() != b"chunked":
            raise BadFraming("The only transfer coding this proxy takes is chunked.")
        return None

    async def body(self, limit_bytes: int | None) -> bytes:
        """The whole request body, encoded as it came.

        Raises:
            BadFraming: its end cannot be told, or it did not all come.
            BodyTooLarge: over `limit_bytes`; told from Content-Length before a byte is read, where there is one.
            ClientGone: the client left while it was sending.
        """
        if limit_bytes is not None and (self.declared_body_bytes or 0) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        parts, total = [], 0
        async for part in self.stream():
            total += len(part)
            if limit_bytes is not None and total > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The request body in the pieces it comes in, without a limit.

        Raises:
            BadFraming: its end cannot be told, or it did not all come.
            ClientGone: the client left while it was sending.
        """
        missing = self.declared_body_bytes or 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._body_read.set()
                raise ClientGone
            more = message.get("more_body", False)
            if not more:
                self._body_read.set()
            if part := message.get("body", b""):
                missing -= len(part)
                yield part
            if not more:
                break
        if missing > 0:  # httptools 0.9 drops the body of a request that offers to change the protocol
            raise BadFraming("The request's body was lost because of its Upgrade header; set the client to HTTP/1.1.")

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers. Without a content-length the server sends the body chunked."""
        self.started = True
        if status in (204, 304):  # a 304 may tell the length it does not send; uvicorn 0.54 would wait for those bytes
            headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        if self.header(b"upgrade") is not None:  # after such a request uvicorn 0.54 hears no other on this connection
            headers = [*headers, (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, more: bool = True) -> None:
        """Send a piece of the body; waits while the client reads more slowly than we write.

        Returning from the application without `more=False` makes the server close the connection, so the client
        sees that its answer is incomplete.
        """
        if not more:
            self._finished = True
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def refuse(self, error: Exception, notes: Headers = (), dialect: Dialect = "openai") -> None:
        """Answer with an error of our own, in the shape the client's SDK expects."""
        status, body = error_body(error, dialect)
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, [*error_headers(error), length, *notes])
        await self.send(body, more=False)

    async def gone(self) -> None:
        """Return when the client has left; never, once the whole answer is on its way.

        The server tells it in the same queue as the body, so this waits until somebody has read that.
        """
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._finished:  # the server reports a finished answer with the same message
            await asyncio.Event().wait()


async def while_client_stays(exchange: Exchange, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; when the client leaves first, cancel it and raise ClientGone.

    The work runs in the caller's own task, and answers that come at once need no watching: a task fewer, and a tenth
    of what relaying a small request costs.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    others = task.cancelling()
    left = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal left
        await exchange.gone()
        left = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(WATCH_AFTER_SECONDS, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if left and task.cancelling() == others + 1:  # else somebody else wants this task to end, too
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
        if left:
            task.uncancel()
