"""A proxy that does nothing but relay, before an upstream that does what a test wants."""

import contextlib
from collections.abc import Iterator
from typing import Any

from proxy.exchange import Exchange
from proxy.relay import relay
from proxy.upstream import Upstream
from tests.scripted import serve_asgi

POST = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@contextlib.contextmanager
def relaying(url: str, notes: Any = (), **timeouts: float) -> Iterator[str]:
    """A proxy that relays everything to `url`; gives its base URL."""
    upstream = Upstream(url, **timeouts)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await upstream.close()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await relay(upstream, Exchange(scope, receive, send), notes=notes)

    with serve_asgi(app) as base_url:
        yield base_url
