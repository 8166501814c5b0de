"""What is told of an answer for which the model asked the memory: tokens, answers, dollars, and what it would have cost
without us."""

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from memory.prices import input_cost, usage_cost
from memory.types import Prices, Usage
from proxy.wire import anthropic, openai, responses
from tests.conftest import run_sql
from tests.conversations import COUNTER, prose
from tests.laws.test_recall_closely import House, Talk, by_name, each_way, housing
from tests.laws.test_recall_failures import refusal
from tests.recalled import Got, Said, recall, refused

USAGE_OF = {"chat": openai.usage_of, "responses": responses.usage_of, "messages": anthropic.usage_of}
QUOTED = re.compile(r"^\[#([a-z2-7]{8})\] message", re.MULTILINE)
COUNTERS = {
    "answered": ("infold_upstream_answers_total", {"upstream": "default", "status": "2xx"}),
    "refused": ("infold_upstream_answers_total", {"upstream": "default", "status": "4xx"}),
    "asked": ("infold_prompt_tokens_total", {"side": "asked"}),
    "forwarded": ("infold_prompt_tokens_total", {"side": "forwarded"}),
    "prompts": ("infold_context_utilization_count", {"model": "priced-8k"}),
    "requests": ("infold_requests_total", {"mode": "folded", "status": "2xx"}),
}


@by_name()
def house(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: Any) -> Iterator[House]:
    yield from housing(request.param, new_database, tmp_path_factory.mktemp("house"))


@pytest.fixture
def talk(house: House) -> Talk:
    return house.going_on()


def counted(talk: Talk) -> dict[str, float]:
    return {key: talk.proxy.metric(name, **labels) for key, (name, labels) in COUNTERS.items()}


def attempt(talk: Talk, got: Got) -> dict[str, Any]:
    return talk.proxy.explain(got.headers["x-infold-turn"], talk.key)["attempts"][-1]  # type: ignore[no-any-return]


def asking_twice(talk: Talk) -> tuple[Said, ...]:
    return (
        Said("Wait.", (recall(id=talk.hint),)), Said(calls=(recall(query="what opens the vault"),)), Said("I see."),
    )  # fmt: skip


@each_way
def test_every_prompt_and_every_answer_is_counted(talk, stream):
    before = counted(talk)
    got = talk.ask(*asking_twice(talk), stream=stream, model="priced-8k")
    told, after = attempt(talk, got), counted(talk)
    more = {key: after[key] - before[key] for key in COUNTERS}
    sent = [prompt.tokens for prompt in talk.prompts]

    assert len(sent) == 3
    assert more == {
        "answered": 3, "refused": 0, "prompts": 3, "requests": 1,
        "asked": told["asked_tokens"], "forwarded": told["forwarded_tokens"],
    }  # fmt: skip
    assert told["forwarded_tokens"] == pytest.approx(sum(sent), rel=0.02)
    asked, forwarded = map(int, got.headers["x-infold-tokens"].split("/"))
    assert asked == told["asked_tokens"]
    if stream:  # its headers go out with the first byte
        assert forwarded == pytest.approx(sent[0], rel=0.02)
    else:
        assert forwarded == told["forwarded_tokens"]


def test_a_hidden_request_that_was_refused_is_counted_as_well(talk):
    before = counted(talk)
    got = talk.ask(
        Said(calls=(recall(id=talk.hint),)), refused(400, refusal(talk, 400)), Said("In words."), model="priced-8k"
    )
    after = counted(talk)
    assert len(talk.prompts) == 3
    assert (after["answered"] - before["answered"], after["refused"] - before["refused"]) == (2, 1)
    assert after["forwarded"] - before["forwarded"] == attempt(talk, got)["forwarded_tokens"]


def test_both_prompts_are_counted_where_the_first_was_refused_and_what_was_asked_once(house):
    talk = house.talk()  # a key of its own: this model gets the tool no more
    before = counted(talk)
    got = talk.ask(refused(400, refusal(talk, 400)), Said("Without it."))
    after = counted(talk)
    attempts = talk.proxy.explain(got.headers["x-infold-turn"], talk.key)["attempts"]
    assert [told["status"] for told in attempts] == ["failed", "answered"]
    assert (after["answered"] - before["answered"], after["refused"] - before["refused"]) == (1, 1)
    assert after["forwarded"] - before["forwarded"] == sum(told["forwarded_tokens"] for told in attempts)
    assert after["asked"] - before["asked"] == attempts[-1]["asked_tokens"]


@each_way
def test_what_it_would_have_cost_without_us_has_no_hidden_requests(talk, stream):
    known = len(talk.provider.usages)
    got = talk.ask(*asking_twice(talk), stream=stream, model="priced-8k")
    told = attempt(talk, got)
    prices = Prices(**told["prices"])
    usages = [USAGE_OF[talk.speaks.name](usage) for usage in talk.provider.usages[known:]]
    first, _, last = usages
    one = Usage(first.input_tokens, first.cached_tokens, last.output_tokens)
    saved = float(got.headers["x-infold-saved-usd"])
    if not stream:  # the header knows of all
        sent = [prompt.tokens for prompt in talk.prompts]
        saved += sum(input_cost(after, before, prices) for before, after in itertools.pairwise(sent))

    assert told["cost_usd"] == pytest.approx(sum(usage_cost(usage, prices) for usage in usages))
    assert told["direct_usd"] == pytest.approx(usage_cost(one, prices) + saved, abs=20 * prices.input)


# Each call


def recalls(talk: Talk, got: Got) -> list[dict[str, Any]]:
    return attempt(talk, got)["recalls"]  # type: ignore[no-any-return]


@each_way
def test_a_turn_tells_what_came_back_and_why_nothing_did(talk, stream):
    asked = [
        recall(id=talk.hint), recall(query="what opens the vault"), recall(id="zzzzzzzz"), recall(id="the first one"),
        recall(query="otorhinolaryngology"), recall(),
    ]  # fmt: skip
    got = talk.ask(Said(calls=tuple(asked)), Said("I see."), stream=stream)
    results, told = talk.speaks.results_in(talk.prompts[1]), recalls(talk, got)

    assert [one["reason"] for one in told] == [None, None, "unknown", "misshapen", "nothing", "unclear"]
    assert [one["found"] for one in told] == [True, True, False, False, False, False]
    for one, text in zip(told, results, strict=True):
        assert one["tokens"] == (COUNTER.text(text, "cl100k_base") if one["found"] else 0)
        assert bool(one["ids"]) == one["found"]
        assert set(QUOTED.findall(text)) <= set(one["ids"])
    (again,) = recalls(talk, talk.ask(Said(calls=(recall(id=told[1]["ids"][0]),)), Said("I see.")))
    assert again["ids"] == told[1]["ids"][:1]


def test_a_call_without_room_or_without_a_memory_says_so_in_its_turn(talk, monkeypatch):
    async def failing(*_: object) -> None:
        raise RuntimeError("a bug")

    asking = Said(calls=(recall(id=talk.hint),))
    with monkeypatch.context() as patched:
        patched.setattr(talk.proxy.parts.memory.recall_tool, "answer", failing)
        (away,) = recalls(talk, talk.ask(asking, Said("I see.")))
    many = Said(calls=(recall(id=talk.hint), *(recall(query=f"vault {n}") for n in range(7))))
    full = recalls(talk, talk.ask(many, many, Said("I see."), text=prose(random.Random(1), 4_200)))
    assert (away["reason"], away["tokens"], away["ids"]) == ("away", 0, [])
    assert "full" in {one["reason"] for one in full}


def test_a_turn_that_was_recorded_with_less_is_told_as_it_was(talk):
    got = talk.ask(Said(calls=(recall(id=talk.hint),)), Said("I see."))
    few = [{"call": "c", "asked": "zzzzzzzz", "found": False, "seconds": 0.1}]
    written = "convert_to(jsonb_set(convert_from(record, 'UTF8')::jsonb, '{recalls}', '%s')::text, 'UTF8')"
    run_sql(talk.dsn, f"update infold.attempts set record = {written % json.dumps(few)}")
    assert recalls(talk, got) == few
