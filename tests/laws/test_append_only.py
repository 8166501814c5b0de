"""Law 3: a rollover is rare and large; between two of them the previous prompt, its block aside, is a prefix."""

import contextlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from memory.budget import budget
from memory.types import Model
from tests.conftest import NewDatabase
from tests.conversations import calling, count, prose, result, user
from tests.proxied import MODEL, WINDOW, Prompt, Provider, Proxy, problems, proxying, text_of

Json = dict[str, Any]

TURNS = 200
RESERVE = 512
TOOLS = [
    {"type": "function", "function": {"name": name, "description": prose(random.Random(name), 25), "parameters": {}}}
    for name in ("read_file", "search", "run_tests")
]
SYSTEM = {"role": "system", "content": "You are a careful agent. The clock says {}."}


class Agent:
    """A provider's side of an agent: calls tools twice for each user message, sometimes in parallel, then answers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ids = itertools.count()
        self.steps = 0

    def __call__(self, prompt: Prompt) -> Json:
        self.steps += 1
        if self.steps % 3 == 0:
            return {"role": "assistant", "content": prose(self.rng, 60)}
        calls = [
            {
                "id": f"call_{next(self.ids)}",
                "type": "function",
                "function": {"name": "read_file", "arguments": json.dumps({"path": prose(self.rng, 3)})},
            }
            for _ in range(self.rng.choice([1, 1, 2]))
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a long conversation."""

    answered: int
    prompts: list[Prompt]
    rollovers: dict[int, Json]  # the requests at which the proxy says it rolled over, and how it explains them
    modes: list[str]
    asked: list[list[Json]]
    refused: list[str]

    @property
    def breaks(self) -> list[int]:
        """The requests whose prompt does not begin with the previous one."""
        pairs = itertools.pairwise(self.prompts)
        return [i + 1 for i, (before, after) in enumerate(pairs) if not begins_with(after, before)]


def begins_with(after: Prompt, before: Prompt) -> bool:
    head = [text for text in before.without_blocks if '"role": "system"' not in text]
    return [text for text in after.without_blocks if '"role": "system"' not in text][: len(head)] == head


def play(proxy: Proxy, provider: Provider, model: str, turns: int, seed: int) -> Run:
    """So many requests by the real SDK: user messages, calls, results, answers."""
    rng = random.Random(seed)
    said: list[Json] = []
    rollovers: dict[int, Json] = {}
    asked: list[list[Json]] = []
    modes: list[str] = []
    with proxy.client(key=f"sk-{seed}") as client:
        for number in range(turns):
            last = said[-1] if said else None
            if last is None or (last["role"] == "assistant" and not last.get("tool_calls")):
                said.append(user(f"Task {number}: {prose(rng, 40)}"))
            elif last["role"] == "assistant":
                said += [result(call["id"], prose(rng, rng.choice([20, 80, 300]))) for call in last["tool_calls"]]
            request = [{**SYSTEM, "content": SYSTEM["content"].format(number)}, *said]
            before = proxy.metric("infold_rollovers_total")
            reply = client.chat.completions.with_raw_response.create(
                model=model,
                messages=request,
                tools=TOOLS,
                max_tokens=RESERVE,  # type: ignore[arg-type]
            )
            message = reply.parse().choices[0].message
            asked.append(request)
            modes.append(reply.headers["x-infold-mode"])
            if proxy.metric("infold_rollovers_total") > before:
                rollovers[number] = proxy.explain(reply.headers["x-infold-turn"], f"sk-{seed}")["attempts"][-1]
            said.append(message.model_dump(exclude_none=True))
    return Run(len(asked), provider.prompts, rollovers, modes, asked, provider.refused)


@pytest.fixture(scope="module", params=[(MODEL, TURNS), ("priced-8k", 90)], ids=["unpriced", "priced"])
def run(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    provider = Provider(reply=Agent(1))
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("run")) as proxy,
    ):
        return play(proxy, provider, *request.param, 1)


def test_all_turns_with_tools_are_answered_by_the_sdk(run):
    assert run.answered == len(run.prompts) >= 90
    assert run.refused == []
    assert run.modes.count("folded") > run.answered / 2
    assert set(run.modes) == {"wire", "folded"}


def test_every_prompt_is_valid_and_within_the_window(run):
    assert all(problems(prompt.messages) == [] for prompt in run.prompts)
    assert max(prompt.tokens for prompt in run.prompts) + RESERVE <= WINDOW


def test_between_rollovers_the_previous_prompt_is_a_prefix_of_the_next(run):
    assert set(run.breaks) <= set(run.rollovers)


def test_every_rollover_says_why(run):
    assert run.rollovers
    assert all(told["rollover"] for told in run.rollovers.values())


def test_rollovers_are_few(run):
    """At most 1.3 x tokens added / (trigger - target); blocks that stay are among what is added."""
    bounds = next(iter(run.rollovers.values()))["budget"]
    added = Provider().count(json.dumps({"model": "m", "messages": run.asked[-1]}).encode())
    kept = {block for prompt in run.prompts for block in prompt.blocks}
    added += sum(count(block) for block in kept)

    assert len(run.rollovers) <= 1.3 * added / (bounds["trigger"] - bounds["target"])


def test_a_rollover_takes_the_frozen_part_down_to_the_target(run):
    """Front, digest and verbatim tail; what is new in the request, and a block, come on top."""
    for told in run.rollovers.values():
        new = told["fresh_tokens"] + (told["block"]["tokens"] if told["block"] else 0)
        # An open call cannot be cut from its results, however small the target.
        assert told["forwarded_tokens"] - new <= told["budget"]["target"] + 150


def test_the_first_rollover_is_due_at_the_trigger_and_not_before(run):
    first = min(run.rollovers)
    told = run.rollovers[first]

    assert told["asked_tokens"] > budget(Model("m", WINDOW), RESERVE, told["front_tokens"]).trigger
    assert all(mode == "wire" for mode in run.modes[:first])


def test_a_block_is_byte_identical_for_as_long_as_its_user_message_is_the_newest(run):
    """But for what filled it up: that is cut once, when its place is needed."""
    loops: dict[str, list[int]] = {}
    for i, request in enumerate(run.asked):
        newest = next(message["content"] for message in reversed(request) if message["role"] == "user")
        loops.setdefault(newest, []).append(i)
    compared = 0
    for requests in loops.values():
        for before, after in itertools.pairwise(requests):
            if before in run.rollovers or after in run.rollovers:
                continue
            assert run.prompts[before].block == run.prompts[after].block
            compared += bool(run.prompts[after].block)
    assert compared > 10


def test_a_block_changes_once_in_a_loop_however_much_its_calls_leave_for_the_answer(new_database, tmp_path):
    """A cut is remembered, by other replicas, too: what is cut for one call does not come back for the next."""
    provider = Provider()
    rng = random.Random(6)
    said = [m for _ in range(16) for m in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 120)})]
    said += [user("Which orchard had the copper rocket?")]
    with replicas(provider, new_database, tmp_path) as clients:
        for step in range(24):
            room = (256, 2_048)[step % 2]
            clients[step // 3 % 2].chat.completions.create(model=MODEL, messages=said, max_tokens=room)
            said += [calling((f"c{step}", "{}")), result(f"c{step}", prose(rng, 1_700 if step == 0 else 60))]
    prompts = provider.prompts[1:]  # the first has not rolled over
    changes = [one.block != other.block for one, other in itertools.pairwise(prompts)]
    rolled = [not begins_with(after, before) for before, after in itertools.pairwise(prompts)]

    assert sum(rolled) <= 1
    assert 1 <= sum(changes) <= 1 + sum(rolled)


def test_what_was_folded_stays_so_where_a_later_call_leaves_less_for_the_answer(proxy, provider):
    """The trigger is lower where more is kept for the answer; going to and fro, the provider would read all anew."""
    rng = random.Random(6)
    said = [m for _ in range(24) for m in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 120)})]
    modes = []
    with proxy.client() as client:
        for step in range(12):
            said.append(user(f"step {step}"))
            room = (2_048, 256)[step % 2]
            reply = client.chat.completions.with_raw_response.create(model=MODEL, messages=said, max_tokens=room)
            modes.append(reply.headers["x-infold-mode"])
            said.append({"role": "assistant", "content": reply.parse().choices[0].message.content})
        wide = client.chat.completions.with_raw_response.create(model="wide-128k", messages=said, max_tokens=256)

    assert modes == ["folded"] * 12
    assert wide.headers["x-infold-mode"] == "wire", "a window that large takes everything"


def test_the_clients_newest_words_reach_the_provider_byte_for_byte(run):
    for request, prompt in zip(run.asked, run.prompts, strict=True):
        newest = next(message for message in reversed(request) if message["role"] == "user")
        assert newest in prompt.messages
        assert prompt.messages[0] == request[0]


def test_a_digest_stands_under_the_system_prompt_and_says_what_it_is(run):
    folded = next(prompt for prompt, mode in zip(run.prompts, run.modes, strict=True) if mode == "folded")
    assert [message["role"] for message in folded.messages[:2]] == ["system", "user"]
    assert "[#" in folded.messages[1]["content"]


def test_resending_the_same_request_gives_the_same_prompt(new_database, tmp_path):
    """Also by another process that has to read from the database what the first one froze."""
    provider = Provider()
    rng = random.Random(2)
    said = [m for _ in range(40) for m in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 120)})]
    request = [*said, user("and so?")]
    with new_database() as dsn, provider.serving() as upstream:
        for _ in range(2):
            with proxying(upstream.url, dsn, tmp_path) as proxy, proxy.client() as client:
                for _ in range(2):
                    client.chat.completions.create(model=MODEL, messages=request, max_tokens=RESERVE)
    assert len({prompt.seen.body for prompt in provider.prompts}) == 1


@contextlib.contextmanager
def replicas(
    provider: Provider, new_database: NewDatabase, folder: Path
) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """Two proxies on one database, by their clients."""
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, folder / "a") as one,
        proxying(upstream.url, dsn, folder / "b") as two,
        one.client() as first,
        two.client() as second,
    ):
        yield first, second


def test_another_replica_goes_on_with_the_same_frozen_prompt(new_database, tmp_path):
    provider = Provider()
    rng = random.Random(3)
    said = [m for _ in range(40) for m in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 120)})]
    with replicas(provider, new_database, tmp_path) as (first, second):
        for number in range(12):
            said.append(user(f"step {number}: {prose(rng, 60)}"))
            client = (first, second)[number % 2]
            reply = client.chat.completions.create(model=MODEL, messages=said, max_tokens=RESERVE)
            said.append({"role": "assistant", "content": reply.choices[0].message.content})
    breaks = [not begins_with(after, before) for before, after in itertools.pairwise(provider.prompts)]
    assert sum(breaks) <= 1


def test_what_another_replica_made_is_not_forgotten_after_one_request(new_database, tmp_path):
    """The second rolls over inside a loop and quotes; the first goes on with it, and then knows it by itself."""
    provider = Provider()
    rng = random.Random(4)
    loop = [m for _ in range(16) for m in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 120)})]
    loop += [user("Which orchard had the copper rocket?")]
    with replicas(provider, new_database, tmp_path) as (first, second):
        for step, client in enumerate((first, second, second, first, first, first, second)):
            client.chat.completions.create(model=MODEL, messages=loop, max_tokens=RESERVE)
            words = 2_500 if step == 0 else 60
            loop += [calling((f"c{step}", "{}")), result(f"c{step}", prose(rng, words))]
    with_blocks = [[text_of(message) for message in prompt.messages] for prompt in provider.prompts]
    later = list(itertools.pairwise(with_blocks))[3:]

    assert len(provider.prompts[0].messages) == 33
    assert len(provider.prompts[1].messages) < 33
    assert all(prompt.blocks for prompt in provider.prompts[1:])
    assert all(after[: len(before)] == before for before, after in later)


def test_a_rollover_of_another_replica_replaces_ones_own_for_good(new_database, tmp_path):
    """The first has rolled over itself; then the second does, and answers of the first follow each other."""
    provider = Provider()
    rng = random.Random(5)
    said = [m for _ in range(40) for m in (user(prose(rng, 80)), {"role": "assistant", "content": prose(rng, 120)})]
    with replicas(provider, new_database, tmp_path) as (first, second):
        for step, client in enumerate((first, second, second, first, first, first)):
            said.append(user(f"step {step}: {prose(rng, 3_700 if step == 1 else 30)}"))
            reply = client.chat.completions.create(model=MODEL, messages=said, max_tokens=RESERVE)
            said.append({"role": "assistant", "content": reply.choices[0].message.content})
    prompts = provider.prompts

    assert not begins_with(prompts[2], prompts[0]), "the second did not roll over, so this shows nothing"
    assert all(begins_with(after, before) for before, after in itertools.pairwise(prompts[2:]))
