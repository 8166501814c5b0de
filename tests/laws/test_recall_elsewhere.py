"""Asking the memory where an upstream refuses: the tool first, then everything, so that its fallback answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.config import ModelSection
from proxy.destinations import UpstreamSection
from tests.laws.test_recall_closely import House, Talk, by_name, each_way, tool_names
from tests.laws.test_recall_failures import refusal
from tests.proxied import MODEL, MODELS, proxying
from tests.recalled import RESERVE, Got, Said, recall, refused

OTHER, OTHER_WINDOW = "other-6k", 6_144


@dataclass
class Two:
    """A house whose upstream `a` has the fallback `b`, with another model of a smaller window."""

    house: House
    fallback: Any

    def answers(self) -> tuple[float, float]:
        """How often `a` has refused, and `b` answered."""

        def count(upstream: str, status: str) -> float:
            return self.house.proxy.metric("infold_upstream_answers_total", upstream=upstream, status=status)

        return count("a", "4xx") + count("a", "5xx"), count("b", "2xx")


@by_name()
def two(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: Any) -> Iterator[Two]:
    speaks = request.param
    first, second = speaks.provider(), speaks.provider()
    second.window = OTHER_WINDOW
    with new_database() as dsn, first.serving() as a, second.serving() as b:
        upstreams = {
            "a": UpstreamSection(url=f"{a.url}/v1", models=[MODEL], fallback=f"b/{OTHER}"),
            "b": UpstreamSection(url=f"{b.url}/v1", models=[OTHER]),
        }
        models = MODELS | {OTHER: ModelSection(context_window=OTHER_WINDOW)}
        folder = tmp_path_factory.mktemp("two")
        with proxying(a.url, dsn, folder, recall_tool="auto", upstreams=upstreams, models=models) as proxy:
            yield Two(House(speaks, proxy, first, a), second)


def offers(prompts: list[Any]) -> list[bool]:
    return ["recall" in tool_names(prompt) for prompt in prompts]


def attempts(talk: Talk, got: Got) -> list[dict[str, Any]]:
    return talk.proxy.explain(got.headers["x-infold-turn"], talk.key)["attempts"]  # type: ignore[no-any-return]


@each_way
@pytest.mark.parametrize("status", [429, 503])
def test_the_fallback_for_a_request_without_the_tool_has_it_again_planned_for_its_model(two, stream, status):
    talk = two.house.talk()
    before = two.answers()
    two.fallback.prompts.clear()
    two.fallback.model.moves = [Said("Wait.", (recall(id=talk.hint),)), Said("I see.")]
    got = talk.ask(refused(400, refusal(talk, 400)), refused(status, refusal(talk, status)), stream=stream)

    assert got.headers["x-infold-fallback"] == f"b/{OTHER}"
    assert got.text.endswith("I see.")
    assert offers(talk.prompts) == [True, False]
    assert offers(two.fallback.prompts) == [True, True]
    assert [prompt.body["model"] for prompt in two.fallback.prompts] == [OTHER] * 2
    assert max(prompt.tokens for prompt in two.fallback.prompts) + RESERVE <= OTHER_WINDOW
    assert two.fallback.refused == []
    assert talk.secret in talk.speaks.results_in(two.fallback.prompts[1])[0]

    told = attempts(talk, got)
    assert [(one["status"], one["status_code"], one["upstream"]) for one in told] == [
        ("failed", 400, "a"), ("failed", status, "a"), ("answered", 200, "b"),
    ]  # fmt: skip
    assert [bool(one["recalls"]) for one in told] == [False, False, True]
    assert two.answers() == (before[0] + 2, before[1] + 2)

    talk.ask(Said("Yes."))
    assert offers(talk.prompts) == [True], "nobody answered without the tool, so nothing is known of this model"
    two.fallback.prompts.clear()
    talk.ask(refused(429, refusal(talk, 429)))
    assert offers(two.fallback.prompts) == [True]


@each_way
def test_a_model_that_gets_the_tool_no_more_has_a_fallback_that_does(two, stream):
    talk = two.house.talk()
    assert talk.ask(refused(400, refusal(talk, 400)), Said("Without it."), stream=stream).text == "Without it."
    assert offers(talk.prompts) == [True, False]
    two.fallback.prompts.clear()
    two.fallback.model.moves = [Said(calls=(recall(id=talk.hint),)), Said("I see.")]
    got = talk.ask(refused(429, refusal(talk, 429)), stream=stream)

    assert got.text == "I see."
    assert offers(talk.prompts) == [False]
    assert offers(two.fallback.prompts) == [True, True]
    assert talk.secret in talk.speaks.results_in(two.fallback.prompts[1])[0]


def test_a_fallback_that_refuses_the_tool_is_asked_without_it_as_well(two):
    talk = two.house.talk()
    two.fallback.prompts.clear()
    two.fallback.model.moves = [refused(422, refusal(talk, 422)), Said("Without it.")]
    got = talk.ask(refused(400, refusal(talk, 400)), refused(503, refusal(talk, 503)))

    assert got.text == "Without it."
    assert offers(talk.prompts) == [True, False]
    assert offers(two.fallback.prompts) == [True, False]
    assert [one["status"] for one in attempts(talk, got)] == ["failed", "failed", "failed", "answered"]
    talk.ask(Said("Yes."))
    assert offers(talk.prompts) == [True], "it was the other model that refused"


def test_where_the_fallback_refuses_too_its_refusal_is_the_answer(two):
    talk = two.house.talk()
    two.fallback.model.moves = [refused(500, refusal(talk, 500))]
    talk.said.append(talk.speaks.spoken("user", "Go on, to be refused."))
    talk.provider.model.moves = [refused(400, refusal(talk, 400)), refused(429, refusal(talk, 429))]
    reply = talk.post()
    assert (reply.status_code, reply.content) == (500, refusal(talk, 500))
    assert reply.headers["x-infold-fallback"] == f"b/{OTHER}"
