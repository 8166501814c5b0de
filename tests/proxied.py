"""Our proxy before a provider that answers chats: real sockets, real PostgreSQL, and nobody to pay.

    provider = Provider(window=8_192)
    with provider.serving() as upstream, proxying(upstream.url, dsn, folder) as proxy: ...

The provider is as strict as a real one: a prompt that is too long or whose roles do not fit is refused with a 400, so
"all answered" says that every prompt was valid.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

from memory.nouns import Clock, utc_now
from memory.store.pool import WAIT_SECONDS
from memory.tokens import REPLY_TOKENS, Counter
from proxy.app import App, Waits
from proxy.config import Config, ModelSection
from proxy.parts import Parts
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser
from tests.scripted import ScriptedUpstream, Seen, Steps, answer, serve_asgi, sse

Json = dict[str, Any]

MODEL, WINDOW = "small-8k", 8_192
MODELS = {
    MODEL: ModelSection(context_window=WINDOW),
    "priced-8k": ModelSection(
        context_window=WINDOW, input_usd_per_million=2.0, cached_usd_per_million=0.2, output_usd_per_million=8.0
    ),
    "wide-128k": ModelSection(context_window=131_072),
}
PATIENT = Waits(5.0, 5.0)  # a machine that tests share may take longer than a request waits
HURRIED = PATIENT._replace(database_seconds=WAIT_SECONDS)  # where the database is to be away
BLOCK = re.compile(r"<earlier-messages id=([0-9a-f]+)>")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the provider received."""

    seen: Seen
    body: Json
    tokens: int  # counted from the bytes that came, tools and reply included

    @property
    def messages(self) -> list[Json]:
        return self.body["messages"]  # type: ignore[no-any-return]

    @property
    def block(self) -> str:
        """The re-injected block before the newest user message; "" for none."""
        user = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=0)
        return text_of(self.messages[user - 1]) if user and is_block(self.messages[user - 1]) else ""

    @property
    def blocks(self) -> list[str]:
        return [text_of(message) for message in self.messages if is_block(message)]

    @property
    def without_blocks(self) -> list[str]:
        return [json.dumps(message) for message in self.messages if not is_block(message)]

    def __contains__(self, words: str) -> bool:
        return any(words in json.dumps(message, ensure_ascii=False) for message in self.messages)


def is_block(message: Json) -> bool:
    return message["role"] == "user" and BLOCK.match(text_of(message)) is not None


def text_of(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def problems(messages: Sequence[Json]) -> list[str]:
    """What a strict provider would object to: unknown roles, results without calls, calls without results."""
    found = []
    open_calls: list[str] = []
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            found.append(f"messages[{number}] has the role {role!r}")
        if role == "tool":
            if message.get("tool_call_id") not in open_calls:
                found.append(f"messages[{number}] is a result without its call")
            else:
                open_calls.remove(message["tool_call_id"])
        elif open_calls:
            found.append(f"messages[{number}] comes before the results of {open_calls}")
            open_calls = []
        if role == "assistant":
            open_calls = [call["id"] for call in message.get("tool_calls") or ()]
    if open_calls:
        found.append(f"the last calls have no results: {open_calls}")
    if not any(message.get("role") not in ("system", "developer") for message in messages):
        found.append("nobody speaks")
    return found


Reply = Callable[[Prompt], Json]


def noted(prompt: Prompt) -> Json:
    return {"role": "assistant", "content": f"Noted, number {len(prompt.messages)}."}


@dataclass
class Provider:
    """Checks each prompt, keeps it, answers as it is told. Give it to `ScriptedUpstream` as a script."""

    window: int | None = WINDOW
    reply: Reply = noted
    factor: float = 1.0  # it counts so many times the tokens that we count
    overflow_framing: str = "length"  # how its refusals are framed
    models: bytes = b'{"object":"list","data":[]}'
    prompt_type: type[Prompt] = Prompt
    prompts: list[Any] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # what it objected to
    asked_models: list[Seen] = field(default_factory=list)
    _counter: Counter = field(default_factory=Counter)
    _parser: Parser = field(default_factory=lambda: Parser(SHAPE))

    @contextlib.contextmanager
    def serving(self) -> Iterator[ScriptedUpstream]:
        with ScriptedUpstream(self) as upstream:
            yield upstream

    def __call__(self, seen: Seen) -> Steps:
        if seen.method == "GET":
            self.asked_models.append(seen)
            return answer(self.models)
        if self._parser.parse(seen.body) is None:
            return answer(b'{"error":{"message":"We could not parse that."}}', 400)
        prompt = self.prompt_type(seen, json.loads(seen.body), self.count(seen.body))
        objection = self.objection(prompt)
        if objection is not None:
            self.refused.append(objection)
            return self.refusal(objection, prompt)
        self.prompts.append(prompt)
        return self.answer(prompt, self.reply(prompt))

    def answer(self, prompt: Prompt, message: Json) -> Steps:
        return streamed(message) if prompt.body.get("stream") else plain(message, prompt.tokens)

    def count(self, body: bytes) -> int:
        asked = self._parser.parse(body)
        assert asked is not None, "the provider did not understand a prompt"
        messages = sum(self._counter.messages(asked.messages, "cl100k_base"))
        return int(self.factor * (messages + self._counter.schemas(asked.schemas, "cl100k_base") + REPLY_TOKENS))

    def objection(self, prompt: Prompt) -> str | None:
        if found := problems(prompt.messages):
            return found[0]
        room = prompt.body.get("max_tokens") or prompt.body.get("max_completion_tokens") or 0
        if self.window is not None and prompt.tokens + room > self.window:
            return (
                f"This model's maximum context length is {self.window} tokens. However, you requested "
                f"{prompt.tokens + room} tokens ({prompt.tokens} in the messages, {room} in the completion)."
            )
        return None

    def refusal(self, objection: str, prompt: Prompt) -> Steps:
        code = "context_length_exceeded" if "maximum context length" in objection else None
        error = {"message": objection, "type": "invalid_request_error", "param": "messages", "code": code}
        return answer(json.dumps({"error": error}).encode(), 400, framing=self.overflow_framing)  # type: ignore[arg-type]


def plain(message: Json, tokens: int = 1) -> Steps:
    """A plain completion."""
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    choices = [{"index": 0, "message": message, "finish_reason": reason}]
    usage = {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens + 5}
    whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return answer(json.dumps(whole).encode())


def streamed(message: Json) -> Steps:
    """The same as a stream, three words a chunk."""

    def event(delta: Json, reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        chunk = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    words = re.findall(r"(?:\S+\s*){1,3}", message.get("content") or "")
    deltas: list[Json] = [{"role": "assistant", "content": ""}, *({"content": part} for part in words)]
    deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(message.get("tool_calls") or ())]
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    return sse([*(event(delta) for delta in deltas), event({}, reason), b"data: [DONE]\n\n"])


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy."""

    url: str
    app: App
    config: Config

    @property
    def parts(self) -> Parts:
        parts = self.app._parts
        assert parts is not None
        return parts

    def client(self, key: str = "sk-alice", **settings: Any) -> openai.OpenAI:
        """The SDK as a user has it, but for its retries: a test wants to see the first answer."""
        settings = {"timeout": 30.0, "max_retries": 0} | settings
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **settings)

    def get(self, path: str, key: str | None = "sk-alice") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=60)

    def explain(self, turn: str, key: str = "sk-alice") -> Json:
        """A turn's explanation, of its newest attempt."""
        told: Json = self.get(f"/memory-manager/turns/{turn}", key).raise_for_status().json()
        return told

    def export(self, key: str = "sk-alice") -> list[Json]:
        reply = self.get("/memory-manager/export", key).raise_for_status()
        return [json.loads(line) for line in reply.content.splitlines()]

    def metric(self, name: str, **labels: str) -> float:
        return self.parts.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.contextmanager
def proxying(
    upstream: str, dsn: str, folder: Path, clock: Clock = utc_now, waits: Waits = PATIENT, **settings: Any
) -> Iterator[Proxy]:
    """The whole application under uvicorn, without the parent process and its job worker."""
    given: Mapping[str, Any] = {
        "upstream": f"{upstream}/v1",
        "database_url": dsn,
        "data_dir": folder,
        "supervised": True,
        "log_level": "error",
        "models": MODELS,
    }
    config = Config(**(given | settings))
    app = App(config, clock, waits)
    with serve_asgi(app, lifespan="on") as url:
        yield Proxy(url, app, config)
