"""Promises about answers in chat completion chunks that become one: the client sees no call of ours, and one answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from memory.types import Usage
from proxy.wire.chunks import accumulate
from proxy.wire.openai import completion_in
from proxy.wire.splice_chunks import ChunkSplice, spliced
from tests.chunked import (
    PROVIDERS,
    Call,
    Json,
    as_openai,
    chunk,
    counted,
)
from tests.scripted import ScriptedUpstream
from tests.scripted import sse as sse_answer
from tests.splicing import NAME, by_bytes, bytes_of, is_the_same_wherever_cut, whole

STREAMS = sorted((Path(__file__).parents[2] / "fixtures" / "streams").glob("*.txt"))
OURS: Call = ("o1", NAME, '{"query":"port"}')
LS: Call = ("c1", "ls", '{"path":"a"}')
CAT: Call = ("c2", "cat", "{}")


WAYS = pytest.mark.parametrize("way", PROVIDERS)


def three(way: str) -> list[bytes]:
    """Two answers that ask for what was said, and the one that the client waits for."""
    make = PROVIDERS[way]
    return [
        make("first", ["Let me ", "look."], [OURS], 10),
        make("second", [], [OURS, ("o2", NAME, "{}")], 200),
        make("third", ["It was", " 7."], [], 3000),
    ]


def said(stream: bytes) -> tuple[Any, ...]:
    answer = accumulate([stream])
    (message,) = answer.messages
    calls = [(call.id, call.name, call.arguments) for call in message.calls]
    return message.text, calls, answer.usage, answer.finish_reasons, answer.terminal, answer.error


def payloads(stream: bytes) -> list[Json]:
    lines = stream.replace(b"\r\n", b"\n").split(b"\n\n")
    data = [b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")) for event in lines]
    return [json.loads(one) for one in data if one and b"[DONE]" not in one]


def as_the_sdk_has_it(stream: bytes) -> Any:
    """The completion that OpenAI's SDK builds from a stream, over a socket."""
    with ScriptedUpstream(sse_answer([stream])) as upstream:
        client = openai.OpenAI(base_url=upstream.url, api_key="k", max_retries=0)
        with client, client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as running:
            for _ in running:
                pass
            return running.get_final_completion()


# Nothing of ours


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_an_answer_with_nothing_of_ours_keeps_its_bytes(path):
    for cut in (whole, by_bytes):
        assert bytes_of(ChunkSplice, [path.read_bytes()], cut) == path.read_bytes()


@WAYS
def test_the_clients_own_calls_keep_their_bytes(way):
    answer = PROVIDERS[way]("first", ["Let me look."], [LS, CAT], 10)
    assert bytes_of(ChunkSplice, [answer], whole) == answer


@pytest.mark.parametrize("delta", [{"tool_calls": []}, {"tool_calls": None, "content": "a"}, {"tool_calls": "odd"}])
def test_an_odd_delta_keeps_its_bytes(delta):
    answer = chunk("first", delta) + chunk("first", {}, "stop")
    assert bytes_of(ChunkSplice, [answer], whole) == answer


def test_only_the_end_is_held():
    first, *_, last, usage, done = as_openai("first", ["Let me ", "look."], [LS], 10).split(b"\n\n")[:-1]
    splice = ChunkSplice(NAME)
    assert splice.feed(first + b"\n\n") == first + b"\n\n"
    assert not splice.showed
    assert splice.feed(b": ping\n") == b""
    assert splice.feed(b"\n") == b": ping\n\n"
    assert splice.feed(chunk("first", {"content": "Let"})) == chunk("first", {"content": "Let"})
    assert splice.showed
    end = b"\n\n".join((last, usage, done)) + b"\n\n"
    assert (splice.feed(end), splice.end()) == (b"", end)


# Several answers


@WAYS
def test_three_answers_are_one(way):
    out = bytes_of(ChunkSplice, three(way), whole)

    assert said(out) == ("Let me look.\n\nIt was 7.", [], Usage(3210, 3207, 6), ("stop",), True, None)
    assert NAME.encode() not in out
    assert out.count(b"[DONE]") == 1
    told = payloads(out)
    assert {(one["id"], one["created"], one["model"]) for one in told} == {("first", 5, "m-first")}
    reasons = [one["choices"][0]["finish_reason"] for one in told if one["choices"]]
    assert [reason for reason in reasons if reason] == ["stop"]


@WAYS
def test_the_cuts_do_not_matter(way):
    assert is_the_same_wherever_cut(ChunkSplice, three(way))


@pytest.mark.parametrize(
    "way", ["OpenAI", "laid out", "names in pieces"]
)  # of the others the SDK cannot read a single answer
def test_the_sdk_reads_one_answer(way):
    """It adds strings up, roles as well; and it takes indexes for places."""
    answers = [*three(way)[:2], PROVIDERS[way]("third", ["So:"], [OURS, LS, ("o2", NAME, "{}"), CAT], 3000)]
    completion = as_the_sdk_has_it(bytes_of(ChunkSplice, answers, whole))
    (choice,) = completion.choices

    assert choice.message.role == "assistant"
    assert choice.message.content == "Let me look.\n\nSo:"
    assert (completion.id, choice.finish_reason) == ("first", "tool_calls")
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (3210, 3216)
    assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [LS, CAT]


@WAYS
@pytest.mark.parametrize("calls", [[OURS, LS, CAT], [LS, OURS, CAT], [LS, CAT, OURS]])
def test_calls_of_the_client_close_their_ranks(way, calls):
    for before in ([], three(way)[:1]):
        answers = [*before, PROVIDERS[way]("mixed", ["So:"], calls, 5)]
        out = bytes_of(ChunkSplice, answers, whole)
        text, told, _, reasons, terminal, _ = said(out)

        assert (told, reasons, terminal) == ([LS, CAT], ("tool_calls",), True)
        assert text == ("Let me look.\n\nSo:" if before else "So:")
        assert NAME.encode() not in out
        assert bytes_of(ChunkSplice, answers, by_bytes) == out
        found = [
            call.get("index")
            for one in payloads(out)
            for choice in one["choices"]
            for call in choice["delta"].get("tool_calls") or ()
        ]
        if way in ("OpenAI", "laid out"):
            assert found == [0] * 3 + [1] * 2
        elif way == "late names":
            assert found == [0] * 4 + [1] * 3
        elif way == "names in pieces":
            assert found == [0] * 3 + [1] * 3
        elif way == "Gemini" and calls[2] == OURS and not before:
            assert found == [0, 0]  # as they came: nothing of ours was there yet
        elif way == "no indexes":
            assert found == [None, None]
        else:
            assert found == [0, 1]


@pytest.mark.parametrize("names", [["ls", NAME], [NAME, "ls"]])
def test_calls_without_ids_are_told_apart_by_whose_they_are(names):
    """Under one index and without ids, as Gemini's endpoint had them once."""
    made = [{"index": 0, "id": "", "function": {"name": name, "arguments": "{}"}} for name in names]
    answer = b"".join(chunk("a", {"tool_calls": [call]}) for call in made) + chunk("a", {}, "tool_calls")
    out = bytes_of(ChunkSplice, [answer], whole)
    assert [name for _, name, _ in said(out)[1]] == ["ls"]
    assert (NAME.encode() in out, said(out)[3]) == (False, ("tool_calls",))


@WAYS
def test_the_role_is_told_once(way):
    """In the event of our call that is also the end of its answer, maybe; and some tell it in each event."""
    answers = [PROVIDERS[way]("first", [], [OURS], 10), PROVIDERS[way]("second", ["It was", " 7."], [], 200)]
    out = bytes_of(ChunkSplice, answers, whole)
    told = [choice["delta"].get("role") for one in payloads(out) for choice in one["choices"]]
    assert told[0] == "assistant"
    assert told.count("assistant") == 1


@WAYS
def test_whoever_gives_up_ends_with_what_was_said(way):
    """The last answer asked once more; without that call there is nothing to run."""
    answers = [three(way)[0], PROVIDERS[way]("second", ["Hm."], [OURS], 200)]
    out = bytes_of(ChunkSplice, answers, whole)

    assert said(out) == ("Let me look.\n\nHm.", [], Usage(210, 208, 4), ("stop",), True, None)
    assert NAME.encode() not in out


def test_a_single_answer_that_asks_alone_is_no_call_either():
    out = bytes_of(ChunkSplice, [as_openai("first", [], [OURS], 10)], whole)
    assert said(out) == ("", [], Usage(10, 9, 2), ("stop",), True, None)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (["Well.\n"], ["Yes."], "Well.\nYes."),
        (["Well. "], ["Yes."], "Well. Yes."),
        (["Well."], ["", "Yes.", "No."], "Well.\n\nYes.No."),
        (["Well."], ["\n\nYes."], "Well.\n\nYes."),
        (["Well."], ['"Yes'], 'Well.\n\n"Yes'),
        ([], ["Yes."], "Yes."),
    ],
)
def test_what_was_said_before_a_call_is_a_paragraph(before, after, text):
    answers = [as_openai("a", before, [OURS], 1), as_openai("b", after, [], 1)]
    assert said(bytes_of(ChunkSplice, answers, whole))[0] == text


def test_text_in_parts_begins_a_paragraph_too():
    """Mistral's reasoning models tell content as lists."""
    parts = [{"type": "text", "text": "Yes."}]
    answers = [as_openai("a", ["Well."], [OURS], 1), as_openai("b", [parts], [], 1)]  # type: ignore[list-item]
    assert said(bytes_of(ChunkSplice, answers, whole))[0] == "Well.\n\nYes."


def test_words_in_the_event_that_ends_an_answer_go_out_at_once():
    splice = ChunkSplice(NAME)
    call = {"index": 0, "id": "o", "type": "function", "function": {"name": NAME, "arguments": "{}"}}
    splice.feed(chunk("first", {"role": "assistant", "content": None, "tool_calls": [call]}))
    assert not splice.showed
    out = splice.feed(chunk("first", {"content": "So."}, "tool_calls", counted(5)))
    assert payloads(out)[0]["choices"][0] == {
        "index": 0,
        "delta": {"content": "So."},
        "logprobs": None,
        "finish_reason": None,
    }
    assert payloads(out)[0]["usage"] is None
    assert splice.showed
    told = payloads(splice.end())
    assert told[0]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert told[0]["usage"] == counted(5)


def test_reasoning_of_every_answer_is_shown():
    """DeepSeek and others; a call's own reasoning came before the call."""
    first = chunk("a", {"role": "assistant", "content": None, "reasoning_content": "Look."})
    call = {"index": 0, "id": "o", "type": "function", "function": {"name": NAME, "arguments": "{}"}}
    first += chunk("a", {"tool_calls": [call]}) + chunk("a", {}, "tool_calls", counted(4)) + b"data: [DONE]\n\n"
    second = chunk("b", {"role": "assistant", "content": None, "reasoning_content": " Seen."})
    second += chunk("b", {"content": "7"}) + chunk("b", {"content": ""}, "stop", counted(6)) + b"data: [DONE]\n\n"
    out = bytes_of(ChunkSplice, [first, second], whole)
    (message,) = accumulate([out]).messages
    assert json.loads(message.raw) == {"role": "assistant", "content": "7", "reasoning_content": "Look. Seen."}
    assert accumulate([out]).usage == Usage(10, 8, 4)


def test_half_a_surrogate_pair_keeps_its_bytes_in_a_later_answer():
    half = chunk("b", {"content": "\ud83d"}) + chunk("b", {"content": "\ude42"})
    out = bytes_of(ChunkSplice, [as_openai("a", [], [OURS], 1), half], whole)
    assert accumulate([out]).messages[0].text == "🙂"


def test_counts_that_grow_with_the_answer_are_those_of_all():
    running = b"".join(chunk("b", {"content": "x"}, usage=counted(n)) for n in (5, 6))
    out = bytes_of(ChunkSplice, [as_openai("a", [], [OURS], 100), running], whole)
    assert [one["usage"]["prompt_tokens"] for one in payloads(out) if one["usage"]] == [105, 106]


def test_counts_are_of_the_end_wherever_they_stand():
    """LangChain adds up what it is told, so what is told twice counts twice."""
    end = chunk("a", None, usage=counted(100)) + chunk("a", {}, "tool_calls") + b"data: [DONE]\n\n"
    call = {"index": 0, "id": "o", "type": "function", "function": {"name": NAME, "arguments": "{}"}}
    answers = [chunk("a", {"content": "So"}) + chunk("a", {"tool_calls": [call]}) + end, as_openai("b", ["7"], [], 5)]
    out = bytes_of(ChunkSplice, answers, whole)
    assert [one["usage"]["prompt_tokens"] for one in payloads(out) if one["usage"]] == [105]


def test_an_error_and_what_cannot_be_read_go_out_as_they_are():
    odd = b'data: {"error":{"message":"down"}}\n\n' + b'data: {"choices":[{"ind\n\n' + b": x\n\n"
    out = bytes_of(ChunkSplice, [as_openai("a", [], [OURS], 1), odd], whole)
    assert out.endswith(odd)
    assert accumulate([out]).error == "down"


def test_events_without_blank_lines_between_them_are_apart():
    crowded = [answer.replace(b"\n\n", b"\n") for answer in three("OpenAI")]
    out = bytes_of(ChunkSplice, crowded, whole)
    assert said(out) == ("Let me look.\n\nIt was 7.", [], Usage(3210, 3207, 6), ("stop",), True, None)
    assert NAME.encode() not in out
    assert bytes_of(ChunkSplice, crowded, by_bytes) == out


def test_what_has_no_blank_line_behind_it_counts():
    first = as_openai("a", ["So"], [OURS], 10).replace(b"data: [DONE]\n\n", b"")[:-2]
    out = bytes_of(ChunkSplice, [first, as_openai("b", ["7"], [], 5)[:-2]], whole)
    assert said(out)[:3] == ("So\n\n7", [], Usage(15, 13, 4))
    assert out.endswith(b"data: [DONE]")


# A call of which nobody knows yet whose it is


def calling(index: int, name: str | None = None, arguments: Any = None, **more: Any) -> bytes:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return chunk("a", {"tool_calls": [{"index": index, **more, "function": function}]})


END = chunk("a", {}, "tool_calls") + b"data: [DONE]\n\n"


def test_a_call_waits_until_its_name_cannot_become_ours():
    splice = ChunkSplice(NAME)
    parts = [
        calling(0, arguments="", id="c1", type="function"),
        chunk("a", {"content": "So."}),
        calling(0, "re"),
        b": ping\n\n",
    ]
    for part in parts:
        assert splice.feed(part) == b""
    assert not splice.showed
    assert splice.feed(calling(0, "ad")) == b"".join(parts) + calling(0, "ad")
    assert splice.showed
    for part in (calling(0, arguments="{"), calling(0, arguments="}"), calling(1, "ls", "{}", id="c2")):
        assert splice.feed(part) == part
    assert (splice.feed(END), splice.end()) == (b"", END)


@pytest.mark.parametrize(
    "names", [["re"], ["rec", "all", "er"], ["recall", "er"], ["my_", "recall"], [""], ["read", "recall"], ["x", "x"]]
)
def test_a_name_that_is_not_ours_in_the_end_keeps_its_bytes(names):
    head = calling(0, names[0], "", id="c1", type="function")
    answer = head + b"".join(calling(0, name) for name in names[1:]) + calling(0, arguments="{}") + END
    for cut in (whole, by_bytes):
        assert bytes_of(ChunkSplice, [answer], cut) == answer


def test_an_end_lets_a_call_out_whose_name_stops_short():
    for end in (END, b"data: [DONE]\n\n", chunk("a", None, usage=counted(5))):
        splice = ChunkSplice(NAME)
        assert splice.feed(calling(0, "re", "{}", id="c1")) == b""
        assert splice.feed(end) == calling(0, "re", "{}", id="c1")
        assert splice.end() == end


@pytest.mark.parametrize("name", [NAME, "cat"])
def test_a_call_behind_one_that_waits_gets_its_index_later(name):
    answer = calling(0, id="c1") + calling(1, "ls", '{"path":"a"}', id="c2") + calling(0, name, "{}") + END
    out = bytes_of(ChunkSplice, [answer], whole)
    if name == NAME:
        assert said(out)[1] == [("c2", "ls", '{"path":"a"}')]
        assert out == calling(0, "ls", '{"path":"a"}', id="c2") + END
    else:
        assert out == answer


def test_a_call_of_ours_without_arguments_holds_nobody_up():
    splice = ChunkSplice(NAME)
    assert splice.feed(calling(0, NAME, "", id="o1")) == b""
    assert splice.feed(calling(1, "ls", "", id="c1")) == calling(0, "ls", "", id="c1")
    assert splice.end() == b""
    alone = bytes_of(ChunkSplice, [calling(0, NAME, "", id="o1") + END], whole)
    assert alone == END.replace(b'"tool_calls"', b'"stop"')


@pytest.mark.parametrize("names", [[NAME], ["", NAME], ["rec", "all"], ["rec", "all", "recall"]])
def test_a_call_of_ours_in_pieces_that_breaks_off_is_not_shown(names):
    head = calling(0, names[0], id="o1", type="function")
    answer = head + b"".join(calling(0, name) for name in names[1:]) + calling(0, arguments="{}") + END
    before = chunk("a", {"role": "assistant", "content": "Let me look."})
    for place in range(len(answer)):
        splice = ChunkSplice(NAME)
        out = splice.feed(before + answer[:place])
        out += splice.cut()
        assert (out.startswith(before), said(out)[1]) == (True, [])
        if place > len(head):
            assert out == before


def test_arguments_that_are_an_object_do_not_make_our_call_the_clients():
    answer = calling(0, NAME, {"query": "é"}, id="o1") + calling(1, "ls", {"path": "a"}, id="c1") + END
    out = bytes_of(ChunkSplice, [answer], whole)
    assert out == calling(0, "ls", {"path": "a"}, id="c1") + END
    (message,) = accumulate([answer]).messages
    assert [(call.id, call.name, json.loads(call.arguments)) for call in message.calls] == [
        ("o1", NAME, {"query": "é"}),
        ("c1", "ls", {"path": "a"}),
    ]


# A cut


def test_a_cut_lets_out_the_end_as_it_came():
    """The reason and the counts came, the last line did not."""
    splice = ChunkSplice(NAME)
    body = as_openai("first", ["Let me ", "look."], [LS], 10).removesuffix(b"NE]\n\n")
    out = splice.feed(body)
    assert out != body
    assert out + splice.cut() == body


@WAYS
def test_a_cut_tells_no_end_where_something_was_ours(way):
    answers = [*three(way)[:1], PROVIDERS[way]("second", ["Hm."], [LS, OURS], 20)]
    for place in (*range(0, len(answers[1]), 11), len(answers[1])):
        splice = ChunkSplice(NAME)
        out = splice.feed(answers[0])
        splice.again()
        out += splice.feed(answers[1][:place])
        out += splice.cut()
        assert (NAME.encode() in out, b"[DONE]" in out) == (False, False)
        assert all(choice["finish_reason"] is None for one in payloads(out) for choice in one["choices"])
        assert said(out)[0] in ("Let me look.", "Let me look.\n\nHm.")
        assert splice.cut() == b""
    assert said(out)[:2] == ("Let me look.\n\nHm.", [LS])


def test_words_that_wait_for_another_answer_go_out_at_a_cut():
    """They came behind an end, before a call of ours."""
    splice = ChunkSplice(NAME)
    call = {"index": 0, "id": "o", "type": "function", "function": {"name": NAME, "arguments": "{}"}}
    fed = splice.feed(chunk("a", {"content": "So."}, "tool_calls", counted(5)) + chunk("a", {"tool_calls": [call]}))
    assert (fed, splice.showed) == (b"", False)
    (told,) = payloads(splice.cut())
    assert (told["choices"][0]["delta"], told["choices"][0]["finish_reason"]) == ({"content": "So."}, None)
    assert (told["usage"], splice.showed) == (None, True)

    again = ChunkSplice(NAME)
    again.feed(chunk("a", {"content": "So."}, "tool_calls", counted(5)) + chunk("a", {"tool_calls": [call]}))
    again.again()
    assert payloads(again.cut())[0]["choices"][0]["delta"] == {"content": "So."}


# A refusal of a later request


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (b'{\n "error": {"message":"Too fast","type":"requests","code":"rate_limit_exceeded"}}', "Too fast"),
        (b'[{"error": {"message":"Too fast","code":429}}]', "Too fast"),
        (b"<html>", "The provider refused a further request that this answer needed."),
        (b'{"error": null}', "The provider refused a further request that this answer needed."),
        (b"", "The provider refused a further request that this answer needed."),
    ],
)
def test_a_refusal_is_an_error_of_the_sdk(told, message):
    splice = ChunkSplice(NAME)
    out = splice.feed(as_openai("a", ["Let me see."], [OURS], 1))
    splice.again()
    out += splice.failed(told)

    answer = accumulate([out])
    assert (answer.error, answer.terminal) == (message, False)
    with pytest.raises(openai.APIError, match=message):
        as_the_sdk_has_it(out)


# Plain answers


def plain(text: str | None, calls: Sequence[Call], tokens: int) -> bytes:
    message: Json = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return json.dumps({"id": f"c{tokens}", "choices": [choice], "usage": counted(tokens), "x": 1.50}).encode()


def test_plain_answers_are_the_last_with_the_counts_of_all():
    bodies = [plain(None, [OURS], 10), plain("7 caf\u00e9", [], 20)]
    out = spliced(bodies, NAME)
    assert json.loads(out) == {**json.loads(bodies[1]), "usage": {**counted(30), "completion_tokens": 4,
        "total_tokens": 34, "prompt_tokens_details": {"cached_tokens": 28}}}  # fmt: skip
    assert (b"caf\\u00e9" in out, b"1.5" in out) == (True, True)


def test_a_plain_answer_with_nothing_of_ours_is_itself():
    for body in (plain("7", [LS], 5), b"no", b"{}", b'{"choices":[{"message":null}]}', b'{"choices":7}'):
        assert spliced([body], NAME) is body


def test_calls_of_ours_leave_a_plain_answer():
    (message,) = completion_in(spliced([plain("So", [LS, OURS, CAT], 5)], NAME)).messages
    assert [(call.id, call.name, call.arguments) for call in message.calls] == [LS, CAT]
    out = json.loads(spliced([plain("So", [OURS], 5)], NAME))
    assert out["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "So", "refusal": None},
        "finish_reason": "stop",
    }
    mixed = json.loads(spliced([plain(None, [OURS, LS], 5)], NAME))
    assert mixed["choices"][0]["finish_reason"] == "tool_calls"
