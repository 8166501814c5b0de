"""The process that runs a Hugging Face folder, or what a .gguf file makes: transformers, behind the OpenAI API.

Chat completions, completions and the list of models; one request at a time. A client that leaves is noticed at once,
and the work for it ends after the token, or the chunk of the prompt, that is being computed.

Adapters are loaded while it runs, as `lending.py` says.
"""

import asyncio
import logging
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from memory.budget import output_reserve
from memory.errors import LLMMemoryError
from memory.slm import child, wire
from memory.slm.adapters import Adapter, foundation_of
from memory.slm.carried import Carried
from memory.slm.header import BadWeights
from memory.slm.known import KnownAdapters
from memory.slm.lending import body_of, named, not_offered, refused, routes, trusts, while_there
from memory.slm.loading import folder_of, loaded, own_window
from memory.slm.probes import PROBES, Messages, frame
from memory.slm.wire import Asked, Chat, Completion, Form, Refusal
from memory.slm.writing import Model, Wish, Written
from memory.types import Model as Known

UNWRITTEN = (RuntimeError, KeyError, BadWeights)  # what writing ends in; the latter two where an adapter has gone
FAILURES = (OSError, ValueError, RuntimeError, KeyError, ImportError)  # what loading a model ends in

T = TypeVar("T")


def main() -> int:
    told = child.told()
    warnings.simplefilter("ignore")
    logging.disable()  # of libraries: what they log may hold what people say
    try:
        import torch
        import transformers
    except ImportError as error:
        child.fail(f"transformers is not installed ({error}): `pip install 'infold[slm]'` brings it")
    torch.set_num_threads(told["threads"])
    transformers.utils.logging.disable_progress_bar()
    try:
        listener = child.bound(told["host"], told["port"])
    except OSError as error:
        child.fail(f"cannot listen on {told['host']}:{told['port']}: {error.strerror}")
    try:
        tokenizer, model = loaded(told)
        window = child.window(told, own_window(model))
    except (LLMMemoryError, child.Refused) as error:
        child.fail(str(error))
    except FAILURES as error:
        child.fail(f"transformers cannot run {told['path']}: {type(error).__name__}: {str(error)[:500]}")
    home = told["adapters"] and Path(told["adapters"])
    carried = Carried(model, KnownAdapters(home, lambda: foundation_of(folder_of(told), told["quantization"])))
    engine = Engine(told["name"], tokenizer, Model(model, tokenizer, window, carried.wear), carried, told["key"])
    known = measured(engine)
    listener.listen()
    child.say(ready=True, url=f"{child.address(listener)}/v1", window=window, **known)
    child.mute()
    config = uvicorn.Config(app(engine), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def measured(engine: "Engine") -> dict[str, Any]:
    """The tokens of the probes, and what the chat template adds."""

    def prompt(messages: Messages) -> int | None:
        try:
            return len(engine.chat_tokens(messages))
        except Refusal:
            return None

    added = frame(engine.count, prompt)
    return {
        "counts": [engine.count(probe) for probe in PROBES],
        "message_tokens": added.message if added else None,
        "reply_tokens": added.reply if added else None,
    }


class Engine:
    """A model with its adapters, and whose turn it is. Belongs to one event loop."""

    def __init__(self, name: str, tokenizer: Any, model: Model, carried: Carried, key: str | None) -> None:
        """`key`: of who may use adapters; None: nobody may."""
        self.name = name
        self.carried = carried
        self.key = key
        self._tokenizer = tokenizer
        self._model = model
        self._turn = asyncio.Lock()

    @property
    def window(self) -> int:
        return self._model.window

    def count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False).input_ids)

    def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> Sequence[int]:
        """A conversation as the model sees it.

        Raises:
            Refusal: it has no chat template, or that refuses these messages.
        """
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            raise Refusal("this model has no chat template: it completes texts at /v1/completions and cannot chat")
        try:
            tokens: Sequence[int] = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_dict=True
            )["input_ids"]
        except TemplateError as error:
            raise Refusal(f"the model's chat template refuses these messages: {error}", param="messages") from error
        return tokens

    @property
    def known(self) -> Mapping[str, Adapter]:
        return self.carried.known

    async def learn(self, name: str, path: str) -> None:
        await self.change(lambda: self.carried.learn(name, path))

    async def forget(self, name: str) -> bool:
        return await self.change(lambda: self.carried.forget(name))

    def wish(self, asked: Asked, adapter: str | None = None) -> Wish:
        """
        Raises:
            Refusal: the prompt does not fit the window.
        """
        if isinstance(asked, Chat):
            tokens = self.chat_tokens([{"role": said.role, "content": said.text} for said in asked.messages])
        else:
            assert isinstance(asked, Completion)
            tokens = self._tokenizer(asked.prompt).input_ids
        if len(tokens) >= self.window:
            raise wire.too_long(self.window, len(tokens))
        if not tokens:
            raise Refusal("there is nothing to go on with", param="prompt")
        wanted = asked.max_completion_tokens or asked.max_tokens
        most = wanted or output_reserve(Known("", self.window), self.window, None)
        return Wish(
            tokens=tuple(tokens),
            max_tokens=min(most, self.window - len(tokens)),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=asked.stops,
            adapter=adapter,
        )

    async def change(self, work: Callable[[], T]) -> T:
        """What work on the adapters gives, when nobody else is at the model; once begun it is done."""
        await self._turn.acquire()
        done = asyncio.get_running_loop().run_in_executor(None, work)
        done.add_done_callback(lambda _: self._turn.release())
        return await asyncio.shield(done)

    async def write(self, wish: Wish) -> AsyncGenerator[str | Written]:
        """Text as it is written, and at last how it ended. Who stops listening ends it."""
        loop, said = asyncio.get_running_loop(), asyncio.Queue[str | asyncio.Future[Written]]()
        over = threading.Event()

        def say(text: str) -> None:
            loop.call_soon_threadsafe(said.put_nowait, text)

        await self._turn.acquire()
        done = loop.run_in_executor(None, self._model.write, wish, say, over.is_set)
        done.add_done_callback(lambda _: self._turn.release())  # also where nobody waits for it any more
        done.add_done_callback(said.put_nowait)
        try:
            while isinstance(piece := await said.get(), str):
                if piece:
                    yield piece
            yield piece.result()
        finally:
            over.set()
            if done.done() and not done.cancelled():
                done.exception()  # it was told, or nobody wants to know


# HTTP.


def app(engine: Engine) -> Starlette:
    async def chat(request: Request) -> "Answer | JSONResponse":
        return await answer(engine, request, Chat)

    async def complete(request: Request) -> "Answer | JSONResponse":
        return await answer(engine, request, Completion)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            *routes(engine),
        ],
        exception_handlers={404: not_offered, 405: not_offered},
    )


async def answer(engine: Engine, request: Request, kind: type[Chat] | type[Completion]) -> "Answer | JSONResponse":
    try:
        asked = wire.parse(await body_of(request), kind)
        adapter = named(engine, asked.model, trusts(engine, request))
        wish = await asyncio.to_thread(engine.wish, asked, adapter)
    except Refusal as refusal:
        return refused(refusal)
    return Answer(engine, asked, wish, Form(adapter or engine.name, len(wish.tokens), kind is Chat))


class Answer:
    """An answer on its way, plain or in events; the client's leaving ends it."""

    def __init__(self, engine: Engine, asked: Asked, wish: Wish, form: Form) -> None:
        self._engine = engine
        self._asked = asked
        self._wish = wish
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, self._stream(send) if self._asked.stream else self._whole(scope, receive, send))

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = ""
        try:
            async with aclosing(self._engine.write(self._wish)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Written):
                        return await JSONResponse(self._form.whole(text, piece))(scope, receive, send)
                    text += piece
        except UNWRITTEN as error:
            await refused(broken(error))(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        form, usage = self._form, self._asked.wants_usage
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await say(send, *form.first())
        try:
            async with aclosing(self._engine.write(self._wish)) as pieces:
                async for piece in pieces:
                    await say(send, *(form.last(piece, usage) if isinstance(piece, Written) else [form.piece(piece)]))
            end = wire.DONE
        except UNWRITTEN as error:
            end = wire.event(broken(error).body)
        await send({"type": "http.response.body", "body": end})


async def say(send: Send, *events: wire.Json) -> None:
    body = b"".join(map(wire.event, events))
    await send({"type": "http.response.body", "body": body, "more_body": True})


def broken(error: Exception) -> Refusal:
    """What torch raises, memory that is not there above all; its words may hold what was asked."""
    if not isinstance(error, RuntimeError):
        return wire.taken_away()
    memory = "memory" in str(error).lower()
    return Refusal("there is not enough memory for this prompt" if memory else "the model could not compute this", 500)
