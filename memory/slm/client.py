"""A chat model that an engine serves at a URL: one question, one answer.

Each call has a connection of its own: a cancelled one leaves nothing behind, and against what a model takes to answer
its opening is nothing. No retries: who asks knows better what to do instead.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from memory.errors import ModelError
from memory.told import windows_in_models_reply

ANSWER_SECONDS = 30.0
TELLING_SECONDS = 2.0  # for its list of models
MOST_BYTES = 4 * 2**20  # of an answer


@dataclass(frozen=True, slots=True)
class Completion:
    text: str  # without the white space around it; "" where the model said nothing
    input_tokens: int  # as the engine counts; 0 where it does not say
    output_tokens: int
    finish_reason: str  # "stop", "length", ...; "" where the engine does not say


class ModelAt:
    def __init__(self, url: str, model: str, key: str | None = None, seconds: float = ANSWER_SECONDS) -> None:
        """
        Args:
            url: ends where the paths of OpenAI's API begin, such as `http://127.0.0.1:8080/v1`.
            model: as the engine names it.
            seconds: for a whole answer, from the first byte sent to the last one read.
        """
        self.model = model
        self._url = url.rstrip("/")
        self._key = key
        self._seconds = seconds
        self._window: int | None = None

    def __repr__(self) -> str:
        return f"<ModelAt {self._url}: {self.model}>"

    async def complete(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int, temperature: float = 0.0, stop: Sequence[str] = ()
    ) -> Completion:
        """What the model answers to some messages.

        Raises:
            ModelError: the engine is away, refused, took too long, or answered something else.
        """
        asked: dict[str, Any] = {
            "model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature,
        }  # fmt: skip
        if stop:
            asked["stop"] = list(stop)
        body = json.dumps(asked).encode()  # which takes half a surrogate pair, too
        return read(await self._ask("POST", "chat/completions", self._seconds, body), self.model)

    async def window(self) -> int | None:
        """Tokens that prompt and answer may have together, as the engine tells, once; None where it does not."""
        if self._window is None:
            with suppress(ModelError):
                told = windows_in_models_reply(await self._ask("GET", "models", min(TELLING_SECONDS, self._seconds)))
                alone = next(iter(told.values())) if len(told) == 1 else None  # whatever the engine calls its model
                self._window = told.get(self.model, alone)
        return self._window

    async def _ask(self, method: str, path: str, seconds: float, body: bytes | None = None) -> bytes:
        status, answer = await exchanged(method, f"{self._url}/{path}", self.model, seconds, self._key, body)
        if status != 200:
            raise ModelError(f"the engine of the model {self.model} answered with status {status}")
        return answer


async def exchanged(
    method: str, url: str, model: str, seconds: float, key: str | None = None, body: bytes | None = None
) -> tuple[int, bytes]:
    """The status and the body of an engine's answer.

    Raises:
        ModelError: the engine is away, took too long, or answered without end.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if body is not None:
        headers["content-type"] = "application/json"
    try:
        async with (
            asyncio.timeout(seconds),  # httpx counts each read apart
            client(url) as http,
            http.stream(method, url, content=body, headers=headers) as reply,
        ):
            return reply.status_code, await all_of(reply)
    except TimeoutError:
        raise ModelError(f"the model {model} did not answer in {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ModelError(f"the model {model} did not answer: {type(error).__name__}") from error


def client(url: str) -> httpx.AsyncClient:
    """Without proxies of the environment, which do not reach an engine on this machine; it keeps no cookies, for it
    is used once."""
    plain = url.startswith("http://")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else ssl.create_default_context()  # which takes 20 ms
    return httpx.AsyncClient(verify=tls, timeout=None, trust_env=False)


async def all_of(reply: httpx.Response) -> bytes:
    held = bytearray()
    async for chunk in reply.aiter_bytes():
        held += chunk
        if len(held) > MOST_BYTES:
            raise ModelError("the engine answers with more than it was asked for")
    return bytes(held)


def read(body: bytes, model: str) -> Completion:
    """A reply to POST /v1/chat/completions.

    Raises:
        ModelError: it is none.
    """
    try:
        reply = msgspec.json.decode(body, type=Reply)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelError(f"the engine of the model {model} did not answer as OpenAI's API does") from error
    if not reply.choices:
        raise ModelError(f"the engine of the model {model} gave no choice")
    said, usage = reply.choices[0], reply.usage or Usage()
    return Completion(
        (said.message.content or "").strip(), usage.prompt_tokens, usage.completion_tokens, said.finish_reason or ""
    )


class Message(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    message: Message
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(msgspec.Struct):
    choices: list[Choice]
    usage: Usage | None = None
