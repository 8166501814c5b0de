"""Clients that cost little themselves, for measuring: one blocking connection, and many at once.

Times are seconds of the monotonic clock.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer: when its body began and ended after the request was sent, and the longest silence within it."""

    status: int
    first: float  # seconds to the first byte of the body
    end: float  # seconds to the last byte
    gap: float  # longest wait between two reads after the first
    headers: Mapping[str, str]


class Connection:
    """A keep-alive connection to one server; `ask` blocks until the whole answer is there."""

    def __init__(self, url: str, key: str, timeout_seconds: float = 60.0) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.key, self.timeout = key, timeout_seconds
        self.socket: socket.socket | None = None

    def head(self, length: int, headers: Mapping[str, str]) -> bytes:
        lines = [f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.address[0]}:{self.address[1]}"]
        lines += [f"authorization: Bearer {self.key}", "content-type: application/json", f"content-length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def ask(self, body: bytes, headers: Mapping[str, str]) -> Timing:
        """Send a request and time its answer.

        Raises:
            OSError: the connection failed, or the answer ended early.
        """
        if self.socket is None:
            self.socket = socket.create_connection(self.address, self.timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = Answer()
        request = self.head(len(body), headers) + body
        began = time.perf_counter()
        self.socket.sendall(request)
        while not answer.complete:
            part = self.socket.recv(262_144)
            if not part:
                self.close()
                raise ConnectionError("the answer ended early")
            answer.feed(part, time.perf_counter() - began)
        if not answer.parser.should_keep_alive():
            self.close()
        return Timing(answer.parser.get_status_code(), answer.first, answer.last, answer.gap, answer.headers)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Answer:
    """Follows an answer's bytes as they come."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.first = self.last = self.gap = self.now = 0.0
        self.complete = False

    def feed(self, data: bytes, seconds: float) -> None:
        self.now = seconds
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        if not self.first:
            self.first = self.now
        else:
            self.gap = max(self.gap, self.now - self.last)
        self.last = self.now

    def on_message_complete(self) -> None:
        self.complete = True


@dataclass(slots=True)
class Load:
    """What many connections saw: whole answers in seconds, and failures by kind."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0


class Lane(asyncio.Protocol):
    """One connection that sends the next request as soon as an answer is complete, until there is none."""

    def __init__(self, next_request: Callable[[], bytes | None], load: Load, ended: "asyncio.Future[None]") -> None:
        self.next_request, self.load, self.ended = next_request, load, ended
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self.send()

    def send(self) -> None:
        request = self.next_request()
        assert self.transport is not None
        if request is None:
            self.transport.close()
            return
        self.answer, self.began = Answer(), time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.answer.feed(data, time.perf_counter() - self.began)
        if not self.answer.complete:
            return
        if (status := self.answer.parser.get_status_code()) == 200:
            self.load.latencies.append(self.answer.now)
        else:
            self.load.failures[str(status)] = self.load.failures.get(str(status), 0) + 1
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.load.failures["lost"] = self.load.failures.get("lost", 0) + 1
        if not self.ended.done():
            self.ended.set_result(None)


def closed_loop(
    url: str, key: str, body: Callable[[int], bytes], headers: Mapping[str, str], connections: int,
    seconds: float = 1e9, limit: int = 10**9,
) -> Load:  # fmt: skip
    """Load a server with `connections` requests at a time, for `seconds` or until `limit` are sent."""
    head, load = Connection(url, key), Load()
    began = time.perf_counter()
    sent = 0

    def next_request() -> bytes | None:
        nonlocal sent
        if time.perf_counter() - began > seconds or sent >= limit:
            return None
        sent += 1
        text = body(sent)
        return head.head(len(text), headers) + text

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ended: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
        for lane in ended:
            await loop.create_connection(partial(Lane, next_request, load, lane), *head.address)
        await asyncio.gather(*ended)

    uvloop.run(run())
    load.seconds = time.perf_counter() - began
    return load


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread
