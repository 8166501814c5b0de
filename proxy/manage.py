"""Our own endpoints: health, metrics, the explanation of a turn, the export."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from memory.errors import LLMMemoryError, NotFound, StoreError, StoreUnavailable
from memory.identify import node_of
from memory.store.export import export_lines, jobs_pending, load_turn
from proxy.chat import Parts
from proxy.errors import error_body
from proxy.metrics import CONTENT_TYPE
from proxy.tenants import tenant_of


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def alive(request: Request) -> Response:
    """The process lives; nothing else is asked."""
    return json_reply({"status": "alive"})


async def ready(request: Request) -> Response:
    """We can serve: also while the database is away, then as `degraded`."""
    available = parts_of(request).pool.available
    return json_reply({"status": "ready" if available else "degraded", "database": available})


async def metrics(request: Request) -> Response:
    parts = parts_of(request)
    with suppress(StoreError):  # then the gauges stay as they were
        parts.metrics.spooled.set(await asyncio.to_thread(parts.recorder.spooled))
        async with parts.pool.connection(1) as connection:
            parts.metrics.jobs.set(await jobs_pending(connection))
    return Response(parts.metrics.render(), media_type=CONTENT_TYPE.decode())


async def welcome(request: Request) -> Response:
    base = str(request.base_url).rstrip("/")
    return PlainTextResponse(
        f"Infold forwards to {parts_of(request).config.upstream}"
        " and keeps long conversations inside the model's window.\n\n"
        f"Point your OpenAI SDK here: base_url={base}/v1\n"
        f"Explain a turn: {base}/memory-manager/turns/<x-infold-turn>\nExport: {base}/memory-manager/export\n"
        f"Health: {base}/healthz, {base}/readyz, {base}/metrics\n"
    )


def tenant_for(request: Request) -> bytes:
    """The caller's tenant.

    Raises:
        Unauthorized: no key, or a placeholder, on a listener that others can reach.
    """
    parts = parts_of(request)
    if parts.pepper is None:
        raise StoreUnavailable
    tenant = tenant_of(request.scope["headers"], parts.pepper, parts.config.is_loopback)
    if tenant is None:
        raise Unauthorized("Send your API key as `Authorization: Bearer <key>`; it names your tenant.")
    return tenant


class Unauthorized(LLMMemoryError):
    """A key is needed."""


async def turn(request: Request) -> Response:
    """Explain a turn: what was asked, what the model saw, the numbers that decided, what became of it."""
    try:
        parts, tenant = parts_of(request), tenant_for(request)
        node = named(request.path_params["turn"])
        async with parts.pool.tenant(tenant) as connection:
            return json_reply(await load_turn(connection, tenant, node))
    except LLMMemoryError as error:
        return refused(error)


async def export(request: Request) -> Response:
    """Everything of the caller's tenant as JSON lines, each with its kind."""
    reading = AsyncExitStack()
    try:
        parts, tenant = parts_of(request), tenant_for(request)
        connection = await reading.enter_async_context(parts.pool.reader(tenant))
    except LLMMemoryError as error:
        return refused(error)

    async def lines() -> AsyncIterator[bytes]:
        async with reading:
            async for line in export_lines(connection, tenant):
                yield line + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def named(turn_id: str) -> bytes:
    """The node that a turn's id names; an id of another shape names nothing."""
    try:
        return node_of(turn_id)
    except ValueError:
        raise NotFound(f"there is no turn {turn_id!r}") from None


def json_reply(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def refused(error: LLMMemoryError) -> Response:
    if isinstance(error, Unauthorized):
        told = {"message": str(error), "type": "authentication_error", "param": None, "code": "invalid_api_key"}
        return json_reply({"error": told}, 401)
    status, body = error_body(error)
    return Response(body, status, media_type="application/json")


async def missing(request: Request, error: Exception) -> Response:
    """A page of ours that is not there."""
    return refused(NotFound(f"there is no page {request.url.path}"))
