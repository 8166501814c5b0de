"""WebSockets, let through: Realtime, and Responses as coding agents use them.

The handshake is an HTTP request and goes to the upstream like any other. When the upstream takes it (101), the two
connections are tied together and bytes pass as they come. No frame is read, so compression, subprotocols, pings, close
codes and sizes are what client and upstream agree on, and a connection that dies without a close frame does so for the
other, too. Nothing is remembered: this is a wire.

ASGI has no way to hand over a connection; `Connections`, which `infold serve` gives to uvicorn, adds one. Under a
server without it a handshake is relayed as the plain request it is without `Upgrade`, and the upstream declines.
"""

import asyncio
import time

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.errors import BadFraming
from proxy.exchange import Exchange, Headers, Scope, while_client_stays
from proxy.relay import answer_errors, pass_on
from proxy.upstream import Sending, Upstream, notice_death

log = structlog.get_logger()

WEBSOCKET = b"websocket"
EXTENSION = "infold.connection"
TO_CLIENT_SECONDS = 30.0  # a slow client may take so long for the last bytes of a connection that has ended
TO_UPSTREAM_SECONDS = 0.5
QUIET_SECONDS = 2.0  # when the process stops, a tunnel goes on until nothing has passed for so long


class Connections(HttpToolsProtocol):
    """uvicorn's connections, of which a handshake may take over its own."""

    tunnel: "Tunnel | None" = None
    stopping = False  # the process is

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self._get_upgrade() == WEBSOCKET:
            self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn would say that a library is missing."""

    def shutdown(self) -> None:
        self.stopping = True
        if self.tunnel is None:
            super().shutdown()
        else:
            self.tunnel.end_when_quiet()


def connection_of(scope: Scope) -> Connections | None:
    """The client's connection, where the request is a handshake for a WebSocket."""
    connection: Connections | None = (scope.get("extensions") or {}).get(EXTENSION)
    return connection


async def tunnel(upstream: Upstream, exchange: Exchange, connection: Connections, headers: Headers) -> None:
    """Ask the upstream for a WebSocket; let the two talk if it agrees, else pass its answer on.

    Args:
        connection: the client's, on which the handshake came.
        headers: of the handshake as it goes to the upstream.
    """
    work = _shake_hands(upstream, exchange, connection, headers)
    try:
        await answer_errors(exchange, while_client_stays(exchange, work))
    finally:
        if connection.tunnel is not None:
            connection.tunnel.abort()  # nothing is left to close, unless we were cancelled
            connection.connection_lost(None)  # uvicorn has not heard of it yet, and would answer for us


async def _shake_hands(upstream: Upstream, exchange: Exchange, connection: Connections, headers: Headers) -> None:
    exchange.check()
    if exchange.method != "GET" or exchange.declared_body_bytes != 0:
        raise BadFraming("A WebSocket begins with a GET request that has no body.")
    await exchange.body(None)  # there is none; from here on it is noticed when the client leaves
    sending = upstream.send("GET", exchange.path, exchange.query, headers, None, upgrade=WEBSOCKET)
    async with sending as reply:
        if reply.status != 101:
            return await pass_on(reply, exchange)
        connection.tunnel = Tunnel(connection.transport, sending, _agreed(reply.headers))
        if connection.stopping:
            connection.tunnel.end_when_quiet()
        await connection.tunnel.run()


def _agreed(headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
    lines += [b"%b: %b" % pair for pair in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


class Tunnel:
    """Two connections tied together until both have ended."""

    def __init__(self, client: asyncio.Transport, sending: Sending, agreed: bytes) -> None:
        """Tie them; the client gets `agreed` first. From here on neither side's bytes go anywhere else."""
        self._began = time.monotonic()
        self._client = End(TO_CLIENT_SECONDS)
        self._upstream = End(TO_UPSTREAM_SECONDS)
        self._client.other, self._upstream.other = self._upstream, self._client
        notice_death(client.get_extra_info("socket"))
        client.set_protocol(self._client)
        self._client.take(client)
        transport, early = sending.hand_over(self._upstream)
        client.write(agreed + early)
        if transport is None:  # it said its last word with the handshake
            self._upstream.connection_lost(None)
        else:
            self._upstream.take(transport)

    async def run(self) -> None:
        """Return when both have ended."""
        await self._client.ended.wait()
        await self._upstream.ended.wait()
        log.info(
            "tunnel closed",
            seconds=round(time.monotonic() - self._began, 3),
            client_bytes=self._client.received_bytes,
            upstream_bytes=self._upstream.received_bytes,
        )

    def abort(self) -> None:
        self._client.abort()
        self._upstream.abort()

    def end_when_quiet(self) -> None:
        """Close once nothing has passed for QUIET_SECONDS: an answer under way is finished, a silent client is not
        waited for."""
        idle = time.monotonic() - max(self._began, self._client.received_at, self._upstream.received_at)
        if idle >= QUIET_SECONDS:
            self._client.finish()
            self._upstream.finish()
        else:
            asyncio.get_running_loop().call_later(QUIET_SECONDS - idle, self.end_when_quiet)


class End(asyncio.Protocol):
    """One of the two connections: what comes in here goes out at the other, no faster than it is taken there."""

    other: "End"

    def __init__(self, linger_seconds: float) -> None:
        """
        Args:
            linger_seconds: how long this side may take for the last bytes after the other has ended.
        """
        self._linger_seconds = linger_seconds
        self._transport: asyncio.Transport | None = None
        self.ended = asyncio.Event()
        self.received_bytes = 0
        self.received_at = 0.0

    def take(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.received_at = time.monotonic()
        self.other.write(data)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other._transport is not None:
            self.other._transport.resume_reading()

    def eof_received(self) -> None:
        """Who has said all hears no more either: a WebSocket has no half that stays open."""
        self.finish()
        self.other.finish()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.ended.set()
        self.other.finish()

    def finish(self) -> None:
        """Close when all is written, or after a while."""
        if self._transport is not None and not self.ended.is_set():
            self._transport.close()
            asyncio.get_running_loop().call_later(self._linger_seconds, self.abort)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
