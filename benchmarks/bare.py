"""The least that a proxy in Python can be: it reads a whole request, sends it on, relays the answer's bytes.

No routing, no memory, no errors: a measure of the machine. What Infold costs is told as a multiple of it, too, because
milliseconds of one machine say little on another.
"""

import argparse
import asyncio
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

LEFT_OUT = frozenset((b"host", b"content-length", b"connection"))


class Relay:
    """Where it goes, and the idle connections to there."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.host, self.port, self.netloc = parts.hostname, parts.port, parts.netloc.encode()
        self.idle: list[Upward] = []
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, client: "Downward", request: bytes) -> None:
        if self.idle:
            return self.idle.pop().send(client, request)
        task = asyncio.get_running_loop().create_task(self._connect(client, request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: "Downward", request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upward = await loop.create_connection(lambda: Upward(self), self.host, self.port)
        upward.send(client, request)


class Upward(asyncio.Protocol):
    """A connection to the upstream."""

    transport: asyncio.Transport

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def send(self, client: "Downward", request: bytes) -> None:
        self._client, self._parser = client, httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._relay.idle.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._relay.idle:  # a server closes what has been idle for seconds
            self._relay.idle.remove(self)


class Downward(asyncio.Protocol):
    """A client's connection."""

    transport: asyncio.Transport

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._lines, self._body = b"", list[bytes](), list[bytes]()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in LEFT_OUT:
            self._lines.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (self._parser.get_method(), self._url, self._relay.netloc)
        length = b"content-length: %d\r\n\r\n" % len(body)
        request = b"".join((head, *self._lines, length, body))
        self._relay.send(self, request)


async def serve(port: int, upstream: str) -> None:
    relay = Relay(upstream)
    server = await asyncio.get_running_loop().create_server(lambda: Downward(relay), "127.0.0.1", port, backlog=2_048)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="for example http://127.0.0.1:9000")
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.upstream))


if __name__ == "__main__":
    main()
