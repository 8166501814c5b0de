"""The scripted providers say what the real ones say: each event has its type's form, and the parts make the whole."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.clients import messages, responses
from tests.clients.scenarios import Asked, Json, Scenario
from tests.scripted import Seen, Steps, dechunk

STREAMED = ["stream", "streamed tools", "streamed reasoning", "refusal", "web search", "incomplete", "failed"]


def asked(body: Json, number: int = 0) -> Asked:
    return Asked(Seen(b"", "POST", b"/v1/x", (), json.dumps(body).encode(), 0), number)


def events_of(steps: Steps) -> Iterator[Json]:
    """The data of a stream's events; each is named as its type."""
    _, _, framed = b"".join(step for step in steps if isinstance(step, bytes)).partition(b"\r\n\r\n")
    for block in dechunk(framed)[0].decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        whole: Json = json.loads(data.removeprefix("data: "))
        assert name == f"event: {whole['type']}"
        yield whole


def told_by(scenario: Scenario, **body: Any) -> list[Json]:
    return list(events_of(scenario.reply(asked({"stream": True} | body))))


@pytest.mark.parametrize("name", STREAMED)
def test_events_of_responses_have_the_form_that_the_sdk_knows(name: str) -> None:
    told = told_by(responses.RESPONSES.scenarios[name], include=["reasoning.encrypted_content"])

    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        TypeAdapter(ResponseStreamEvent).validate_python(event)


@pytest.mark.parametrize("name", STREAMED)
def test_items_of_responses_end_as_the_whole_tells_them(name: str) -> None:
    told = told_by(responses.RESPONSES.scenarios[name])
    ended = [event["item"] for event in told if event["type"] == "response.output_item.done"]

    assert told[0]["type"] == "response.created"
    assert ended == told[-1]["response"]["output"]
    Response.model_validate(told[-1]["response"])


@pytest.mark.parametrize("name", ["stream", "streamed tools", "streamed thinking", "citations", "web search"])
def test_deltas_of_messages_make_their_blocks(name: str) -> None:
    told = told_by(messages.MESSAGES.scenarios[name])
    kinds = [event["type"] for event in told if event["type"] != "ping"]
    begun = [event["content_block"]["type"] for event in told if event["type"] == "content_block_start"]
    written = "".join(
        event["delta"].get("partial_json", "") for event in told if event["type"] == "content_block_delta"
    )

    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(begun)
    assert written.count("{") == sum(kind in ("tool_use", "server_tool_use") for kind in begun)
    assert all(event["content_block"].get("input", {}) == {} for event in told if "content_block" in event)
