"""Laws 2, 7 and 8 in the Messages API's dialect: the histories of `test_fits`, as Anthropic's clients would send them."""

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.identify import newest_user
from memory.messages import ChatRequest, Message
from memory.prepared import Prepared
from memory.tokens import REPLY_TOKENS
from proxy.wire import anthropic
from proxy.wire.content import message_of
from proxy.wire.parser import Parser
from tests.conversations import assistant, calling, prose, result, system, user
from tests.laws import test_fits
from tests.laws.test_fits import COUNTER, SMALLEST_RESULT, histories, limit_of, requests_of, slow, smallest
from tests.spoken_to import blocks_of, problems, thinking, unmarked

Json = dict[str, Any]

house = test_fits.house
PARSER = Parser(anthropic.SHAPE)
TOOLS = [{"name": "look", "description": "Looks. " * 30, "input_schema": {"type": "object"}}]
MARK = {"cache_control": {"type": "ephemeral"}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
ROOM = 500


def translated(message: Json) -> Json:
    """A chat message in the Messages API's shape."""
    content = message["content"] or []
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    blocks = [PICTURE if block["type"] == "image_url" else block for block in blocks]
    if message["role"] == "tool":
        found = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": blocks}
        return {"role": "user", "content": [found, *message.get("beside", ())]}
    calls = [
        {"type": "tool_use", "id": call["id"], "name": "look", "input": json.loads(call["function"]["arguments"])}
        for call in message.get("tool_calls") or ()
    ]
    thought = [thinking("Let me see. " * 9)] if calls else []
    return {"role": message["role"], "content": [*thought, *blocks, *calls]}


def body_of(messages: list[Json], model: str = "m-8k", max_tokens: int = ROOM, **more: Any) -> bytes:
    """A request with these chat messages; neighbours of a role are one message, and the last block is marked."""
    said: list[Json] = []
    for message in map(translated, (m for m in messages if m["role"] not in ("system", "developer"))):
        if said and said[-1]["role"] == message["role"]:
            said[-1] = {**message, "content": said[-1]["content"] + message["content"]}
        else:
            said.append(message)
    said[-1] = {**said[-1], "content": [*said[-1]["content"][:-1], {**said[-1]["content"][-1], **MARK}]}
    systems = [{"type": "text", "text": m["content"]} for m in messages if m["role"] in ("system", "developer")][:2]
    request = {"model": model, "max_tokens": max_tokens, "system": systems, "messages": said}
    return json.dumps(request | more).encode()


def tokens_in(body: bytes) -> int:
    asked = PARSER.parse(body)
    assert asked is not None
    schemas = COUNTER.schemas(asked.schemas, "cl100k_base")
    return sum(COUNTER.messages(asked.messages, "cl100k_base")) + schemas + REPLY_TOKENS


def smallest_here(asked: ChatRequest) -> int:
    """A message may hold several results, and each keeps something; so do words beside results, and new ones all."""
    more = [len(anthropic.results(message.raw)) - 1 for message in asked.messages if message.role == "tool"]
    worded = [message for message in asked.messages if message.has_user_words]
    new = words_tokens(asked.messages[-1]) if worded and worded[-1] is asked.messages[-1] else 0
    return smallest(asked) + SMALLEST_RESULT * (sum(more) + bool(worded)) + new


def words_tokens(message: Message) -> int:
    return COUNTER.message(message_of(anthropic.words(message.raw)), "cl100k_base")


def check(prepared: Prepared) -> None:
    """All that must be true of a forwarded prompt."""
    asked, limit, total = prepared.asked, limit_of(prepared.asked), tokens_in(prepared.body)
    if prepared.is_untouched:
        assert total <= limit or smallest_here(asked) > limit, f"{total} > {limit}, smallest {smallest_here(asked)}"
        return
    after, before = json.loads(prepared.body), json.loads(asked.body)
    assert total <= limit, f"{total} > {limit}"
    assert total <= (prepared.forwarded_tokens or 0) + 2, "more than we say"
    assert list(problems(after)) == []
    assert {key: after[key] for key in after if key != "messages"} == {
        key: before[key] for key in before if key != "messages"
    }
    line = [message for message in asked.messages if not message.is_system]
    newest = newest_user(line)
    beside = [message for message in line[(newest or 0) :] if message.has_user_words][-1:]
    shown = [unmarked(block) for message in after["messages"] for block in blocks_of(message["content"])]
    assert newest is None or all(
        unmarked(block) in shown for block in blocks_of(json.loads(line[newest].raw)["content"])
    )
    for message in beside:
        if words_tokens(message) <= (limit - smallest_here(asked)) // 2:
            words = blocks_of(json.loads(anthropic.words(message.raw))["content"])
            assert all(unmarked(block) in shown for block in words)


@pytest.fixture
def spoken(house: test_fits.House) -> test_fits.House:
    """The same memory, spoken to as Anthropic's clients do."""
    house.dialect, house.body, house._parser = anthropic, body_of, Parser(anthropic.SHAPE)
    return house


@slow
@given(
    history=histories(),
    model=st.sampled_from(["m-2k", "m-8k", "m-8k", "m-32k"]),
    room=st.sampled_from([16, ROOM]),
    tools=st.booleans(),
)
async def test_every_request_of_every_conversation_fits_and_is_valid(spoken, history, model, room, tools):
    caller = spoken.tenant()
    for messages, answer in requests_of(history):
        more: Json = {"model": model, "max_tokens": room} | ({"tools": TOOLS} if tools else {})
        check(await spoken.ask(caller, messages, translated(answer), **more))


@st.composite
def interrupted(draw: st.DrawFn) -> list[Json]:
    """Conversations whose users speak beside results as well."""
    rng, said = random.Random(draw(st.integers(0, 2**32))), []
    every = draw(st.sampled_from([1, 2, 5]))
    for message, after in itertools.pairwise([*draw(histories()), assistant("")]):
        ends = message["role"] == "tool" and after["role"] != "tool" and rng.randrange(every) == 0
        words = prose(rng, rng.choice([1, 30, 30, 400, 3_000]))
        said.append({**message, "beside": [{"type": "text", "text": words}]} if ends else message)
    return said


@slow
@given(history=interrupted(), model=st.sampled_from(["m-2k", "m-8k", "m-8k", "m-32k"]))
async def test_where_users_speak_beside_results_every_request_fits_and_their_newest_words_stay(spoken, history, model):
    caller = spoken.tenant()
    for messages, answer in requests_of(history):
        check(await spoken.ask(caller, messages, translated(answer), model=model))


@slow
@given(history=histories(), model=st.sampled_from(["m-2k", "m-8k"]))
async def test_a_history_that_comes_all_at_once_fits(spoken, history, model):
    messages, answer = requests_of(history)[-1]
    check(await spoken.ask(spoken.tenant(), messages, translated(answer), model=model))


@pytest.mark.parametrize("results", [1, 3])
@pytest.mark.parametrize("words", [30_000, 8_000])
async def test_results_larger_than_the_window_are_served_with_their_id(spoken, words, results):
    rng = random.Random(words)
    calls = [(f"c{n}", '{"path": "log.txt"}') for n in range(results)]
    messages = [
        system("be brief"),
        user("read the log"),
        calling(*calls),
        *(result(id, prose(rng, words)) for id, _ in calls),
    ]
    prepared = await spoken.ask(spoken.tenant(), messages, model="m-8k")

    check(prepared)
    assert not prepared.is_untouched
    assert prepared.body.count(b"the whole is kept as [#") == results


async def test_a_loop_of_a_hundred_calls_under_one_user_message_is_served(spoken):
    rng = random.Random(4)
    caller, said = spoken.tenant(), [system("you are an agent"), user("find the bug in " + prose(rng, 30))]
    for step in range(100):
        call = calling(*((f"c{step}-{n}", json.dumps({"path": prose(rng, 5)})) for n in range(1 + step % 2)))
        prepared = await spoken.ask(caller, said, translated(call), model="m-8k")
        check(prepared)
        assert not prepared.is_untouched or tokens_in(prepared.body) < 8_192
        said += [call, *(result(f"c{step}-{n}", prose(rng, 150)) for n in range(1 + step % 2))]


async def test_where_nothing_can_fit_the_request_goes_out_as_it_came(spoken):
    messages = [system(prose(random.Random(1), 9_000)), user("hello"), assistant("hi"), user("again")]
    prepared = await spoken.ask(spoken.tenant(), messages, model="m-8k")

    assert prepared.is_untouched
    assert prepared.reason
