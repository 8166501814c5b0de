"""The laws in the Messages API's dialect: 200 requests of an agent by Anthropic's SDK, at a provider as strict as it.

Tools in parallel, thinking, pictures, and cache marks as Claude Code sets them.
"""

import base64
import itertools
import json
import random
import struct
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conversations import count, prose
from tests.laws.test_append_only import begins_with
from tests.laws.test_originals_come_back import Fact, facts_of
from tests.proxied import MODEL, WINDOW, Prompt, Proxy, proxying
from tests.spoken_to import Blocks, MessagesPrompt, MessagesProvider, blocks_of, marks_in, problems, sdk, thinking

Json = dict[str, Any]

TURNS = 200
RESERVE = 512
LAST = TURNS - 27  # from here on the user asks for facts, with every third request
MARK = {"cache_control": {"type": "ephemeral"}}
TOOLS = [
    {"name": name, "description": prose(random.Random(name), 25), "input_schema": {"type": "object"}}
    for name in ("read_file", "search", "look_at")
]
SYSTEM = [
    {"type": "text", "text": "You are a careful agent.", **MARK},
    {"type": "text", "text": prose(random.Random("system"), 30), **MARK},
]


def png(width: int, height: int) -> Json:
    """A picture of that size, as far as anybody reads it here."""
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0)
    data = base64.b64encode(head + bytes(8)).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


class Agent:
    """Thinks and calls tools twice for each user message, sometimes in parallel, then answers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ids = itertools.count()
        self.steps = 0

    def __call__(self, prompt: Prompt) -> Blocks:
        self.steps += 1
        thought = [thinking(prose(self.rng, 12))] if self.rng.random() < 0.7 else []
        if self.steps % 3 == 0:
            return [*thought, {"type": "text", "text": prose(self.rng, 60)}]
        said = [{"type": "text", "text": prose(self.rng, 8)}] if self.rng.random() < 0.5 else []
        return [*thought, *said, *(self.call() for _ in range(self.rng.choice([1, 1, 2, 3])))]

    def call(self) -> Json:
        given = {"path": prose(self.rng, 3), "depth": None, "lines": [1, 2.5]}
        return {"type": "tool_use", "id": f"toolu_{next(self.ids)}", "name": "read_file", "input": given}


@dataclass
class Run:
    """A long conversation, and what came of it."""

    asked: list[list[Json]] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    rollovers: dict[int, Json] = field(default_factory=dict)  # by request: the explanation
    prompts: list[MessagesPrompt] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    told: dict[int, Fact] = field(default_factory=dict)  # by request
    found: dict[int, tuple[Fact, bool]] = field(default_factory=dict)
    export: list[Json] = field(default_factory=list)
    sent: list[Json] = field(default_factory=list)  # the whole conversation at its end
    usages: list[tuple[int, Any]] = field(default_factory=list)

    @property
    def breaks(self) -> list[int]:
        pairs = itertools.pairwise(self.prompts)
        return [n + 1 for n, (before, after) in enumerate(pairs) if not begins_with(after, before)]


class Human:
    """Tells nine facts early, asks for them at the end, and talks of other things between."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run = run
        self.rng = random.Random(seed)
        self.facts = facts_of(self.rng)
        self.spoken = 0

    def speaks(self, number: int) -> Any:
        self.spoken += 1
        if number >= LAST:
            fact = self.facts[(number - LAST) // 3 % len(self.facts)]
            self.run.found[number] = (fact, False)
            return fact.asked
        words = f"Task {number}: {prose(self.rng, 40)}"
        if self.spoken <= len(self.facts):
            self.run.told[number] = self.facts[self.spoken - 1]
            return f"{words} {self.run.told[number].told}"
        if self.spoken % 5 == 0:
            return [{"type": "text", "text": words}, png(420, 280)]
        return words

    def answers(self, calls: Blocks) -> Blocks:
        """Results of calls; now and then with a picture, or with words beside them."""
        rng, out = self.rng, []
        for call in calls:
            text = prose(rng, rng.choice([20, 80, 200]))
            content = [{"type": "text", "text": text}, png(280, 280)] if rng.random() < 0.1 else text
            out.append({"type": "tool_result", "tool_use_id": call["id"], "content": content})
        return [*out, {"type": "text", "text": "And be quick."}] if rng.random() < 0.1 else out


def marked(said: list[Json], number: int) -> list[Json]:
    """The last user message marked, and every other time the one before as well."""
    users = [n for n, message in enumerate(said) if message["role"] == "user"]
    out = list(said)
    for n in users[-1 - number % 2 :]:
        blocks = blocks_of(out[n]["content"])
        out[n] = {"role": "user", "content": [*blocks[:-1], {**blocks[-1], **MARK}]}
    return out


def play(proxy: Proxy, provider: MessagesProvider, turns: int) -> Run:
    run = Run()
    human = Human(run, 7)
    said: list[Json] = []
    with sdk(proxy) as client:
        for number in range(turns):
            calls = [b for b in said[-1]["content"] if b["type"] == "tool_use"] if said else []
            said.append({"role": "user", "content": human.answers(calls) if calls else human.speaks(number)})
            request: Json = {"model": MODEL, "max_tokens": RESERVE, "system": SYSTEM, "tools": TOOLS}
            request["messages"] = marked(said, number)
            before = proxy.metric("infold_rollovers_total")
            if number % 2:
                with client.messages.stream(**request) as stream:
                    message = stream.get_final_message()
                    headers = stream.response.headers
            else:
                reply = client.messages.with_raw_response.create(**request)
                message, headers = reply.parse(), reply.headers
            run.asked.append(request["messages"])
            run.modes.append(headers["x-infold-mode"])
            if proxy.metric("infold_rollovers_total") > before:
                run.rollovers[number] = proxy.explain(headers["x-infold-turn"])["attempts"][-1]
            if number in run.found:
                fact = run.found[number][0]
                run.found[number] = (fact, fact.value in provider.prompts[-1])
            dumped = message.model_dump(exclude_none=number % 3 == 0)
            said.append({"role": "assistant", "content": dumped["content"]})
    run.prompts, run.refused, run.sent, run.export = provider.prompts, provider.refused, said, proxy.export()
    return run


@pytest.fixture(scope="module")
def run(new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    provider = MessagesProvider(reply=Agent(1))
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("run")) as proxy,
    ):
        return play(proxy, provider, TURNS)


def test_all_turns_are_answered_by_the_sdk(run):
    assert len(run.asked) == len(run.prompts) == TURNS
    assert run.refused == []
    assert set(run.modes) == {"wire", "folded"}
    assert run.modes.count("folded") > TURNS / 2


def test_every_prompt_is_valid_and_within_the_window(run):
    assert all(list(problems(prompt.body)) == [] for prompt in run.prompts)
    assert max(prompt.tokens for prompt in run.prompts) + RESERVE <= WINDOW


def test_between_rollovers_the_previous_prompt_is_a_prefix_of_the_next(run):
    assert set(run.breaks) <= set(run.rollovers)
    assert len(run.rollovers) >= 4


def test_every_message_is_known_again_when_it_is_sent_back(run):
    """An answer as recorded and as the SDK dumps it are one message: nothing forks, so nothing is stored twice."""
    stored = [line for line in run.export if line["kind"] == "message" and line["role"] != "system"]
    assert len(stored) == len(run.sent)
    assert len({line["session"] for line in run.export if line["kind"] == "turn"}) == 1


def test_facts_from_before_the_third_rollover_come_back(run):
    third = sorted(run.rollovers)[2]
    missing = [fact.asked for fact, is_there in run.found.values() if not is_there]

    assert len(run.told) == 9
    assert max(run.told) < third
    assert len({fact for fact, _ in run.found.values()}) == 9
    assert len(missing) <= 1, missing


def test_the_clients_newest_blocks_reach_the_provider_unchanged(run):
    for request, prompt in zip(run.asked, run.prompts, strict=True):
        newest = blocks_of(request[-1]["content"])
        assert blocks_of(prompt.messages[-1]["content"])[-len(newest) :] == newest
        assert prompt.body["system"] == SYSTEM


def test_the_frozen_prefix_is_marked_where_the_client_leaves_a_mark(run):
    folded = [prompt for prompt, mode in zip(run.prompts, run.modes, strict=True) if mode == "folded"]
    marks = [len(marks_in(prompt.body)) for prompt in folded]

    assert max(marks) <= 4
    assert marks.count(4) > len(marks) * 0.9


def test_rollovers_are_few(run):
    """At most 1.3 x tokens added / (trigger - target); blocks that stay are among what is added."""
    bounds = next(iter(run.rollovers.values()))["budget"]
    whole = {"model": "m", "messages": run.asked[-1], "max_tokens": 1}
    added = MessagesProvider().count(json.dumps(whole).encode())
    added += sum(count(block) for block in {block for prompt in run.prompts for block in prompt.blocks})

    assert len(run.rollovers) <= 1.3 * added / (bounds["trigger"] - bounds["target"])
