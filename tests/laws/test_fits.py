"""Laws 2, 7 and 8: what is forwarded fits, its roles are valid, calls keep their results, pinned words stay.

Here the whole memory works with a real database, without HTTP between: many histories, each grown request by request.
"""

import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory.budget import budget
from memory.identify import fresh_from, newest_user
from memory.manager import MemoryManager
from memory.messages import ChatRequest, first_turn
from memory.models import ModelOverride, ModelTable
from memory.prepared import Caller, Prepared
from memory.recorder import Ended, Recorder
from memory.settings import Settings
from memory.spool import Spool
from memory.tokens import REPLY_TOKENS, Counter
from proxy.wire import openai
from proxy.wire.content import message_of
from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser
from tests.conversations import assistant, body_of, calling, prose, result, system, user
from tests.faults import Stalls
from tests.proxied import problems

Json = dict[str, Any]

WINDOWS = {"m-2k": 2_048, "m-8k": 8_192, "m-32k": 32_768}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks. " * 30, "parameters": {"x": 1}}}]
SMALLEST_DIGEST = 200  # tokens that any digest may take
SMALLEST_RESULT = 160  # tokens that a shortened result may take, its note included
COUNTER, PARSER = Counter(), Parser(SHAPE)


def tokens_in(body: bytes) -> int:
    """Counted from the bytes that go upstream."""
    asked = PARSER.parse(body)
    assert asked is not None
    counted = sum(COUNTER.messages(asked.messages, "cl100k_base"))
    return counted + COUNTER.schemas(asked.schemas, "cl100k_base") + REPLY_TOKENS


@dataclass
class House:
    """A memory with its store, and a conversation with it."""

    memory: MemoryManager
    tenants: int = 0
    dialect: Any = openai
    body: Callable[..., bytes] = body_of
    _parser: Parser = field(default_factory=lambda: Parser(SHAPE))

    def tenant(self) -> Caller:
        self.tenants += 1
        return Caller(self.tenants.to_bytes(16, "big"))

    async def ask(self, caller: Caller, messages: list[Json], answer: Json | None = None, **more: Any) -> Prepared:
        asked = self._parser.parse(self.body(messages, **more))
        assert asked is not None
        prepared = await self.memory.prepare(caller, asked, self.dialect)
        said = (message_of(json.dumps(answer).encode()),) if answer else ()
        await self.memory.record(prepared, self.memory.open(prepared), Ended("answered", said, {}))
        return prepared


@pytest.fixture
async def house(pool: Any, tmp_path: Any) -> AsyncIterator[House]:
    models = ModelTable({name: ModelOverride(context_window=window) for name, window in WINDOWS.items()})
    spool = Spool(tmp_path / "turns")
    yield House(MemoryManager(Settings(), pool, Recorder(pool, spool), models, Counter()))
    spool.close()


def limit_of(asked: ChatRequest) -> int:
    model = ModelTable({name: ModelOverride(context_window=w) for name, w in WINDOWS.items()}).find(asked.model)
    return budget(model, asked.max_output_tokens, 0).limit


def smallest(asked: ChatRequest) -> int:
    """Tokens of the smallest plan there can be: pinned words, open calls, their results shortened, one digest."""
    counts = COUNTER.messages(asked.messages, "cl100k_base")
    spoken = [i for i, message in enumerate(asked.messages) if not message.is_system]
    line = [asked.messages[i] for i in spoken]
    fresh, newest = fresh_from(line), newest_user(line)
    pinned = set(range(first_turn(asked.messages)))
    pinned |= {i for i, message in enumerate(asked.messages) if message.is_system}
    pinned |= {spoken[newest]} if newest is not None else set()
    opening = next((i for i in range(fresh - 1, -1, -1) if line[i].calls), None)
    if opening is not None and fresh < len(line):
        pinned |= {spoken[i] for i in range(opening, fresh)}
    total = sum(counts[i] for i in pinned)
    for i in range(fresh, len(line)):
        if spoken[i] not in pinned:
            total += min(counts[spoken[i]], SMALLEST_RESULT) if line[i].role == "tool" else counts[spoken[i]]
    return total + COUNTER.schemas(asked.schemas, "cl100k_base") + REPLY_TOKENS + SMALLEST_DIGEST


def check(prepared: Prepared) -> None:
    """All that must be true of a forwarded prompt."""
    asked = prepared.asked
    limit = limit_of(asked)
    forwarded = json.loads(prepared.body)["messages"]
    before = json.loads(asked.body)
    total = tokens_in(prepared.body)
    if prepared.is_untouched:
        assert total <= limit or smallest(asked) > limit, f"{total} > {limit}, smallest {smallest(asked)}"
        return
    assert total <= limit
    assert total <= prepared.forwarded_tokens  # type: ignore[operator]
    assert problems(forwarded) == []
    raws = [message.raw for message in PARSER.parse(prepared.body).messages]  # type: ignore[union-attr]
    front = first_turn(asked.messages)
    assert raws[:front] == [message.raw for message in asked.messages[:front]]
    line = [message for message in asked.messages if not message.is_system]
    newest = newest_user(line)
    assert newest is None or line[newest].raw in raws
    late = [message.raw for message in asked.messages[front:] if message.is_system]
    assert not late or late[-1] in raws
    assert forwarded[-1]["role"] == before["messages"][-1]["role"]
    after = json.loads(prepared.body)
    assert {key: after[key] for key in after if key != "messages"} == {
        key: before[key] for key in before if key != "messages"
    }


# Histories of every shape

sizes = st.sampled_from([1, 1, 5, 30, 30, 120, 400, 3_000])
picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "high"}}


@st.composite
def histories(draw: st.DrawFn) -> list[Json]:
    """A conversation as it is at its end; every request in it ends behind a user message or behind results."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    said: list[Json] = [system(prose(rng, draw(st.sampled_from([3, 60])))) for _ in range(draw(st.integers(0, 2)))]
    for turn in range(draw(st.integers(1, 8))):
        if draw(st.integers(0, 9)) == 0:
            said.append(system(f"the time is {turn}", draw(st.sampled_from(["system", "developer"]))))
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 30]))):
            text = prose(rng, draw(sizes))
            parts = [{"type": "text", "text": text}, picture] if draw(st.integers(0, 7)) == 0 else text
            said.append(user(parts, **({"name": "ann"} if draw(st.booleans()) else {})))
        for step in range(draw(st.sampled_from([0, 0, 1, 3, 6]))):
            ids = [f"c{turn}-{step}-{n}" for n in range(draw(st.sampled_from([1, 1, 3])))]
            said.append(calling(*((id, json.dumps({"q": prose(rng, draw(st.sampled_from([2, 40])))})) for id in ids)))
            said += [result(id, prose(rng, draw(sizes))) for id in ids]
        said.append(assistant(prose(rng, draw(sizes))))
    return said


def requests_of(history: list[Json]) -> list[tuple[list[Json], Json]]:
    """Each request of a conversation, with the answer it got."""
    return [
        (history[:i], message)
        for i, message in enumerate(history)
        if message["role"] == "assistant" and history[i - 1]["role"] in ("user", "tool")
    ]


slow = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@slow
@given(
    history=histories(),
    model=st.sampled_from(["m-2k", "m-8k", "m-8k", "m-32k"]),
    reserve=st.sampled_from([None, 16, 500]),
    tools=st.booleans(),
)
async def test_every_request_of_every_conversation_fits_and_is_valid(house, history, model, reserve, tools):
    caller = house.tenant()
    more: Json = {"model": model} | ({"max_tokens": reserve} if reserve else {}) | ({"tools": TOOLS} if tools else {})
    for messages, answer in requests_of(history):
        check(await house.ask(caller, messages, answer, **more))


@slow
@given(history=histories(), model=st.sampled_from(["m-2k", "m-8k"]))
async def test_a_history_that_comes_all_at_once_fits(house, history, model):
    messages, answer = requests_of(history)[-1]
    check(await house.ask(house.tenant(), messages, answer, model=model))


@slow
@given(history=histories(), models=st.lists(st.sampled_from(["m-2k", "m-8k", "m-32k"]), min_size=3, max_size=12))
async def test_a_conversation_that_changes_its_model_fits_each(house, history, models):
    caller = house.tenant()
    for (messages, answer), model in zip(requests_of(history), models, strict=False):
        check(await house.ask(caller, messages, answer, model=model))


@pytest.mark.parametrize("results", [1, 3])
@pytest.mark.parametrize("words", [30_000, 8_000])
async def test_a_result_larger_than_the_window_is_served_with_its_id(house, words, results):
    rng = random.Random(words)
    calls = [(f"c{n}", '{"path": "log.txt"}') for n in range(results)]
    messages = [
        system("be brief"),
        user("read the log"),
        calling(*calls),
        *(result(id, prose(rng, words)) for id, _ in calls),
    ]
    prepared = await house.ask(house.tenant(), messages, model="m-8k")

    check(prepared)
    assert not prepared.is_untouched
    assert b"[#" in prepared.body


async def test_a_request_that_jumps_three_windows_at_once_is_served(house):
    rng = random.Random(3)
    messages = [user(prose(rng, 10))]
    while tokens_in(body_of(messages)) < 3.5 * 8_192:
        messages += [assistant(prose(rng, 200)), user(prose(rng, 100))]
    prepared = await house.ask(house.tenant(), messages, model="m-8k")

    check(prepared)
    assert prepared.mode == "folded"


async def test_a_loop_of_a_hundred_calls_under_one_user_message_is_served(house):
    rng = random.Random(4)
    caller, said = house.tenant(), [system("you are an agent"), user("find the bug in " + prose(rng, 30))]
    for step in range(100):
        call = calling((f"c{step}", json.dumps({"step": step, "path": prose(rng, 5)})))
        prepared = await house.ask(caller, said, call, model="m-8k")
        check(prepared)
        assert not prepared.is_untouched or tokens_in(prepared.body) < 8_192
        said += [call, result(f"c{step}", prose(rng, 150))]


@pytest.mark.parametrize("spare", [2_000, 600, 300, SMALLEST_DIGEST + 20])
async def test_a_newest_message_that_leaves_little_room_still_gets_through(house, spare):
    """As long as pinned words and a digest fit."""
    rng = random.Random(5)
    caller = house.tenant()
    history = [m for _ in range(25) for m in (user(prose(rng, 80)), assistant(prose(rng, 80)))]
    words = 6_000
    while True:
        asked = PARSER.parse(body_of([*history, user(prose(random.Random(6), words))], model="m-8k"))
        assert asked is not None
        room = limit_of(asked) - (smallest(asked) - SMALLEST_DIGEST)
        if room >= spare:
            break
        words -= 20
    prepared = await house.ask(caller, list(json.loads(asked.body)["messages"]), model="m-8k")

    assert not prepared.is_untouched
    check(prepared)


async def test_an_edit_that_needs_more_room_than_the_last_rollover_left_still_fits(house):
    """The same messages leave the prompt as before, so the digest itself must shrink."""
    rng = random.Random(7)
    caller = house.tenant()
    history = [m for _ in range(40) for m in (user(prose(rng, 80)), assistant(prose(rng, 900)))]
    for words in (20, 2_500, 3_600):
        messages = [*history, user(prose(random.Random(8), words))]
        prepared = await house.ask(caller, messages, model="m-8k")
        check(prepared)
        assert not prepared.is_untouched


async def test_many_short_messages_come_back_only_as_far_as_they_fit(house):
    rng = random.Random(9)
    caller = house.tenant()
    said: list[Json] = []
    for n in range(1_500):
        word = "falcon heron otter" if n % 20 == 0 else "pebble"
        said.append(user(f"{rng.choice('abcdefgh')} {n} {word}", name=f"speaker-with-a-long-name-{n % 7}"))
    prepared = await house.ask(caller, [*said, user("which falcon, heron and otter was it?")], model="m-8k")

    check(prepared)
    assert prepared.block_tokens > 500


async def test_where_nothing_can_fit_the_request_goes_out_as_it_came(house):
    messages = [system(prose(random.Random(1), 9_000)), user("hello"), assistant("hi"), user("again")]
    prepared = await house.ask(house.tenant(), messages, model="m-8k")

    assert prepared.is_untouched
    assert prepared.reason


async def test_digests_of_digests_leave_three_quarters_of_the_window_free_after_ten_windows(house):
    rng = random.Random(10)
    caller, said = house.tenant(), [system("be brief")]
    while tokens_in(body_of([*said, user("x")])) < 10 * 8_192:
        said.append(user(prose(rng, 300)))
        answer = assistant(prose(rng, 500))
        prepared = await house.ask(caller, said, answer, model="m-8k")
        check(prepared)
        if prepared.rolled:
            record = prepared.record
            assert record is not None
            blocks = prepared.block_tokens
            assert prepared.forwarded_tokens - blocks - tokens_in(body_of(said[-1:])) <= 0.25 * 8_192 + 40  # type: ignore[operator]
        said.append(answer)
    assert not prepared.is_untouched


async def test_an_assistants_prefill_at_the_end_stays_at_the_end(house):
    rng = random.Random(11)
    messages = [m for _ in range(40) for m in (user(prose(rng, 80)), assistant(prose(rng, 120)))]
    prepared = await house.ask(house.tenant(), [*messages, user("write a poem"), assistant("Roses")], model="m-8k")

    check(prepared)
    assert json.loads(prepared.body)["messages"][-1] == assistant("Roses")


async def test_a_large_history_never_stalls_others_for_long(house):
    """Folding 500 KB that nobody has seen runs in a thread; the loop goes on."""
    rng = random.Random(12)
    messages = [m for _ in range(250) for m in (user(prose(rng, 150)), assistant(prose(rng, 150)))]
    await house.ask(house.tenant(), [user("warm")], model="m-8k")
    async with Stalls().of_this_loop() as stalls:
        await house.ask(house.tenant(), [*messages, user("and?")], model="m-8k")
    assert stalls.longest_seconds < 0.5  # 0.05 is promised, on a quick machine


async def test_equal_messages_that_count_differently_are_counted_anew(house):
    """White space at the end and an image's detail make no other message, but other tokens."""

    def history(detail: str, space: str) -> list[Json]:
        seen = {"type": "image_url", "image_url": picture["image_url"] | {"detail": detail}}
        return [user([seen, {"type": "text", "text": f"picture {n}{space}"}]) for n in range(4)]

    caller = house.tenant()
    first = await house.ask(caller, history("low", ""), answer=assistant("seen"), model="m-32k")
    again = await house.ask(caller, [*history("high", " \n" * 2_000), user("?")], model="m-32k")

    assert first.line.nodes == again.line.nodes[:4]
    assert again.asked_tokens == tokens_in(again.asked.body)
    assert again.asked_tokens > first.asked_tokens + 4 * 500
