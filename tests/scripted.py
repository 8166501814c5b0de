"""A provider that says exactly what a test tells it to, byte for byte, and remembers what it was sent.

Three tools for tests over real sockets:

    with ScriptedUpstream(answer(b'{"ok":true}')) as upstream: ...      # its own thread; upstream.requests
    with serve_asgi(app) as base_url: ...                               # our application under uvicorn
    client = await RawClient.to(base_url)                               # no HTTP library in between

A script is a list of steps for each request: bytes are written as they are, a number pauses for that many seconds, an
event waits until the test sets it, and the words of `End` close the connection in one way or another. `answer` writes
the usual ones.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import uvicorn


class End(StrEnum):
    CLOSE = "close"  # FIN: an orderly close, in the middle or at the end
    RESET = "reset"  # RST: what a crashed machine or a firewall does
    HANG = "hang"  # nothing more comes; the connection stays open


Step = bytes | float | threading.Event | End
Steps = Sequence[Step]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came over the wire."""

    raw: bytes  # head and body, with the chunk sizes where it was chunked
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]  # names and values as written
    body: bytes  # chunk sizes removed
    connection: int  # which connection it came on, from 0

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        return next(iter(self.values(name)), None)


Script = Steps | list[Steps] | Callable[[Seen], Steps]


def answer(
    body: bytes | Sequence[bytes] = b"",
    status: int = 200,
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),),
    framing: Literal["length", "chunked", "close", "none"] = "length",
    pause: float = 0,
) -> list[Step]:
    """The steps of an ordinary answer.

    Args:
        body: whole, or in pieces; each piece is written by itself (and is a chunk of its own when chunked).
        framing: how its end is told; "none" for HEAD, 204 and 304.
        pause: seconds before each piece.
    """
    pieces = [body] if isinstance(body, bytes) else list(body)
    lines = [b"HTTP/1.1 %d Scripted" % status, *(b"%b: %b" % pair for pair in headers)]
    if framing == "length":
        lines.append(b"Content-Length: %d" % sum(map(len, pieces)))
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
    elif framing == "close":
        lines.append(b"Connection: close")
    steps: list[Step] = [b"\r\n".join(lines) + b"\r\n\r\n"]
    for piece in pieces:
        if pause:
            steps.append(pause)
        if piece:
            steps.append(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
    if framing == "chunked":
        steps.append(b"0\r\n\r\n")
    elif framing == "close":
        steps.append(End.CLOSE)
    return steps


def sse(
    events: Sequence[bytes], pause: float = 0, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> list[Step]:
    """The steps of a streamed answer, one chunk for each event; `events` hold their own line ends."""
    kind = (b"content-type", b"text/event-stream")
    return answer(events, status, [kind, *headers], "chunked", pause)


def cut(steps: Steps, wire_bytes: int, end: End = End.CLOSE) -> list[Step]:
    """The same answer, breaking off after so many bytes on the wire, the head included."""
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, bytes):
            kept.append(step[:wire_bytes])
            wire_bytes -= len(step)
            if wire_bytes <= 0:
                break
        else:
            kept.append(step)
    return [*kept, end]


class ScriptedUpstream:
    """A server on a port of its own, in a thread of its own, that follows a script.

    Args:
        script: steps for every request; or a list of such, one for each request and the last for all after it; or a
            function of the request. Can be set anew at any time.
        host: the name its `url` uses; always listens on 127.0.0.1.
        reads: False: takes connections but reads nothing (a stalled upload).
    """

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1", reads: bool = True) -> None:
        self.script: Script = answer(b'{"ok":true}') if script is None else script
        self.host = host
        self.reads = reads
        self.eager: Steps | None = None  # if set: follow these at once, without waiting for the end of the request
        self.requests: list[Seen] = []
        self.connections = 0  # ever made
        self.open = 0  # at the moment
        self.received_bytes = 0
        self.sent_bytes = 0
        self.closed_at: list[float] = []  # time.monotonic() at which clients closed connections
        self.port = 0
        self._served = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="scripted-upstream", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def steps_for(self, request: Seen) -> Steps:
        if callable(self.script):
            return self.script(request)
        if self.script and isinstance(self.script[0], list | tuple):
            number = min(self._served, len(self.script) - 1)
            self._served += 1
            return self.script[number]  # type: ignore[return-value]
        return self.script  # type: ignore[return-value]

    async def until(self, promise: Callable[["ScriptedUpstream"], bool], timeout_seconds: float = 15) -> None:
        """Wait until something is true of this upstream."""
        began = time.monotonic()
        while not promise(self):
            if time.monotonic() - began > timeout_seconds:
                raise AssertionError(f"the upstream waited {timeout_seconds} seconds in vain: {vars(self)}")
            await asyncio.sleep(0.005)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        protocols: set[_Connection] = set()
        server = await self._loop.create_server(
            lambda: _Connection(self, protocols), "127.0.0.1", 0, backlog=1024, start_serving=True
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for protocol in list(protocols):
            protocol.transport.abort()
        await asyncio.sleep(0.01)


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, upstream: ScriptedUpstream, protocols: set["_Connection"]) -> None:
        self.upstream = upstream
        self.protocols = protocols
        self.number = upstream.connections
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None
        self.ours = False  # we closed it, not the client
        self.writable = asyncio.Event()
        self.writable.set()
        upstream.connections += 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.protocols.add(self)
        self.upstream.open += 1
        if not self.upstream.reads:
            transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.protocols.discard(self)
        self.upstream.open -= 1
        self.writable.set()
        if not self.ours:
            self.upstream.closed_at.append(time.monotonic())
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.upstream.received_bytes += len(data)
        self.buffer += data
        self._next()

    def _next(self) -> None:
        if self.task is None and self.upstream.eager is not None and self.buffer:
            self.task = asyncio.ensure_future(self._follow(self.upstream.eager))
        elif self.task is None and (parsed := parse_request(self.buffer, self.number)) is not None:
            self.buffer = self.buffer[len(parsed.raw) :]
            self.upstream.requests.append(parsed)
            self.task = asyncio.ensure_future(self._follow(self.upstream.steps_for(parsed)))

    async def _follow(self, steps: Steps) -> None:
        for step in steps:
            match step:
                case bytes():
                    await self.writable.wait()
                    self.transport.write(step)
                    self.upstream.sent_bytes += len(step)
                    await asyncio.sleep(0)
                case End.CLOSE:
                    self.ours = True
                    self.transport.close()
                case End.RESET:
                    self.ours = True
                    await asyncio.sleep(0.01)  # let what was written leave the machine first
                    reset(self.transport)
                case End.HANG:
                    await asyncio.Event().wait()
                case threading.Event():
                    while not step.is_set():
                        await asyncio.sleep(0.005)
                case seconds:
                    await asyncio.sleep(float(seconds))
        self.task = None
        self._next()


def reset(transport: asyncio.BaseTransport) -> None:
    """Close with RST instead of FIN."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert isinstance(transport, asyncio.Transport)
    transport.abort()


def parse_request(data: bytes, connection: int = 0) -> Seen | None:
    """The first request in `data`, or None while it is incomplete. Only what our proxy sends needs to be understood."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.split(b" ")
    headers = tuple((name, value.strip(b" ")) for name, _, value in (line.partition(b":") for line in lines))
    known = {name.lower(): value for name, value in headers}
    if known.get(b"transfer-encoding", b"").lower() == b"chunked":
        body, used, complete = dechunk(rest)
        if not complete:
            return None
    else:
        used = int(known.get(b"content-length", b"0"))
        if len(rest) < used:
            return None
        body = rest[:used]
    return Seen(data[: len(head) + 4 + used], method.decode(), target, headers, body, connection)


def dechunk(data: bytes) -> tuple[bytes, int, bool]:
    """The body as far as it has come, how many bytes of `data` it took, and whether the last chunk is there."""
    pieces: list[bytes] = []
    at = 0
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].partition(b";")[0], 16)
        begin, end = line + 2, line + 2 + size
        if len(data) < end + 2:
            return b"".join([*pieces, data[begin:end]]), len(data), False
        if not size:
            return b"".join(pieces), end + 2, True
        pieces.append(data[begin:end])
        at = end + 2
    return b"".join(pieces), len(data), False


@contextlib.contextmanager
def serve_asgi(app: Any, **settings: Any) -> Iterator[str]:
    """Our application under uvicorn, as `infold serve` runs it, on a free port in a thread; gives its base URL.

    Args:
        settings: more of uvicorn's settings, over ours.
    """
    ours: dict[str, Any] = {
        "loop": "uvloop",
        "http": "proxy.tunnel:Connections",
        "ws": "none",
        "interface": "asgi3",
        "lifespan": "auto",
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "log_level": "critical",
        "timeout_graceful_shutdown": 1,
    }
    config = uvicorn.Config(app, host="127.0.0.1", port=0, **(ours | settings))
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="asgi", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the application did not start")
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(120)
        listener.close()


@dataclass(frozen=True, slots=True)
class Got:
    """An answer as it came over the wire."""

    raw: bytes
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes  # chunk sizes removed
    complete: bool  # False: it broke off

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        return next(iter(self.values(name)), None)


class RawClient:
    """A socket and nothing else: what is sent is what the test wrote."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, base_url: str) -> Self:
        """Connect."""
        parts = urlsplit(base_url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=2**24))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "GET", timeout_seconds: float = 60) -> Got:
        """Read one answer to its end, or to where it breaks off."""
        async with asyncio.timeout(timeout_seconds):
            return await self._answer(method)

    async def head(self, timeout_seconds: float = 60) -> bytes:
        """Read up to the end of the headers."""
        async with asyncio.timeout(timeout_seconds):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def _answer(self, method: str) -> Got:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return Got(b"", 0, (), b"", complete=False)
        first, *lines = head[:-4].split(b"\r\n")
        status = int(first.split(b" ")[1])
        headers = tuple((name, value.strip(b" ")) for name, _, value in (line.partition(b":") for line in lines))
        known = {name.lower(): value for name, value in headers}
        if method == "HEAD" or status in (204, 304):
            return Got(head, status, headers, b"", complete=True)
        if b"content-length" in known:
            raw, body, complete = await self._exactly(int(known[b"content-length"]))
        else:
            raw, body, complete = await self._chunked()
        return Got(head + raw, status, headers, body, complete)

    async def _exactly(self, length: int) -> tuple[bytes, bytes, bool]:
        pieces: list[bytes] = []
        missing = length
        with contextlib.suppress(ConnectionError):
            while missing and (piece := await self.reader.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
        body = b"".join(pieces)
        return body, body, not missing

    async def _chunked(self) -> tuple[bytes, bytes, bool]:
        raw = bytearray()
        pieces: list[bytes] = []
        try:
            while True:
                line = await self.reader.readuntil(b"\r\n")
                raw += line
                size = int(line, 16)
                piece = await self.reader.readexactly(size + 2)
                raw += piece
                if not size:
                    return bytes(raw), b"".join(pieces), True
                pieces.append(piece[:-2])
        except asyncio.IncompleteReadError as error:
            return bytes(raw + error.partial), b"".join([*pieces, error.partial]), False
        except ConnectionError:
            return bytes(raw), b"".join(pieces), False

    async def close(self) -> None:
        """Hang up in an orderly way."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Hang up with RST."""
        reset(self.writer.transport)


@contextlib.asynccontextmanager
async def connected(base_url: str) -> AsyncIterator[RawClient]:
    """A raw client that hangs up at the end."""
    client = await RawClient.to(base_url)
    try:
        yield client
    finally:
        await client.close()


async def ask(
    base_url: str,
    method: str = "GET",
    target: bytes = b"/v1/models",
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes | None = None,
) -> Got:
    """One request on a connection of its own; `body` goes with a content-length."""
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target)]
    lines += [] if any(name == b"Host" for name, _ in headers) else [b"Host: proxy"]
    lines += [b"%b: %b" % pair for pair in headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    async with connected(base_url) as client:
        await client.send(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))
        return await client.answer(method)
