"""Promises about streams: nothing depends on where the bytes are cut, and no cut ever looks like an end."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from memory.types import Usage
from proxy.wire import chunks, sse
from proxy.wire.content import message_of

promise = settings(deadline=None, max_examples=40)

STREAMS = Path(__file__).parents[2] / "fixtures" / "streams"
NAMES = sorted(path.stem for path in STREAMS.glob("*.txt"))

# Every form in which servers write the last event.
ENDS = [
    b"data: [DONE]\n\n",
    b"data:[DONE]\n\n",
    b"data: [DONE]\r\n\r\n",
    b"data: [DONE]\r\r",
    b"data:  [DONE]\n",
    b"data: [DONE]",
]


def stream(name: str) -> bytes:
    return (STREAMS / f"{name}.txt").read_bytes()


def seen(answer: sse.Answer) -> tuple[object, ...]:
    """An answer with its messages compared byte by byte, not by what counts for identity."""
    return ([m.raw for m in answer.messages], answer.usage, answer.finish_reasons, answer.terminal, answer.error)


def chunk(delta: dict[str, object], **choice: object) -> bytes:
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": delta, "finish_reason": None, **choice}
    return b"data: " + json.dumps({**event, "choices": [choice]}).encode() + b"\n\n"


# What streams add up to


@pytest.mark.parametrize(
    ("name", "texts", "finish_reasons", "terminal"),
    [
        ("text", ["The capital of Island is Reykjavík, says `data: [DONE]` 🙂."], ("stop",), True),
        ("usage", ["Yes, it does."], ("stop",), True),
        ("azure", ["Fine"], ("stop",), True),
        ("comments_crlf", ["Hallo\r\nWelt"], ("stop",), True),
        ("logprobs", ["One two three"], ("stop",), True),
        ("malformed", ["Still here"], ("stop",), True),
        ("no_done", ["All said"], ("stop",), False),
        ("reasoning", ["2 + 2 = 4"], ("stop",), True),
        ("refusal", [""], ("stop",), True),
        ("two_choices", ["Heads", "Tails"], ("stop", "length"), True),
        ("error_midstream", ["Let me see"], (None,), False),
        ("error_bare", ["Half"], (None,), True),
        ("several_lines", ["Laid out, then crowded"], ("stop",), True),
        ("surrogate_halves", ["A smile: 🙂 and half: \ufffd!"], ("stop",), True),
    ],
)
def test_a_stream_adds_up_to_its_message(name, texts, finish_reasons, terminal):
    answer = chunks.accumulate([stream(name)])

    assert [message.text for message in answer.messages] == texts
    assert {message.role for message in answer.messages} == {"assistant"}
    assert answer.finish_reasons == finish_reasons
    assert answer.terminal is terminal
    assert not answer.truncated


def test_parallel_calls_are_joined_by_index():
    (message,) = chunks.accumulate([stream("tools_parallel")]).messages

    assert [(call.id, call.name, call.arguments) for call in message.calls] == [
        ("call_dVnWq1", "get_weather", '{"city":"Paris", "unit":"c"}'),
        ("call_8kZbY2", "get_time", '{"tz": "Europe/Paris"}'),
    ]


def test_calls_under_one_index_stay_apart_by_their_ids():
    """Gemini's compatible endpoint gives all parallel calls the index 0; they were joined into one."""
    (message,) = chunks.accumulate([stream("tools_one_index")]).messages

    assert [(call.id, call.arguments) for call in message.calls] == [
        ("fc_1", '{"path":"a.py"}'),
        ("fc_2", '{"path":"b.py"}'),
    ]


def test_a_name_sent_with_every_delta_is_taken_once():
    delta = {"index": 0, "id": "c1", "function": {"name": "ls", "arguments": "{}"}}
    more = {"index": 0, "id": "c1", "function": {"name": "ls", "arguments": " "}}
    (message,) = chunks.accumulate([chunk({"tool_calls": [delta]}), chunk({"tool_calls": [more]})]).messages

    assert [(call.name, call.arguments) for call in message.calls] == [("ls", "{} ")]


def test_calls_without_an_index_are_told_apart_by_their_ids():
    deltas = [{"id": f"c{n}", "function": {"name": "ls", "arguments": f'"{n}"'}} for n in range(3)]
    (message,) = chunks.accumulate([chunk({"tool_calls": [delta]}) for delta in deltas]).messages

    assert [(call.id, call.arguments) for call in message.calls] == [("c0", '"0"'), ("c1", '"1"'), ("c2", '"2"')]


def test_a_custom_tools_input_is_joined():
    first = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    more = {"index": 0, "custom": {"input": " -l"}}
    (message,) = chunks.accumulate([chunk({"tool_calls": [first]}), chunk({"tool_calls": [more]})]).messages

    assert [(call.id, call.name, call.arguments) for call in message.calls] == [("c1", "shell", "ls -l")]


def test_what_gemini_signs_stays_with_its_call():
    """It refuses the result of a call that comes back without the signature. Who the message is does not change."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    signed = {**call, "extra_content": {"google": {"thought_signature": "CrI="}}}
    more = {"index": 0, "extra_content": {"x": 1}}
    (plain,) = chunks.accumulate([chunk({"tool_calls": [call]})]).messages
    (message,) = chunks.accumulate([chunk({"tool_calls": [signed]}), chunk({"tool_calls": [more]})]).messages
    (odd,) = chunks.accumulate([chunk({"tool_calls": [{**call, "extra_content": "x"}]})]).messages

    (told,) = json.loads(message.raw)["tool_calls"]
    assert told["extra_content"] == {"google": {"thought_signature": "CrI="}, "x": 1}
    assert message == plain
    assert message.digest == plain.digest
    assert odd.raw == plain.raw


def test_the_old_function_call_is_a_call_named_after_its_function():
    (message,) = chunks.accumulate([stream("function_call")]).messages

    assert [(call.id, call.name, call.arguments) for call in message.calls] == [("lookup", "lookup", '{"q":"x"}')]


def test_reasoning_and_refusal_are_kept_in_the_raw_message():
    reasoning, refusal = (chunks.accumulate([stream(name)]).messages[0] for name in ("reasoning", "refusal"))

    assert json.loads(reasoning.raw)["reasoning_content"] == "They ask for 2+2. Four."
    assert json.loads(refusal.raw) == {
        "role": "assistant",
        "content": None,
        "refusal": "I'm sorry, but I can't help with that.",
    }


def test_content_that_comes_in_parts_gives_its_text():
    """Mistral's reasoning models stream lists of thinking and text parts."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    deltas = [{"content": [thinking]}, {"content": [{"type": "text", "text": "Well"}]}, {"content": "."}]

    assert chunks.accumulate([chunk(delta) for delta in deltas]).messages[0].text == "Well."


@pytest.mark.parametrize(
    ("name", "usage"),
    [("usage", Usage(1182, 1024, 12)), ("reasoning", Usage(20, 16, 15)), ("text", None)],
)
def test_usage_is_what_the_provider_counted(name, usage):
    assert chunks.accumulate([stream(name)]).usage == usage


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("error_midstream", "The server had an error while processing your request. Sorry about that!"),
        ("error_bare", "CUDA out of memory"),
        ("text", None),
    ],
)
def test_an_error_event_is_told(name, error):
    assert chunks.accumulate([stream(name)]).error == error


def test_an_empty_stream_is_an_empty_answer():
    assert chunks.accumulate([]) == sse.Answer()


# Cuts


@pytest.mark.parametrize("name", NAMES)
@promise
@given(data=st.data())
def test_the_answer_does_not_depend_on_where_the_bytes_are_cut(name, data):
    body = stream(name)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=40))
    edges = [0, *sorted(cuts), len(body)]
    pieces = [body[a:b] for a, b in pairwise(edges)]

    assert seen(chunks.accumulate(pieces)) == seen(chunks.accumulate([body]))


@pytest.mark.parametrize("name", ["text", "logprobs", "comments_crlf", "several_lines"])
def test_one_byte_at_a_time_is_the_same_answer(name):
    body = stream(name)
    assert seen(chunks.accumulate(body[i : i + 1] for i in range(len(body)))) == seen(chunks.accumulate([body]))


def test_a_stream_longer_than_what_waits_unread_adds_up_the_same():
    words = [f"word {n} " for n in range(4000)]
    for newline in (b"\n", b"\r\n", b"\r"):
        body = b"".join(chunk({"content": word}).replace(b"\n", newline) for word in words)
        assert len(body) > 2 * sse.FLUSH_BYTES
        answer = chunks.accumulate(body[i : i + 1000] for i in range(0, len(body), 1000))
        assert answer.messages[0].text == "".join(words)


def test_an_event_of_a_megabyte_is_read():
    text = "é" * 700_000
    body = chunk({"content": text}) + chunk({"content": "!"})
    answer = chunks.accumulate(body[i : i + 1400] for i in range(0, len(body), 1400))

    assert answer.messages[0].text == text + "!"


def test_an_answer_over_the_limit_is_truncated_and_says_so():
    accumulator = chunks.accumulator(max_chars=10_000)
    for _ in range(100):
        accumulator.feed(chunk({"content": "x" * 1000}))
    accumulator.feed(b"data: [DONE]\n\n")
    answer = accumulator.finish()

    assert answer.truncated
    assert answer.terminal
    assert 10_000 <= len(answer.messages[0].text) <= 11_000


# The terminal


@pytest.mark.parametrize("name", NAMES)
def test_no_prefix_of_a_stream_fakes_an_end(name):
    body = stream(name)
    line = re.search(rb"(?m)^data: ?\[DONE\]", body)
    ends = line.end() if line else len(body) + 1

    for stop in range(len(body) + 1):
        assert (chunks.accumulator().feed(body[:stop]) is not None) == (stop >= ends), body[:stop][-40:]


@pytest.mark.parametrize("name", ["text", "comments_crlf", "logprobs"])
def test_every_byte_from_the_terminal_line_on_is_held(name):
    """For each way to cut a stream in two: nothing before the line waits, nothing of a finished line goes out."""
    body = stream(name)
    line = re.search(rb"(?m)^data: ?\[DONE\]", body)

    for cut in range(len(body) + 1):
        accumulator = chunks.accumulator()
        held = [accumulator.feed(part) for part in (body[:cut], body[cut:])]
        if cut >= line.end():
            assert held == [line.start(), None]
        else:
            assert held == [None, max(0, line.start() - cut)]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("before", [b"", b"data: {}\n\n", b": ping\r\n\r\n", b"event: x\r"])
def test_every_form_of_the_last_line_is_an_end(end, before):
    assert chunks.accumulator().feed(before + end) == len(before)


@pytest.mark.parametrize(
    "text",
    [
        chunk({"content": "data: [DONE]"}),
        chunk({"content": "\ndata: [DONE]\n\n"}),
        b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n',
        b": data: [DONE]\n\n",
        b"event: data: [DONE]\n\n",
        b"xdata: [DONE]\n\n",
        b" data: [DONE]\n\n",
        b"data: [done]\n\n",
        b'data: "[DONE]"\n\n',
        b"data: [DONE\n]\n\n",
        b"data: x [DONE]\n\n",
        b"data\n: [DONE]\n\n",
    ],
)
def test_what_only_looks_like_an_end_is_none(text):
    for cut in range(len(text)):
        accumulator = chunks.accumulator()
        assert accumulator.feed(text[:cut]) is None
        assert accumulator.feed(text[cut:]) is None
        assert not accumulator.finish().terminal


@promise
@given(text=st.text(), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_no_content_fakes_an_end(text, cuts):
    body = chunk({"content": text + "[DONE]\n\ndata: [DONE]\n\n" + text})
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]

    assert not chunks.accumulate(body[a:b] for a, b in pairwise(edges)).terminal


def test_what_comes_after_the_end_does_not_count():
    answer = chunks.accumulate(
        [chunk({"content": "a"}), b"data: [DONE]\n\n" + chunk({"content": "b"}), chunk({"content": "c"})]
    )
    assert answer.messages[0].text == "a"


@promise
@given(
    body=st.binary(max_size=300), lines=st.lists(st.sampled_from([b"data:", b"\n", b"\r\n", b"[DONE]", b"{}", b'"']))
)
def test_garbage_is_read_without_an_error(body, lines):
    chunks.accumulate([body, *lines, body])


ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just([])
    | st.just({})
    | st.just([{}])
)
CALL = st.dictionaries(st.sampled_from(["index", "id", "type"]), ODD) | st.fixed_dictionaries(
    {"function": ODD | st.dictionaries(st.sampled_from(["name", "arguments"]), ODD)}
)
DELTA = st.dictionaries(st.sampled_from(["role", "content", "refusal", "reasoning", "audio", "function_call"]), ODD)
EVENT = st.fixed_dictionaries(
    {},
    optional={
        "choices": ODD
        | st.lists(
            st.fixed_dictionaries(
                {"delta": ODD | DELTA | st.fixed_dictionaries({"tool_calls": st.lists(CALL, max_size=3)})},
                optional={"index": ODD, "finish_reason": ODD},
            ),
            max_size=3,
        ),
        "usage": ODD | st.dictionaries(st.sampled_from(["prompt_tokens", "prompt_tokens_details"]), ODD),
        "error": ODD | st.dictionaries(st.sampled_from(["message", "code"]), ODD),
        "message": ODD,
        "model": ODD,
    },
)


@promise
@given(events=st.lists(EVENT, max_size=5))
def test_events_of_any_shape_are_read_without_an_error(events):
    """And one that cannot be read takes no other with it."""
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    answer = chunks.accumulate([chunk({"content": "before"}, index=7), body, chunk({"content": ", after"}, index=7)])

    assert [m.text for m in answer.messages if m.text.startswith("before")] == ["before, after"]


# The message a client sends back is the one we accumulated


def as_the_sdk_returns_it(body: bytes) -> list[dict[str, object]]:
    """The messages that openai-python builds from a stream."""
    state = ChatCompletionStreamState()
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            state.handle_chunk(ChatCompletionChunk.construct(**json.loads(line[6:])))
    return [choice.message.to_dict() for choice in state.current_completion_snapshot.choices]


def resent(message: dict[str, object]) -> list[dict[str, object]]:
    """The shapes in which clients send it."""
    bare = {key: value for key, value in message.items() if value is not None}
    shapes = [
        message,
        bare,
        {**message, "refusal": message.get("refusal"), "annotations": [], "audio": None},
        dict(reversed(bare.items())),
    ]
    if not message.get("content"):
        shapes += [{**bare, "content": empty} for empty in (None, "", [])]
    else:
        shapes += [{**bare, "content": [{"type": "text", "text": message["content"]}]}]
    if message.get("tool_calls"):
        calls = [
            {
                "function": {"arguments": call["function"]["arguments"], "name": call["function"]["name"]},
                "id": call["id"],
            }
            for call in message["tool_calls"]
        ]
        shapes += [{**bare, "tool_calls": calls}]
    return shapes


@pytest.mark.parametrize("name", ["text", "usage", "tools_parallel", "reasoning", "refusal", "azure"])
def test_what_the_sdk_sends_back_is_the_message_we_accumulated(name):
    body = stream(name)
    accumulated = chunks.accumulate([body]).messages

    for ours, theirs in zip(accumulated, as_the_sdk_returns_it(body), strict=True):
        for shape in resent(theirs):
            for separators in ((",", ":"), (", ", ": ")):
                assert message_of(json.dumps(shape, separators=separators).encode()).digest == ours.digest, shape


@promise
@given(
    pieces=st.lists(st.text(max_size=8), max_size=6),
    calls=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers(), max_size=3), max_size=3),
    data=st.data(),
)
def test_any_answer_comes_back_as_the_same_message(pieces, calls, data):
    deltas = [{"role": "assistant", "content": None}, *({"content": piece} for piece in pieces)]
    for index, arguments in enumerate(calls):
        text = json.dumps(arguments)
        cut = data.draw(st.integers(0, len(text)))
        head = {"index": index, "id": f"call_{index}", "function": {"name": "f", "arguments": text[:cut]}}
        deltas += [{"tool_calls": [head]}, {"tool_calls": [{"index": index, "function": {"arguments": text[cut:]}}]}]
    (ours,) = chunks.accumulate(chunk(delta) for delta in deltas).messages

    sent = {"role": "assistant", "content": "".join(pieces) or None}
    if calls:
        sent["tool_calls"] = [
            {"id": f"call_{i}", "type": "function", "function": {"name": "f", "arguments": json.dumps(a, indent=1)}}
            for i, a in enumerate(calls)
        ]
    assert message_of(json.dumps(sent).encode()).digest == ours.digest
