"""Plain answers become values; what is odd in one costs nothing else of it."""

import json

import pytest

from memory.types import Usage
from proxy.wire.openai import completion_in
from tests.bodies import digest

# Plain answers


def completion(*choices: dict[str, object], **more: object) -> bytes:
    return json.dumps({"id": "c", "object": "chat.completion", "choices": choices, **more}).encode()


def test_the_messages_of_a_plain_answer_keep_their_bytes():
    raw = b'{ "role":"assistant", "content":"caf\\u00e9","refusal":null,"annotations":[] }'
    body = b'{"choices":[{"index":0,"message":' + raw + b',"finish_reason":"stop"}],"usage":null}'
    (message,) = completion_in(body).messages

    assert message.raw == raw
    assert message.digest == digest(role="assistant", content="café")


def test_an_answer_with_half_a_surrogate_pair_keeps_its_bytes():
    raw = b'{"role":"assistant","content":"\\ud83d"}'
    (message,) = completion_in(b'{"choices":[{"message":null},{"message":' + raw + b"}]}").messages

    assert (message.raw, message.text) == (raw, "\ufffd")


def test_every_choice_has_its_message():
    message, reason = {"role": "assistant", "content": "a"}, "length"
    choices = [{"message": message, "finish_reason": reason}, {"message": {**message, "content": "b"}}]
    said = completion_in(completion(*choices))

    assert [message.text for message in said.messages] == ["a", "b"]
    assert said.finish_reasons == ("length", None)


def test_a_finish_reason_that_is_no_text_costs_nothing_else():
    said = completion_in(b'{"choices":[{"message":{"role":"assistant","content":"a"},"finish_reason":"caf\xe9"}]}')
    assert ([message.text for message in said.messages], said.finish_reasons) == (["a"], (None,))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"[]",
        b"{}",
        b'{"choices":null}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":null}]}',
        b'{"error":{}}',
    ],
)
def test_a_body_without_messages_has_none(body):
    said = completion_in(body)
    assert (said.messages, said.usage) == ((), None)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, Usage(5, 0, 2)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}, Usage(5, 3, 2)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(5, 0, 2)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}, Usage(5, 4, 2)),
        ({"prompt_tokens": 5}, Usage(5, 0, 0)),
        ({"prompt_tokens": "many", "completion_tokens": -1}, Usage(0, 0, 0)),
        ({}, None),
        (None, None),
        (7, None),
    ],
)
def test_usage_is_what_the_provider_says(usage, expected):
    assert completion_in(completion(usage=usage)).usage == expected
