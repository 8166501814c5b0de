"""What goes wrong while the model asks the memory: at the provider, at the client's end, in the memory itself."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import anthropic
import httpx
import openai
import pytest

from memory.errors import StoreError
from memory.store.migrate import migrate
from tests.conftest import finish, own_postgres, run_sql
from tests.faults import HANG, family, frozen, in_time
from tests.laws.test_recall_closely import House, Talk, by_name, each_way, housing, numbers, tool_names
from tests.proxied import proxying
from tests.recalled import SPEAKS, Bent, Said, events_in, recall, received, refused
from tests.scripted import End, Step, Steps, connected

ENDS = {"chat": b"[DONE]", "responses": b"response.completed", "messages": b"message_stop"}
ERRORS = (openai.APIError, anthropic.APIError, httpx.HTTPError)


@by_name()
def house(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: Any) -> Iterator[House]:
    yield from housing(request.param, new_database, tmp_path_factory.mktemp("house"))


@pytest.fixture
def talk(house: House) -> Talk:
    return house.going_on()


def refusal(talk: Talk, status: int) -> bytes:
    error = {"message": f"That is a {status}, indeed.", "type": "some_error", "code": "some_code"}
    return json.dumps({"error": error} | ({"type": "error"} if talk.speaks.name == "messages" else {})).encode()


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_hidden_request_that_is_refused_makes_a_plain_answer_that_refusal(talk, status):
    talk.said.append(talk.speaks.spoken("user", f"Go on, {next(numbers)}."))
    talk.provider.model.moves = [Said(calls=(recall(id=talk.hint),)), refused(status, refusal(talk, status))]
    reply = talk.post()
    assert (reply.status_code, reply.content) == (status, refusal(talk, status))
    talk.said.pop()
    assert talk.ask(Said("Yes.")).text == "Yes."


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("words", ["", "Wait a moment."])
def test_a_hidden_request_that_is_refused_ends_a_stream_with_an_error(talk, status, words):
    refusing = refused(status, refusal(talk, status))
    with pytest.raises(ERRORS):
        talk.ask(Said(words, (recall(id=talk.hint),)), refusing, stream=True)
    told = events_in(bytes(talk.received))
    assert "error" in told[-1] or told[-1]["type"] in ("error", "response.failed")
    assert f"That is a {status}, indeed." in json.dumps(told[-1])
    assert ENDS[talk.speaks.name] not in talk.received
    assert b"recall" not in talk.received
    assert words.encode()[:4] in talk.received
    talk.said.pop()
    assert talk.ask(Said("Yes.")).text == "Yes."


def broken(end: End, steps: list[Step]) -> Steps:
    return [*steps[:-2], end] if len(steps) > 2 else [steps[0], end]


@pytest.mark.parametrize(("stream", "end"), [(True, End.CLOSE), (True, End.RESET), (False, End.CLOSE)])
def test_a_hidden_answer_that_breaks_off_is_no_answer(talk, stream, end):
    talk.said.append(talk.speaks.spoken("user", f"Go on: {end}."))
    breaking = Bent(Said("One two three four five six seven"), partial(broken, end))
    talk.provider.model.moves = [Said(calls=(recall(id=talk.hint),)), breaking]
    came = bytearray()
    with httpx.stream(**talk.posting(stream)) as reply, pytest.raises(httpx.RemoteProtocolError):
        received(reply, came)
    assert ENDS[talk.speaks.name] not in came
    assert b"recall" not in came
    talk.said.pop()
    assert talk.ask(Said("Yes.")).text == "Yes."


@each_way
@pytest.mark.parametrize("steps", [0, 1], ids=["nothing", "headers"])
async def test_who_leaves_in_a_hidden_request_takes_it_along(house, stream, steps):
    """The upstream connection is closed within a second."""
    talk = await asyncio.to_thread(house.going_on)
    hanging = Bent(Said("Too late."), lambda made: [*made[:steps], End.HANG])
    talk.provider.model.moves = [Said(calls=(recall(id=talk.hint),)), hanging]
    talk.said.append(talk.speaks.spoken("user", f"Go on, {next(numbers)}."))
    body = json.dumps(talk.speaks.body(talk.said, stream=stream)).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
    known, closed = len(house.provider.prompts), len(house.upstream.closed_at)
    async with connected(talk.proxy.url) as client:
        await client.send(head % (talk.speaks.path.encode(), talk.key.encode(), len(body)) + body)
        await house.upstream.until(lambda _: len(house.provider.prompts) == known + 2)
        await asyncio.sleep(0.05)
        assert len(house.upstream.closed_at) == closed
    await house.upstream.until(lambda upstream: len(upstream.closed_at) > closed, 1)
    talk.said.pop()
    assert (await asyncio.to_thread(talk.ask, Said("Yes."))).text == "Yes."


# The memory itself


@each_way
@pytest.mark.parametrize("error", [RuntimeError("a bug"), StoreError("away")], ids=repr)
def test_a_failure_of_the_memory_is_a_result_in_words(talk, monkeypatch, stream, error):
    async def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(talk.proxy.parts.memory.recall_tool, "answer", failing)
    got = talk.ask(Said("Wait.", (recall(id=talk.hint),)), Said("I see."), stream=stream)
    (told,) = talk.speaks.results_in(talk.prompts[1])
    assert got.text.endswith("I see.")
    assert len(told.split()) > 3
    assert "bug" not in told


@each_way
def test_a_database_that_breaks_while_it_is_asked_is_a_result_in_words(talk, stream):

    def asking(prompt: Any) -> Said:
        run_sql(talk.dsn, "alter table infold.nodes rename to hidden")
        return Said("Wait.", (recall(id=talk.hint), recall(query="vault")))

    def answering(prompt: Any) -> Said:
        run_sql(talk.dsn, "alter table infold.hidden rename to nodes")
        return Said("I see.")

    got = talk.ask(asking, answering, stream=stream)
    assert got.text.endswith("I see.")
    assert all(len(told.split()) > 3 for told in talk.speaks.results_in(talk.prompts[1]))


@pytest.mark.parametrize("speaks", SPEAKS, ids=lambda speaks: speaks.name)
async def test_a_database_that_freezes_while_it_is_asked_costs_a_bounded_time(speaks, tmp_path):
    provider = speaks.provider()
    with own_postgres() as server, provider.serving() as upstream:
        finish(migrate(server.address.dsn))
        with proxying(upstream.url, server.address.dsn, tmp_path, recall_tool="auto") as proxy:
            talk = await asyncio.to_thread(House(speaks, proxy, provider, upstream).talk)
            hint = talk.hint
            with frozen(family(server.address.pid)):
                moves = (Said("Wait.", (recall(id=hint),)), Said("I see."))
                got = await in_time(asyncio.to_thread(talk.ask, *moves, stream=True), 2 * HANG)
            assert got.text.endswith("I see.")
            assert tool_names(talk.prompts[0])[-1] == "recall"
