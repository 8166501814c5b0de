"""OpenAI's requests and answers, as the engine of transformers reads and writes them."""

import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from memory.slm.writing import Written

Json = dict[str, Any]
T = TypeVar("T")

MOST_STOPS = 16
BAD_ADAPTER = "bad_adapter"


class Refusal(Exception):
    """A request that is not carried out; told in OpenAI's form."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def body(self) -> Json:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Part(msgspec.Struct):
    type: str
    text: str = ""


class Said(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.type not in ("text", "input_text"):
                raise Refusal(f"this model reads text, not {part.type!r}", param="messages")
        return "\n".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Asked(msgspec.Struct):
    """What both endpoints take. Fields that it does not name are left unread."""

    model: object = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given[:MOST_STOPS] if stop)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def check(self) -> None:
        """
        Raises:
            Refusal: it asks for what changes the answer and is not done here.
        """
        wanted = {
            "n": self.n not in (None, 1),
            "logprobs": bool(self.logprobs),
            "tools": bool(self.tools),
            "response_format": (self.response_format or {"type": "text"}).get("type") != "text",
        }
        for name in (name for name, is_wanted in wanted.items() if is_wanted):
            raise Refusal(f"this engine does not do `{name}`", param=name, code="unsupported_parameter")
        for name, value in (("max_tokens", self.max_tokens), ("max_completion_tokens", self.max_completion_tokens)):
            if value is not None and value < 1:
                raise Refusal(f"`{name}` must be at least 1, got {value}", param=name)


class Chat(Asked, kw_only=True):
    messages: list[Said]


class Completion(Asked, kw_only=True):
    prompt: str


def parse(body: bytes, kind: type[Chat] | type[Completion]) -> Any:
    """
    Raises:
        Refusal: it is no such request.
    """
    asked = order(body, kind)
    asked.check()
    return asked


def too_long(window: int, counted: int) -> Refusal:
    return Refusal(
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {counted} tokens. "
        "Please reduce the length of the messages.",
        param="messages",
        code="context_length_exceeded",
    )


class Form:
    """One answer's form: plain or in events, of a chat or a completion."""

    def __init__(self, model: str, prompt_tokens: int, chat: bool) -> None:
        self._chat = chat
        self._prompt = prompt_tokens
        kind = "chat.completion" if chat else "text_completion"
        self._kind = kind
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, written: Written) -> Json:
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": written.finish_reason}
        return {**self._head, "object": self._kind, "choices": [choice], "usage": self.usage(written)}

    def usage(self, written: Written) -> Json:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": written.output_tokens,
            "total_tokens": self._prompt + written.output_tokens,
            "prompt_tokens_details": {"cached_tokens": written.cached_tokens},
        }

    def first(self) -> list[Json]:
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)] if self._chat else []

    def piece(self, text: str) -> Json:
        return self._chunk({"delta": {"content": text}} if self._chat else {"text": text}, None)

    def last(self, written: Written, with_usage: bool) -> list[Json]:
        end = self._chunk({"delta": {}} if self._chat else {"text": ""}, written.finish_reason)
        usage = {**self._of_stream(()), "usage": self.usage(written)}
        return [end, usage] if with_usage else [end]

    def _chunk(self, said: Mapping[str, Any], reason: str | None) -> Json:
        return self._of_stream(({"index": 0, **said, "logprobs": None, "finish_reason": reason},))

    def _of_stream(self, choices: Sequence[Json]) -> Json:
        kind = "chat.completion.chunk" if self._chat else self._kind
        return {**self._head, "object": kind, "choices": list(choices)}


def event(body: Json) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def models(name: str, window: int, adapters: Mapping[str, Path]) -> Json:
    """The bare model, and adapters as vLLM lists them: by their folder and the model they belong to."""

    def entry(id: str, root: str, parent: str | None) -> Json:
        of = {"id": id, "object": "model", "created": 0, "owned_by": "infold"}
        return {**of, "root": root, "parent": parent, "context_length": window}

    adapted = [entry(id, str(folder), name) for id, folder in adapters.items()]
    return {"object": "list", "data": [entry(name, name, None), *adapted]}


class Load(msgspec.Struct):
    """What `POST /v1/load_lora_adapter` is asked, as vLLM is."""

    lora_name: str
    lora_path: str


class Unload(msgspec.Struct):
    lora_name: str


def order(body: bytes, kind: type[T]) -> T:
    """
    Raises:
        Refusal: it is no such request.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:  # a wrong field is the first, too
        raise Refusal(f"this is no request that we can read: {error}") from error


def no_adapter(name: str) -> Refusal:
    return Refusal(f"The model {name!r:.200} does not exist.", 404, "model", "model_not_found")


def taken_away() -> Refusal:
    return Refusal("the adapter that this model names has been taken away", 404, "model", "model_not_found")
