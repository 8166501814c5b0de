"""Promises about streams of the Responses API: no cut changes the answer, and no cut looks like an end."""

import json
import random
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.types import Usage
from proxy.wire import sse
from proxy.wire.content import message_of
from proxy.wire.responses import completion_in
from proxy.wire.responses_events import accumulate, accumulator
from tests.responses import call, event, events, message, reasoning, response

Json = dict[str, Any]

promise = settings(deadline=None, max_examples=40)

ITEMS = [
    reasoning(random.Random(1)) | {"id": "rs_1"},
    message("Two things: `data: [DONE]` and\nevent: response.completed 🙂.", id="msg_1"),
    call("c1", {"q": "event: response.completed"}) | {"id": "fc_1"},
    call("c2", {}) | {"id": "fc_2"},
]
WHOLE = response(ITEMS, 11)
TOLD = events(WHOLE)
LINE = re.compile(
    rb'(?m)^(?:event: response\.(?:completed|incomplete|failed)|data: \{"type": ?"response\.(?:comp|inc|fail))'
)


def data_only(told: Json, **more: Any) -> bytes:
    return b"data: " + json.dumps(told, **more).encode() + b"\n\n"


STREAMS = {
    "as OpenAI sends it": b"".join(map(event, TOLD)),
    "data alone": b"".join(map(data_only, TOLD)),
    "data alone, compact": b"".join(data_only(told, separators=(",", ":")) for told in TOLD),
    "data alone, counted first": b"".join(
        data_only({"sequence_number": n, **{k: v for k, v in told.items() if k != "sequence_number"}})
        for n, told in enumerate(TOLD)
    ),
    "data alone, type last": b"".join(data_only(dict(reversed(told.items()))) for told in TOLD),
    "CRLF and comments": b": ping\r\n\r\n" + b"".join(map(event, TOLD)).replace(b"\n", b"\r\n"),
    "DONE behind it": b"".join(map(event, TOLD)) + b"data: [DONE]\n\n",
    "no blank line at the end": b"".join(map(event, TOLD))[:-1],
    "not ASCII": b"".join(
        b"event: " + told["type"].encode() + b"\ndata: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"
        for told in TOLD
    ),
    "the end tells no items": b"".join(map(event, [*TOLD[:-1], {**TOLD[-1], "response": {**WHOLE, "output": []}}])),
    "deltas alone": b"".join(
        event(told) for told in [*TOLD[:-1], {**TOLD[-1], "response": {**WHOLE, "output": []}}]
        if told["type"] != "response.output_item.done" or told["item"]["type"] == "reasoning"
    ),
    "the end alone": b"".join(map(event, TOLD[-1:])),
}  # fmt: skip
ENDLESS = {
    "cut": b"".join(map(event, TOLD[:-1])),
    "an error": b"".join(map(event, TOLD[:-1]))
    + b'event: error\ndata: {"type":"error","code":"x","message":"sorry"}\n\n',
}
ANSWER = completion_in(json.dumps(WHOLE).encode())


def seen(answer: sse.Answer) -> tuple[object, ...]:
    """An answer with its messages compared byte by byte, not by what counts for identity."""
    return ([m.raw for m in answer.messages], answer.usage, answer.finish_reasons, answer.terminal, answer.error)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_adds_up_to_the_plain_answer(name):
    answer = accumulate([STREAMS[name]])

    assert answer.messages == ANSWER.messages
    assert (answer.usage, answer.finish_reasons) == (Usage(11, 0, 5), ("completed",))
    assert answer.terminal
    assert answer.error is None


@pytest.mark.parametrize("name", ENDLESS)
def test_a_stream_without_an_end_adds_up_to_what_was_said(name):
    answer = accumulate([ENDLESS[name]])

    assert answer.messages == ANSWER.messages
    assert not answer.terminal
    assert answer.error == ("sorry" if name == "an error" else None)


def test_a_stream_cut_in_the_middle_keeps_the_words_that_came():
    stop = [n for n, told in enumerate(TOLD) if told["type"] == "response.output_text.delta"][1]
    words = accumulate([b"".join(map(event, TOLD[: stop + 1]))]).messages[0]
    later = next(n for n, told in enumerate(TOLD) if told["type"] == "response.function_call_arguments.delta")
    calls = accumulate([b"".join(map(event, TOLD[: later + 1]))]).messages[0]

    assert words.text == "Two things: `data: [DONE]` and\nevent: "
    assert words.unseen > 0
    assert [(made.id, made.name) for made in calls.calls] == [("c1", "look")]


def test_half_a_surrogate_pair_costs_nothing_else():
    body = STREAMS["as OpenAI sends it"].replace(b"Two things", b"\\ud83d things")
    assert accumulate([body]).messages[0].text.startswith("\ufffd things")
    assert len(accumulate([body]).messages[0].calls) == 2


def test_a_failed_response_tells_its_error_and_a_short_one_why():
    failed = {"type": "response.failed", "response": response([], 1, "failed", error={"code": "x", "message": "sorry"})}
    short = response([message("Half")], 1, "incomplete", incomplete_details={"reason": "max_output_tokens"})

    assert accumulate([event(failed)]).error == "sorry"
    assert accumulate([event(failed)]).terminal
    assert accumulate(map(event, events(short))).finish_reasons == ("max_output_tokens",)


# Cuts


@pytest.mark.parametrize("name", [*STREAMS, *ENDLESS])
@promise
@given(data=st.data())
def test_the_answer_does_not_depend_on_where_the_bytes_are_cut(name, data):
    body = {**STREAMS, **ENDLESS}[name]
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=40))
    edges = [0, *sorted(cuts), len(body)]

    assert seen(accumulate(body[a:b] for a, b in pairwise(edges))) == seen(accumulate([body]))


@pytest.mark.parametrize("name", STREAMS)
def test_one_byte_at_a_time_is_the_same_answer(name):
    body = STREAMS[name]
    assert seen(accumulate(body[i : i + 1] for i in range(len(body)))) == seen(accumulate([body]))


@pytest.mark.parametrize("name", ["as OpenAI sends it", "data alone", "CRLF and comments", "DONE behind it"])
def test_every_byte_from_the_terminal_line_on_is_held(name):
    """For each way to cut a stream in two: nothing before the line waits, nothing of a finished line goes out."""
    body = STREAMS[name]
    begins = LINE.search(body).start()  # type: ignore[union-attr]
    known = begins + 64  # here the line has said what it is
    for cut in (*range(begins), *range(known, len(body) + 1)):
        accumulating = accumulator()
        held = [accumulating.feed(part) for part in (body[:cut], body[cut:])]
        assert held == ([begins, None] if cut >= known else [None, begins - cut])
        assert accumulating.is_complete


def test_the_end_is_complete_where_its_event_ends():
    body = STREAMS["DONE behind it"]
    ends = body.index(b"\n\ndata: [DONE]") + 2
    for cut in (ends - 2, ends - 1, ends, ends + 3):
        accumulating = accumulator()
        accumulating.feed(body[:cut])
        assert accumulating.is_complete == (cut >= ends)


@promise
@given(text=st.text(), cuts=st.lists(st.integers(0, 900), max_size=8))
def test_no_content_fakes_an_end(text, cuts):
    said = text + '\n\nevent: response.completed\ndata: {"type":"response.completed"}\n\n'
    body = b"".join(event(told) for told in events(response([message(said)]))[:-1])
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    answer = accumulate(body[a:b] for a, b in pairwise(edges))

    assert not answer.terminal
    assert answer.messages[0].text == said


def test_a_stream_longer_than_what_waits_unread_adds_up_the_same():
    body = b"".join(map(event, events(response([message("word " * 20_000)]))))
    assert len(body) > 2 * sse.FLUSH_BYTES
    answer = accumulate(body[i : i + 1_000] for i in range(0, len(body), 1_000))

    assert answer.messages[0].text == "word " * 20_000


def test_an_answer_over_the_limit_is_truncated_and_says_so():
    accumulating = accumulator(max_chars=10_000)
    for told in events(response([message("x" * 2_000) for _ in range(20)])):
        accumulating.feed(event(told))
    answer = accumulating.finish()

    assert answer.truncated
    assert answer.terminal
    assert 1_000 < len(answer.messages[0].text) <= 10_000


ODD = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([{}])
EVENTS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [*sorted({told["type"] for told in TOLD} - {"response.completed"}), "x", "response.queued"]
        )
    },
    optional=dict.fromkeys(("item", "output_index", "delta", "response", "error", "message", "sequence_number"), ODD),
)


@promise
@given(odd=st.lists(EVENTS, max_size=6))
def test_events_of_any_shape_are_read_without_an_error(odd):
    """And one that cannot be read takes no other with it."""
    last = [{**told, "output_index": 9} if "output_index" in told else told for told in TOLD[2:-1]]
    answer = accumulate([*map(event, odd), *map(event, last)])

    assert answer.messages
    assert answer.messages[0].calls


@promise
@given(
    body=st.binary(max_size=300),
    lines=st.lists(st.sampled_from([b"data:", b"\n", b"event: response.completed\n", b"{}"])),
)
def test_garbage_is_read_without_an_error(body, lines):
    accumulate([body, *lines, body])


# The message a client sends back is the one we accumulated


@promise
@given(
    texts=st.lists(st.text(max_size=12), max_size=3),
    calls=st.lists(
        st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers(-(2**60), 2**60), max_size=3), max_size=3
    ),
)
def test_any_answer_comes_back_as_the_same_message(texts, calls):
    items = [*map(message, texts), *(call(f"c{n}", arguments) for n, arguments in enumerate(calls))]
    if not items:
        return
    (ours,) = accumulate(map(event, events(response(items)))).messages
    sent = [{"role": "assistant", "content": text} for text in texts]
    sent += [
        {"type": "function_call", "call_id": f"c{n}", "name": "look", "arguments": json.dumps(a, indent=1), "id": None}
        for n, a in enumerate(calls)
    ]
    assert message_of(json.dumps(sent).encode()) == ours
