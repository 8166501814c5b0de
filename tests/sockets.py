"""A server of WebSockets before which a relay stands."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request

from tests.faults import HANG
from tests.relayed import relaying

LARGE = 64 * 2**20


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@dataclass
class Provider:
    """A server of WebSockets that does what a test says."""

    talk: Callable[[ServerConnection], Awaitable[None]] = echo
    url: str = ""
    proxy: str = ""
    requests: list[Request] = field(default_factory=list)
    connections: list[ServerConnection] = field(default_factory=list)
    closed: list[tuple[int | None, str | None]] = field(default_factory=list)

    async def serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.requests.append(connection.request)
        self.connections.append(connection)
        with contextlib.suppress(ConnectionClosed):
            await self.talk(connection)
        await connection.wait_closed()
        self.closed.append((connection.close_code, connection.close_reason))

    def dial(self, path: str = "/v1/realtime?model=gpt-realtime", **settings: object) -> connect:
        url = self.proxy.replace("http://", "ws://") + path
        given: dict[str, object] = {"max_size": LARGE, "proxy": None}
        return connect(url, **(given | settings))  # type: ignore[arg-type]

    async def told(self) -> tuple[int | None, str | None]:
        """How the connection ended, as the provider saw it: at once, for a ping would tell after 20 seconds."""
        async with asyncio.timeout(HANG):
            while not self.closed:
                await asyncio.sleep(0.005)
        return self.closed[0]


@contextlib.asynccontextmanager
async def providing(
    talk: Callable[[ServerConnection], Awaitable[None]] = echo, **settings: object
) -> AsyncIterator[Provider]:
    provider = Provider(talk)
    given: dict[str, object] = {"max_size": LARGE}
    async with serve(provider.serve, "127.0.0.1", 0, **(given | settings)) as server:  # type: ignore[arg-type]
        provider.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        with relaying(provider.url) as base_url:
            provider.proxy = base_url
            yield provider
