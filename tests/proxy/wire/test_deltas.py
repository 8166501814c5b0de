"""Promises about streamed Messages API answers: where the bytes are cut does not matter, and no cut looks like an end."""

import json
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import anthropic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.types import Usage
from proxy.wire import deltas, sse
from proxy.wire.anthropic import completion_in
from proxy.wire.content import message_of
from tests.scripted import ScriptedUpstream
from tests.scripted import sse as sse_answer
from tests.spoken_to import event, events, thinking, whole

Json = dict[str, Any]
promise = settings(deadline=None, max_examples=40)

STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
SEARCH = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "otters"}}
FOUND = {
    "type": "web_search_tool_result", "tool_use_id": "srv_1",
    "content": [{"type": "web_search_result", "title": "T", "url": "https://x", "encrypted_content": "A", "page_age": None}],
}  # fmt: skip
CONTENTS: dict[str, list[Json]] = {
    "text": [{"type": "text", "text": "Reykjavík says `event: message_stop` 🙂."}],
    "thinking and calls": [
        thinking("They ask for two things."),
        {"type": "redacted_thinking", "data": "RRRR"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "é\n", "deep": None, "n": [1, 2.5]}},
        {"type": "tool_use", "id": "t2", "name": "ls", "input": {}},
    ],
    "search": [SEARCH, FOUND, {"type": "text", "text": "Otters."}],
    "nothing": [],
}


def stream(name: str) -> bytes:
    return b"".join(events(CONTENTS[name], 113))


def without_event_lines(body: bytes) -> bytes:
    return b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b"event:"))


STREAMS = {
    **{name: stream(name) for name in CONTENTS},
    "crlf": stream("thinking and calls").replace(b"\n", b"\r\n"),
    "data alone": without_event_lines(stream("thinking and calls")),
    "error": event("message_start", message=whole([], 5)) + event("error", error={"type": "overloaded_error", "message": "Overloaded"}),
    "bare": b"".join(events(CONTENTS["text"])[2:-1]),
}  # fmt: skip


def seen(answer: sse.Answer) -> tuple[object, ...]:
    return ([m.raw for m in answer.messages], answer.usage, answer.finish_reasons, answer.terminal, answer.error)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_stream_adds_up_to_the_plain_answer(name):
    answer, plain = deltas.accumulate([STREAMS[name]]), completion_in(json.dumps(whole(CONTENTS[name], 113)).encode())

    assert [json.loads(m.raw) for m in answer.messages] == [json.loads(m.raw) for m in plain.messages]
    assert answer.messages == plain.messages
    assert (answer.usage, answer.finish_reasons) == (plain.usage, plain.finish_reasons)
    assert answer.usage == Usage(113, 100, 5)
    assert (answer.terminal, answer.model, answer.error) == (True, "m", None)


def test_usage_of_later_events_replaces_earlier_ones():
    """Counts are cumulative, and null says nothing; some servers count the input only at the end."""
    start = {"input_tokens": 0, "cache_read_input_tokens": 90, "output_tokens": 1}
    body = event("message_start", message={**whole([], 1), "usage": start})
    body += event(
        "message_delta", delta={}, usage={"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 9}
    )
    body += event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 12})
    assert deltas.accumulate([body]).usage == Usage(97, 90, 12)


def test_an_error_event_is_told_and_is_no_end():
    answer = deltas.accumulate([STREAMS["error"]])
    assert (answer.error, answer.terminal) == ("Overloaded", False)
    assert deltas.accumulate([b'data: {"error":{"message":"down"}}\n\n']).error == "down"


def test_a_cut_call_keeps_what_was_said_of_it():
    whole_stream = stream("thinking and calls")
    body = whole_stream[: whole_stream.index(b'"index": 3') + 10]
    (message,) = deltas.accumulate([body]).messages
    assert message.text == "I look."
    cut = event("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "n", "input": {}})
    cut += event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a": 1'})
    (message,) = deltas.accumulate([cut]).messages
    assert [(call.id, call.arguments) for call in message.calls] == [("t", '"{\\"a\\": 1"')]


def test_citations_are_kept_for_the_record():
    body = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for n in range(2):
        body += event("content_block_delta", index=0, delta={"type": "citations_delta", "citation": {"n": n}})
        body += event("content_block_delta", index=0, delta={"type": "text_delta", "text": f"{n}"})
    (message,) = deltas.accumulate([body]).messages
    assert json.loads(message.raw)["content"] == [{"type": "text", "text": "01", "citations": [{"n": 0}, {"n": 1}]}]


def test_halves_of_surrogate_pairs_are_joined():
    body = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for half in ("\ud83d", "\ude42", "\ud83d"):
        body += event("content_block_delta", index=0, delta={"type": "text_delta", "text": half})
    assert deltas.accumulate([body]).messages[0].text == "🙂\ufffd"


def test_an_answer_over_the_limit_is_truncated_and_says_so():
    accumulator = deltas.accumulator(max_chars=10_000)
    accumulator.feed(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
    for _ in range(100):
        accumulator.feed(event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 1000}))
    accumulator.feed(STOP)
    answer = accumulator.finish()

    assert (answer.truncated, answer.terminal) == (True, True)
    assert 9_000 <= len(answer.messages[0].text) <= 11_000


# Cuts


@pytest.mark.parametrize("name", STREAMS)
@promise
@given(data=st.data())
def test_the_answer_does_not_depend_on_where_the_bytes_are_cut(name, data):
    body = STREAMS[name]
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=40))), len(body)]
    assert seen(deltas.accumulate(body[a:b] for a, b in pairwise(edges))) == seen(deltas.accumulate([body]))


@pytest.mark.parametrize("name", ["thinking and calls", "crlf", "data alone"])
def test_one_byte_at_a_time_is_the_same_answer(name):
    body = STREAMS[name]
    assert seen(deltas.accumulate(body[i : i + 1] for i in range(len(body)))) == seen(deltas.accumulate([body]))


# The terminal


def line_of(body: bytes) -> tuple[int, int]:
    """Where the first line of the terminal event begins, and where it can be told from others."""
    for mark in (b"\nevent: message_stop", b'\ndata: {"type": "message_stop"'):
        if mark in body:
            return body.index(mark) + 1, body.index(mark) + len(mark)
    return len(body) + 1, len(body) + 1


@pytest.mark.parametrize("name", STREAMS)
def test_no_prefix_of_a_stream_fakes_an_end(name):
    body = STREAMS[name]
    _, told = line_of(body)
    for stop in range(len(body) + 1):
        assert (deltas.accumulator().feed(body[:stop]) is not None) == (stop >= told), body[:stop][-40:]


@pytest.mark.parametrize("name", ["text", "crlf", "data alone"])
def test_every_byte_from_the_terminal_line_on_is_held(name):
    body = STREAMS[name]
    start, told = line_of(body)
    for cut in range(len(body) + 1):
        accumulator = deltas.accumulator()
        held = [accumulator.feed(part) for part in (body[:cut], body[cut:])]
        assert held == ([start, None] if cut >= told else [None, max(0, start - cut)])


@pytest.mark.parametrize(
    "end",
    [
        STOP, STOP.replace(b"\n", b"\r\n"), STOP.replace(b"\n", b"\r"), b"event:message_stop\n", b"event: message_stop",
        b'data: {"type":"message_stop"}\n\n', b'data:{"type" : "message_stop","x":1}', b'data: { "type": "message_stop" }',
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", b"event: ping\ndata: {}\n\n", b": ping\r\n\r\n"])
def test_every_form_of_the_last_event_is_an_end(end, before):
    assert deltas.accumulator().feed(before + end) == len(before)


LATE = {
    "type last": b'data: {"x":{"type":"ping"},"type":"message_stop"}\n\n',
    "type between": b'data:{"x":"message_stop", "type" : "message_stop", "y":1}\n\n',
    "CRLF": b'data: {"x":1,"type":"message_stop"}\r\n\r\n',
    "CR": b'data: {"x":1,"type":"message_stop"}\r\r',
    "an id": b'id: 7\ndata: {"x":1,"type":"message_stop"}\n\n',
    "a long one": b'data: {"x":"' + b"y" * 400 + b'","type":"message_stop"}\n\n',
    "no blank line": b'data: {"x":1,"type":"message_stop"}\n',
    "several lines": b'data: {"x":1,\ndata: "type":"message_stop"\ndata: }\n\n',
}


def sent_of(pieces: Iterable[bytes]) -> bytes:
    """What goes out of a stream before its turn is safe."""
    accumulator, sent = deltas.accumulator(), b""
    for piece in pieces:
        held = accumulator.feed(piece)
        if held is not None:
            return sent + piece[:held]
        sent += piece
    raise AssertionError("no end")


@pytest.mark.parametrize("name", LATE)
def test_an_end_whose_type_stands_behind_other_keys_is_held_before_anybody_can_read_it(name):
    """Without an `event:` line it went out before the turn was safe. A line is read when it ends, or its event does."""
    before = event("ping") + b'data: {"x":{"type":"message_stop"}}\n\n'
    body = before + LATE[name]
    begins, ends = len(before), len(body) - 1 if name == "several lines" else len(body.rstrip(b"\r\n"))

    assert len(sent_of([body, b""])) == begins
    assert len(sent_of(body[i : i + 1] for i in range(len(body)))) <= ends
    for cut in range(len(body)):
        assert len(sent_of([body[:cut], body[cut:]])) <= max(begins, min(cut, ends))


def test_events_of_many_lines_are_not_read_for_each_of_them():
    line = b'data: {"x":1,"type":"message_stop"},\n'
    began = time.process_time()
    accumulator = deltas.accumulator()
    accumulator.feed(b"data: [\n")
    assert [accumulator.feed(line) for _ in range(30_000)].count(None) == 30_000
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "text",
    [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "\nevent: message_stop\n\n"}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": '{"type":"message_stop"}'}),
        event("content_block_start", index=0, content_block={"type": "message_stop"}),
        b": event: message_stop\n\n",
        b"xevent: message_stop\n\n",
        b" event: message_stop\n\n",
        b"event: x message_stop\n\n",
        b'data: {"x":{"type":"message_stop"}}\n\n',
        b"data: message_stop\n\n",
    ],
)
def test_what_only_looks_like_an_end_is_none(text):
    for cut in range(len(text)):
        accumulator = deltas.accumulator()
        assert accumulator.feed(text[:cut]) is None
        assert accumulator.feed(text[cut:]) is None
        assert not accumulator.finish().terminal


# Odd events

ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([{}])
)  # fmt: skip
KINDS = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "message_delta", "error", "new"]
)
EVENT = st.fixed_dictionaries(
    {"type": ODD | KINDS},
    optional={
        "index": ODD,
        "message": ODD | st.dictionaries(st.sampled_from(["content", "usage", "model"]), ODD),
        "content_block": ODD | st.dictionaries(st.sampled_from(["type", "text", "input", "id", "content"]), ODD),
        "delta": ODD | st.dictionaries(st.sampled_from(["type", "text", "partial_json", "signature", "citation"]), ODD),
        "usage": ODD | st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]), ODD),
        "error": ODD,
    },
)


@promise
@given(odd=st.lists(EVENT, max_size=5))
def test_events_of_any_shape_are_read_without_an_error(odd):
    """And one that cannot be read takes no other with it."""
    begun = event("content_block_start", index=77, content_block={"type": "text", "text": "before"})
    more = event("content_block_delta", index=77, delta={"type": "text_delta", "text": ", after"})
    answer = deltas.accumulate([begun, *(b"data: " + json.dumps(one).encode() + b"\n\n" for one in odd), more])
    assert answer.messages[0].text.endswith("before, after")


@promise
@given(
    body=st.binary(max_size=300), lines=st.lists(st.sampled_from([b"data:", b"\n", b"\r\n", b"event:", b"{}", b'"']))
)
def test_garbage_is_read_without_an_error(body, lines):
    deltas.accumulate([body, *lines, body])


# The message a client sends back is the one we accumulated


def as_the_sdk_has_it(body: bytes) -> anthropic.types.Message:
    """The message that Anthropic's SDK builds from a stream."""
    with ScriptedUpstream(sse_answer([body])) as upstream:
        client = anthropic.Anthropic(base_url=upstream.url, api_key="k", max_retries=0)
        asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        with client, client.messages.stream(**asked) as stream:  # type: ignore[arg-type]
            return stream.get_final_message()


@pytest.mark.parametrize("name", ["text", "thinking and calls", "search", "crlf"])
def test_what_the_sdk_sends_back_is_the_message_we_accumulated(name):
    (ours,) = deltas.accumulate([STREAMS[name]]).messages
    theirs = as_the_sdk_has_it(STREAMS[name])
    for dumped in (theirs.model_dump(), theirs.model_dump(exclude_none=True), theirs.model_dump(mode="json")):
        for separators in ((",", ":"), (", ", ": ")):
            sent = {"content": dumped["content"], "role": "assistant"}
            assert message_of(json.dumps(sent, separators=separators).encode()).digest == ours.digest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@promise
@given(texts=st.lists(st.text(max_size=8), max_size=4), inputs=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=3))  # fmt: skip
def test_any_answer_comes_back_as_the_same_message(texts, inputs):
    content: list[Json] = [{"type": "text", "text": text} for text in texts]
    content += [{"type": "tool_use", "id": f"t{n}", "name": "f", "input": given} for n, given in enumerate(inputs)]
    (ours,) = deltas.accumulate(events(content)).messages
    (plain,) = completion_in(json.dumps(whole(content, 1)).encode()).messages

    assert message_of(json.dumps({"role": "assistant", "content": content}).encode()) == ours == plain
