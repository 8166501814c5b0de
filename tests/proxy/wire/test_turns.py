"""Promises about Messages API prompts: whatever is folded, they are legal there, and the client's blocks are its own."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire import openai
from proxy.wire.anthropic import message_json, render, results, with_content
from proxy.wire.anthropic import words as words_beside
from proxy.wire.content import message_of
from proxy.wire.slices import MOST_PARTS
from tests.bodies import body_of
from tests.proxy.wire.test_anthropic import CALL, HOUR, MARK, PICTURE, RESULT, parsed
from tests.spoken_to import blocks_of, marks_in, problems, unmarked

Json = dict[str, Any]

promise = settings(deadline=None, max_examples=60)

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


def test_a_block_that_was_written_in_another_dialect_joins_as_well():
    """The same conversation may be held in both; what was quoted for it stands in either."""
    out = rendered(TALK, DIGEST, 3, openai.message_json("user", "<quoted>"), 4)["messages"]
    assert [texts(message) for message in out] == [["What was said before."], ["well"], ["<quoted>", "two"]]


def test_a_system_message_between_two_of_ours_is_kept():
    rule = {"role": "system", "content": "RULE 5"}
    out = rendered([*TALK, rule], DIGEST, 5, BLOCK, 4)["messages"]
    assert [texts(message) for message in out] == [["What was said before.", "<quoted>", "two"], ["RULE 5"]]


def test_neighbours_of_the_clients_own_stay_as_they_came():
    twice = [TALK[0], {"role": "user", "content": "two", "x": 1}]
    assert rendered(twice, 0, 1)["messages"] == twice
    assert rendered(twice, DIGEST, 0, 1)["messages"][1:] == twice[1:]


def test_a_client_may_say_what_we_would():
    """Its own message is its own, whatever stands in it."""
    same = json.loads(DIGEST)
    assert rendered([same, TALK[0]], 0, 1)["messages"] == [same, TALK[0]]


def test_system_messages_stand_behind_a_users():
    """There they may stand, before an answer or at the end; so two may not stand together."""
    told = [{"role": "system", "content": f"s{n}"} for n in range(2)]
    talk = [TALK[0], told[0], TALK[3], {"role": "user", "content": "three"}, told[1], TALK[3], TALK[4]]

    assert rendered(talk, DIGEST, 1, 3, 4, 5, 6)["messages"][:3] == [
        {"role": "user", "content": [{"type": "text", "text": "What was said before."}, {"type": "text", "text": "three"}]},
        {"role": "system", "content": [{"type": "text", "text": "s0"}, {"type": "text", "text": "s1"}]},
        TALK[3],
    ]  # fmt: skip
    roles = [message["role"] for message in rendered(talk, DIGEST, 1, 4, 5, 6)["messages"]]
    assert roles == ["user", "system", "assistant", "user"]
    held = rendered(talk, 1, DIGEST, 6)["messages"]
    assert [message["role"] for message in held] == ["user", "system"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((DIGEST, 1, 3, 4), [["What was said before.", "three"], ["s0", "s1"]]),
        ((DIGEST, 1, 3, BLOCK), [["What was said before.", "three", "<quoted>"], ["s0"]]),
        ((DIGEST, 1, BLOCK, 3, BLOCK, 4), [["What was said before.", "<quoted>", "three", "<quoted>"], ["s0", "s1"]]),
        ((DIGEST, 1, 0, BLOCK, 5), [["What was said before.", "one", "<quoted>"], ["s0"], ["well"]]),
        ((DIGEST, 1), [["What was said before."], ["s0"]]),
        ((0, 1, 2, BLOCK, 3, 4, 5), [["one"], ["s0"], ["well"], ["<quoted>", "three"], ["s1"], ["well"]]),
    ],
)
def test_whatever_stands_beside_system_messages_they_come_last_and_as_one(pieces, expected):
    """Ours took the place before the user message, and two system messages stood in a row, or one before a user's."""
    told = [{"role": "system", "content": f"s{n}"} for n in range(2)]
    talk = [TALK[0], told[0], TALK[3], {"role": "user", "content": "three"}, told[1], TALK[3], TALK[4]]
    out = rendered(talk, *pieces)

    assert [texts(message) for message in out["messages"]] == expected
    assert list(problems(out)) == []


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


def test_words_beside_results_are_a_message_of_their_own():
    raw = (
        b'{"content":[{"type":"text","text":" so \\ud800"} , {"type":"tool_result","tool_use_id":"t1"},'
        b'{ "source":{"type":"url","url":"u"},"type":"image" }],"role":"user","x":1}'
    )
    alone = b'{"role":"user","content":[{"type":"text","text":" so \\ud800"},{ "source":{"type":"url","url":"u"},"type":"image" }]}'

    assert words_beside(raw) == alone
    assert (message_of(raw).role, message_of(raw).has_user_words) == ("tool", True)
    assert (message_of(alone).role, message_of(alone).has_user_words) == ("user", False)


def test_hostile_blocks_cost_linear_time():
    began = time.process_time()
    many = b",".join([b'{"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"x"}]}'] * MOST_PARTS)
    raw = b'{"role":"user","content":[' + many + b"]}"
    request = parsed(body_of(raw))
    render(request, [DIGEST, raw], 1)
    assert len(results(raw)) == MOST_PARTS
    assert time.process_time() - began < 10
