"""A text is found in messages however their JSON writes it."""

import json

import pytest

from memory.identify import line
from memory.messages import Message, ToolCall
from memory.seal import HELD, holds, needle, text_digest, without_sealed

TEXT = 'the "pass" is\nswordfish überall 😀 C:\\x'


@pytest.mark.parametrize(
    "said",
    [TEXT, f"before {TEXT} after", [{"type": "text", "text": TEXT}], {"deep": [[{"x": TEXT}]]}],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_message_holds_what_it_says(said, ascii_only):
    raw = json.dumps({"role": "user", "content": said}, ensure_ascii=ascii_only).encode()
    assert holds(raw, TEXT)
    assert holds(raw, f" {TEXT}\n")
    assert not holds(raw, TEXT + "!")
    assert needle(TEXT) in raw


def test_arguments_of_calls_are_json_in_json():
    arguments = json.dumps({"q": TEXT})
    raw = json.dumps({"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}).encode()
    assert holds(raw, TEXT)


def test_a_short_text_is_looked_for_as_a_whole():
    assert holds(b'{"content": " abc "}', "abc")
    assert not holds(b'{"content": "abcd"}', "abc")


def test_what_is_no_json_is_searched_as_it_is():
    assert holds(b"\xff the secret words", "the secret words")


@pytest.mark.parametrize("text", ["", "short", "über den Häusern", "\\\\\\\\\\\\\\\\\\"])
def test_some_texts_have_nothing_to_search_by(text):
    assert len(needle(text)) in (0, *range(8, 200))


def test_white_space_around_makes_no_other_text():
    assert text_digest(" a\n") == text_digest("a") != text_digest("b")


def test_a_sealed_message_keeps_place_role_and_bytes_alone():
    secret = Message("assistant", TEXT, b"raw", calls=(ToolCall("1", "f", '{"a": 1}'),))
    said = line(bytes(16), (Message("user", "hello", b"hi"), secret, Message("user", TEXT, b"me")))
    assert without_sealed(said, ()) is said
    for seals in ([secret.digest], [text_digest(f" {TEXT}")]):
        told = without_sealed(said, seals)
        masked = told.messages[1]
        assert (told.nodes, masked.raw, masked.role, masked.text) == (said.nodes, b"raw", "assistant", HELD)
        assert masked.calls == (ToolCall("1", "f", "{}"),)
        assert told.messages[0] is said.messages[0]
    assert told.messages[2].text == HELD
