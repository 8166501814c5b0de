"""Answers in chat completion chunks, as each provider writes them."""

import json
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]
Call = tuple[str, str, str]  # id, name, arguments


def chunk(id: str, delta: Json | None, reason: str | None = None, usage: Json | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    event = {"id": id, "object": "chat.completion.chunk", "created": len(id), "model": f"m-{id}", "choices": choices}
    return b"data: " + json.dumps({**event, "usage": usage, **more}).encode() + b"\n\n"


def counted(tokens: int) -> Json:
    details = {"prompt_tokens_details": {"cached_tokens": tokens - 1}}
    return {"prompt_tokens": tokens, "completion_tokens": 2, "total_tokens": tokens + 2, **details}


def as_openai(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int, first: int = 99) -> bytes:
    """Args:
    first: so much of a call's name comes with its id, the rest in a delta of its own.
    """
    out = [chunk(id, {"role": "assistant", "content": "", "refusal": None})]
    out += [chunk(id, {"content": word}) for word in words]
    for n, (call_id, name, arguments) in enumerate(calls):
        head = {"index": n, "id": call_id, "type": "function", "function": {"arguments": ""}}
        head["function"] |= {"name": name[:first]} if first else {}
        out.append(chunk(id, {"tool_calls": [head]}))
        rest = {"index": n, "function": {"name": name[first:]}}
        out += [chunk(id, {"tool_calls": [rest]})] if name[first:] else []
        out += [
            chunk(id, {"tool_calls": [{"index": n, "function": {"arguments": piece}}]})
            for piece in (arguments[:5], arguments[5:])
            if piece
        ]
    out += [chunk(id, {}, "tool_calls" if calls else "stop"), chunk(id, None, usage=counted(tokens))]
    return b"".join([*out, b"data: [DONE]\n\n"])


def as_gemini(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int, index: Json | None = None) -> bytes:
    """All calls under one index, whole in an event, a signature with the first; the last one tells why it ended."""
    out = [chunk(id, {"role": "assistant", "content": word}, usage=counted(tokens)) for word in words[:-1]]
    made = [
        {"function": {"arguments": arguments, "name": name}, "id": call_id, "type": "function"}
        | ({"index": 0} if index is None else index)
        | ({"extra_content": {"google": {"thought_signature": "Crx"}}} if not n else {})
        for n, (call_id, name, arguments) in enumerate(calls)
    ]
    deltas = [{"role": "assistant", "content": words[-1]}] if words else []
    deltas += [{"role": "assistant", "tool_calls": [call]} for call in made]
    reasons = [*(None for _ in deltas[1:]), "tool_calls" if calls else "stop"]
    out += [chunk(id, delta, reason, counted(tokens)) for delta, reason in zip(deltas, reasons, strict=True)]
    return b"".join([*out, b"data: [DONE]\n\n"])


def as_ollama(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int) -> bytes:
    """All calls in one delta; every event has the role."""
    out = [chunk(id, {"role": "assistant", "content": word}) for word in words]
    made = [
        {"id": call_id, "index": n, "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (call_id, name, arguments) in enumerate(calls)
    ]
    out += [chunk(id, {"role": "assistant", "content": "", "tool_calls": made})] if made else []
    out += [chunk(id, {"role": "assistant", "content": ""}, "tool_calls" if made else "stop")]
    return b"".join([*out, chunk(id, None, usage=counted(tokens)), b"data: [DONE]\n\n"])


def without_indexes(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int) -> bytes:
    return as_gemini(id, words, calls, tokens, index={})


def with_late_names(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int) -> bytes:
    return as_openai(id, words, calls, tokens, first=0)


def with_names_in_pieces(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int) -> bytes:
    return as_openai(id, words, calls, tokens, first=2)


def laid_out(id: str, words: Sequence[str], calls: Sequence[Call], tokens: int) -> bytes:
    """An event over several data lines, CRLF, comments, its kind, no space behind the colon."""
    events = as_openai(id, words, calls, tokens).split(b"\n\n")[:-1]
    lines = [event.replace(b", ", b",\r\ndata:").replace(b"data: ", b"data:") for event in events]
    return b"".join(b": ping\r\n\r\nevent: message\r\n" + line + b"\r\n\r\n" for line in lines)


PROVIDERS: dict[str, Callable[..., bytes]] = {
    "OpenAI": as_openai,
    "Gemini": as_gemini,
    "Ollama": as_ollama,
    "no indexes": without_indexes,
    "laid out": laid_out,
    "late names": with_late_names,
    "names in pieces": with_names_in_pieces,
}
