"""A relay of bytes that remembers all of them, both ways, and understands them only afterwards."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import urlsplit

from tests.scripted import Seen, dechunk, parse_request, reset

Header = tuple[bytes, bytes]

SETTLE_SECONDS = 3.0  # what is still on its way when a client has its result is here within this time

# About one connection (RFC 9110, 7.6.1), so each side has its own.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came over the wire; status 0: none came."""

    status: int
    headers: tuple[Header, ...]
    body: bytes  # chunk sizes removed
    complete: bool  # False: it broke off
    abandoned: bool = False  # whoever asked hung up before its end


@dataclass(frozen=True, slots=True)
class Exchange:
    request: Seen
    answer: Answer
    beside: int = 0  # how many others waited for their answers when this one was asked


class Recorder:
    """Listens on a port of its own, in a thread of its own, and passes bytes to and from `target` as they come."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.port = 0
        self._connections: list[_Connection] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._requests = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def take(self) -> list[Exchange]:
        """The exchanges since the last time, in the order in which their requests were whole; forgets them."""
        until = time.monotonic() + SETTLE_SECONDS
        while any(one.is_under_way for one in self._connections) and time.monotonic() < until:
            time.sleep(0.01)
        taken = [pair for one in self._connections for pair in one.take()]
        return [exchange for _, exchange in sorted(taken, key=lambda pair: pair[0])]

    def number(self) -> int:
        """The next request's place among all."""
        self._requests += 1
        return self._requests

    def waiting(self) -> int:
        """How many requests have no whole answer yet."""
        return sum(one.waiting() for one in self._connections)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        while self._writers:  # aborted connections are gone a moment later
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0.01)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self)
        self._connections.append(connection)
        ours = [writer]
        self._writers.append(writer)
        try:
            there, back = await asyncio.open_connection(self.target.hostname, self.target.port)
            ours.append(back)
            self._writers.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back, connection, connection.asked))
                both.create_task(self._pass(there, writer, connection, connection.answered))
        finally:
            connection.ended = True
            for each in ours:
                each.close()
                with contextlib.suppress(ConnectionError):
                    await each.wait_closed()
                self._writers.remove(each)

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        connection: "_Connection",
        hear: Callable[[bytes], None],
    ) -> None:
        """Pass on what comes, and how it ends: FIN as FIN, RST as RST."""
        try:
            while data := await source.read(65_536):
                hear(data)
                sink.write(data)
                await sink.drain()
            connection.ends(hear)
            with contextlib.suppress(OSError):
                sink.write_eof()
        except ConnectionError:
            connection.ends(hear)
            reset(sink.transport)


class _Connection:
    """One connection's bytes; requests are counted off as they become whole."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.ended = False
        self._abandoned: bool | None = None  # None: nobody has hung up yet
        self._asking = b""
        self._requests: list[tuple[int, Seen, int]] = []  # its place among all, and how many it came beside
        self._answers = b""

    def asked(self, data: bytes) -> None:
        self._asking += data
        while (request := parse_request(self._asking)) is not None:
            self._asking = self._asking[len(request.raw) :]
            self._requests.append((self.recorder.number(), request, self.recorder.waiting()))

    def answered(self, data: bytes) -> None:
        self._answers += data

    def ends(self, heard: Callable[[bytes], None]) -> None:
        """Take down which side hung up, if it is the first of the two."""
        if self._abandoned is None:
            self._abandoned = heard == self.asked

    @property
    def is_under_way(self) -> bool:
        return self.waiting() > 0

    def waiting(self) -> int:
        return 0 if self.ended else sum(not exchange.answer.complete for _, exchange in self._exchanges())

    def take(self) -> list[tuple[int, Exchange]]:
        taken = list(self._exchanges())
        self._requests, self._answers = [], b""
        return taken

    def _exchanges(self) -> Iterator[tuple[int, Exchange]]:
        rest = self._answers
        for number, request, beside in self._requests:
            answer, rest = parse_answer(rest, request.method)
            if not answer.complete and self._abandoned:
                answer = replace(answer, abandoned=True)
            yield number, Exchange(request, answer, beside)


def parse_answer(data: bytes, method: str) -> tuple[Answer, bytes]:
    """The first answer in `data`, as much of it as is there, and what comes behind it."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return Answer(0, (), b"", complete=False), b""
    first, *lines = head.split(b"\r\n")
    status = int(first.split(b" ")[1])
    headers = tuple((name, value.strip(b" ")) for name, _, value in (line.partition(b":") for line in lines))
    known = {name.lower(): value for name, value in headers}
    if method == "HEAD" or status in (204, 304):
        return Answer(status, headers, b"", complete=True), rest
    if b"content-length" in known:
        length = int(known[b"content-length"])
        return Answer(status, headers, rest[:length], complete=len(rest) >= length), rest[length:]
    body, used, complete = dechunk(rest)
    return Answer(status, headers, body, complete), rest[used:]


def by_name(headers: tuple[Header, ...], but: frozenset[bytes] = frozenset()) -> dict[bytes, list[bytes]]:
    """Values in order for each name in small letters; without what is about one connection, ours, and `but`."""
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        lower = name.lower()
        if lower not in HOP_BY_HOP | but | named and not lower.startswith(b"x-infold-"):
            found.setdefault(lower, []).append(value)
    return found
