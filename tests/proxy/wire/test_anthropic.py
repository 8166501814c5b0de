"""Promises about Messages API bodies: what is understood loses nothing, and what is rendered is legal there."""

import base64
import dataclasses
import json
import struct
from typing import Any

import pytest

from memory.messages import Media, Message
from memory.tokens import Counter
from memory.types import Usage
from proxy.wire.anthropic import SHAPE, completion_in, render
from proxy.wire.content import message_of
from proxy.wire.dialects import CHAT, MESSAGES, dialect_at, errors_at
from proxy.wire.parser import Parser
from tests.bodies import USER, body_of, digest
from tests.proxy.wire.test_openai import NOT_UNDERSTOOD, ODD_BUT_UNDERSTOOD

Json = dict[str, Any]

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return base64.b64encode(head + bytes(16)).decode()


def read(role: str, *blocks: Json) -> Message:
    return message_of(json.dumps({"role": role, "content": list(blocks)}).encode())


def parsed(body: Json | bytes):
    request = Parser(SHAPE).parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert request is not None
    return request


# Paths


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", MESSAGES),
        ("/anthropic/v1/messages", MESSAGES),
        ("/messages", MESSAGES),
        ("/v1/chat/completions", CHAT),
        ("/v1/messages/count_tokens", None),
        ("/v1/messages/batches", None),
        ("/v1/messages/", None),
        ("/v1/threads/thread_1/messages", None),
        ("/threads/messages", None),
    ],
)
def test_a_path_says_whether_it_is_managed(path, dialect):
    assert dialect_at(path) is dialect


def test_errors_have_anthropics_shape_on_all_its_paths():
    assert errors_at("/v1/messages") == errors_at("/v1/messages/count_tokens") == "anthropic"
    assert errors_at("/v1/threads/t/messages") == errors_at("/v1/chat/completions") == "openai"


# What is understood


def test_a_request_is_read():
    tools = b'[ {"name": "ls", "input_schema": {"cache_control": {}}} ]'
    body = body_of(
        b'{"role":"user","content":"hi"}',
        before=b'"model":"claude-sonnet-4-5","system":[{"type":"text","text":"Be brief."}],"max_tokens":1024,',
        after=b',"stream":true,"tools":' + tools + b',"thinking":{"type":"enabled","budget_tokens":512}',
    )
    request = parsed(body)

    assert (request.model, request.max_output_tokens, request.stream) == ("claude-sonnet-4-5", 1024, True)
    assert [(m.role, m.text) for m in request.messages] == [("system", "Be brief."), ("user", "hi")]
    assert (request.preface, request.schemas, request.dialect) == (1, (tools,), "messages")
    assert render(request, [m.raw for m in request.messages]) == body


@pytest.mark.parametrize("name", ODD_BUT_UNDERSTOOD)
def test_odd_but_legal_bodies_are_understood(name):
    parser = Parser(SHAPE)
    request, again = parser.parse(ODD_BUT_UNDERSTOOD[name]), parser.parse(ODD_BUT_UNDERSTOOD[name])

    assert request == again
    assert request is not None
    body = ODD_BUT_UNDERSTOOD[name]
    assert render(request, [m.raw for m in request.messages]) in (
        body,
        body.replace(b"[ " + USER + b" ]", b"[" + USER + b"]"),
    )


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_what_is_not_understood_gives_none(name):
    assert Parser(SHAPE).parse(NOT_UNDERSTOOD[name]) is None


def test_a_thread_that_the_provider_keeps_is_a_wire():
    user = b'{"role":"user","content":"hi"}'
    assert Parser(SHAPE).parse(body_of(user, after=b',"thread":{"type":"continue"}')) is None
    assert Parser(SHAPE).parse(body_of(user, after=b',"thread":null')) is not None


# Blocks

CALL = {"type": "tool_use", "id": "t1", "name": "ls", "input": {"b": 1, "a": None}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "done"}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png(1000, 500)}}
FOUND = {"type": "web_search_result", "title": "Otters", "url": "https://x/o", "encrypted_content": "A" * 400}


@pytest.mark.parametrize(
    ("block", "text", "kinds"),
    [
        ({"type": "text", "text": "hi", "citations": [{"cited_text": "no"}]}, "hi", []),
        (PICTURE, "", [("image", 1000, 500)]),
        ({"type": "image", "source": {"type": "url", "url": "https://x/a.png"}}, "", [("image", None, None)]),
        ({"type": "image", "source": {"type": "file", "file_id": "f1"}}, "", [("image", None, None)]),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0"}},
            "",
            [("file", None, None)],
        ),
        ({"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}, "", [("file", None, None)]),
        ({"type": "document", "source": {"type": "file", "file_id": "f1"}, "title": "T"}, "T", [("file", None, None)]),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}, "words", []),
        (
            {"type": "document", "context": "C", "source": {"type": "content", "content": [RESULT["content"]][:0]}},
            "C",
            [],
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}, PICTURE]}},
            "a",
            [("image", 1000, 500)],
        ),
        ({"type": "document", "source": {"type": "content", "content": "all"}}, "all", []),
        (
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]},
            "x\ns\nt",
            [],
        ),
        ({"type": "container_upload", "file_id": "f1"}, "", [("file", None, None)]),
        ({"type": "thinking", "thinking": "never", "signature": "S"}, "", []),
        ({"type": "redacted_thinking", "data": "RRRR"}, "", []),
        ({"type": "from_the_future", "x": [1]}, "", [("file", None, None)]),
        ({"type": "image", "source": 5}, "", [("file", None, None)]),
        ({"type": "tool_result", "content": 5}, "", [("file", None, None)]),
        ({"type": "document"}, "", [("file", None, None)]),
        ({"type": None}, "", [("file", None, None)]),
    ],
)
def test_blocks_are_text_or_media(block, text, kinds):
    message = read("user", {"type": "text", "text": "see"}, block)

    assert message.role == "user"
    assert message.text == f"see\n{text}".rstrip("\n")
    assert [(medium.kind, medium.width, medium.height) for medium in message.media] == kinds


@pytest.mark.parametrize("kind", ["tool_use", "server_tool_use", "mcp_tool_use"])
def test_calls_keep_their_input_as_it_was_written(kind):
    message = message_of(
        b'{"role":"assistant","content":[{"type":"%s","id":"t1","name":"ls","input":{ "a" : null }}]}' % kind.encode()
    )
    assert [(call.id, call.name, call.arguments) for call in message.calls] == [("t1", "ls", '{ "a" : null }')]


def test_results_are_a_tools_message_whatever_stands_beside_them():
    other = {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "two"}, PICTURE]}
    message = read("user", RESULT, other, {"type": "text", "text": "And now?"})

    assert (message.role, message.call_id, message.text) == ("tool", "t1", "done\ntwo\nAnd now?")
    assert [medium.kind for medium in message.media] == ["image"]
    assert read("user", {"type": "tool_result", "tool_use_id": "t1"}).text == ""


@pytest.mark.parametrize(
    ("role", "beside", "has_words"),
    [
        ("user", [{"type": "text", "text": "And now?"}], True),
        ("user", [PICTURE], True),
        ("user", [{"type": "document", "source": {"type": "url", "url": "u"}}], True),
        ("user", [{"type": "from_the_future"}], True),
        ("user", [{"type": "text", "text": " \n"}], False),
        ("user", [], False),
        ("user", [{**RESULT, "tool_use_id": "t2", "content": [PICTURE, {"type": "text", "text": "two"}]}], False),
        ("tool", [{"type": "text", "text": "And now?"}], False),
        ("assistant", [{"type": "text", "text": "And now?"}], False),
    ],
)
def test_words_beside_results_are_known_and_make_no_other_message_of_it(role, beside, has_words):
    for blocks in ([RESULT, *beside], [*beside, RESULT]):
        message = read(role, *blocks)
        assert message.has_user_words is has_words
        assert message.digest == dataclasses.replace(message, has_user_words=not has_words).digest
    assert not read("user", {"type": "text", "text": "hi"}, *beside[:-1]).has_user_words


def test_a_providers_own_results_stay_with_the_assistant_and_can_be_read():
    search = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [FOUND, FOUND]}
    ran = {"type": "bash_code_execution_result", "stdout": "42", "stderr": "", "return_code": 0, "content": []}
    page = {"type": "document", "title": "Home", "source": {"type": "text", "data": "Welcome.", "media_type": "t"}}
    message = read(
        "assistant",
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "otters"}},
        search,
        {"type": "bash_code_execution_tool_result", "tool_use_id": "s2", "content": ran},
        {"type": "web_fetch_tool_result", "tool_use_id": "s3", "content": {"url": "https://y", "content": page}},
        {"type": "text", "text": "So it is."},
    )

    assert message.role == "assistant"
    assert message.text.splitlines() == [
        "Otters", "https://x/o", "Otters", "https://x/o", "42", "Welcome.", "Home", "https://y", "So it is.",
    ]  # fmt: skip
    assert message.call_id is None
    assert message.unseen == 200


def test_thinking_costs_tokens_though_nobody_reads_it():
    bare = read("assistant", CALL)
    thought = read("assistant", {"type": "thinking", "thinking": "hm " * 300, "signature": "S" * 40}, CALL)
    sealed = read("assistant", {"type": "thinking", "thinking": "", "signature": "S" * 4_000}, CALL)
    redacted = read("assistant", {"type": "redacted_thinking", "data": "R" * 4_000}, CALL)

    assert thought == bare == sealed == redacted
    assert (thought.unseen, sealed.unseen, redacted.unseen) == (300, 1_000, 1_000)
    assert Counter().message(thought, "cl100k_base") >= Counter().message(bare, "cl100k_base") + 300


def test_pictures_are_counted_by_their_area():
    tokens = [Counter().message(read("user", {**PICTURE, "source": source}), "cl100k_base") for source in (
        PICTURE["source"], {**PICTURE["source"], "data": png(8_000, 8_000)}, {"type": "url", "url": "u"},
    )]  # fmt: skip
    assert 1000 * 500 / 750 <= tokens[0] <= 1000 * 500 / 750 + 20
    assert tokens[1] == tokens[2] == 4_784 + 5


def test_a_document_is_counted_by_its_own_size_whatever_stands_beside_it():
    """A picture's megabytes were taken for those of a document that is only named."""
    large = {**PICTURE, "source": {**PICTURE["source"], "data": png(500, 500) + "A" * 4_000_000}}
    named = {"type": "document", "source": {"type": "file", "file_id": "f1"}}
    inline = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 100_000}}

    assert 2_000 < Counter().message(read("user", large, named), "cl100k_base") < 2_400
    assert 4_000 < Counter().message(read("user", large, inline), "cl100k_base") < 4_400


# Identity

SAME = {
    "string and one text block": ("hi", [{"type": "text", "text": "hi"}]),
    "cache marks": ([{"type": "text", "text": "hi"}], [{"type": "text", "text": "hi", "cache_control": MARK}]),
    "citations": ([{"type": "text", "text": "hi", "citations": None}], [{"type": "text", "text": "hi"}]),
    "key order": ([CALL], [dict(reversed(CALL.items()))]),
    "what an SDK adds": ([CALL], [{**CALL, "caller": None, "toolset_name": None, "cache_control": None}]),
    "result as string or block": ([RESULT], [{**RESULT, "content": [{"type": "text", "text": "done"}]}]),
    "result's mark and verdict": ([RESULT], [{**RESULT, "is_error": False, "cache_control": MARK}]),
    "picture's mark": ([PICTURE], [{**dict(reversed(PICTURE.items())), "cache_control": HOUR}]),
    "thinking left out": ([{"type": "thinking", "thinking": "x", "signature": "y"}, CALL], [CALL]),
    "empty text left out": ([{"type": "text", "text": ""}, CALL], [CALL]),
    "search result with nulls": (
        [{"type": "web_search_tool_result", "tool_use_id": "s", "content": [FOUND]}],
        [{"caller": None, "content": [{**dict(reversed(FOUND.items())), "page_age": None}], "tool_use_id": "s"}
         | {"type": "web_search_tool_result"}],
    ),
    "unknown block with nulls and a mark": (
        [{"type": "new", "x": {"a": 1, "b": [2]}}],
        [{"x": {"b": [2], "a": 1, "c": None}, "cache_control": MARK, "type": "new"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_shapes_that_mean_the_same_are_the_same_message(name):
    one, other = SAME[name]
    for role in ("user", "assistant"):
        assert digest(role=role, content=one) == digest(content=other, role=role, x=1)


def test_what_differs_is_another_message():
    contents = [
        "a",
        [{"type": "text", "text": "b"}],
        [PICTURE],
        [{**PICTURE, "source": {**PICTURE["source"], "data": png(1, 1)}}],
        [{"type": "image", "source": {"type": "url", "url": "u"}}],
        [{"type": "document", "source": {"type": "url", "url": "v"}}],
        [CALL],
        [{**CALL, "id": "t2"}],
        [{**CALL, "input": {"b": 1}}],
        [{**CALL, "name": "rm"}],
        [RESULT],
        [{**RESULT, "tool_use_id": "t2"}],
        [{**RESULT, "content": "failed"}],
        [RESULT, {"type": "text", "text": "go"}],
        [{"type": "new", "x": 1}],
        [{"type": "new", "x": 2}],
    ]
    assert len({digest(role="user", content=content) for content in contents}) == len(contents)


# Plain answers


def test_a_plain_answer_is_the_message_that_comes_back():
    content = b'[ {"type":"thinking","thinking":"h\\ud83d","signature":"s"},{"text":"caf\\u00e9","type":"text"} ]'
    usage = b'{"input_tokens":3,"cache_creation_input_tokens":10,"cache_read_input_tokens":100,"output_tokens":7}'
    said = completion_in(
        b'{"type":"message","role":"assistant","content":'
        + content
        + b',"stop_reason":"end_turn","usage":'
        + usage
        + b"}"
    )

    assert said.usage == Usage(113, 100, 7)
    assert said.finish_reasons == ("end_turn",)
    (message,) = said.messages
    assert message.raw == b'{"role":"assistant","content":' + content + b"}"
    assert message.digest == digest(role="assistant", content="café")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b'{"type":"error","error":{"type":"x"}}', b'{"type":"message"}', b"\xff",
        b'{"type":"message","content":5}', b'{"type":"message","content":["x"]}',
    ],
)  # fmt: skip
def test_what_is_no_answer_gives_none(body):
    assert completion_in(body).messages == ()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None), ({}, None), ("x", None), ({"cache_read_input_tokens": 5}, None),
        ({"input_tokens": 5, "output_tokens": None}, Usage(5, 0, 0)),
        ({"input_tokens": 5, "cache_read_input_tokens": None, "output_tokens": 2}, Usage(5, 0, 2)),
        ({"input_tokens": -5, "cache_read_input_tokens": 1e300, "output_tokens": "2"}, Usage(0, 0, 0)),
    ],
)  # fmt: skip
def test_usage_is_told_as_one_count_of_input(usage, expected):
    body = json.dumps({"type": "message", "content": [], "usage": usage}).encode()
    assert completion_in(body).usage == expected


def test_media_have_a_digest_of_what_they_are():
    one, two = (read("user", {"type": "image", "source": {"type": "url", "url": url}}) for url in ("u", "v"))
    assert one != two
    assert isinstance(one.media[0], Media)
