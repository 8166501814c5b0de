"""Laws 2, 7 and 8 over the Responses API: the histories of `test_fits`, thought over and written as items."""

import itertools
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.identify import newest_user
from memory.manager import MemoryManager
from memory.messages import ChatRequest, first_turn
from memory.models import ModelOverride, ModelTable
from memory.prepared import Caller, Prepared
from memory.recorder import Ended, Recorder
from memory.settings import Settings
from memory.spool import Spool
from memory.tokens import REPLY_TOKENS, Counter
from proxy.wire import responses
from proxy.wire.parser import Parser
from proxy.wire.responses import SHAPE, answer_of
from tests.conversations import prose, user
from tests.laws.test_fits import WINDOWS, histories, limit_of, requests_of, slow, smallest
from tests.responses import call, items_of, output, problems, reasoning

Json = dict[str, Any]

TOOLS = [{"type": "function", "name": "look", "description": "Looks. " * 30, "parameters": {"x": 1}, "strict": None}]
COUNTER, PARSER = Counter(), Parser(SHAPE)


def body_of(said: list[Json], **more: Any) -> bytes:
    return json.dumps({"model": "m-8k", "input": said, "store": False, **more}).encode()


def counted(asked: ChatRequest) -> int:
    messages = sum(COUNTER.messages(asked.messages, "cl100k_base"))
    return messages + COUNTER.schemas(asked.schemas, "cl100k_base") + REPLY_TOKENS


def parsed(body: bytes) -> ChatRequest:
    asked = PARSER.parse(body)
    assert asked is not None
    return asked


@dataclass
class House:
    """A memory with its store, and a conversation with it."""

    memory: MemoryManager
    tenants: int = 0

    def tenant(self) -> Caller:
        self.tenants += 1
        return Caller(self.tenants.to_bytes(16, "big"))

    async def ask(self, caller: Caller, said: list[Json], answer: list[Json] | None = None, **more: Any) -> Prepared:
        prepared = await self.memory.prepare(caller, parsed(body_of(said, **more)), responses)
        answers = answer_of([json.dumps(item).encode() for item in answer or ()])
        await self.memory.record(prepared, self.memory.open(prepared), Ended("answered", answers, {}))
        return prepared


@pytest.fixture
async def house(pool: Any, tmp_path: Any) -> AsyncIterator[House]:
    models = ModelTable({name: ModelOverride(context_window=window) for name, window in WINDOWS.items()})
    spool = Spool(tmp_path / "turns")
    yield House(MemoryManager(Settings(), pool, Recorder(pool, spool), models, Counter()))
    spool.close()


def thought(messages: list[Json], rng: random.Random) -> list[Json]:
    """As items, with ids; some of what the assistant said was thought over before."""
    said: list[Json] = []
    for each in messages:
        items = [item | {"id": f"i_{len(said)}_{n}"} for n, item in enumerate(items_of([each]))]
        if items and each["role"] == "assistant" and rng.random() < 0.5:
            said.append(reasoning(rng) | {"id": f"rs_{len(said)}"})
        said += items
    return said


def leads_of(items: list[Json]) -> dict[str, str]:
    """By the id of an item, the id of the reasoning that led to it."""
    pairs = itertools.pairwise(items)
    return {after["id"]: before["id"] for before, after in pairs if before.get("type") == "reasoning" and "id" in after}


def check(prepared: Prepared) -> None:
    """All that must be true of a forwarded prompt."""
    asked = prepared.asked
    before, after = json.loads(asked.body), json.loads(prepared.body)
    forwarded = parsed(prepared.body)
    total, limit = counted(forwarded), limit_of(asked)
    if prepared.is_untouched:
        assert total <= limit or smallest(asked) > limit
        return
    assert total <= limit
    assert total <= (prepared.forwarded_tokens or 0)
    assert problems(after["input"], leads_of(before["input"])) == []
    front = first_turn(asked.messages)
    raws = [message.raw for message in forwarded.messages]
    assert raws[:front] == [message.raw for message in asked.messages[:front]]
    line = [message for message in asked.messages if not message.is_system]
    newest = newest_user(line)
    assert newest is None or line[newest].raw in raws
    assert forwarded.messages[-1].role == asked.messages[-1].role
    assert list(after) == list(before)
    assert {key: after[key] for key in after if key != "input"} == {k: before[k] for k in before if k != "input"}


@slow
@given(
    history=histories(),
    seed=st.integers(0, 2**32),
    model=st.sampled_from(["m-2k", "m-8k", "m-8k", "m-32k"]),
    more=st.sampled_from(
        [{}, {"max_output_tokens": 500}, {"tools": TOOLS}, {"instructions": "be brief", "tools": TOOLS}]
    ),
)
async def test_every_request_of_every_conversation_fits_and_is_valid(house, history, seed, model, more):
    caller = house.tenant()
    for messages, answer in requests_of(history):
        said = thought(messages, random.Random(seed))
        check(await house.ask(caller, said, items_of([answer]), model=model, **more))


@pytest.mark.parametrize("results", [1, 3])
@pytest.mark.parametrize("words", [30_000, 8_000])
async def test_an_output_larger_than_the_window_is_served_with_its_id(house, words, results):
    rng = random.Random(words)
    calls = [call(f"c{n}", {"path": "log.txt"}) for n in range(results)]
    outputs = [output(f"c{n}", prose(rng, words)) for n in range(results)]
    prepared = await house.ask(house.tenant(), [user("read the log"), reasoning(rng) | {"id": "rs"}, *calls, *outputs])

    check(prepared)
    assert not prepared.is_untouched
    assert b"[#" in prepared.body


async def test_a_loop_of_a_hundred_calls_under_one_user_message_is_served(house):
    rng = random.Random(4)
    caller, said = house.tenant(), [user("find the bug in " + prose(rng, 30))]
    for step in range(100):
        made = [reasoning(rng) | {"id": f"rs_{step}"}, call(f"c{step}", {"step": step}) | {"id": f"fc_{step}"}]
        check(await house.ask(caller, said, made, instructions=f"step {step}"))
        said += [*made, output(f"c{step}", prose(rng, 150))]


async def test_results_that_come_late_stay_with_their_calls(house):
    """The API lets a user speak before all outputs are there."""
    rng = random.Random(5)
    caller, said = house.tenant(), [user("begin")]
    for step in range(80):
        said += [call(f"a{step}", {}), call(f"b{step}", {}), output(f"a{step}", prose(rng, 60))]
        said += [user(prose(rng, 40)), output(f"b{step}", prose(rng, 60))]
        check(await house.ask(caller, said, items_of([{"role": "assistant", "content": "ok"}]), model="m-2k"))
        said.append({"role": "assistant", "content": "ok"})


@pytest.mark.parametrize("at", [0, 2, 31])
async def test_what_the_provider_compacted_stays_in_the_prompt(house, at):
    """Nobody else can read it, so no digest could tell it."""
    rng = random.Random(6)
    compacted = {"type": "compaction", "encrypted_content": "gAAAA" * 200}
    said = [
        item for _ in range(40) for item in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 90)})
    ]
    prepared = await house.ask(house.tenant(), [*said[:at], compacted, *said[at:], user("and so?")])

    check(prepared)
    assert not prepared.is_untouched
    assert compacted in json.loads(prepared.body)["input"]
