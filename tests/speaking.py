"""Providers that speak their own dialects, scripted."""

import json
from typing import Any

from tests.conversations import assistant
from tests.proxied import plain, streamed
from tests.scripted import Seen, Steps, answer, sse

Json = dict[str, Any]

JSON_TYPE = (b"content-type", b"application/json")


def event(kind: str, **more: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **more}).encode())


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_sequence": None}
ASKED = {"input_tokens": 10, "output_tokens": 1}
STREAM = [
    event("message_start", message={**MESSAGE, "content": [], "stop_reason": None, "usage": ASKED}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Good "}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "morning."}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
    event("message_stop"),
]


def message(*content: Json, reason: str = "end_turn") -> Steps:
    told = {**MESSAGE, "content": list(content), "stop_reason": reason, "usage": {**ASKED, "output_tokens": 5}}
    return answer(json.dumps(told).encode(), headers=[JSON_TYPE, (b"request-id", b"req_1")])


def speaking_anthropic(seen: Seen) -> Steps:
    body = json.loads(seen.body)
    if body.get("stream"):
        return sse(STREAM)
    if body.get("tools") and body["messages"][-1]["content"][0]["type"] != "tool_result":
        return message({"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 3}}, reason="tool_use")
    return message({"type": "text", "text": "Good morning."})


def speaking_gemini(seen: Seen) -> Steps:
    parts = {"parts": [{"text": "Buongiorno."}], "role": "model"}
    counts = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    told = {"candidates": [{"content": parts, "finishReason": "STOP", "index": 0}], "usageMetadata": counts}
    text = json.dumps(told).encode()
    return sse([b"data: " + text + b"\n\n"]) if b"stream" in seen.target.lower() else answer(text)


def speaking_openai(seen: Seen) -> Steps:
    said = assistant("Guten Morgen.")
    return streamed(said) if json.loads(seen.body).get("stream") else plain(said, 7)


def failing(status: int, kind: str, *headers: tuple[bytes, bytes]) -> Steps:
    error = {"type": "error", "error": {"type": kind, "message": f"It is {kind}."}}
    return answer(json.dumps(error).encode(), status, [JSON_TYPE, *headers])
