"""Our own pages: welcome, health, metrics."""

import asyncio
from contextlib import suppress

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from memory.errors import NotFound, StoreError
from memory.store.export import jobs_pending
from memory.store.humans import questions_pending
from memory.whole import Memory
from proxy.metrics import CONTENT_TYPE, Metrics
from proxy.parts import Parts
from proxy.rest.asking import refused

COUNT_SECONDS = 2.0


def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def alive(request: Request) -> Response:
    """The process lives; nothing else is asked."""
    return json_reply({"status": "alive"})


async def ready(request: Request) -> Response:
    """We can serve: also while the database is away, then as `degraded`. Where the local model is to summarise, whether
    it may."""
    parts = parts_of(request)
    available = parts.pool.available
    summaries = {"summaries": parts.admitted.told} if parts.admitted is not None else {}
    return json_reply({"status": "ready" if available else "degraded", "database": available, **summaries})


async def metrics(request: Request) -> Response:
    parts = parts_of(request)
    parts.metrics.listeners.set(len(parts.listeners))
    with suppress(StoreError):  # then the gauges stay as they were
        parts.metrics.spooled.set(await asyncio.to_thread(parts.recorder.spooled))
        if parts.whole is not None:
            await count_waiting(parts.metrics, parts.whole)
    return Response(parts.metrics.render(), media_type=CONTENT_TYPE.decode())


async def count_waiting(metrics: Metrics, whole: Memory) -> None:
    """On a connection of the programs: where counting takes too long, no request of the proxy feels it."""
    async with whole.pool.connection(COUNT_SECONDS) as connection:
        jobs, embedding = await jobs_pending(connection)
        metrics.jobs.set(jobs)
        metrics.embedding.set(embedding)
        metrics.questions.set(await questions_pending(connection, whole.clock()))


async def welcome(request: Request) -> Response:
    base = str(request.base_url).rstrip("/")
    return PlainTextResponse(
        f"Infold forwards to {parts_of(request).config.upstream}"
        " and keeps long conversations inside the model's window.\n\n"
        f"Point your OpenAI SDK here: base_url={base}/v1\n"
        f"Explain a turn: {base}/memory-manager/turns/<x-infold-turn>\nExport: {base}/memory-manager/export\n"
        f"Everything the memory can: {base}/memory-manager/openapi.json\n"
        f"Health: {base}/healthz, {base}/readyz, {base}/metrics\n"
    )


def json_reply(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def missing(request: Request, error: Exception) -> Response:
    """A page of ours that is not there."""
    return refused(NotFound(f"there is no page {request.url.path}"))


async def broken(request: Request, error: Exception) -> Response:
    """A bug of ours, told in the shape of the others; the server's log has its trace."""
    return refused(error)
