"""The laws over the Responses API, with the real SDK: 200 turns of an agent against a window of 8,192 tokens."""

import itertools
import json
import random
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.conversations import prose
from tests.laws.test_originals_come_back import Fact, facts_of
from tests.proxied import MODEL, WINDOW, Proxy, proxying
from tests.responses import Prompt, Provider, call, message, output, picture, problems, reasoning

Json = dict[str, Any]

TURNS = 200
RESERVE = 512
TYPED_ITEMS = (
    40  # the SDK compares each item with all types of items: seconds for a long history, so that goes as it is
)
TOOLS = [
    {"type": "function", "name": name, "description": prose(random.Random(name), 25), "parameters": {}, "strict": False}
    for name in ("read_file", "look", "run_tests")
]


class Agent:
    """A provider's side of an agent: thinks, calls tools twice for each user message, often several, then answers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ids = itertools.count()
        self.steps = 0

    def __call__(self, prompt: Prompt) -> list[Json]:
        self.steps += 1
        thought = [reasoning(self.rng)] if self.rng.random() < 0.6 else []
        if self.steps % 3 == 0:
            return [*thought, message(prose(self.rng, 60))]
        calls = [
            call(f"call_{next(self.ids)}", {"path": prose(self.rng, 3)}) for _ in range(self.rng.choice([1, 1, 2]))
        ]
        said = [message("Let me look.")] if not thought and self.rng.random() < 0.3 else []
        return [*thought, *said, *calls]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a long conversation."""

    prompts: list[Prompt]
    rollovers: dict[int, Json]  # the requests at which the proxy says it rolled over, and how it explains them
    modes: list[str]
    asked: list[list[Json]]
    refused: list[str]
    told_before: int  # the rollovers when the last fact had been told
    recalled: list[tuple[Fact, Prompt]]
    exported: list[Json]


def new_results(rng: random.Random, calls: list[Json]) -> list[Json]:
    """What the client's tools gave: words, or words and a picture."""
    said = []
    for made in calls:
        words = prose(rng, rng.choice([20, 80, 300]))
        seen = [{"type": "input_text", "text": words}, picture()] if rng.random() < 0.1 else words
        said.append(output(made["call_id"], seen))
    return said


def waiting(said: list[Json]) -> list[Json]:
    """Calls without an output."""
    answered = {item["call_id"] for item in said if item.get("type") == "function_call_output"}
    return [item for item in said if item.get("type") == "function_call" and item["call_id"] not in answered]


def ask(client: openai.OpenAI, said: list[Json], number: int, stream: bool) -> tuple[list[Json], dict[str, str]]:
    """One request; the answer's items as the client sends them back, and the answer's headers."""
    typed = len(said) < TYPED_ITEMS
    given: Any = {
        "model": MODEL, "input": said if typed else "", "extra_body": {} if typed else {"input": said}, "tools": TOOLS, "store": False, "max_output_tokens": RESERVE,
        "instructions": f"You are a careful agent. The clock says {number}.",
        "include": ["reasoning.encrypted_content"],
    }  # fmt: skip
    if not stream:
        reply = client.responses.with_raw_response.create(**given)
        return [item.model_dump() for item in reply.parse().output], dict(reply.headers)
    with client.responses.with_streaming_response.create(**given, stream=True) as raw:
        ended = [event for event in raw.parse() if event.type == "response.completed"]
        return [item.model_dump() for item in ended[0].response.output], dict(raw.headers)


def play(proxy: Proxy, provider: Provider, seed: int) -> Run:
    rng = random.Random(seed)
    facts = facts_of(rng)
    untold = list(facts)
    said: list[Json] = []
    rollovers: dict[int, Json] = {}
    asked: list[list[Json]] = []
    modes: list[str] = []
    told_before = 0
    with proxy.client(key=f"sk-{seed}") as client:
        for number in range(TURNS):
            if calls := waiting(said):
                said += new_results(rng, calls)
            else:
                text = f"Task {number}: {prose(rng, 40)}"
                if untold:
                    text, told_before = f"{text} {untold.pop(0).told}", len(rollovers)
                parts = [{"type": "input_text", "text": text}, picture()]
                said.append({"role": "user", "content": parts if number % 7 == 0 else text})
            asked.append(list(said))
            before = proxy.metric("infold_rollovers_total")
            items, headers = ask(client, said, number, stream=number % 2 == 1)
            modes.append(headers["x-infold-mode"])
            if proxy.metric("infold_rollovers_total") > before:
                rollovers[number] = proxy.explain(headers["x-infold-turn"], f"sk-{seed}")
            said += items
        prompts = list(provider.prompts)
        recalled = []
        provider.reply = lambda prompt: [message("I see.")]
        if calls := waiting(said):
            said += new_results(rng, calls)
            said += ask(client, said, TURNS, stream=False)[0]
        for fact in facts:
            said.append({"role": "user", "content": fact.asked})
            said += ask(client, said, TURNS, stream=False)[0]
            recalled.append((fact, provider.prompts[-1]))
        exported = proxy.export(f"sk-{seed}")
    return Run(prompts, rollovers, modes, asked, provider.refused, told_before, recalled, exported)


@pytest.fixture(scope="module")
def run(new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    provider = Provider(reply=Agent(1))
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("run")) as proxy,
    ):
        return play(proxy, provider, 1)


def begins_with(after: Prompt, before: Prompt) -> bool:
    head = before.without_blocks
    return after.without_blocks[: len(head)] == head


def test_all_turns_are_answered_and_nothing_is_objected_to(run):
    assert len(run.prompts) == TURNS
    assert run.refused == []
    assert run.modes.count("folded") > TURNS / 2
    assert set(run.modes) == {"wire", "folded"}


def test_every_prompt_is_valid_and_within_the_window(run):
    assert all(problems(prompt.items) == [] for prompt in run.prompts)
    assert max(prompt.tokens for prompt in run.prompts) + RESERVE <= WINDOW


def test_between_rollovers_the_previous_prompt_is_a_prefix_of_the_next(run):
    breaks = {i + 1 for i, pair in enumerate(itertools.pairwise(run.prompts)) if not begins_with(pair[1], pair[0])}
    assert breaks <= set(run.rollovers)
    assert 3 <= len(run.rollovers) < TURNS / 4


def test_all_but_the_input_is_as_the_client_wrote_it(run):
    for number, prompt in enumerate(run.prompts):
        assert prompt.body["instructions"].endswith(f"{number}.")
        assert prompt.body["store"] is False
        assert prompt.body["tools"] == TOOLS


def test_the_clients_newest_words_reach_the_provider(run):
    for said, prompt in zip(run.asked, run.prompts, strict=True):
        newest = next(item for item in reversed(said) if item.get("role") == "user")
        assert newest in prompt.items


def test_facts_from_before_the_third_rollover_come_back_when_they_are_asked_for_in_other_words(run):
    missing = [fact.asked for fact, prompt in run.recalled if fact.value not in prompt]
    assert run.told_before < 3
    assert len(run.recalled) == 9
    assert len(missing) <= 1, missing


def test_reasoning_pictures_and_parallel_calls_were_among_what_was_sent(run):
    """So that the above says something."""
    items = [item for prompt in run.prompts for item in prompt.items]
    kinds = {item.get("type") for item in items}
    assert {"reasoning", "function_call", "function_call_output"} <= kinds
    assert any(
        before.get("type") == after.get("type") == "function_call" for before, after in itertools.pairwise(items)
    )
    assert '"input_image"' in json.dumps(items)


def test_the_export_tells_every_message_in_words(run):
    messages = [line for line in run.exported if line["kind"] == "message"]
    results = [line for line in messages if line["role"] == "tool"]
    joined = [line for line in messages if isinstance(line.get("message"), list)]

    assert not any("bytes" in line for line in messages)
    assert results
    assert all(isinstance(line["content"], str) or line["content"][0]["type"] == "input_text" for line in results)
    assert {line["message"]["type"] for line in results} == {"function_call_output"}
    assert any("look({" in line["content"] for line in joined)
    assert all(item in {"reasoning", "function_call", "message"} for line in joined for item in kinds(line["message"]))


def kinds(items: list[Json]) -> set[str]:
    return {item["type"] for item in items}


def test_an_explained_turn_tells_its_calls_and_how_they_ended(run):
    calls = [call for told in run.rollovers.values() for call in told["calls"]]
    assert {call["name"] for call in calls} == {"look"}
    assert all("bytes" not in asked for told in run.rollovers.values() for asked in told["asked"])
    explained = [told["attempts"][-1] for told in run.rollovers.values()]
    assert all(one["rollover"] and one["forwarded_tokens"] <= WINDOW - RESERVE for one in explained)


def test_what_the_provider_said_is_the_message_that_comes_back(run):
    """Each answer is recorded once: the client's copy, with nulls and in another order, is the same message."""
    ids = [line["parent"] for line in run.exported if line["kind"] == "message" and line["role"] == "assistant"]
    assert len(ids) == len(set(ids)) >= TURNS
