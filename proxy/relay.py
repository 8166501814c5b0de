"""Everything that is not ours and not managed: any method, any path, passed on untouched in both directions."""

from collections.abc import AsyncIterator, Awaitable

import structlog

from proxy.errors import ClientGone, ProxyError, UpstreamCut
from proxy.exchange import Exchange, Headers, while_client_stays
from proxy.upstream import Reply, Upstream
from proxy.wire.dialects import errors_at

log = structlog.get_logger()

# Bodies up to this size are read before they are sent on: that saves a task, and the connection can be used again.
READ_AT_ONCE_BYTES = 1024 * 1024


async def relay(
    upstream: Upstream,
    exchange: Exchange,
    body: bytes | None = None,
    notes: Headers = (),
    headers: Headers | None = None,
    query: bytes | None = None,
) -> None:
    """Pass a request on and its answer back, byte for byte, as they come.

    Args:
        body: the request body where somebody has read it already; None: it is still with the client.
        notes: headers of ours (`x-infold-*`) that join the upstream's.
        headers, query: of the request, where they differ from the client's own.

    A cut answer stays cut: we return without the end, and the server closes the client's connection. An upstream
    that cannot be reached is a 502 of ours.
    """
    work = _pass_through(upstream, exchange, body, notes, headers, query)
    await answer_errors(exchange, while_client_stays(exchange, work), notes)


async def answer_errors(exchange: Exchange, work: Awaitable[None], notes: Headers = ()) -> None:
    """Do the work of a wire; what goes wrong before the first byte of an answer is told to the client."""
    try:
        await work
    except ClientGone:
        log.info("client left")
    except UpstreamCut as error:
        log.warning("upstream cut the answer", reason=str(error))
    except ProxyError as error:  # refused, or the upstream gave no answer
        log.warning("not relayed", reason=str(error))
        await exchange.refuse(error, notes, errors_at(exchange.path.decode("latin-1")))


async def _pass_through(
    upstream: Upstream,
    exchange: Exchange,
    body: bytes | None,
    notes: Headers,
    headers: Headers | None,
    query: bytes | None,
) -> None:
    exchange.check()
    sending = body if body is not None else await _body(exchange)
    given = exchange.headers if headers is None else headers
    asked = exchange.query if query is None else query
    async with upstream.send(exchange.method, exchange.path, asked, given, sending) as reply:
        await pass_on(reply, exchange, notes)


async def pass_on(reply: Reply, exchange: Exchange, notes: Headers = ()) -> None:
    """An answer as it comes, to its end.

    Raises:
        UpstreamCut: it broke off.
    """
    await exchange.start(reply.status, [*reply.headers, *notes])
    async for chunk in reply.chunks():
        await exchange.send(chunk)
    await exchange.send(b"", more=False)


async def _body(exchange: Exchange) -> bytes | AsyncIterator[bytes]:
    declared = exchange.declared_body_bytes
    if declared is not None and declared <= READ_AT_ONCE_BYTES:
        return await exchange.body(None)
    return exchange.stream()
