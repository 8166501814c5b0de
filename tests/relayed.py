"""A proxy that does nothing but relay, before an upstream that does what a test wants."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from proxy.exchange import Exchange
from proxy.relay import relay
from proxy.tunnel import connection_of, tunnel
from proxy.upstream import Upstream
from tests.scripted import serve_asgi

POST = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@contextlib.contextmanager
def relaying(url: str, notes: Any = (), uvicorn: Mapping[str, Any] = {}, **timeouts: float) -> Iterator[str]:
    """A proxy that relays everything to `url`; gives its base URL. `uvicorn`: more of its settings."""
    upstream = Upstream(url, **timeouts)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await upstream.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif connection := connection_of(scope):
            exchange = Exchange(scope, receive, send)
            await tunnel(upstream, exchange, connection, exchange.headers)
        else:
            await relay(upstream, Exchange(scope, receive, send), notes=notes)

    with serve_asgi(app, **uvicorn) as base_url:
        yield base_url
