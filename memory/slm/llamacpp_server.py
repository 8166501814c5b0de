"""The process that lends adapters of a .gguf file's model: an ear before llama.cpp, which takes adapters at its start.

llama.cpp runs in a process of its own behind this one. With each adapter that comes or goes it is started anew: answers
that run end first, new ones wait. Adapters are converted for it into memory, and never lie on a disk in that form.

What is computed with one adapter must not be taken up by an answer with another. llama.cpp (of xllamacpp 2026.10)
forgets the last prompt when a request names other adapters than the one before, but not when it names none. So each
names all of them, those that it does not want with a scale of 0; and where it cannot, as Messages cannot, a prompt of
one token without adapters goes before it.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from memory.errors import EngineError
from memory.slm import child, wire
from memory.slm.adapters import Adapter, BadAdapter, Foundation, foundation_of
from memory.slm.client import client
from memory.slm.convert import FOLDER, sha256
from memory.slm.flow import Flow
from memory.slm.header import BadWeights, gguf_header
from memory.slm.known import MOST_LOADED, KnownAdapters
from memory.slm.lending import body_of, named, not_offered, refused, routes, trusts, while_there
from memory.slm.llamacpp_child import Llama, running_of
from memory.slm.wire import Refusal

NAMELESS = "/v1/messages"  # llama.cpp does not hand on which adapters a message names
ANSWERS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", NAMELESS)
COUNTS = ("/v1/chat/completions/input_tokens", "/v1/messages/count_tokens")
LOOK_SECONDS = 0.2

Fields = Mapping[str, msgspec.Raw]
T = TypeVar("T")


def main() -> int:
    told = child.told()
    logging.disable()  # of libraries: what they log may hold what people say
    if told["adapter"]:
        child.fail("llama.cpp has either one adapter from its start on, or those that are loaded later")
    try:
        listener = child.bound(told["host"], told["port"])
    except OSError as error:
        child.fail(f"cannot listen on {told['host']}:{told['port']}: {error.strerror}")
    try:
        llama = Llama(running_of(told), gguf_header(Path(told["path"])))
        ready = llama.start({})
    except (EngineError, BadWeights) as error:
        child.fail(str(error))
    known = KnownAdapters(Path(told["adapters"]), lambda: foundation(Path(told["path"]), Path(told["home"])))
    lending = Lending(told["name"], told["key"], ready.window, llama, known)
    listener.listen()
    child.say(ready=True, **{**asdict(ready), "url": f"{child.address(listener)}/v1"})
    child.mute()
    config = uvicorn.Config(app(lending), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    asyncio.run(serve(uvicorn.Server(config), listener, llama))
    return 0


def foundation(path: Path, home: Path) -> Foundation:
    """What adapters of a .gguf file were trained on: the folder that it makes.

    Raises:
        BadWeights: it was never made here, so nothing was trained.
    """
    folder = home / FOLDER / sha256(path)
    if not folder.is_dir():
        raise BadWeights(f"{path.name} has not been made into a folder that can be trained; `infold slm train` does it")
    return foundation_of(folder)


async def serve(server: uvicorn.Server, listener: socket.socket, llama: Llama) -> None:
    watching = asyncio.create_task(watch(llama))
    await server.serve(sockets=[listener])
    watching.cancel()


async def watch(llama: Llama) -> None:
    """End with llama.cpp; whoever started us starts us anew."""
    while not llama.has_died():
        await asyncio.sleep(LOOK_SECONDS)
    os._exit(1)


class Lending:
    """A model that lends adapters, and whose turn it is. Belongs to one event loop."""

    def __init__(self, name: str, key: str | None, window: int, llama: Llama, known: KnownAdapters) -> None:
        """`key`: of who may use adapters; None: nobody may."""
        self.name, self.key, self.window = name, key, window
        self._llama = llama
        self._known = known
        self._flow = Flow()
        self._orders = asyncio.Lock()  # one change at a time, looking and converting included
        self._turn = asyncio.Lock()  # llama.cpp writes one answer at a time
        self._used: dict[str, None] = {}  # names; the one used longest ago first
        self._is_bare = False  # whether what llama.cpp keeps of the last prompt is of the bare model

    @property
    def known(self) -> Mapping[str, Adapter]:
        return self._known.adapters

    async def learn(self, name: str, path: str) -> None:
        await done(self._learn(name, path))

    async def forget(self, name: str) -> bool:
        return await done(self._forget(name))

    async def _learn(self, name: str, path: str) -> None:
        async with self._orders:
            adapter = await asyncio.to_thread(self._known.look, name, path)
            if name in self._llama.held and self.known.get(name) == adapter:  # who asks did not wait for the first time
                return
            await self._carry(name, adapter)
            self._known.adapters[name] = adapter

    async def _forget(self, name: str) -> bool:
        async with self._orders:
            was_known = self._known.adapters.pop(name, None) is not None
            self._used.pop(name, None)
            if name in self._llama.held:
                with suppress(BadAdapter):  # then none of them is carried for now
                    await self._begin({other: self.known[other] for other in self._llama.held if other in self.known})
            return was_known

    async def _hold(self, name: str) -> None:
        """Have llama.cpp carry one that is known.

        Raises:
            Refusal: it has been taken away.
        """
        async with self._orders:
            if name in self._llama.held:
                return
            try:
                await self._carry(name, await asyncio.to_thread(self._known.again, name))
            except (BadWeights, KeyError) as error:
                raise wire.taken_away() from error

    async def _carry(self, name: str, adapter: Adapter) -> None:
        """That one, and of the others those that were used last.

        Raises:
            BadAdapter: it cannot be carried; the others go on, or come back when they are asked for.
        """
        others = [other for other in self._used if other in self._llama.held and other in self.known]
        others = others[1 - MOST_LOADED :]
        await self._begin({**{other: self.known[other] for other in others}, name: adapter}, name)
        self._use(name)

    def _use(self, name: str) -> None:
        self._used.pop(name, None)
        self._used[name] = None

    async def _begin(self, adapters: Mapping[str, Adapter], wanted: str | None = None) -> None:
        """Start llama.cpp anew when nobody is at it.

        Raises:
            BadAdapter: the wanted one cannot be carried.
        """
        async with self._flow.alone():
            self._is_bare = False
            try:
                await asyncio.to_thread(self._llama.start, adapters, wanted)
            except (EngineError, OSError) as error:  # the latter where there is no memory for a process
                await asyncio.to_thread(self._bare)
                raise BadAdapter(f"llama.cpp does not start with the adapter: {error}") from error

    def _bare(self) -> None:
        """What is known is carried again when it is asked for."""
        try:
            self._llama.start({})
        except (EngineError, OSError):
            os._exit(1)  # as if llama.cpp had died

    @asynccontextmanager
    async def _carrying(self, name: str | None) -> AsyncIterator[None]:
        """llama.cpp stays as it is meanwhile.

        Raises:
            Refusal: the adapter has been taken away.
        """
        while True:
            if name is not None and name not in self._llama.held:
                await done(self._hold(name))
            async with self._flow.shared():
                if name is None or name in self._llama.held:
                    yield
                    return

    async def answer(self, path: str, fields: Fields, name: str | None, send: Send) -> None:
        """What llama.cpp answers.

        Raises:
            Refusal: the adapter has been taken away.
            httpx.HTTPError: llama.cpp died.
        """
        if path in COUNTS:  # with an adapter or without, a text has the same tokens
            async with self._carrying(None):
                await self._relay(path, fields, None, send)
            return
        async with self._carrying(name), self._turn:
            await self._write(path, fields, name, send)

    async def _write(self, path: str, fields: Fields, name: str | None, send: Send) -> None:
        held = self._llama.held
        if name is not None:
            self._use(name)
        if held and path == NAMELESS and not self._is_bare:
            await self._take_off(held)
        self._is_bare = False
        given = {field: value for field, value in fields.items() if field != "lora"}
        weighed = raw({"lora": scales(held, name)}) if held else {}
        status = await self._relay(path, {**given, **weighed}, name, send)
        self._is_bare = name is None and status == 200

    async def _take_off(self, held: Sequence[str]) -> None:
        """Have llama.cpp forget the last prompt.

        Raises:
            httpx.HTTPError: it did not.
        """
        alone = {"prompt": "a", "max_tokens": 1, "lora": scales(held, None)}
        if await self._relay("/v1/completions", raw(alone), None, nowhere) != 200:
            raise httpx.HTTPError("llama.cpp does not complete a prompt")

    async def _relay(self, path: str, fields: Fields, name: str | None, send: Send) -> int:
        """The status; the answer goes where it is wanted, as it comes."""
        url, headers = self._llama.url, {"authorization": f"Bearer {self._llama.key}", "accept-encoding": "identity"}
        async with (
            client(url) as http,
            http.stream("POST", url + path, content=msgspec.json.encode(fields), headers=headers) as reply,
        ):
            kind = reply.headers.get("content-type", "application/json").encode()
            head = [(b"content-type", kind), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": reply.status_code, "headers": head})
            chunks = reply.aiter_raw()
            async for chunk in chunks if name is None else renamed(chunks, self.name, name):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return reply.status_code


async def done(work: Coroutine[Any, Any, T]) -> T:
    """What it gives. Once begun it is done, whoever stops waiting for it."""
    return await asyncio.shield(asyncio.create_task(work))


def scales(held: Sequence[str], name: str | None) -> list[dict[str, float]]:
    """All adapters, so that llama.cpp compares them with those of the last prompt."""
    return [{"id": place, "scale": float(other == name)} for place, other in enumerate(held)]


def raw(fields: Mapping[str, object]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}


async def renamed(chunks: AsyncIterator[bytes], base: str, name: str) -> AsyncIterator[bytes]:
    """An answer that says which adapter gave it, line by line. In its texts there is no quote without a backslash."""
    old, new = (b'"model":' + msgspec.json.encode(model) for model in (base, name))
    held = b""
    async for chunk in chunks:
        whole, line, held = (held + chunk).rpartition(b"\n")
        if line:
            yield (whole + line).replace(old, new)
    yield held.replace(old, new)


async def nowhere(message: Message) -> None:
    """Nobody reads it."""


# HTTP.


def app(lending: Lending) -> Starlette:
    async def answer(request: Request) -> "Answer | JSONResponse":
        return await answered(lending, request)

    return Starlette(
        routes=[*(Route(path, answer, methods=["POST"]) for path in (*ANSWERS, *COUNTS)), *routes(lending)],
        exception_handlers={404: not_offered, 405: not_offered},
    )


async def answered(lending: Lending, request: Request) -> "Answer | JSONResponse":
    path = request.url.path
    try:
        fields = wire.order(await body_of(request), dict[str, msgspec.Raw])
        model = wire.order(bytes(fields["model"]), object) if "model" in fields else None
        name = named(lending, model, trusts(lending, request))
        if name is not None and path == NAMELESS:
            raise Refusal("with llama.cpp adapters answer no Messages; chat completions name them", param="model")
    except Refusal as refusal:
        return refused(refusal)
    return Answer(lending, path, fields, name)


class Answer:
    """An answer on its way; the client's leaving ends it, its slowness does not hold it up."""

    def __init__(self, lending: Lending, path: str, fields: Fields, name: str | None) -> None:
        self._lending, self._path, self._fields, self._name = lending, path, fields, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        said: asyncio.Queue[Message | None] = asyncio.Queue()
        fetching = asyncio.create_task(self._fetch(scope, receive, said))
        try:
            while (piece := await said.get()) is not None:
                await send(piece)
        finally:
            fetching.cancel()
            with suppress(asyncio.CancelledError):
                await fetching

    async def _fetch(self, scope: Scope, receive: Receive, said: "asyncio.Queue[Message | None]") -> None:
        has_begun = False

        async def put(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            said.put_nowait(message)

        try:
            await self._lending.answer(self._path, self._fields, self._name, put)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, put)
        except httpx.HTTPError:
            if not has_begun:
                await refused(Refusal("llama.cpp did not answer", 502))(scope, receive, put)
        finally:
            said.put_nowait(None)
