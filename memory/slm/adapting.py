"""The adapters of an engine, whichever it is: loaded, unloaded, and named in requests.

An engine that is started again knows none of them; who needs one looks at `list` and loads it again.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from memory.errors import ModelError
from memory.settings import Slm
from memory.slm.adapters import Adapter, BadAdapter
from memory.slm.client import exchanged
from memory.slm.registry import find

LOAD_SECONDS = 60.0  # an engine first ends what it is writing, and reads the base once
LIST_SECONDS = 5.0
MOST_TOLD_CHARS = 300  # of what an engine says to it

OF_VLLM = (
    "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, at an address that nobody else reaches: "
    "who can load an adapter there can name any path"
)


class Unsupported(ModelError):
    """This engine loads no adapters; the message says what would."""


class Adapting(Protocol):
    """Names are those of `naming.adapter_name`; they hold nothing of what tenants said."""

    async def list(self) -> tuple[str, ...]:
        """The adapters that the engine knows.

        Raises:
            ModelError: it did not answer.
        """

    async def load(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known, which has been looked at; another one of that name gives way.

        Raises:
            Unsupported: the engine loads none.
            BadAdapter: it does not take this one.
            ModelError: it did not answer.
        """

    async def unload(self, name: str) -> None:
        """Forget one; a name that is not known is forgotten already.

        Raises:
            ModelError: it did not answer, so it may still be there.
        """

    def model_name(self, name: str | None) -> str:
        """What a request's `model` says for an adapter; None: for the bare model."""


def lends(backend: str, learns: bool) -> bool:
    """Whether an engine of ours carries adapters while it runs. For llama.cpp that takes a process more, so only where
    something may be learnt."""
    return backend == "transformers" or learns


def adapting(slm: Slm) -> Adapting:
    """Of the engine that the settings name; whether it takes adapters is told when it is asked to."""
    base = base_name(slm)
    if slm.backend == "none" or slm.url is None:
        return NoAdapters(base, "no local model runs here, so nothing could carry an adapter; set slm.backend")
    if slm.backend == "llamacpp" and not lends(slm.backend, slm.learning.enabled):
        return NoAdapters(base, "llama.cpp carries adapters where slm.learning is enabled")
    return RuntimeAdapters(slm.url, base, slm.key)


def base_name(slm: Slm) -> str:
    """The bare model as its engine names it."""
    known = find(slm.model) if slm.backend != "openai" else None  # an engine of ours goes by the registry's names
    return slm.name or (known.name if known else slm.model)


class RuntimeAdapters:
    """By vLLM's protocol, which our own engines speak, too."""

    def __init__(self, url: str, base: str, key: str | None = None, seconds: float = LOAD_SECONDS) -> None:
        """
        Args:
            url: ends in /v1.
            seconds: for loading and unloading, each.
        """
        self._url = url.rstrip("/")
        self._base = base
        self._key = key
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"<RuntimeAdapters of {self._base} at {self._url}>"

    async def list(self) -> tuple[str, ...]:
        status, said = await self._ask("GET", "models", min(LIST_SECONDS, self._seconds))
        if status != 200:
            raise ModelError(f"the engine of the model {self._base} answered with status {status}")
        return tuple(id for id, parent in listed(said) if parent is not None)

    async def load(self, name: str, adapter: Adapter) -> None:
        asked = {"lora_name": name, "lora_path": str(adapter.folder.absolute())}
        status, said = await self._ask("POST", "load_lora_adapter", self._seconds, asked)
        if status == 400 and "already been loaded" in told(said):  # perhaps another one of that name
            await self.unload(name)
            status, said = await self._ask("POST", "load_lora_adapter", self._seconds, asked)
        if status != 200:
            raise refusal(self._base, status, said)

    async def unload(self, name: str) -> None:
        status, said = await self._ask("POST", "unload_lora_adapter", self._seconds, {"lora_name": name})
        if status not in (200, 404):
            raise refusal(self._base, status, said)

    def model_name(self, name: str | None) -> str:
        return name or self._base

    async def _ask(self, method: str, path: str, seconds: float, body: object = None) -> tuple[int, bytes]:
        content = None if body is None else json.dumps(body).encode()
        return await exchanged(method, f"{self._url}/{path}", self._base, seconds, self._key, content)


class NoAdapters:
    """Where the engine takes none: there are none, and loading one says why."""

    def __init__(self, base: str, why: str) -> None:
        self._base = base
        self._why = why

    async def list(self) -> tuple[str, ...]:
        return ()

    async def load(self, name: str, adapter: Adapter) -> None:
        raise Unsupported(self._why)

    async def unload(self, name: str) -> None:
        pass

    def model_name(self, name: str | None) -> str:
        return self._base


def listed(said: bytes) -> Iterator[tuple[str, str | None]]:
    """The models of a reply to GET /v1/models, with the one that each was made from."""
    try:
        reply = msgspec.json.decode(said, type=Models)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ModelError("the engine did not list its models as OpenAI's API does") from error
    return ((model.id, model.parent) for model in reply.data)


class Listed(msgspec.Struct):
    id: str
    parent: str | None = None


class Models(msgspec.Struct):
    data: list[Listed]


def refusal(base: str, status: int, said: bytes) -> ModelError | BadAdapter:
    """What an engine's answer means."""
    why = told(said)
    if status in (404, 405, 501) and "adapter" not in why.lower():
        return Unsupported(f"the engine of the model {base} loads no adapters while it runs; {OF_VLLM}")
    if "enable-lora" in why or "lora is not enabled" in why.lower():
        return Unsupported(f"the engine of the model {base} was started without adapters; {OF_VLLM}")
    if status in (401, 403):
        return ModelError(f"the engine of the model {base} does not take our key; set INFOLD_SLM_KEY")
    if status in (400, 404):
        return BadAdapter(f"the engine of the model {base} does not take the adapter: {why}")
    return ModelError(f"the engine of the model {base} answered with status {status}")


def told(said: bytes) -> str:
    """The message of an error in OpenAI's form, or in vLLM's older one."""
    try:
        body: Any = msgspec.json.decode(said)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return ""
    error = body.get("error", body) if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message[:MOST_TOLD_CHARS] if isinstance(message, str) else ""
