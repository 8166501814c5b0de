"""Promises about answers of the Messages API that become one: the client sees no call of ours, and one message."""

import json
from collections.abc import Sequence
from typing import Any

import anthropic
import pytest

from memory.types import Usage
from proxy.wire.anthropic import completion_in
from proxy.wire.deltas import accumulate
from proxy.wire.splice_deltas import DeltaSplice, spliced
from tests.scripted import ScriptedUpstream
from tests.scripted import sse as sse_answer
from tests.splicing import NAME, by_bytes, bytes_of, is_the_same_wherever_cut, whole
from tests.spoken_to import event, events, thinking
from tests.spoken_to import whole as message

Json = dict[str, Any]

THOUGHT = thinking("They ask for the port.")
SAID = {"type": "text", "text": "Let me look."}
OURS = {"type": "tool_use", "id": "o1", "name": NAME, "input": {"query": "the port"}}
MORE = {"type": "tool_use", "id": "o2", "name": NAME, "input": {}}
LS = {"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "é\n"}}
CAT = {"type": "tool_use", "id": "t2", "name": "cat", "input": {}}
AGAIN = thinking("There it is.")
LAST = {"type": "text", "text": "It was 7."}
FIRST_THREE = ([THOUGHT, SAID, OURS], [OURS, MORE], [AGAIN, LAST])


def of_anthropic(content: Sequence[Json], tokens: int) -> bytes:
    first, *rest = events(list(content), tokens)
    return b"".join([first, event("ping"), *rest])


def without_lines(content: Sequence[Json], tokens: int) -> bytes:
    """Data alone, with CRLF and comments."""
    lines = of_anthropic(content, tokens).splitlines()
    bare = b"\r\n".join(line for line in lines if not line.startswith(b"event:"))
    return b": hello\r\n\r\n" + bare.replace(b"data: ", b"data:") + b"\r\n\r\n"


PROVIDERS = {"Anthropic": of_anthropic, "data alone": without_lines}
WAYS = pytest.mark.parametrize("way", PROVIDERS)


def answers(way: str, *several: Sequence[Json]) -> list[bytes]:
    return [PROVIDERS[way](content, 113 * 10**number) for number, content in enumerate(several)]


def payloads(stream: bytes) -> list[Json]:
    return [json.loads(line[5:]) for line in stream.splitlines() if line.startswith(b"data:")]


def content_of(stream: bytes) -> list[Json]:
    (told,) = accumulate([stream]).messages
    return json.loads(told.raw)["content"]


def as_the_sdk_has_it(stream: bytes) -> anthropic.types.Message:
    """The message that Anthropic's SDK builds from a stream, over a socket."""
    with ScriptedUpstream(sse_answer([stream])) as upstream:
        client = anthropic.Anthropic(base_url=upstream.url, api_key="k", max_retries=0)
        asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        with client, client.messages.stream(**asked) as running:  # type: ignore[arg-type]
            return running.get_final_message()


# Nothing of ours


@WAYS
@pytest.mark.parametrize("content", [[], [SAID], [THOUGHT, SAID, LS, CAT]])
def test_an_answer_with_nothing_of_ours_keeps_its_bytes(way, content):
    (body,) = answers(way, content)
    for cut in (whole, by_bytes):
        assert bytes_of(DeltaSplice, [body], cut) == body


def test_only_the_end_is_held():
    *before, last, stop = events([SAID], 113)
    splice = DeltaSplice(NAME)
    shown = []
    for one in before:
        assert splice.feed(one) == one
        shown.append(splice.showed)
    assert shown[:2] == [False, False]
    assert shown[-1]
    assert (splice.feed(last + stop), splice.end()) == (b"", last + stop)


def test_counts_on_the_way_are_no_end():
    """Some servers tell them as they go."""
    body = event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 1})
    splice = DeltaSplice(NAME)
    assert splice.feed(body) == body


# Several answers


@WAYS
def test_three_answers_are_one(way):
    out = bytes_of(DeltaSplice, answers(way, *FIRST_THREE), whole)

    assert NAME.encode() not in out
    assert content_of(out) == [THOUGHT, SAID, AGAIN, LAST]
    kinds = [one["type"] for one in payloads(out)]
    assert [kinds.count(kind) for kind in ("message_start", "message_delta", "message_stop")] == [1, 1, 1]
    starts = [one["index"] for one in payloads(out) if one["type"] == "content_block_start"]
    assert starts == [0, 1, 2, 3]
    answer = accumulate([out])
    assert (answer.finish_reasons, answer.terminal) == (("end_turn",), True)
    assert answer.usage == Usage(113 + 1130 + 11300, 100 + 1117 + 11287, 15)


@WAYS
def test_the_cuts_do_not_matter(way):
    assert is_the_same_wherever_cut(DeltaSplice, answers(way, *FIRST_THREE))


def test_the_sdk_reads_one_message():
    """It takes the index of a block for its place, and the last counts for those of the whole."""
    several = answers("Anthropic", [THOUGHT, SAID, OURS], [OURS], [MORE, AGAIN, LAST, LS])
    final = as_the_sdk_has_it(bytes_of(DeltaSplice, several, whole))

    expected = [THOUGHT, SAID, AGAIN, LAST, LS]
    assert [block.model_dump(exclude_none=True, include=set(told)) for block, told in zip(final.content, expected, strict=True)] == expected  # fmt: skip
    assert (final.id, final.stop_reason) == ("msg_1", "tool_use")
    assert (final.usage.input_tokens, final.usage.output_tokens) == (9, 15)
    assert (final.usage.cache_creation_input_tokens, final.usage.cache_read_input_tokens) == (30, 100 + 1117 + 11287)


@WAYS
@pytest.mark.parametrize("calls", [[OURS, LS, CAT], [LS, OURS, CAT, MORE], [LS, CAT, OURS]])
def test_calls_of_the_client_close_their_ranks(way, calls):
    for before in ([], [[THOUGHT, OURS]]):
        several = answers(way, *before, [SAID, *calls])
        out = bytes_of(DeltaSplice, several, whole)
        assert NAME.encode() not in out
        assert bytes_of(DeltaSplice, several, by_bytes) == out
        expected = [*([THOUGHT] if before else []), SAID, LS, CAT]
        assert content_of(out) == expected
        assert sorted({one["index"] for one in payloads(out) if "index" in one}) == list(range(len(expected)))
        assert accumulate([out]).finish_reasons == ("tool_use",)


@WAYS
def test_whoever_gives_up_ends_with_what_was_said(way):
    out = bytes_of(DeltaSplice, answers(way, [SAID, OURS], [MORE]), whole)
    assert (content_of(out), NAME.encode() in out) == ([SAID], False)
    assert accumulate([out]).finish_reasons == ("end_turn",)
    alone = bytes_of(DeltaSplice, answers(way, [SAID, OURS]), whole)
    assert (content_of(alone), accumulate([alone]).finish_reasons) == ([SAID], ("end_turn",))


def test_only_counts_are_added():
    usage = {"input_tokens": 3, "service_tier": "standard", "cache_creation": {"ephemeral_5m_input_tokens": 4}}
    start = event("message_start", message={**message([], 1), "usage": {**usage, "cache_read_input_tokens": None}})
    last = event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 2})
    call = b"".join(events([OURS], 1)[1:-2])
    out = bytes_of(DeltaSplice, [start + call + last, start + last], whole)
    counts = {"input_tokens": 6, "cache_creation": {"ephemeral_5m_input_tokens": 8}, "output_tokens": 4}
    assert payloads(out)[-1]["usage"] == counts


def test_an_error_and_what_cannot_be_read_go_out_as_they_are():
    odd = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    odd += b'data: {"type":"content_bl\n\n: x\n\ndata: {"type":7}\n\n'
    out = bytes_of(DeltaSplice, [of_anthropic([OURS], 113), odd], whole)
    assert out.endswith(odd)


# A cut


def test_a_cut_lets_out_the_end_as_it_came():
    body = of_anthropic([THOUGHT, SAID, LS], 113).removesuffix(b"}\n\n")
    splice = DeltaSplice(NAME)
    out = splice.feed(body)
    assert b"message_delta" not in out
    assert out + splice.cut() == body


@WAYS
def test_a_cut_tells_no_end_where_something_was_ours(way):
    first, second = answers(way, [THOUGHT, SAID, OURS], [LAST, MORE])
    for place in (*range(0, len(second), 5), len(second)):
        splice = DeltaSplice(NAME)
        out = splice.feed(first)
        splice.again()
        out += splice.feed(second[:place])
        out += splice.cut()
        assert (NAME.encode() in out, b"message_delta" in out, b"message_stop" in out) == (False, False, False)
        assert out.endswith(b"\n\n" if way == "Anthropic" else b"\r\n\r\n")
    assert content_of(out) == [THOUGHT, SAID, LAST]


# A refusal of a later request


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b'{"type":"error",\n"error": {"type":"overloaded_error","message":"Busy"}}', "overloaded_error", "Busy"),
        (b'{"error":"down"}', "api_error", "down"),
        (b"<html>", "api_error", "The provider refused a further request that this answer needed."),
    ],
)
def test_a_refusal_is_an_error_of_the_sdk(body, kind, expected):
    splice = DeltaSplice(NAME)
    out = splice.feed(of_anthropic([SAID, OURS], 113))
    splice.again()
    out += splice.failed(body)

    assert payloads(out)[-1] == {"type": "error", "error": {"type": kind, "message": expected}}
    answer = accumulate([out])
    assert (answer.error, answer.terminal, content_of(out)) == (expected, False, [SAID])
    with pytest.raises(anthropic.APIError, match=expected):
        as_the_sdk_has_it(out)


# Plain answers


def plain(content: Sequence[Json], tokens: int) -> bytes:
    return json.dumps(message(list(content), tokens), indent=1).encode()


def test_plain_answers_are_the_last_with_the_counts_of_all():
    out = spliced([plain([OURS], 113), plain([OURS], 113), plain([THOUGHT, LAST], 13)], NAME)
    said = completion_in(out)
    assert json.loads(out)["content"] == [THOUGHT, LAST]
    assert (said.usage, said.finish_reasons) == (Usage(239, 200, 15), ("end_turn",))


def test_a_plain_answer_with_nothing_of_ours_is_itself():
    for body in (plain([SAID, LS], 113), b"no", b"{}", b'{"content":null}', b'{"content":[7]}'):
        assert spliced([body], NAME) is body


def test_calls_of_ours_leave_a_plain_answer():
    out = json.loads(spliced([plain([SAID, OURS, LS, MORE], 113)], NAME))
    assert (out["content"], out["stop_reason"]) == ([SAID, LS], "tool_use")
    alone = json.loads(spliced([plain([SAID, OURS, MORE], 113)], NAME))
    assert (alone["content"], alone["stop_reason"]) == ([SAID], "end_turn")
    short = plain([SAID, OURS], 113).replace(b'"tool_use",\n "stop_s', b'"max_tokens",\n "stop_s')
    assert json.loads(spliced([short], NAME))["stop_reason"] == "max_tokens"
