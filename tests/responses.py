"""A provider of the Responses API on a real socket, as strict as the real one. `tests.proxied` is its sibling for chats.

provider = Provider(reply=lambda prompt: [message("Noted.")])
with provider.serving() as upstream, proxying(upstream.url, dsn, folder) as proxy: ...
"""

import contextlib
import itertools
import json
import random
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory.tokens import REPLY_TOKENS, Counter
from proxy.wire.parser import Parser
from proxy.wire.responses import SHAPE
from tests.proxied import BLOCK, WINDOW
from tests.scripted import ScriptedUpstream, Seen, Steps, answer, sse

Json = dict[str, Any]

PNG = (
    "data:image/png;base64,"
    + b64encode(
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4, "big") + (480).to_bytes(4, "big") + b"\x08\x02\0\0\0"
    ).decode()
)
ENDS_RUN = ("function_call", "custom_tool_call", "message")  # what a reasoning item may lead to


def message(text: str, **more: Any) -> Json:
    """An answer in words, as the provider gives it."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "status": "completed", "content": [part], **more}


def call(id: str, arguments: object, name: str = "look") -> Json:
    text = json.dumps(arguments)
    return {"type": "function_call", "call_id": id, "name": name, "arguments": text, "status": "completed"}


def reasoning(rng: random.Random, words: int = 20) -> Json:
    hidden = b64encode(rng.randbytes(words * 4)).decode()
    return {"type": "reasoning", "summary": [], "encrypted_content": hidden, "status": None}


def output(id: str, said: object) -> Json:
    return {"type": "function_call_output", "call_id": id, "output": said}


def picture(detail: str = "low") -> Json:
    return {"type": "input_image", "image_url": PNG, "detail": detail}


def items_of(messages: Sequence[Json]) -> list[Json]:
    """A conversation of chat messages, as the Responses API would have it."""
    said: list[Json] = []
    for each in messages:
        role, content = each["role"], each.get("content")
        if role == "tool":
            said.append(output(each["tool_call_id"], content))
            continue
        if content and isinstance(content, str):
            said.append({"role": role, "content": content})
        elif content:
            said.append({"role": role, "content": [part_of(part) for part in content]})
        for made in each.get("tool_calls") or ():
            function = made["function"]
            said.append(call(made["id"], json.loads(function["arguments"]), function["name"]))
    return said


def part_of(part: Json) -> Json:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"], "detail": part["image_url"]["detail"]}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the provider received."""

    seen: Seen
    body: Json
    tokens: int  # counted from the bytes that came, tools, instructions and reply included

    @property
    def items(self) -> list[Json]:
        said = self.body["input"]
        return [{"role": "user", "content": said}] if isinstance(said, str) else said

    @property
    def block(self) -> str:
        """The re-injected block before the newest user message; "" for none."""
        user = max((i for i, item in enumerate(self.items) if item.get("role") == "user"), default=0)
        return text_of(self.items[user - 1]) if user and is_block(self.items[user - 1]) else ""

    @property
    def blocks(self) -> list[str]:
        return [text_of(item) for item in self.items if is_block(item)]

    @property
    def without_blocks(self) -> list[str]:
        return [json.dumps(item) for item in self.items if not is_block(item)]

    def __contains__(self, words: str) -> bool:
        return any(words in json.dumps(item, ensure_ascii=False) for item in self.items)


def is_block(item: Json) -> bool:
    return item.get("role") == "user" and BLOCK.match(text_of(item)) is not None


def text_of(item: Json) -> str:
    content = item.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def problems(items: Sequence[Json], leads: dict[str, str] | None = None) -> list[str]:
    """What the provider would object to, in its own words.

    Args:
        leads: by the id of an item, the id of the reasoning that must stand before it.
    """
    found = []
    calls = {item["call_id"] for item in items if item.get("type") in ("function_call", "custom_tool_call")}
    outputs = [item["call_id"] for item in items if str(item.get("type")).endswith("_call_output")]
    open_calls: set[str] = set()
    found += [f"No tool output found for function call {id}." for id in calls - set(outputs)]
    before: list[str] = []  # ids of reasoning in this run of the assistant's items
    for item, after in itertools.zip_longest(items, items[1:]):
        kind = item.get("type") or "message"
        if kind in ("function_call", "custom_tool_call"):
            open_calls.add(item["call_id"])
        if kind.endswith("_call_output"):
            if item["call_id"] not in open_calls:
                found.append(f"No tool call found for function call output with call_id {item['call_id']}.")
            open_calls.discard(item["call_id"])
        if kind == "reasoning":
            before.append(item["id"])
            led = after is not None and (after.get("type") or "message") in ENDS_RUN
            if not led or after.get("role", "assistant") != "assistant":
                found.append(
                    f"Item '{item['id']}' of type 'reasoning' was provided without its required following item."
                )
        elif kind.endswith("_call_output") or item.get("role", "assistant") != "assistant":
            before = []
        lead = (leads or {}).get(item.get("id", ""))
        if lead is not None and lead not in before:
            found.append(f"Item '{item['id']}' of type '{kind}' was provided without its required 'reasoning' item.")
        if kind == "message" and item.get("role") not in ("user", "assistant", "system", "developer"):
            found.append(f"Invalid value: {item.get('role')!r}.")
    return found


Reply = Callable[[Prompt], list[Json]]


def noted(prompt: Prompt) -> list[Json]:
    return [message(f"Noted, number {len(prompt.items)}.")]


@dataclass
class Provider:
    """Checks each prompt, keeps it, answers as it is told. Give it to `ScriptedUpstream` as a script."""

    window: int | None = WINDOW
    reply: Reply = noted
    prompts: list[Prompt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # what it objected to
    leads: dict[str, str] = field(default_factory=dict)  # item -> the reasoning that led to it
    _ids: Iterator[int] = field(default_factory=itertools.count)
    _counter: Counter = field(default_factory=Counter)
    _parser: Parser = field(default_factory=lambda: Parser(SHAPE))

    @contextlib.contextmanager
    def serving(self) -> Iterator[ScriptedUpstream]:
        with ScriptedUpstream(self) as upstream:
            yield upstream

    def __call__(self, seen: Seen) -> Steps:
        if seen.method == "GET":
            return answer(b'{"object":"list","data":[]}')
        prompt = Prompt(seen, json.loads(seen.body), self.count(seen.body))
        objection = self.objection(prompt)
        if objection is not None:
            self.refused.append(objection[0])
            error = {"message": objection[0], "type": "invalid_request_error", "param": "input", "code": objection[1]}
            return answer(json.dumps({"error": error}).encode(), 400)
        self.prompts.append(prompt)
        return self.answer(prompt, self.reply(prompt))

    def answer(self, prompt: Prompt, items: list[Json]) -> Steps:
        whole = response(self.named(items), prompt.tokens)
        return streamed(whole) if prompt.body.get("stream") else answer(json.dumps(whole).encode())

    def count(self, body: bytes) -> int:
        asked = self._parser.parse(body)
        assert asked is not None, "the provider did not understand a prompt"
        messages = sum(self._counter.messages(asked.messages, "cl100k_base"))
        return messages + self._counter.schemas(asked.schemas, "cl100k_base") + REPLY_TOKENS

    def objection(self, prompt: Prompt) -> tuple[str, str | None] | None:
        if found := problems(prompt.items, self.leads):
            return found[0], None
        room = prompt.body.get("max_output_tokens") or 0
        if self.window is not None and prompt.tokens + room > self.window:
            return (
                f"This model's maximum context length is {self.window} tokens. However, you requested "
                f"{prompt.tokens + room} tokens ({prompt.tokens} in the messages, {room} in the completion).",
                "context_length_exceeded",
            )
        return None

    def named(self, items: Sequence[Json]) -> list[Json]:
        """With ids, and what must stand together remembered by them."""
        kinds = {"reasoning": "rs", "message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}
        given = [{"id": f"{kinds.get(item['type'], 'x')}_{next(self._ids)}", **item} for item in items]
        for before, after in itertools.pairwise(given):
            if before["type"] == "reasoning":
                self.leads[after["id"]] = before["id"]
        return given


def response(items: Sequence[Json], tokens: int = 1, status: str = "completed", **more: Any) -> Json:
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens + 5,
    }
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": status, "model": "m", "output": list(items),
        "usage": usage, "error": None, "incomplete_details": None, "instructions": None, "metadata": {},
        "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, **more,
    }  # fmt: skip


def events(whole: Json) -> list[Json]:
    """The same answer as the events of a stream, three words a delta."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    told: list[Json] = [{"type": "response.created", "response": begun}]
    told.append({"type": "response.in_progress", "response": begun})
    for index, item in enumerate(whole["output"]):
        where = {"output_index": index, "item_id": item.get("id")}
        bare = {**item, "status": "in_progress"}
        if item["type"] == "function_call":
            deltas = pieces(item["arguments"])
            told.append({"type": "response.output_item.added", "output_index": index, "item": bare | {"arguments": ""}})
            told += [{"type": "response.function_call_arguments.delta", **where, "delta": piece} for piece in deltas]
        elif item["type"] == "message":
            told.append({"type": "response.output_item.added", "output_index": index, "item": bare | {"content": []}})
            for n, part in enumerate(item["content"]):
                at = {**where, "content_index": n}
                told.append({"type": "response.content_part.added", **at, "part": {**part, "text": ""}})
                told += [
                    {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
                    for piece in pieces(part["text"])
                ]
                told.append({"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []})
                told.append({"type": "response.content_part.done", **at, "part": part})
        else:
            told.append({"type": "response.output_item.added", "output_index": index, "item": bare})
        told.append({"type": "response.output_item.done", "output_index": index, "item": item})
    told.append({"type": f"response.{whole['status']}", "response": whole})
    return [{"type": event.pop("type"), "sequence_number": n, **event} for n, event in enumerate(told)]


def pieces(text: str) -> list[str]:
    return re.findall(r"(?:\S+\s*){1,3}", text) if text else []


def event(told: Json) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (told["type"].encode(), json.dumps(told).encode())


def streamed(whole: Json) -> Steps:
    return sse([event(told) for told in events(whole)])
