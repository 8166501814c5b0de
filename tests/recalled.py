"""Models that ask the memory: what they say, what clients receive of it, what the provider was sent. In three dialects.

    speaks = Chat()                      # or Responses(), Messages(): the same words, another dialect
    provider = speaks.provider()
    provider.model.moves = [Said(calls=(recall(id="a2b3c4d5"),)), Said("It is so.")]     # its next answers
    with speaks.sdk(proxy, received) as sdk: got = speaks.ask(sdk, speaks.body(said), stream=True)

Each answer of the provider has an id and a usage of its own, so that one sees whose a client got.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anthropic
import httpx
import openai

from tests import proxied, responses, spoken_to
from tests.proxied import MODEL, Proxy
from tests.scripted import Step, Steps, answer, sse

Json = dict[str, Any]

RESERVE = 512
SPAN = re.compile(r"\[#([a-z2-7]{8})\] messages? (\d+)(?:-(\d+))?")
PIECES = re.compile(r"\S+\s*(?:\S+\s*){0,2}")


class Call(NamedTuple):
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """An answer of the model, in no dialect."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    thinks: str = ""  # first, where the dialect has thoughts


@dataclass(frozen=True, slots=True)
class Bent:
    """An answer that goes wrong on its way, or is slow."""

    said: Said
    bend: Callable[[list[Step]], Steps]


Move = Said | Bent | Callable[[Any], Said]


def recall(**given: object) -> Call:
    return Call("recall", json.dumps(given))


def read(path: str = "notes.txt") -> Call:
    """A call of the client's own tool."""
    return Call("read_file", json.dumps({"path": path}))


def refused(status: int, body: bytes) -> Bent:
    return Bent(Said(), lambda _: answer(body, status))


@dataclass
class Model:
    """Gives its moves, then says that it noted."""

    moves: list[Move] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # all that it said
    ids: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self, prompt: Any) -> Said | Bent:
        move = self.moves.pop(0) if self.moves else Said("Noted.")
        move = move if isinstance(move, Said | Bent) else move(prompt)
        self.words.append(unbent(move)[0].text)
        return move

    def named(self, said: Said) -> list[tuple[str, Call]]:
        """The calls, each with an id that no other has."""
        return [(f"call_{next(self.ids)}", call) for call in said.calls]


def unbent(move: Said | Bent) -> tuple[Said, Callable[[list[Step]], Steps]]:
    return (move.said, move.bend) if isinstance(move, Bent) else (move, lambda steps: steps)


@dataclass
class Got:
    """What the client received."""

    text: str
    calls: list[tuple[str, Call]]
    finish: str | None
    ids: set[str]
    usage: Json | None
    own: list[Json]  # as the client sends it back
    headers: Any
    raw: bytes = b""


class Talking:
    """What providers of all dialects have here: a model of moves, and the usages that they told."""

    model: Model
    usages: list[Json]
    prompts: list[Any]


@dataclass
class ChatProvider(proxied.Provider, Talking):
    model: Model = field(default_factory=Model)
    usages: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reply = self.model  # type: ignore[assignment]

    def answer(self, prompt: proxied.Prompt, message: Any) -> Steps:
        said, bend = unbent(message)
        number = len(self.prompts)
        usage = {
            "prompt_tokens": prompt.tokens, "completion_tokens": number, "total_tokens": prompt.tokens + number,
            "prompt_tokens_details": {"cached_tokens": number + 2},
            "completion_tokens_details": {"reasoning_tokens": number + 1},
        }  # fmt: skip
        self.usages.append(usage)
        calls: list[Json] = [
            {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for id, call in self.model.named(said)
        ]
        known = {"id": f"chatcmpl-{number}", "created": 1_700_000_000 + number, "model": "m", "system_fingerprint": "f"}
        reason = "tool_calls" if calls else "stop"
        if prompt.body.get("stream"):
            counted = (prompt.body.get("stream_options") or {}).get("include_usage")
            told = chat_events(known, said.text, calls, reason, usage if counted else None)
            return bend(sse([b"data: " + text.encode() + b"\n\n" for text in told]))
        spoken: Json = {"role": "assistant", "content": said.text or None, "refusal": None}
        choice = {"index": 0, "message": spoken | ({"tool_calls": calls} if calls else {}), "finish_reason": reason}
        whole = {**known, "object": "chat.completion", "choices": [{**choice, "logprobs": None}], "usage": usage}
        return bend(answer(json.dumps(whole).encode()))


def chat_events(known: Json, text: str, calls: Sequence[Json], reason: str, usage: Json | None) -> Iterator[str]:
    """The data of a stream's events; each call's arguments in two pieces."""
    deltas: list[Json] = [{"role": "assistant", "content": "", "refusal": None}]
    deltas += [{"content": piece} for piece in PIECES.findall(text)]
    for n, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        deltas.append({"tool_calls": [{"index": n, **call, "function": {**call["function"], "arguments": ""}}]})
        for piece in (arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
            deltas.append({"tool_calls": [{"index": n, "function": {"arguments": piece}}]})
    ends: list[tuple[Json, str | None]] = [*((delta, None) for delta in deltas), ({}, reason)]
    more: Json = {"usage": None} if usage else {}
    for delta, ended in ends:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}]
        yield json.dumps({**known, "object": "chat.completion.chunk", "choices": choices, **more})
    if usage:
        yield json.dumps({**known, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    yield "[DONE]"


@dataclass
class MessagesProvider(spoken_to.MessagesProvider, Talking):
    model: Model = field(default_factory=Model)
    usages: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reply = self.model

    def answer(self, prompt: proxied.Prompt, message: Any) -> Steps:
        said, bend = unbent(message)
        number = len(self.prompts)
        content = [spoken_to.thinking(said.thinks)] if said.thinks else []
        content += [{"type": "text", "text": said.text}] if said.text else []
        for id, call in self.model.named(said):
            content.append({"type": "tool_use", "id": id, "name": call.name, "input": json.loads(call.arguments)})
        thought = next((block for block in content if block["type"] == "thinking"), None)
        if thought is not None:
            self.thought |= {block["id"]: thought for block in content if block["type"] == "tool_use"}
        self.usages.append(spoken_to.whole(content, prompt.tokens)["usage"] | {"output_tokens": number})

        def own(told: bytes) -> bytes:
            told = told.replace(b'"id": "msg_1"', b'"id": "msg_%d"' % number)
            return told.replace(b'"output_tokens": 5', b'"output_tokens": %d' % number)

        if prompt.body.get("stream"):
            return bend(sse([own(event) for event in spoken_to.events(content, prompt.tokens)]))
        return bend(answer(own(json.dumps(spoken_to.whole(content, prompt.tokens)).encode())))


@dataclass
class ResponsesProvider(responses.Provider, Talking):
    model: Model = field(default_factory=Model)
    usages: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reply = self.model  # type: ignore[assignment]

    def answer(self, prompt: responses.Prompt, message: Any) -> Steps:
        said, bend = unbent(message)
        number = len(self.prompts)
        items: list[Json] = []
        if said.thinks:
            items.append({"type": "reasoning", "summary": [], "encrypted_content": said.thinks, "status": None})
        items += [responses.message(said.text)] if said.text else []
        for id, call in self.model.named(said):
            made = {"type": "function_call", "call_id": id, "name": call.name, "arguments": call.arguments}
            items.append(made | {"status": "completed"})
        usage = {
            "input_tokens": prompt.tokens, "output_tokens": number, "total_tokens": prompt.tokens + number,
            "input_tokens_details": {"cached_tokens": number + 2, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": number + 1},
        }  # fmt: skip
        self.usages.append(usage)
        echoed = {key: prompt.body[key] for key in ("tools", "instructions") if key in prompt.body}
        whole = responses.response(self.named(items), **{"id": f"resp_{number}", "usage": usage, **echoed})
        if prompt.body.get("stream"):
            return bend(sse([responses.event(told) for told in responses.events(whole)]))
        return bend(answer(json.dumps(whole).encode()))


# The client's side


Hook = Callable[[Any], None]


def overhearing(received: bytearray) -> Hook:
    """A hook of the SDKs' HTTP clients that keeps all bytes of all answers."""

    def hook(response: Any) -> None:
        raw = response.iter_raw

        def iter_raw(chunk_size: int | None = None) -> Iterator[bytes]:
            for part in raw(chunk_size):
                received.extend(part)
                yield part

        response.iter_raw = iter_raw

    return hook


def events_in(raw: bytes) -> list[Json]:
    """The events of a stream, as the client received them."""
    told = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
    return [json.loads(data) for data in told if data != b"[DONE]"]


def sums(usages: Sequence[Json]) -> Json:
    """All numbers added up, also those in objects within."""
    total: Json = {}
    for usage in usages:
        for key, value in usage.items():
            if isinstance(value, dict):
                total[key] = sums([total.get(key, {}), value])
            elif isinstance(value, int):
                total[key] = total.get(key, 0) + value
    return total


def told_in(usage: Json, expected: Json) -> Json:
    """Of a usage, what was expected: SDKs add nulls and zeros."""
    return {
        key: told_in(usage.get(key) or {}, value) if isinstance(value, dict) else usage.get(key)
        for key, value in expected.items()
    }


class Chat:
    name, path, ends = "chat", "/v1/chat/completions", ("stop", "tool_calls")
    provider = ChatProvider

    def sdk(self, proxy: Proxy, key: str, received: bytearray) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(event_hooks={"response": [overhearing(received)]}, verify=False)
        return proxy.client(key, http_client=http)

    def tool(self, name: str) -> Json:
        function = {"name": name, "description": f"Does {name}.", "parameters": {"type": "object", "properties": {}}}
        return {"type": "function", "function": function}

    def body(self, said: Sequence[Json], **more: Any) -> Json:
        tools = [self.tool("read_file"), self.tool("run_tests")]
        return {"model": MODEL, "messages": list(said), "tools": tools, "max_tokens": RESERVE, **more}

    def spoken(self, role: str, text: str) -> Json:
        return {"role": role, "content": text}

    def results(self, calls: Sequence[tuple[str, Call]], texts: Sequence[str]) -> list[Json]:
        pairs = zip(calls, texts, strict=True)
        return [{"role": "tool", "tool_call_id": id, "content": text} for (id, _), text in pairs]

    def ask(self, sdk: openai.OpenAI, body: Json, stream: bool = False) -> Got:
        if not stream:
            reply = sdk.chat.completions.with_raw_response.create(**body)
            whole = reply.parse()
            (choice,) = whole.choices
            message = choice.message
            calls = [(c.id, Call(c.function.name, c.function.arguments)) for c in message.tool_calls or ()]  # type: ignore[union-attr]
            own, usage = message.model_dump(exclude_none=True), whole.usage and whole.usage.model_dump()
            own = {"content": "", **own}
            return Got(message.content or "", calls, choice.finish_reason, {whole.id}, usage, [own], reply.headers)
        return self.streamed(sdk, body | {"stream": True, "stream_options": {"include_usage": True}})

    def streamed(self, sdk: openai.OpenAI, body: Json) -> Got:
        got = Got("", [], None, set(), None, [], {})
        made: list[list[str]] = []
        with sdk.chat.completions.with_streaming_response.create(**body) as raw:
            got.headers = raw.headers
            for chunk in raw.parse():
                got.ids.add(chunk.id)
                if chunk.usage:
                    got.usage = chunk.usage.model_dump()
                for choice in chunk.choices:
                    got.finish = choice.finish_reason or got.finish
                    got.text += choice.delta.content or ""
                    for call in choice.delta.tool_calls or ():
                        if call.id:
                            assert call.index == len(made)
                            made.append([call.id, call.function.name, ""])
                        made[call.index][2] += call.function.arguments or ""
        got.calls = [(id, Call(name, arguments)) for id, name, arguments in made]
        told = [{"id": i, "type": "function", "function": c._asdict()} for i, c in got.calls]
        got.own = [{"role": "assistant", "content": got.text} | ({"tool_calls": told} if told else {})]
        return got

    def said_in(self, prompt: Any) -> list[str]:
        return [json.dumps(message) for message in prompt.messages]

    def results_in(self, prompt: Any) -> list[str]:
        """The results that stand at a prompt's end."""
        last = itertools.takewhile(lambda m: m["role"] == "tool", reversed(prompt.messages))
        return [message["content"] for message in last][::-1]

    def stream_problems(self, events: list[Json]) -> Iterator[str]:
        reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
        if [reason is not None for reason in reasons] != [False] * (len(reasons) - 1) + [True]:
            yield f"finish reasons: {reasons}"
        if [bool(event["choices"]) for event in events[-2:]] != [True, False]:
            yield "the usage is not last"
        if sum(bool(event.get("usage")) for event in events) != 1:
            yield "more than one usage"
        if sum("role" in choice["delta"] for event in events for choice in event["choices"]) != 1:
            yield "more than one role"


class Responses(Chat):
    name, path, ends = "responses", "/v1/responses", ("completed", "completed")
    provider = ResponsesProvider  # type: ignore[assignment]

    def tool(self, name: str) -> Json:
        return {"type": "function", "name": name, "description": f"Does {name}.", "parameters": {}, "strict": False}

    def body(self, said: Sequence[Json], **more: Any) -> Json:
        tools = [self.tool("read_file"), self.tool("run_tests")]
        given = {"model": MODEL, "input": list(said), "tools": tools, "max_output_tokens": RESERVE, "store": False}
        return {**given, "include": ["reasoning.encrypted_content"], **more}

    def results(self, calls: Sequence[tuple[str, Call]], texts: Sequence[str]) -> list[Json]:
        return [responses.output(id, text) for (id, _), text in zip(calls, texts, strict=True)]

    def ask(self, sdk: openai.OpenAI, body: Json, stream: bool = False) -> Got:
        said = {"extra_body": {"input": body["input"]}, "input": ""}  # the SDK takes seconds to look through items
        if stream:
            with sdk.responses.with_streaming_response.create(**body | said, stream=True) as raw:
                events, headers = list(raw.parse()), raw.headers
            whole = next(event.response for event in events if event.type == "response.completed")
            ids = {event.response.id for event in events if hasattr(event, "response")}
        else:
            reply = sdk.responses.with_raw_response.create(**body | said)
            whole, headers = reply.parse(), reply.headers
            ids = {whole.id}
        made = [item for item in whole.output if item.type == "function_call"]
        calls = [(item.call_id, Call(item.name, item.arguments)) for item in made]
        usage = whole.usage and whole.usage.model_dump()
        own = [item.model_dump() for item in whole.output]
        return Got(whole.output_text, calls, whole.status, ids, usage, own, headers)

    def said_in(self, prompt: Any) -> list[str]:
        return [json.dumps(item) for item in prompt.items]

    def results_in(self, prompt: Any) -> list[str]:
        last = itertools.takewhile(lambda item: item.get("type") == "function_call_output", reversed(prompt.items))
        return [item["output"] for item in last][::-1]

    def stream_problems(self, events: list[Json]) -> Iterator[str]:
        if [event["sequence_number"] for event in events] != list(range(len(events))):
            yield f"sequence numbers: {[event['sequence_number'] for event in events]}"
        kinds = [event["type"].removeprefix("response.") for event in events]
        if (kinds[0], kinds[-1], kinds.count("created"), kinds.count("completed")) != ("created", "completed", 1, 1):
            yield f"begins or ends oddly: {kinds[0]}, {kinds[-1]}"
        for moment in ("added", "done"):
            told = [event for event in events if event["type"] == f"response.output_item.{moment}"]
            if [event["output_index"] for event in told] != list(range(len(told))):
                yield f"output indexes at {moment}: {[event['output_index'] for event in told]}"
        if [event["item"] for event in told] != events[-1]["response"]["output"]:
            yield "the items at the end are not those of the stream"
        places = {event["item"].get("id"): event["output_index"] for event in told}
        if any(places.get(event["item_id"]) != event["output_index"] for event in events if "item_id" in event):
            yield "an event speaks of another item than its index does"


class Messages(Chat):
    name, path, ends = "messages", "/v1/messages", ("end_turn", "tool_use")
    provider = MessagesProvider  # type: ignore[assignment]

    def sdk(self, proxy: Proxy, key: str, received: bytearray) -> Any:
        http = anthropic.DefaultHttpxClient(event_hooks={"response": [overhearing(received)]}, verify=False)
        return anthropic.Anthropic(base_url=proxy.url, api_key=key, timeout=30.0, max_retries=0, http_client=http)

    def tool(self, name: str) -> Json:
        return {"name": name, "description": f"Does {name}.", "input_schema": {"type": "object"}}

    def body(self, said: Sequence[Json], **more: Any) -> Json:
        """As Claude Code asks: the tools, the system prompt and the newest message marked for the cache."""
        mark = {"cache_control": {"type": "ephemeral"}}
        *before, newest = said
        blocks = spoken_to.blocks_of(newest["content"])
        messages = [*before, {**newest, "content": [*blocks[:-1], blocks[-1] | mark]}]
        tools = [self.tool("read_file"), self.tool("run_tests") | mark]
        system = [{"type": "text", "text": "You are a careful agent.", **mark}]
        known = {"model": MODEL, "messages": messages, "tools": tools, "system": system, "max_tokens": RESERVE}
        return known | more

    def results(self, calls: Sequence[tuple[str, Call]], texts: Sequence[str]) -> list[Json]:
        pairs = zip(calls, texts, strict=True)
        blocks = [{"type": "tool_result", "tool_use_id": id, "content": text} for (id, _), text in pairs]
        return [{"role": "user", "content": blocks}]

    def ask(self, sdk: Any, body: Json, stream: bool = False) -> Got:
        if stream:
            with sdk.messages.stream(**body) as streaming:
                whole, headers = streaming.get_final_message(), streaming.response.headers
        else:
            reply = sdk.messages.with_raw_response.create(**body)
            whole, headers = reply.parse(), reply.headers
        text = "".join(block.text for block in whole.content if block.type == "text")
        calls = [(b.id, Call(b.name, json.dumps(b.input))) for b in whole.content if b.type == "tool_use"]
        own = [{"role": "assistant", "content": whole.model_dump(exclude_none=True)["content"]}]
        return Got(text, calls, whole.stop_reason, {whole.id}, whole.usage.model_dump(), own, headers)

    def said_in(self, prompt: Any) -> list[str]:
        return [json.dumps(pair, sort_keys=True) for pair in prompt.said]

    def results_in(self, prompt: Any) -> list[str]:
        blocks = spoken_to.blocks_of(prompt.messages[-1]["content"])
        found = [block["content"] for block in blocks if block["type"] == "tool_result"]
        return [text if isinstance(text, str) else "".join(part["text"] for part in text) for text in found]

    def stream_problems(self, events: list[Json]) -> Iterator[str]:
        kinds = [event["type"] for event in events if event["type"] != "ping"]
        inner = kinds[1:-2]
        if [kinds[0], *kinds[-2:]] != ["message_start", "message_delta", "message_stop"]:
            yield f"begins or ends oddly: {kinds[0]}, {kinds[-2:]}"
        if {"message_start", "message_delta", "message_stop"} & set(inner):
            yield "more than one message"
        number, open_block = 0, None
        for event in events:
            at = event.get("index")
            if event["type"] == "content_block_start":
                if open_block is not None or at != number:
                    yield f"block {at} begins where {number} should, {open_block} being open"
                number, open_block = number + 1, at
            elif at is not None and at != open_block:
                yield f"something of block {at} in block {open_block}"
            if event["type"] == "content_block_stop":
                open_block = None


SPEAKS = (Chat(), Responses(), Messages())


def span_with(text: str, position: int) -> str | None:
    """The id of the digest's passage that holds the message at a position, from 0."""
    for id, first, last in SPAN.findall(text):
        if int(first) <= position + 1 <= int(last or first):
            return str(id)
    return None


def received(reply: httpx.Response, came: bytearray) -> None:
    """Read a body; what came of one that breaks off is there as well."""
    for chunk in reply.iter_raw():
        came += chunk
