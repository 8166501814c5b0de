"""A text is found in messages however their JSON writes it."""

import json

import pytest

from memory.seal import holds, needle, text_digest

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
