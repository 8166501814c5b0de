"""HTTP of an engine that lends adapters: vLLM's protocol, and who may use it.

Adapters are loaded while the engine runs and named in a request's `model`. Only who has the engine's key sees, loads or
uses them: a proxy hands on what its clients send, and no client may have another's adapter.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive

from memory.slm import wire
from memory.slm.adapters import Adapter
from memory.slm.header import BadWeights
from memory.slm.naming import is_adapter_of
from memory.slm.wire import Refusal

MOST_BODY_BYTES = 64 * 2**20


class Lender(Protocol):
    @property
    def name(self) -> str:
        """Of the bare model."""

    @property
    def key(self) -> str | None:
        """Of who may use adapters; None: nobody may."""

    @property
    def window(self) -> int: ...

    @property
    def known(self) -> Mapping[str, Adapter]: ...

    async def learn(self, name: str, path: str) -> None:
        """Load an adapter; once begun it is done.

        Raises:
            BadWeights: it must not be loaded, or lies elsewhere than adapters do.
        """

    async def forget(self, name: str) -> bool:
        """Whether there was such an adapter."""


Change = Callable[[Lender, bytes], Awaitable[str]]


def routes(lender: Lender) -> list[Route]:
    async def models(request: Request) -> JSONResponse:
        known = dict(lender.known) if trusts(lender, request) else {}
        folders = {name: adapter.folder for name, adapter in known.items()}
        return JSONResponse(wire.models(lender.name, lender.window, folders))

    async def load(request: Request) -> Response:
        return await changed(lender, request, load_adapter)

    async def unload(request: Request) -> Response:
        return await changed(lender, request, unload_adapter)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return [
        Route("/v1/models", models),
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
        Route("/health", health),
    ]


def trusts(lender: Lender, request: Request) -> bool:
    """Whether it has the engine's key."""
    given = request.headers.get("authorization", "").encode()
    return lender.key is not None and hmac.compare_digest(given, f"Bearer {lender.key}".encode())


def named(lender: Lender, model: object, trusted: bool) -> str | None:
    """The adapter that a request's `model` names; any other name stands for the bare model.

    Raises:
        Refusal: there is no such adapter, or not for this client.
    """
    if not isinstance(model, str) or not is_adapter_of(lender.name, model):
        return None
    if not trusted or model not in lender.known:
        raise wire.no_adapter(model)
    return model


async def changed(lender: Lender, request: Request, change: Change) -> Response:
    if not trusts(lender, request):  # nothing tells that there is such an endpoint
        return await not_offered(request, Refusal(""))
    try:
        return PlainTextResponse(await change(lender, await body_of(request)))
    except Refusal as refusal:
        return refused(refusal)


async def load_adapter(lender: Lender, body: bytes) -> str:
    """
    Raises:
        Refusal: it is none that this engine loads.
    """
    asked = wire.order(body, wire.Load)
    name = asked.lora_name
    if not is_adapter_of(lender.name, name):
        raise Refusal(f"an adapter's name is {lender.name}-a<number>-<8 hexadecimal digits>", param="lora_name")
    if name in lender.known:
        raise Refusal(f"The lora adapter '{name}' has already been loaded.", param="lora_name")
    try:
        await lender.learn(name, asked.lora_path)
    except BadWeights as error:
        raise Refusal(str(error), param="lora_path", code=wire.BAD_ADAPTER) from error
    return f"Success: LoRA adapter '{name}' added successfully."


async def unload_adapter(lender: Lender, body: bytes) -> str:
    """
    Raises:
        Refusal: there is none of that name.
    """
    name = wire.order(body, wire.Unload).lora_name
    if not await lender.forget(name):
        raise Refusal(f"The lora adapter '{name:.200}' cannot be found.", 404, "lora_name")
    return f"Success: LoRA adapter '{name}' removed successfully."


async def not_offered(request: Request, error: Exception) -> JSONResponse:
    refusal = Refusal(f"this engine has no {request.method} {request.url.path}: it does chats and completions", 404)
    return refused(refusal)


def refused(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, refusal.status)


async def body_of(request: Request) -> bytes:
    """
    Raises:
        Refusal: it is too long.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY_BYTES:
            raise Refusal(f"a request has at most {MOST_BODY_BYTES:,} bytes", 413)
    return bytes(body)


async def while_there(receive: Receive, answering: Coroutine[Any, Any, None]) -> None:
    """Answer; the client's leaving ends it."""
    work, leaving = asyncio.create_task(answering), asyncio.create_task(left(receive))
    await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work


async def left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
