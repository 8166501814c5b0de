"""What stored messages of any dialect say: words, calls, results."""

import json
import random
from typing import Any

import pytest

from memory.written import calls_in, content_of, results_in, said
from tests.conversations import assistant, calling, result, user
from tests.responses import call, message, output, picture, reasoning

TEXT = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def raw(said: Any) -> bytes:
    return json.dumps(said).encode()


@pytest.mark.parametrize(
    ("said", "content"),
    [
        (user("hi"), "hi"),
        (user(TEXT), TEXT),
        (calling(("1", "{}")), None),
        (result("1", "found"), "found"),
        (output("c", "found"), "found"),
        (output("c", [picture()]), [picture()]),
        (call("c", {"a": 1}), 'look({"a": 1})'),
        ([message("a"), message("b")], "a\nb"),
        ([{"type": "reasoning", "summary": []}, message("so"), call("c", {})], "so\nlook({})"),
        ([{"type": "reasoning", "summary": []}, message("so")], "so"),
        ({"type": "reasoning", "summary": []}, None),
        ({"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}}, 'shell({"commands": ["ls"]})'),
        ({"type": "mcp_call", "id": "m", "name": "pay", "arguments": "{}", "output": "paid"}, "pay({})\npaid"),
        ({"type": "apply_patch_call_output", "call_id": "c", "status": "failed"}, "failed"),
        ({"type": "mcp_approval_response", "approval_request_id": "m", "approve": True}, "approved"),
        ({"type": "telepathy", "thought": 1}, None),
        ([], None),
        (["a", 5, None], None),
        (5, None),
    ],
)
def test_a_message_is_told(said, content):
    assert content_of(raw(said)) == content


@pytest.mark.parametrize("odd", [b"", b"{", b"[" * 100_000, b'"x"', b"\xff"])
def test_what_is_no_message_says_nothing(odd):
    assert content_of(odd) is None
    assert list(calls_in(odd)) == []
    assert next(results_in(odd))[0] == "None"


def test_calls_and_their_results_are_found_in_every_dialect():
    joined = [reasoning(random.Random(1)), call("c1", {}), call("c2", {}, name="other")]

    assert list(calls_in(raw(calling(("1", "{}"), ("2", "{}"))))) == [("1", "look"), ("2", "look")]
    assert list(calls_in(raw(joined))) == [("c1", "look"), ("c2", "other")]
    assert list(calls_in(raw(call("c1", {})))) == [("c1", "look")]
    assert list(calls_in(raw(assistant("no")))) == []
    assert list(results_in(raw(result("1", "found")))) == [("1", "found")]
    assert list(results_in(raw(output("c1", "found")))) == [("c1", "found")]
    asked = [{"type": "text", "text": "so"}, {"type": "tool_use", "id": "t1", "name": "look", "input": {}}]
    assert list(calls_in(raw({"role": "assistant", "content": asked}))) == [("t1", "look")]
    blocks = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "found"}]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "nothing", "is_error": True},
    ]
    assert list(results_in(raw({"role": "user", "content": blocks}))) == [("t1", "found"), ("t2", "Error: nothing")]
    assert next(results_in(raw(output("c1", [{"type": "input_text", "text": "x"}]))))[0] == "c1"


@pytest.mark.parametrize(
    ("message_", "words"),
    [
        (user("hi"), "hi"),
        (user(TEXT), "a\nb"),
        (user([{"type": "image_url", "image_url": {"url": "data:,x"}}, {"type": "text", "text": "see"}]), "see"),
        (calling(("1", '{"a": 1}'), content="wait"), 'wait\nlook({"a": 1})'),
        (result("1", "found"), "found"),
        (assistant([{"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "name": "look", "input": {"a": 1}}]),
         'look({"a": 1})'),
        (user([{"type": "tool_result", "content": [{"type": "text", "text": "found"}]}, {"type": "text", "text": "?"}]),
         "found\n?"),
        ([{"type": "reasoning", "summary": []}, message("so"), call("c", {})], "so\nlook({})"),
        (assistant(None, refusal="no"), ""),
        (assistant([{"type": "refusal", "refusal": "no"}]), "no"),
        ({"type": "telepathy", "thought": 1}, ""),
        (5, ""),
    ],
)  # fmt: skip
def test_a_reader_is_told_the_words_and_the_calls(message_, words):
    assert said(raw(message_)) == words


def test_results_within_results_without_end_are_cut():
    within: Any = "deep"
    for _ in range(200):
        within = [{"type": "tool_result", "content": within}]
    assert said(raw(user(within))) == ""
    assert said(b"\xff") == said(b"{") == ""
