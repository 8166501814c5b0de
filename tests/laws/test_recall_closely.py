"""One answer for which the model asked the memory, looked at closely, in each dialect."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import asyncpg
import httpx
import pytest

from memory.identify import place
from memory.quarantine import Quarantine
from memory.settings import Settings
from memory.tokens import Counter
from tests.clock import Hands
from tests.conftest import NewDatabase, open_pool
from tests.conversations import prose
from tests.laws.test_append_only import begins_with
from tests.proxied import WINDOW, Proxy, proxying
from tests.recalled import RESERVE, SPAN, SPEAKS, Bent, Call, Chat, Got, Move, Said, events_in, read, recall, span_with
from tests.scripted import Step, Steps

Json = dict[str, Any]

by_name = partial(pytest.fixture, scope="module", params=SPEAKS, ids=lambda speaks: speaks.name)
each_way = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
SECRET_AT = 0  # the position of the message that holds it, from 0
numbers = itertools.count(1)


@dataclass
class Talk:
    """A conversation whose beginning has left the prompt, and what its model asks next."""

    speaks: Chat
    proxy: Proxy
    provider: Any
    secret: str
    said: list[Json]
    key: str
    hint: str = ""  # the id of the passage that holds the secret
    received: bytearray = field(default_factory=bytearray)
    prompts: list[Any] = field(default_factory=list)  # of the last request, hidden ones among them
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, *moves: Move, text: str | None = "", stream: bool = False, **more: Any) -> Got:
        """One request. Where text is None, results of the client's own tools are what is new."""
        if text is not None:
            self.said.append(self.speaks.spoken("user", text or f"Go on, {next(numbers)}."))
        self.provider.model.moves = list(moves)
        known = len(self.provider.prompts)
        self.received.clear()
        try:
            with self.speaks.sdk(self.proxy, self.key, self.received) as sdk:
                got = self.speaks.ask(sdk, self.speaks.body(self.said, **more), stream)
        finally:
            self.prompts = self.provider.prompts[known:]
        got.raw = bytes(self.received)
        self.said += got.own
        return got

    @property
    def dsn(self) -> str:
        database = self.proxy.config.database_url
        assert database is not None
        return str(database.get_secret_value())

    def posting(self, stream: bool = False, path: str | None = None, **headers: str) -> Json:
        """The same as arguments for httpx, with nothing new."""
        body = self.speaks.body(self.said, **({"stream": True} if stream else {}))
        known = {"authorization": f"Bearer {self.key}", "anthropic-version": "2023-06-01"}
        url = self.proxy.url + (path or self.speaks.path)
        return {"method": "POST", "url": url, "json": body, "headers": known | headers, "timeout": 30}

    def post(self, *given: Any, **more: Any) -> httpx.Response:
        return httpx.request(**self.posting(*given, **more))


@dataclass
class House:
    speaks: Chat
    proxy: Proxy
    provider: Any
    upstream: Any
    begun: Talk | None = None

    def talk(self) -> Talk:
        """A conversation of its own."""
        number = next(numbers)
        rng = random.Random(f"{self.speaks.name} {number}")
        secret = f"The vault of house {number} opens with {rng.randrange(10**6)}-QUARTZ."
        said: list[Json] = []
        for n in range(26):
            told = f"{prose(rng, 50)} {secret if n == 0 else ''} {prose(rng, 50)}"
            said += [self.speaks.spoken("user", told), self.speaks.spoken("assistant", prose(rng, 150))]
        talk = Talk(self.speaks, self.proxy, self.provider, secret, said, f"sk-talk-{number}")
        assert talk.ask(Said("Yes."), text="xylophone?").headers["x-infold-mode"] == "folded"
        assert secret not in talk.prompts[0]
        talk.hint = span_with(" ".join(self.speaks.said_in(talk.prompts[0])), SECRET_AT) or ""
        assert talk.hint
        return talk

    def going_on(self) -> Talk:
        """One that several tests begin alike, each with what it says then."""
        self.begun = self.begun or self.talk()
        return replace(self.begun, said=list(self.begun.said), received=bytearray())


def housing(speaks: Chat, new_database: NewDatabase, folder: Any, **settings: Any) -> Iterator[House]:
    provider = speaks.provider()
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, folder, **({"recall_tool": "auto"} | settings)) as proxy,
    ):
        yield House(speaks, proxy, provider, upstream)


@by_name()
def house(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: Any) -> Iterator[House]:
    yield from housing(request.param, new_database, tmp_path_factory.mktemp("house"))


@pytest.fixture
def talk(house: House) -> Talk:
    return house.going_on()


def tool_names(prompt: Any) -> list[str]:
    return [tool.get("name") or tool["function"]["name"] for tool in prompt.body.get("tools") or ()]


# Where the tool stands, and where it does not


def test_a_client_without_tools_gets_ours_alone(talk):
    talk.ask(Said("Yes."), tools=[])
    assert tool_names(talk.prompts[0]) == ["recall"]


def test_with_off_nothing_is_added(house, new_database, tmp_path):
    for other in housing(house.speaks, new_database, tmp_path, recall_tool="off"):
        talk = other.talk()
        talk.ask(Said("Yes."))
        assert tool_names(talk.prompts[0]) == ["read_file", "run_tests"]
        assert b"recall" not in talk.prompts[0].seen.body


def test_a_tool_of_the_clients_with_that_name_stays_the_clients(talk):
    for stream in (False, True):
        got = talk.ask(Said(calls=(recall(id=talk.hint),)), stream=stream, tools=[talk.speaks.tool("recall")])
        assert tool_names(talk.prompts[0]) == ["recall"]
        assert [call.name for _, call in got.calls] == ["recall"]
        assert len(talk.prompts) == 1
        talk.said += talk.speaks.results(got.calls, ["mine"])
        talk.ask(Said("Yes."), text=None, tools=[talk.speaks.tool("recall")])


@pytest.mark.parametrize("more", [{"n": 2}, {"functions": [{"name": "old", "parameters": {}}]}], ids=["n", "functions"])
def test_several_choices_and_functions_of_old_have_no_tool_of_ours(house, more):
    if house.speaks.name != "chat":
        pytest.skip("only chats have these")
    talk = house.going_on()
    talk.ask(Said("Yes."), **more)
    assert tool_names(talk.prompts[0]) == ["read_file", "run_tests"]


def test_with_memory_off_the_clients_bytes_go_out(house):
    talk = house.going_on()
    reply = talk.post(**{"x-infold-memory": "off"})
    assert reply.status_code == 400, "all of it is too long"
    assert house.upstream.requests[-1].body == reply.request.content


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions", "/v1/messages/count_tokens"])
def test_other_endpoints_have_no_tool(house, path):
    talk = house.going_on()
    script, house.upstream.script = house.upstream.script, [b"HTTP/1.1 204 Nothing\r\n\r\n"]
    reply = talk.post(path=path)
    house.upstream.script = script
    assert house.upstream.requests[-1].body == reply.request.content


# What it brings


@each_way
def test_an_id_brings_the_words_and_a_turn_tells_what_was_asked(talk, stream):
    before = {found: talk.proxy.metric("infold_recalls_total", found=found) for found in ("yes", "no")}
    got = talk.ask(Said("Wait.", (recall(id=talk.hint), recall(id="zzzzzzzz"))), Said("I see."), stream=stream)
    found, unknown = talk.speaks.results_in(talk.prompts[1])
    recalls = talk.proxy.explain(got.headers["x-infold-turn"], talk.key)["attempts"][-1]["recalls"]

    assert talk.secret in found
    assert talk.secret not in unknown
    assert [told["found"] for told in recalls] == [True, False]
    assert all(set(told) == {"call", "asked", "found", "seconds", "tokens", "ids", "reason"} for told in recalls)
    assert talk.hint in json.dumps(recalls[0]["asked"])
    assert all(0 <= told["seconds"] < 10 for told in recalls)
    for name in ("yes", "no"):
        assert talk.proxy.metric("infold_recalls_total", found=name) == before[name] + 1


def test_a_query_brings_what_it_asks_for(talk):
    talk.ask(Said(calls=(recall(query="With what does the vault open?"),)))
    (told,) = talk.speaks.results_in(talk.prompts[1])
    assert talk.secret in told


def test_an_id_of_another_conversation_brings_nothing(house):
    one, other = house.talk(), house.talk()
    other.key = one.key
    other.ask(Said(calls=(recall(id=one.hint), recall(query=one.secret))))
    told = " ".join(other.speaks.results_in(other.prompts[1]))
    assert one.secret not in told


OBJECTS = (
    '{"id":"zzzzzzzz"}', '{"id":"not an id at all"}', "{}", '{"other":1}', '{"id":5}', '{"query":""}', '{"query":[]}',
    '{"id":null,"query":null}', '{"id":""}', '{"query":"\\u0000\\ud800"}',
)  # fmt: skip
TEXTS = ("[]", '"x"', "null", "not json", '{"id": "a2b3', "", "[" * 2_000, '{"id":"a","id":"b"}', "NaN")


@each_way
def test_whatever_it_asks_has_a_result_in_words(talk, stream):
    asked = OBJECTS + (TEXTS if talk.speaks.name != "messages" else ())
    talk.ask(Said(calls=tuple(Call("recall", text) for text in asked)), Said("I see."), stream=stream)
    results = talk.speaks.results_in(talk.prompts[1])

    assert len(results) == len(asked)
    assert all(len(text.split()) >= 3 for text in results), results
    assert not any(talk.secret in text for text in results)


@each_way
def test_all_that_a_digest_names_can_be_asked_for_at_once(talk, stream):
    """As much of it comes back as there is room for; each call has its result all the same."""
    ids = [id for id, *_ in dict.fromkeys(SPAN.findall(" ".join(talk.speaks.said_in(talk.prompts[0]))))]
    few = Said(calls=(recall(id=ids[0]), recall(query="With what does the vault open?"), recall(id=ids[-1])))
    many = Said(calls=tuple(recall(id=id) for id in ids * 4))
    got = talk.ask(few, many, many, Said("I see."), stream=stream)
    first, *others = (talk.speaks.results_in(prompt) for prompt in talk.prompts[1:])

    assert got.text == "I see."
    assert len(ids) >= 3
    assert len(first) == 3
    assert talk.secret in first[1]
    assert [len(results) for results in others] == [len(ids) * 4] * 2
    assert all(results for each in (first, *others) for results in each)
    assert max(prompt.tokens for prompt in talk.prompts) + RESERVE <= WINDOW


@each_way
def test_a_block_that_fills_the_prompt_leaves_room_to_ask(house, stream):
    talk, rng, blocks = house.talk(), random.Random(3), []
    for _ in range(4):
        asking = Said(calls=(recall(id=talk.hint), recall(query="With what does the vault open?")))
        got = talk.ask(asking, Said("I see."), text=prose(rng, 300), stream=stream)
        told = talk.speaks.results_in(talk.prompts[-1])
        blocks.append(len(talk.prompts[0].block))
        assert got.text == "I see."
        assert [text.startswith("There is no room") for text in told] == [False, False]
        assert talk.prompts[-1].tokens + RESERVE <= WINDOW
    assert max(blocks) > 10_000, "no prompt was full, so this shows nothing"


def test_near_the_limit_there_is_room_for_an_answer_or_no_tool(house):
    """Whatever is left of the window, nobody gets an empty answer."""

    def asks_if_it_may(prompt):
        return Said(calls=(recall(query="vault"),)) if "recall" in tool_names(prompt) else Said("Without it.")

    seen = set()
    for words in range(4_500, 4_800, 25):
        talk = house.going_on()
        got = talk.ask(asks_if_it_may, Said("I see."), text=prose(random.Random(words), words))
        seen.add(got.text)
        assert got.text in ("I see.", "Without it.")
        assert all(prompt.tokens + RESERVE <= WINDOW for prompt in talk.prompts)
    assert seen == {"I see.", "Without it."}, "the prompts were not near the limit, so this shows nothing"


# What the client sees


def pausing(before: bytes, seconds: float, steps: list[Step]) -> Steps:
    """The same, after so many seconds where some bytes come first."""
    at = next(
        n for n, step in enumerate(steps) if isinstance(step, bytes) and before in step and b'"tools"' not in step
    )
    return [*steps[:at], seconds, *steps[at:]]


@pytest.mark.parametrize(
    ("said", "seen"),
    [(Said("Just a moment", (recall(query="vault"),)), b"moment"), (Said(calls=(read(), recall())), b"notes.txt")],
    ids=["words", "own call"],
)
def test_what_stands_before_a_call_of_ours_does_not_wait_for_it(talk, said, seen):
    seen = b".txt" if seen == b"notes.txt" else seen  # arguments come in two pieces
    pause = 1.0
    talk.provider.model.moves = [Bent(said, partial(pausing, b"recall", pause)), Said("I see.")]
    talk.said.append(talk.speaks.spoken("user", f"Go on, {next(numbers)}."))
    began, raw, at = time.monotonic(), b"", 0.0
    with httpx.stream(**talk.posting(stream=True)) as reply:
        for part in reply.iter_raw():
            raw += part
            at = at or (time.monotonic() - began if seen in raw else 0.0)

    assert 0 < at < pause
    assert time.monotonic() - began > pause
    assert b"recall" not in raw


def test_who_does_not_ask_for_usage_gets_none(house):
    if house.speaks.name != "chat":
        pytest.skip("the others tell it always")
    talk = house.going_on()
    talk.provider.model.moves = [Said("Wait.", (recall(id=talk.hint),)), Said("I see.")]
    told = events_in(talk.post(stream=True).content)
    assert not any(event.get("usage") for event in told)
    assert all(event["choices"] for event in told)
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in told) == "Wait.\n\nI see."


@each_way
def test_who_asks_a_fourth_time_is_asked_to_answer_in_words(talk, stream):
    asking = Said(calls=(recall(query="vault"),))
    got = talk.ask(asking, asking, asking, asking, Said("I see."), stream=stream)
    chosen = [prompt.body.get("tool_choice") for prompt in talk.prompts]

    assert (got.text, got.calls, got.finish) == ("I see.", [], talk.speaks.ends[0])
    assert chosen[:4] == [None] * 4
    assert chosen[4] in ("none", {"type": "none"})
    assert len({json.dumps(prompt.body["tools"]) for prompt in talk.prompts}) == 1
    assert talk.ask(Said("Yes."), stream=stream).text == "Yes."
    assert begins_with_last(talk)


def begins_with_last(talk: Talk) -> bool:
    """Does the newest prompt go on from the one before it?"""
    before, after = talk.provider.prompts[-2:]
    return begins_with(after, before)


# What comes after


@each_way
def test_another_process_goes_on_with_what_was_recalled(talk, tmp_path, stream):
    talk.ask(Said("Wait.", (recall(id=talk.hint),)), Said("I see."), stream=stream)
    url = talk.proxy.config.upstream.removesuffix("/v1")
    with proxying(url, talk.dsn, tmp_path, recall_tool="auto") as talk.proxy:
        talk.ask(Said("Yes."), stream=stream)
        assert begins_with_last(talk)
        assert talk.secret in talk.prompts[0]


@each_way
def test_the_same_request_again_is_the_same_prompt(talk, stream):
    """A client that wants another answer sees no trace of what was asked for the first."""
    moves = (Said("Wait.", (recall(id=talk.hint),)), Said("I see."))
    talk.ask(Said("Before."), *moves)
    first = []
    for _ in range(2):
        got = talk.ask(*moves, text="Open the vault.", stream=stream)
        first.append(talk.prompts[0].seen.body)
        talk.said = talk.said[: -1 - len(got.own)]
    assert first[0] == first[1]


@each_way
def test_results_of_own_tools_go_on_from_the_whole_answer(talk, stream):
    got = talk.ask(Said("Wait.", (read("a"), recall(id=talk.hint), read("b"))), stream=stream)
    asked = talk.prompts[0]
    assert [json.loads(call.arguments)["path"] for _, call in got.calls] == ["a", "b"]

    talk.said += talk.speaks.results(got.calls, ["A here", "B here"])
    talk.ask(Said("Yes."), text=None)
    results = talk.speaks.results_in(talk.prompts[0])
    assert len(results) == 3
    assert [text for text in results if text in ("A here", "B here")] == ["A here", "B here"]
    assert sum(talk.secret in text for text in results) == 1
    assert begins_with(talk.prompts[0], asked)
    talk.ask(Said("Yes."))
    assert begins_with_last(talk)


@each_way
@pytest.mark.parametrize("change", ["drops the answer", "drops its words", "says other words"])
def test_a_client_that_changes_what_it_got_is_answered(talk, stream, change):
    got = talk.ask(Said("Wait.", (recall(id=talk.hint), read())), stream=stream)
    talk.said = talk.said[: -len(got.own)]
    if change == "says other words":
        talk.said.append(talk.speaks.spoken("assistant", "Something else."))
    if change == "drops its words":
        talk.said += [without_words(item) for item in got.own if without_words(item)]
        talk.said += talk.speaks.results(got.calls, ["here"])
    if change == "drops the answer":
        talk.said = talk.said[:-1]
    assert talk.ask(Said("Yes."), text=None if change == "drops its words" else "Never mind.").text == "Yes."
    assert talk.ask(Said("Yes."), text="And on.").text == "Yes."


def without_words(item: Json) -> Json:
    if item.get("type") == "message":
        return {}
    if isinstance(item.get("content"), list):
        return {**item, "content": [block for block in item["content"] if block["type"] != "text"]}
    return {**item, "content": None} if "content" in item else item


@each_way
def test_a_window_that_takes_all_gets_the_clients_bytes(talk, stream, monkeypatch):
    """Another model has another window: nothing is folded there, so nothing is added."""
    monkeypatch.setattr(talk.provider, "window", None)
    talk.ask(Said("Wait.", (recall(id=talk.hint),)), Said("I see."), stream=stream)
    got = talk.ask(Said("Yes."), model="wide-128k")
    assert got.headers["x-infold-mode"] == "wire"
    assert talk.prompts[0].body == talk.speaks.body(talk.said[: -len(got.own)], model="wide-128k")


@each_way
async def test_what_is_isolated_after_it_came_back_is_told_nowhere(house, stream):
    talk = await asyncio.to_thread(house.talk)
    asking = Said("Wait.", (recall(id=talk.hint), recall(query=talk.secret)))
    await asyncio.to_thread(talk.ask, asking, Said("I see."), stream=stream)
    await asyncio.to_thread(talk.ask, Said("Yes."))
    assert talk.secret in talk.prompts[0]

    connection = await asyncpg.connect(talk.dsn)
    try:
        assert await holding(connection, talk.secret) >= {"folds", "attempts"}
        await isolate(talk, await connection.fetchval("select tenant from infold.turns order by created_at desc"))
        assert await holding(connection, talk.secret) == set()
    finally:
        await connection.close()
    talk.proxy.parts.memory.heard(None, "again", "")  # as a signal would
    for move in (Said("Yes."), Said(calls=(recall(query="what opens the vault"),))):
        await asyncio.to_thread(talk.ask, move, text="What opens the vault?")
        assert not any(talk.secret in prompt for prompt in talk.prompts)


async def holding(connection: asyncpg.Connection, words: str) -> set[str]:
    """The tables in which some words stand, but the messages themselves and the quarantine."""
    tables = await connection.fetch(
        "select table_name as name from information_schema.tables where table_schema = 'infold'"
    )
    found = set()
    for (name,) in tables:
        for row in await connection.fetch(f"select * from infold.{name}"):
            told = [value if isinstance(value, bytes) else str(value).encode() for value in row.values()]
            if any(words.encode() in value for value in told):
                found.add(name)
    return found - {"nodes", "quarantine"}


async def isolate(talk: Talk, tenant: bytes) -> None:
    async with open_pool(talk.dsn) as pool:
        quarantine = Quarantine(pool, Counter(), Hands(), Settings())
        await quarantine.isolate(place(tenant, "home"), talk.secret, "message", "odd")
