"""Promises about answers of the Responses API that become one: the client sees no call of ours, and one response."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

import openai
import pytest

from memory.types import Usage
from proxy.wire.responses import completion_in
from proxy.wire.responses_events import accumulate
from proxy.wire.splice_responses import ResponseSplice, spliced
from tests.responses import call, event, events, message, reasoning, response
from tests.scripted import ScriptedUpstream
from tests.scripted import sse as sse_answer
from tests.splicing import NAME, by_bytes, bytes_of, is_the_same_wherever_cut, whole

Json = dict[str, Any]

TOOLS = [{"type": "function", "name": name, "parameters": {}, "strict": False} for name in ("ls", NAME)]
THOUGHT = reasoning(random.Random(1)) | {"id": "rs_1"}
SAID = message("Let me look.", id="msg_1")
OURS = call("o1", {"query": "the port"}, NAME) | {"id": "fc_o1"}
MORE = call("o2", {}, NAME) | {"id": "fc_o2"}
LS = call("c1", {"path": "a"}, "ls") | {"id": "fc_1"}
CAT = call("c2", {}, "cat") | {"id": "fc_2"}
LAST = message("It was 7.", id="msg_2")
FIRST_THREE = ([THOUGHT, SAID, OURS], [OURS, MORE], [LAST])


def told(items: Sequence[Json], number: int, tools: Sequence[Json] = TOOLS) -> list[Json]:
    """An answer's events, as OpenAI sends them."""
    return events(response(items, 10**number, id=f"resp_{number}", created_at=number, tools=list(tools)))


def of_openai(items: Sequence[Json], number: int) -> bytes:
    return b"".join(map(event, told(items, number)))


def without_lines(items: Sequence[Json], number: int) -> bytes:
    """Data alone, CRLF, neither numbers nor an echo of the tools."""
    bare = [{key: value for key, value in one.items() if key != "sequence_number"} for one in told(items, number, ())]
    return b"".join(b"data:" + json.dumps(one, separators=(",", ":")).encode() + b"\r\n\r\n" for one in bare)


def with_an_empty_end(items: Sequence[Json], number: int) -> bytes:
    """Items are told as they are done, and not again."""
    said = told(items, number)
    return b"".join(map(event, [*said[:-1], {**said[-1], "response": {**said[-1]["response"], "output": []}}]))


def unfinished(items: Sequence[Json], number: int) -> bytes:
    return of_openai(items, number) + b"data: [DONE]\n"


PROVIDERS = {
    "OpenAI": of_openai,
    "data alone": without_lines,
    "an empty end": with_an_empty_end,
    "no blank line at the end": unfinished,
}
WAYS = pytest.mark.parametrize("way", PROVIDERS)


def answers(way: str, *several: Sequence[Json]) -> list[bytes]:
    return [PROVIDERS[way](items, number) for number, items in enumerate(several)]


def payloads(stream: bytes) -> list[Json]:
    lines = [line for line in stream.splitlines() if line.startswith(b"data:") and b"[DONE]" not in line]
    return [json.loads(line[5:]) for line in lines]


def as_the_sdk_has_it(stream: bytes) -> Any:
    """The response that OpenAI's SDK builds from a stream, over a socket, and the kinds of its events."""
    with ScriptedUpstream(sse_answer([stream])) as upstream:
        client = openai.OpenAI(base_url=upstream.url, api_key="k", max_retries=0)
        with client, client.responses.stream(model="m", input="hi") as running:
            kinds = [told.type for told in running]
            return running.get_final_response(), kinds


# Nothing of ours


@WAYS
def test_an_answer_with_nothing_of_ours_keeps_its_bytes(way):
    (body,) = answers(way, [THOUGHT, SAID, LS, CAT])
    bare = body.replace(b', {"type": "function", "name": "recall", "parameters": {}, "strict": false}', b"")
    for cut in (whole, by_bytes):
        assert bytes_of(ResponseSplice, [bare], cut) == bare
    assert NAME.encode() not in bare


@WAYS
def test_our_tool_is_not_told(way):
    (body,) = answers(way, [SAID, LS])
    bare = body.replace(b', {"type": "function", "name": "recall", "parameters": {}, "strict": false}', b"")
    assert bytes_of(ResponseSplice, [body], whole) == bare


def test_only_the_end_is_held():
    *before, end = told([SAID], 0, ())
    splice = ResponseSplice(NAME)
    for n, one in enumerate(before):
        assert splice.feed(event(one)) == event(one)
        assert splice.showed == (n >= 4)  # from the first words on
    assert (splice.feed(event(end)), splice.end()) == (b"", event(end))


# Several answers


@WAYS
def test_three_answers_are_one(way):
    out = bytes_of(ResponseSplice, answers(way, *FIRST_THREE), whole)

    assert NAME.encode() not in out
    said = payloads(out)
    kinds = [one["type"] for one in said]
    assert [kinds.count(f"response.{kind}") for kind in ("created", "in_progress", "completed")] == [1, 1, 1]
    if way != "data alone":
        assert [one["sequence_number"] for one in said] == list(range(len(said)))
    places = {one["output_index"]: one["item"]["id"] for one in said if one["type"] == "response.output_item.done"}
    assert places == {0: "rs_1", 1: "msg_1", 2: "msg_2"}
    whole_one = next(one["response"] for one in said if one["type"] == "response.completed")
    assert (whole_one["id"], whole_one["created_at"]) == ("resp_0", 0)
    assert whole_one["output"] == [THOUGHT, SAID, LAST]
    assert whole_one["usage"]["input_tokens"] == 111
    assert whole_one["usage"]["total_tokens"] == 126
    assert whole_one["tools"] == ([] if way == "data alone" else TOOLS[:1])
    answer = accumulate([out])
    assert (answer.usage, answer.finish_reasons, answer.terminal) == (Usage(111, 0, 15), ("completed",), True)
    assert answer.messages == completion_in(json.dumps(response([THOUGHT, SAID, LAST])).encode()).messages


@WAYS
def test_the_cuts_do_not_matter(way):
    assert is_the_same_wherever_cut(ResponseSplice, answers(way, *FIRST_THREE))


@WAYS
@pytest.mark.parametrize("calls", [[OURS, LS, CAT], [LS, OURS, CAT, MORE], [LS, CAT, OURS]])
def test_calls_of_the_client_close_their_ranks(way, calls):
    for before in ([], [[THOUGHT, OURS]]):
        several = answers(way, *before, [SAID, *calls])
        out = bytes_of(ResponseSplice, several, whole)
        assert NAME.encode() not in out
        assert bytes_of(ResponseSplice, several, by_bytes) == out
        (final,) = accumulate([out]).messages
        assert [(made.id, made.name) for made in final.calls] == [("c1", "ls"), ("c2", "cat")]
        places = {one["output_index"]: one["item"]["type"] for one in payloads(out) if "item" in one}
        visible = [*(["reasoning"] if before else []), "message", "function_call", "function_call"]
        assert places == dict(enumerate(visible))
        deltas = {one["output_index"] for one in payloads(out) if one["type"].endswith("arguments.delta")}
        assert deltas == {len(visible) - 2, len(visible) - 1}


@pytest.mark.parametrize("way", ["OpenAI", "data alone"])
def test_the_sdk_reads_one_response(way):
    """It takes the index of an item for its place."""
    several = answers(way, [THOUGHT, SAID, OURS], [OURS], [LAST, MORE, LS])
    final, kinds = as_the_sdk_has_it(bytes_of(ResponseSplice, several, whole))

    assert [item.id for item in final.output] == ["rs_1", "msg_1", "msg_2", "fc_1"]
    assert final.output_text == "Let me look.It was 7."
    assert (final.id, final.usage.input_tokens) == ("resp_0", 111)
    assert kinds.count("response.created") == kinds.count("response.completed") == 1


@WAYS
def test_whoever_gives_up_ends_with_what_was_said(way):
    out = bytes_of(ResponseSplice, answers(way, [SAID, OURS], [MORE]), whole)
    (final,) = accumulate([out]).messages
    assert (final.text, final.calls, NAME.encode() in out) == ("Let me look.", (), False)


def test_a_response_that_ends_short_tells_why():
    short = response([LAST], 5, "incomplete", incomplete_details={"reason": "max_output_tokens"})
    several = [of_openai([SAID, OURS], 0), b"".join(map(event, events(short)))]
    answer = accumulate([bytes_of(ResponseSplice, several, whole)])
    assert (answer.finish_reasons, answer.usage) == (("max_output_tokens",), Usage(6, 0, 10))


def test_items_that_the_end_alone_tells_are_told():
    several = [event(told([SAID, OURS], 0)[-1]), event(told([LAST, MORE, LS], 1)[-1])]
    out = bytes_of(ResponseSplice, several, whole)
    (end,) = payloads(out)
    assert end["response"]["output"] == [SAID, LAST, LS]
    assert (end["response"]["id"], end["response"]["usage"]["input_tokens"]) == ("resp_0", 11)
    assert NAME.encode() not in out


def test_events_that_name_an_item_alone_go_with_it():
    """Some servers leave the index out."""
    said = copy.deepcopy(told([SAID, OURS], 0))
    for one in said:
        if one["type"].endswith(".delta"):
            one.pop("output_index")
    out = bytes_of(ResponseSplice, [b"".join(map(event, said)), of_openai([LAST], 1)], whole)
    assert (NAME.encode() in out, b"the port" in out) == (False, False)
    assert [one["delta"] for one in payloads(out) if one["type"] == "response.output_text.delta"] == [
        "Let me look.",
        "It was 7.",
    ]


def test_an_error_and_what_cannot_be_read_go_out_as_they_are():
    odd = b'event: error\ndata: {"type":"error","message":"down","sequence_number":1}\n\n'
    odd += b'data: {"type":"response.out\n\n: x\n\ndata: {"type":7}\n\n'
    out = bytes_of(ResponseSplice, [of_openai([OURS], 0), odd], whole)
    assert out.endswith(odd)


# A cut


@WAYS
def test_a_cut_lets_out_the_end_as_it_came(way):
    body = PROVIDERS[way]([THOUGHT, SAID, LS], 0).replace(json.dumps(TOOLS[1]).encode(), b"{}").rstrip(b"\r\n}")
    splice = ResponseSplice(NAME)
    out = splice.feed(body)
    assert b"response.completed" not in out
    assert out + splice.cut() == body


@WAYS
def test_a_cut_tells_no_end_where_something_was_ours(way):
    first, second = answers(way, [THOUGHT, SAID, OURS], [LAST, MORE])
    for place in (*range(0, len(second), 29), len(second)):
        splice = ResponseSplice(NAME)
        out = splice.feed(first)
        splice.again()
        out += splice.feed(second[:place])
        out += splice.cut()
        assert (NAME.encode() in out, b"response.completed" in out) == (False, False)
        if way != "data alone":
            assert [one["sequence_number"] for one in payloads(out)] == list(range(len(payloads(out))))
    assert accumulate([out]).messages[0].text == "Let me look.\nIt was 7."


# A refusal of a later request


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{\n "error": {"message":"Too fast","type":"requests","code":"rate_limit_exceeded"}}', "Too fast"),
        (b'{"error": "down"}', "down"),
        (b"<html>", "The provider refused a further request that this answer needed."),
    ],
)
def test_a_refusal_is_an_error_of_the_sdk(body, expected):
    splice = ResponseSplice(NAME)
    out = splice.feed(of_openai([SAID, OURS], 0))
    splice.again()
    out += splice.failed(body)

    answer = accumulate([out])
    assert (answer.error, answer.terminal, answer.messages[0].text) == (expected, False, "Let me look.")
    numbers = [one["sequence_number"] for one in payloads(out)]
    assert numbers == list(range(len(numbers)))
    assert payloads(out)[-1]["message"] == expected
    with pytest.raises(openai.APIError, match=expected):
        as_the_sdk_has_it(out)


# Plain answers


def plain(items: Sequence[Json], number: int, tools: Sequence[Json] = TOOLS) -> bytes:
    return json.dumps(response(items, 10**number, id=f"resp_{number}", tools=list(tools)), indent=1).encode()


def test_plain_answers_are_the_last_with_the_counts_of_all():
    out = json.loads(spliced([plain([OURS], 0), plain([OURS], 1), plain([THOUGHT, LAST], 2)], NAME))
    expected = response([THOUGHT, LAST], 100, id="resp_2", tools=TOOLS[:1])
    expected["usage"] |= {"input_tokens": 111, "output_tokens": 15, "total_tokens": 126}
    assert out == expected


def test_a_plain_answer_with_nothing_of_ours_is_itself():
    for body in (plain([SAID, LS], 0, TOOLS[:1]), b"no", b"{}", b'{"output":null,"tools":null}', b'{"output":[7]}'):
        assert spliced([body], NAME) is body


def test_calls_of_ours_leave_a_plain_answer():
    out = spliced([plain([SAID, OURS, LS, MORE], 0)], NAME)
    assert json.loads(out)["output"] == [SAID, LS]
    assert NAME.encode() not in out
