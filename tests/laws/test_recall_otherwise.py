"""Asking the memory where something is otherwise than usual: the request goes on, and nothing forbidden comes back."""

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conversations import prose
from tests.laws.test_append_only import begins_with
from tests.laws.test_recall_closely import House, Talk, by_name, each_way, housing, isolate, tool_names
from tests.laws.test_recall_failures import refusal
from tests.recalled import Bent, Said, recall, received, refused
from tests.scripted import End, Step, Steps, answer

WAY = re.compile(r"to have a passage back word for word, (.*?)\.(?: |\\n)")
ARRAYS = {"chat": "messages", "responses": "input", "messages": "messages"}


@by_name()
def house(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: Any) -> Iterator[House]:
    yield from housing(request.param, new_database, tmp_path_factory.mktemp("house"))


@pytest.fixture
def talk(house: House) -> Talk:
    return house.going_on()


def line_by_line(written: list[bytes], steps: list[Step]) -> Steps:
    """A stream as a gateway passes it on that forwards each line when it has come."""
    written.append(body := payload(steps[1:]))
    return answer(body.splitlines(keepends=True), 200, [(b"content-type", b"text/event-stream")], "chunked", 0.002)


def test_a_stream_that_comes_line_by_line_reaches_the_client_to_its_last_byte(talk):
    written: list[bytes] = []
    got = talk.ask(Bent(Said("One two three."), partial(line_by_line, written)), stream=True)
    assert got.text == "One two three."
    assert tool_names(talk.prompts[0])[-1] == "recall"
    if talk.speaks.name == "responses":  # there the beginning and the end tell the request's tools
        assert got.raw.endswith(b"\n\n")
        assert got.raw.count(b"\n\n") == written[0].count(b"\n\n")
    else:
        assert got.raw == written[0]


def payload(steps: Sequence[Step]) -> bytes:
    """What chunks hold, without their sizes."""
    chunks = [step.partition(b"\r\n") for step in steps if isinstance(step, bytes)]
    return b"".join(rest[: int(size, 16)] for size, _, rest in chunks)


def broken(kept: int, written: list[bytes], steps: list[Step]) -> Steps:
    """A stream that breaks off after so many of its last chunks."""
    written.append(payload(steps[1:kept]))
    return [*steps[:kept], End.CLOSE]


@pytest.mark.parametrize("kept", [-2, -3, -4])
def test_all_that_came_before_a_cut_reaches_the_client(talk, kept):
    written: list[bytes] = []
    talk.provider.model.moves = [Bent(Said("One two three four five six."), partial(broken, kept, written))]
    talk.said.append(talk.speaks.spoken("user", f"Go on: {kept}."))
    came = bytearray()
    with httpx.stream(**talk.posting(stream=True)) as reply, pytest.raises(httpx.RemoteProtocolError):
        received(reply, came)
    talk.said.pop()
    if talk.speaks.name == "responses":  # there the beginning tells the request's tools, without ours
        assert came.count(b"\n\n") == written[0].count(b"\n\n")
    else:
        assert bytes(came) == written[0]


@each_way
async def test_what_is_isolated_while_the_model_thinks_is_not_brought_back(house, stream):
    talk, loop = await asyncio.to_thread(house.talk), asyncio.get_running_loop()
    connection = await asyncpg.connect(talk.dsn)
    tenant = await connection.fetchval("select tenant from infold.turns order by created_at desc")
    await connection.close()

    def asks(prompt: Any) -> Said:
        asyncio.run_coroutine_threadsafe(isolate(talk, tenant), loop).result(30)
        talk.proxy.parts.memory.heard(tenant, "quarantine", "")  # as a signal would
        return Said("Wait.", (recall(id=talk.hint), recall(query="what opens the vault")))

    got = await asyncio.to_thread(talk.ask, asks, Said("I see."), stream=stream)
    assert got.text.endswith("I see.")
    assert len(talk.prompts) == 2
    assert not any(talk.secret in prompt for prompt in talk.prompts)


@each_way
def test_a_hidden_request_that_the_provider_does_not_take_is_asked_in_words(talk, stream):
    got = talk.ask(
        Said(calls=(recall(id=talk.hint),)), refused(400, refusal(talk, 400)), Said("In words."), stream=stream
    )
    first, _, last = (prompt.body for prompt in talk.prompts)
    assert got.text == "In words."
    assert last["tool_choice"] in ("none", {"type": "none"})
    assert {**last, "tool_choice": None} == {**first, "tool_choice": None}

    talk.ask(Said("Yes."))
    assert "'recall'" not in str(talk.prompts[0].body[ARRAYS[talk.speaks.name]])


@each_way
def test_a_call_that_does_not_fit_any_more_is_followed_by_an_answer_in_words(talk, stream):
    long = recall(query="harbour lantern " * 4_000)
    got = talk.ask(Said(calls=(long,)), Said("In words."), stream=stream)
    assert got.text == "In words."
    assert talk.prompts[1].body["tool_choice"] in ("none", {"type": "none"})
    told = talk.proxy.explain(got.headers["x-infold-turn"], talk.key)["attempts"][-1]
    assert all(len(told["asked"]) <= 200 for told in told["recalls"])


def test_a_model_that_takes_no_such_tool_is_asked_without_it_from_then_on(house):
    talk = house.going_on()
    more = {"model": "priced-8k"}  # a model of its own: what is learned holds for it
    got = talk.ask(refused(400, refusal(talk, 400)), Said("Without it."), **more)
    offered = ["recall" in tool_names(prompt) for prompt in talk.prompts]
    assert (got.text, offered) == ("Without it.", [True, False])

    assert talk.ask(Said("Yes."), **more).text == "Yes."
    assert [tool_names(prompt) for prompt in talk.prompts] == [["read_file", "run_tests"]]
    assert talk.ask(Said("Yes.")).text == "Yes."
    assert tool_names(talk.prompts[0])[-1] == "recall"


@each_way
def test_what_stands_above_is_pointed_to_until_it_has_left_the_prompt(house, stream):
    """In the same turn, and in later ones."""
    talk = house.talk()
    asking = Said(calls=(recall(id=talk.hint),))
    talk.ask(asking, asking, Said("I see."), stream=stream)
    passage, pointer = talk.speaks.results_in(talk.prompts[1])[0], talk.speaks.results_in(talk.prompts[2])[-1]
    assert talk.secret in passage
    assert "in an earlier result of recall" in pointer

    talk.ask(asking, Said("I see."), stream=stream)
    assert talk.speaks.results_in(talk.prompts[1]) == [pointer]
    assert " ".join(talk.speaks.said_in(talk.prompts[1])).count(talk.secret) == 1

    while talk.secret in talk.prompts[0]:
        talk.ask(Said("Yes."), text=prose(random.Random(1), 400))
    talk.ask(asking, Said("I see."), stream=stream)
    (again,) = talk.speaks.results_in(talk.prompts[1])
    assert talk.secret in again
    assert "in an earlier result of recall" not in again


def way_back(talk: Talk, prompt: Any) -> str:
    """How the digest says that a passage comes back."""
    (way,) = WAY.findall(" ".join(talk.speaks.said_in(prompt)))
    return str(way)


def test_the_digest_names_the_tool_and_stays_true_and_the_same_where_the_tool_goes(house):
    talk, rng = house.talk(), random.Random(1)  # a key of its own: this model gets the tool no more
    talk.ask(refused(400, refusal(talk, 400)), Said("Without it."))
    with_tool, without = talk.prompts
    assert way_back(talk, with_tool).startswith("call the tool recall with its id, such as [#")
    assert way_back(talk, with_tool).endswith(", or write the id if there is no such tool")
    assert [tool_names(with_tool)[-1], tool_names(without)[-1]] == ["recall", "run_tests"]
    assert way_back(talk, without) == way_back(talk, with_tool)

    rolled = talk.proxy.metric("infold_rollovers_total")
    while talk.proxy.metric("infold_rollovers_total") == rolled:
        assert begins_with(without, with_tool)
        talk.ask(Said("Yes."), text=prose(rng, 400))
        with_tool, without = without, talk.prompts[0]
    assert way_back(talk, without).startswith("write its id, such as [#"), "what is made without the tool is told so"


def test_a_digest_does_not_name_a_tool_of_the_clients(house):
    talk = replace(house.talk(), key="sk-its-own")
    talk.ask(Said("Yes."), tools=[talk.speaks.tool("recall")])
    assert way_back(talk, talk.prompts[0]).startswith("write its id, such as [#")


def test_of_many_calls_at_once_some_are_told_to_wait(talk):
    asking = Said(calls=tuple(recall(query=f"vault {n}") for n in range(12)))
    got = talk.ask(asking, Said("I see."))
    told = talk.speaks.results_in(talk.prompts[1])
    assert got.text == "I see."
    assert len(told) == 12
    assert ["too many recalls at once" in text for text in told] == [False] * 8 + [True] * 4


@each_way
def test_a_server_that_heeds_no_tool_choice_is_asked_without_the_tool_at_last(talk, stream):
    asking = [Said(calls=(recall(id=talk.hint),)) for _ in range(5)]
    got = talk.ask(*asking, Said("At last."), stream=stream)
    assert got.text == "At last."
    assert [tool_names(prompt)[-1] for prompt in talk.prompts] == ["recall"] * 5 + ["run_tests"]
    first, last = talk.prompts[0].body, talk.prompts[-1].body
    assert {**last, "tools": None} == {**first, "tools": None}
    talk.ask(Said("Yes."))
    assert "At last." in talk.prompts[0]
    assert not talk.speaks.results_in(talk.prompts[0])


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_call_that_the_client_wants_is_still_wanted_in_the_last_request(talk, stream):
    wanted = {"chat": "required", "responses": "required", "messages": {"type": "any"}}[talk.speaks.name]
    asking = [Said(calls=(recall(id=talk.hint),)) for _ in range(4)]
    talk.ask(*asking, Said("I see."), stream=stream, tool_choice=wanted)
    assert [prompt.body["tool_choice"] for prompt in talk.prompts] == [wanted] * 5


def test_a_stream_that_ends_with_a_refusal_is_recorded_as_failed(talk):
    talk.said.append(talk.speaks.spoken("user", "Go on, to be refused."))
    talk.provider.model.moves = [Said("Wait.", (recall(id=talk.hint),)), refused(503, refusal(talk, 503))]
    with httpx.stream(**talk.posting(stream=True)) as reply:
        reply.read()
    talk.said.pop()
    told = talk.proxy.explain(reply.headers["x-infold-turn"], talk.key)["attempts"][-1]
    assert told["status"] == "failed"
    assert "That is a 503" in told["error"]
    if talk.speaks.name != "chat":  # there the client has not asked for one
        assert told["usage"]["output_tokens"] > 0
