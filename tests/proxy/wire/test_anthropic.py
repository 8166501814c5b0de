"""Promises about Messages API bodies: what is understood loses nothing, and what is rendered is legal there."""

import base64
import json
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.messages import Media, Message
from memory.tokens import Counter
from memory.types import Usage
from proxy.wire.anthropic import SHAPE, completion_in, message_json, render, results, with_content
from proxy.wire.content import message_of
from proxy.wire.dialects import CHAT, MESSAGES, dialect_at, errors_at
from proxy.wire.parser import Parser
from tests.bodies import USER, body_of, digest
from tests.proxy.wire.test_openai import NOT_UNDERSTOOD, ODD_BUT_UNDERSTOOD
from tests.spoken_to import blocks_of, marks_in, problems, unmarked

Json = dict[str, Any]

promise = settings(deadline=None, max_examples=60)
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


# Our own words in the prompt

DIGEST, BLOCK = message_json("user", "What was said before."), message_json("user", "<quoted>")


def rendered(messages: list[Json], *pieces: bytes | int, stable: int = 0, **more: Any) -> Json:
    """A request with some of its messages (by index) and some of ours forwarded."""
    request = parsed({"model": "m", "max_tokens": 5, "messages": messages, **more})
    front = [message.raw for message in request.messages[: request.preface]]
    given = request.messages[request.preface :]
    raws = [*front, *(given[piece].raw if isinstance(piece, int) else piece for piece in pieces)]
    out: Json = json.loads(render(request, raws, request.preface + stable))
    return out


def texts(message: Json) -> list[str]:
    return [block.get("text") or str(block.get("content")) for block in blocks_of(message["content"])]


TALK: list[Json] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": [CALL]},
    {"role": "user", "content": [RESULT, {"type": "text", "text": "and?"}]},
    {"role": "assistant", "content": "well"},
    {"role": "user", "content": [{"type": "text", "text": "two"}]},
]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((DIGEST, 0), [["What was said before.", "one"]]),
        ((DIGEST, 1, 2), [["What was said before."], ["None"], ["done", "and?"]]),
        ((DIGEST, 3, BLOCK, 4), [["What was said before."], ["well"], ["<quoted>", "two"]]),
        ((DIGEST, BLOCK, 4), [["What was said before.", "<quoted>", "two"]]),
        ((DIGEST, 2), [["done", "and?", "What was said before."]]),
        ((0, 1, BLOCK, 2), [["one"], ["None"], ["done", "and?", "<quoted>"]]),
        ((0, 1, 2, BLOCK, 3), [["one"], ["None"], ["done", "and?", "<quoted>"], ["well"]]),
        ((0, 3, BLOCK), [["one"], ["well"], ["<quoted>"]]),
        ((0, BLOCK), [["one", "<quoted>"]]),
    ],
)
def test_ours_join_the_clients_messages_and_nothing_stands_before_results(pieces, expected):
    out = rendered(TALK, *pieces)["messages"]

    assert [texts(message) for message in out] == expected
    assert [message["role"] for message in out] == (["user", "assistant"] * 3)[: len(out)]


def test_neighbours_of_the_clients_own_stay_as_they_came():
    twice = [TALK[0], {"role": "user", "content": "two", "x": 1}]
    assert rendered(twice, 0, 1)["messages"] == twice
    assert rendered(twice, DIGEST, 0, 1)["messages"][1:] == twice[1:]


def test_a_client_may_say_what_we_would():
    """Its own message is its own, whatever stands in it."""
    same = json.loads(DIGEST)
    assert rendered([same, TALK[0]], 0, 1)["messages"] == [same, TALK[0]]


def test_system_messages_stand_behind_a_users():
    """There they may stand, and two may not stand together."""
    told = [{"role": "system", "content": f"s{n}"} for n in range(2)]
    talk = [TALK[0], told[0], TALK[3], {"role": "user", "content": "three"}, told[1], TALK[3], TALK[4]]

    assert rendered(talk, DIGEST, 1, 3, 4, 5, 6)["messages"][:3] == [
        {"role": "user", "content": [{"type": "text", "text": "What was said before."}, {"type": "text", "text": "three"}]},
        told[0],
        told[1],
    ]  # fmt: skip
    roles = [message["role"] for message in rendered(talk, DIGEST, 1, 4, 5, 6)["messages"]]
    assert roles == ["user", "system", "assistant", "user"]
    held = rendered(talk, 1, DIGEST, 6)["messages"]
    assert [message["role"] for message in held] == ["user", "system"]


# Marks


def test_a_client_without_marks_gets_none():
    assert marks_in(rendered(TALK, DIGEST, 3, 4, stable=1)) == []


def test_a_property_of_a_tool_is_no_mark():
    tools = [{"name": "x", "input_schema": {"properties": {"cache_control": {"type": "string"}}}}]
    quoting = [{"role": "user", "content": 'say "cache_control": {"type":"ephemeral"}'}]
    assert marks_in(rendered(quoting, DIGEST, 0, stable=1, tools=tools)) == []


MARKED = [*TALK[:4], {"role": "user", "content": [{"type": "text", "text": "two", "cache_control": MARK}]}]


def test_the_end_of_the_frozen_prefix_is_marked():
    for stable, (message, block) in {1: (0, 0), 2: (1, 0), 3: (2, 1)}.items():
        out = rendered(MARKED, DIGEST, 1, 2, 3, 4, stable=stable)
        assert [found for found, _ in marks_in(out)] == [
            out["messages"][message]["content"][block],
            out["messages"][-1]["content"][0],
        ]
    frozen = rendered(MARKED, DIGEST, 3, 4, stable=2)["messages"][1]
    assert frozen == {"role": "assistant", "content": [{"type": "text", "text": "well", "cache_control": MARK}]}


@pytest.mark.parametrize(
    "last", [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": " "}, {"type": "new"}]
)
def test_where_no_mark_may_stand_the_message_before_has_it(last):
    said = [*MARKED[:3], {"role": "assistant", "content": [{"type": "text", "text": "x"}, last]}, MARKED[4]]
    out = rendered(said, DIGEST, 3, 4, stable=2)

    assert out["messages"][0]["content"][0]["cache_control"] == MARK
    assert out["messages"][1] == said[3]


def test_what_the_client_marked_itself_is_marked_once():
    said = [*MARKED[:3], {"role": "assistant", "content": [{"type": "text", "text": "x", "cache_control": MARK}]}, MARKED[4]]  # fmt: skip
    assert len(marks_in(rendered(said, DIGEST, 3, 4, stable=2))) == 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [None, None]),
        ({"cache_control": HOUR}, ["1h", "1h"]),
        ({"system": [{"type": "text", "text": "s", "cache_control": HOUR}]}, ["1h", "1h", None]),
        ({"system": [{"type": "text", "text": "s", "cache_control": MARK}]}, [None, None, None]),
        ({"tools": [{"name": "t", "cache_control": HOUR}]}, ["1h", "1h", None]),
    ],
)
def test_a_mark_lives_as_long_as_the_one_before_it(more, expected):
    """A longer one after a shorter one is refused."""
    said = TALK if more.get("cache_control") else MARKED
    out = rendered(said, DIGEST, 3, 4, stable=1, **more)

    assert [mark.get("ttl") for _, mark in marks_in(out)] == expected
    assert list(problems(out)) == []


def test_four_marks_of_the_client_leave_none_for_us():
    system = [{"type": "text", "text": f"s{n}", "cache_control": MARK} for n in range(3)]
    out = rendered(MARKED, DIGEST, 3, 4, stable=1, system=system)
    assert len(marks_in(out)) == 4
    assert "cache_control" not in out["messages"][0]["content"][0]


def test_stored_messages_have_no_marks_of_their_own():
    """A shortened result, or what a client cut off, has the marks of another day."""
    stored = json.dumps({"role": "user", "content": [{**RESULT, "cache_control": MARK, "content": [
        {"type": "text", "text": "x", "cache_control": HOUR}]}]}).encode()  # fmt: skip
    out = rendered(MARKED, DIGEST, 1, stored, 3, 4)
    assert len(marks_in(out)) == 1


# Any conversation

words = st.sampled_from(["a", "be brief", "é🙂", '"quoted"', "{[,]}", "line\nline"])
marks = st.sampled_from([None, None, MARK])


@st.composite
def talks(draw: st.DrawFn) -> list[Json]:
    """A legal conversation, without marks; ends with a user message."""
    said: list[Json] = []
    for turn in range(draw(st.integers(1, 5))):
        text = draw(words)
        said.append(
            {"role": "user", "content": draw(st.sampled_from([text, [{"type": "text", "text": text}, PICTURE]]))}
        )
        for step in range(draw(st.integers(0, 3))):
            ids = [f"t{turn}-{step}-{n}" for n in range(draw(st.integers(1, 3)))]
            thought = [{"type": "thinking", "thinking": draw(words), "signature": "s"}] if draw(st.booleans()) else []
            said.append({"role": "assistant", "content": [*thought, *({**CALL, "id": id} for id in ids)]})
            found: list[Json] = [{**RESULT, "tool_use_id": id, "content": draw(words)} for id in ids]
            said.append(
                {
                    "role": "user",
                    "content": [*found, {"type": "text", "text": "so"}][: draw(st.integers(len(ids), len(ids) + 1))],
                }
            )
        said.append({"role": "assistant", "content": draw(words)})
    return [*said, {"role": "user", "content": draw(words)}]  # fmt: skip


def mark(draw: st.DrawFn, said: list[Json], system: list[Json]) -> None:
    """Mark up to four blocks, those that live an hour first."""
    spoken = [block for message in said if isinstance(message["content"], list) for block in message["content"]]
    blocks = [*system, *(block for block in spoken if block["type"] != "thinking")]
    chosen = sorted(draw(st.sets(st.integers(0, max(len(blocks) - 1, 0)), max_size=min(4, len(blocks)))))
    hours = draw(st.integers(0, len(chosen)))
    for n, place in enumerate(chosen):
        blocks[place]["cache_control"] = HOUR if n < hours else MARK


def own(raw: bytes) -> list[Json]:
    return [unmarked(block) for block in blocks_of(json.loads(raw)["content"])]


@promise
@given(said=talks(), data=st.data())
def test_whatever_is_folded_the_prompt_is_legal_and_the_clients_blocks_are_its_own(said, data):
    said = json.loads(json.dumps(said))
    system = [{"type": "text", "text": f"s{n}"} for n in range(2)]
    mark(data.draw, said, system)
    request = parsed({"model": "m", "max_tokens": 5, "system": system, "messages": said})
    line = request.messages[1:]
    starts = [n for n in range(1, len(line)) if line[n].role != "tool"]  # a call is not cut from its results
    start = data.draw(st.sampled_from(starts))
    newest = max(n for n, message in enumerate(line) if message.role == "user")
    kept = [*([newest] if newest < start else []), *range(start, len(line))]
    pieces: list[bytes] = [request.messages[0].raw, DIGEST]
    for n in kept:
        pieces += [BLOCK] * (n == newest and data.draw(st.booleans()))
        pieces.append(line[n].raw)
    out = json.loads(render(request, pieces, data.draw(st.integers(2, len(pieces)))))

    assert list(problems(out)) == []
    assert out["system"] == system
    shown = [unmarked(block) for message in out["messages"] for block in blocks_of(message["content"])]
    ours = [json.loads(raw)["content"][0] for raw in (DIGEST, BLOCK)]
    assert [block for block in shown if block not in ours] == [block for n in kept for block in own(line[n].raw)]
    if any("cache_control" in json.dumps(one) for one in (said, system)) and len(marks_in(out)) < 4:
        assert marks_in(out)


@promise
@given(said=talks(), more=talks(), blocks=st.tuples(st.booleans(), st.booleans()), data=st.data())
def test_until_the_next_rollover_the_previous_prompt_is_a_prefix(said, more, blocks, data):
    """But for the block, and whatever the client marks meanwhile."""

    def prompt(messages: list[Json], has_block: bool) -> list[tuple[str, str]]:
        given = json.loads(json.dumps(messages))
        mark(data.draw, given, [])
        request = parsed({"model": "m", "max_tokens": 5, "messages": given})
        newest = max(n for n, message in enumerate(request.messages) if message.role == "user")
        pieces = [DIGEST]
        for n, message in enumerate(request.messages):
            pieces += [BLOCK] * (has_block and n == newest)
            pieces.append(message.raw)
        out = json.loads(render(request, pieces, 1))["messages"]
        return [
            (message["role"], json.dumps(unmarked(block)))
            for message in out
            for block in blocks_of(message["content"])
            if block != json.loads(BLOCK)["content"][0]
        ]

    answered = [*said, {"role": "assistant", "content": "ok"}, *more]
    before, after = prompt(said, blocks[0]), prompt(answered, blocks[1])
    assert after[: len(before)] == before


# Shortened results


def test_each_result_in_a_message_can_have_other_content():
    raw = (
        b'{ "role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":"long","is_error":true} ,'
        b'{"tool_use_id":"t2","type":"tool_result"}, {"type":"text","text":"go"}]}'
    )
    assert [message_of(one).text for one in results(raw)] == ["long", ""]
    assert with_content(raw, "new") == raw.replace(b'"long"', b'"new"')
    assert json.loads(with_content(raw, "new", 1))["content"][1] == {
        "tool_use_id": "t2", "type": "tool_result", "content": "new",
    }  # fmt: skip
    assert results(TALK_RAW := json.dumps(TALK[0]).encode()) == (TALK_RAW,)
    assert message_of(with_content(TALK_RAW, "new")).text == "new"


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


def test_hostile_blocks_cost_linear_time():
    began = time.process_time()
    many = b",".join([b'{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"x"}]}'] * 20_000)
    raw = b'{"role":"user","content":[' + many + b"]}"
    request = parsed(body_of(raw))
    render(request, [DIGEST, raw], 1)
    assert len(results(raw)) == 20_000
    assert time.process_time() - began < 10


def test_media_have_a_digest_of_what_they_are():
    one, two = (read("user", {"type": "image", "source": {"type": "url", "url": url}}) for url in ("u", "v"))
    assert one != two
    assert isinstance(one.media[0], Media)
