"""A provider's small model makes texts shorter; what it says is taken only when it is a shorter text."""

import json
from typing import Any

import httpx
import pytest
import respx

from memory.summarize import upstream

URL = "https://api.openai.com/v1"
TEXT = "The ferry leaves at 07:40 from pier 9. " * 20


def words(model: str):
    return lambda text: len(text.split())


def reply(content: object, reason: str = "stop", **more: Any) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content, **more}, "finish_reason": reason}]})


@respx.mock
async def test_it_asks_the_small_model_once_with_the_text_as_data():
    route = respx.post(f"{URL}/chat/completions").mock(return_value=reply(" Ferry 07:40, pier 9. "))
    assert await upstream(URL, "sk-key", words)(TEXT, 10, "gpt-4o") == "Ferry 07:40, pier 9."
    (call,) = route.calls
    body = json.loads(call.request.content)
    assert (body["model"], body["temperature"]) == ("gpt-4o-mini", 0)
    assert call.request.headers["authorization"] == "Bearer sk-key"
    first, *_, last = body["messages"][1]["content"].split("\n")
    assert first == last
    assert first in body["messages"][0]["content"]


@pytest.mark.parametrize(
    "answer",
    [
        reply("cut", "length"),
        reply("x", tool_calls=[{}]),
        reply(""),
        reply(None),
        reply("word " * 14),
        reply(TEXT + "longer"),
        httpx.Response(500),
        httpx.Response(200, text="no json"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"choices": []}),
        httpx.ConnectError("away"),
    ],
)
@respx.mock
async def test_anything_else_leaves_it_to_the_digest(answer):
    mock = {"side_effect": answer} if isinstance(answer, Exception) else {"return_value": answer}
    respx.post(f"{URL}/chat/completions").mock(**mock)
    assert await upstream(URL, "sk-key", words)(TEXT, 10, "gpt-4o") is None
