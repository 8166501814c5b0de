"""The model asks the memory, the proxy answers it, and nobody else sees of it: 70 turns in each of three dialects.

An agent with tools of its own, by the real SDKs, plain and streamed in turns, at a provider that refuses what a real
one would. The model asks by ids of the digest and by queries, in vain, twice at once, beside tools of the client, three
and four times in a row, and after words.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from tests.conversations import prose
from tests.laws.test_originals_come_back import Fact, facts_of
from tests.proxied import WINDOW, Proxy, proxying
from tests.recalled import (
    RESERVE,
    SPEAKS,
    Call,
    Chat,
    Got,
    Move,
    Said,
    events_in,
    read,
    recall,
    span_with,
    sums,
    told_in,
)

Json = dict[str, Any]

TURNS = 70
KINDS = (
    "plain", "client", "by id", "by query", "in vain", "two at once", "mixed", "mixed twice", "three", "four",
    "words first", "words and mixed", "own after", "mixed later",
)  # fmt: skip
OWN = {"client": 2, "mixed": 1, "mixed twice": 2, "words and mixed": 1, "own after": 1, "mixed later": 2}  # calls
ASKS = dict.fromkeys(KINDS, 1) | dict.fromkeys(("plain", "client", "mixed", "mixed twice", "words and mixed"), 0)
ASKS |= {"three": 3, "four": 4}  # hidden requests
ID = re.compile(r"call_\d+")
LAST = "last recall"  # so says the third result


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of the client, and what came of it."""

    kind: str
    stream: bool
    fact: Fact
    prompts: tuple[Any, ...]  # all that the provider received for it
    usages: tuple[Json, ...]
    words: tuple[str, ...]  # that the model said, answer by answer
    got: Got
    rolled: bool
    left: int  # moves that the model did not come to make


@dataclass
class Run:
    speaks: Chat
    turns: list[Turn] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[Any]:
        return [prompt for turn in self.turns for prompt in turn.prompts]

    @property
    def folded(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.got.headers["x-infold-mode"] == "folded"]


@dataclass
class Player:
    """Both sides of the conversation."""

    run: Run
    rng: random.Random
    facts: list[Fact]
    said: list[Json] = field(default_factory=list)
    waiting: list[tuple[str, Call]] = field(default_factory=list)

    def begin(self) -> None:
        """What was said before: a fact in every other message of the user."""
        for n in range(18):
            told = self.facts[n // 2].told if n % 2 == 0 else ""
            self.said.append(self.run.speaks.spoken("user", f"{prose(self.rng, 30)} {told} {prose(self.rng, 30)}"))
            self.said.append(self.run.speaks.spoken("assistant", prose(self.rng, 60)))

    def speak(self, number: int) -> None:
        if self.waiting:
            texts = [prose(self.rng, self.rng.choice([20, 60])) for _ in self.waiting]
            self.said += self.run.speaks.results(self.waiting, texts)
        else:
            self.said.append(self.run.speaks.spoken("user", f"Task {number}: {prose(self.rng, 30)}"))

    def ask_for(self, kind: str, fact: Fact) -> list[Said]:
        """What the model asks in turn; its answer is not among it."""
        query, unknown = recall(query=fact.asked), recall(id="zzzzzzzz")
        words = prose(self.rng, 12)
        match kind:
            case "plain":
                return []
            case "client":
                return [Said(words, (read(), read("other.txt")))]
            case "in vain":
                return [Said(calls=(unknown,), thinks=self.thought())]
            case "by query":
                return [Said(calls=(query,), thinks=self.thought())]
            case "two at once":
                return [Said(calls=(query, unknown), thinks=self.thought())]
            case "mixed":
                return [Said(calls=(query, read()))]
            case "mixed twice":
                return [Said(calls=(read("a"), query, read("b"), unknown), thinks=self.thought())]
            case "words first":
                return [Said(words, (query,), self.thought())]
            case "words and mixed":
                return [Said(words, (read("a"), query))]
            case "own after":
                return [Said(calls=(query,)), Said(words, (read("a"),), self.thought())]
            case "mixed later":
                return [Said(words, (query,)), Said(words, (read("a"), unknown, read("b")), self.thought())]
        return [
            Said("" if n < 3 else words, (unknown if n % 2 else query,)) for n in range(3 if kind == "three" else 4)
        ]

    def moves(self, kind: str, fact: Fact) -> list[Move]:
        if kind == "by id":
            position = 2 * 2 * self.facts.index(fact)
            asked: list[Move] = [lambda prompt: Said(calls=(self.by_id(prompt, position),), thinks=self.thought())]
        else:
            asked = list(self.ask_for(kind, fact))
        return asked if kind in OWN else [*asked, Said(prose(self.rng, 40), thinks=self.thought())]

    def by_id(self, prompt: Any, position: int) -> Call:
        id = span_with(" ".join(self.run.speaks.said_in(prompt)), position)
        assert id is not None, "the digest does not tell of the fact's message"
        return recall(id=id)

    def thought(self) -> str:
        return prose(self.rng, 8) if self.rng.random() < 0.4 else ""


def play(speaks: Chat, proxy: Proxy, provider: Any) -> Run:
    run = Run(speaks)
    rng = random.Random(speaks.name)
    player = Player(run, rng, facts_of(rng))
    player.begin()
    kinds, facts = itertools.cycle(KINDS), itertools.cycle(player.facts)
    received = bytearray()
    with speaks.sdk(proxy, "sk-recall", received) as sdk:
        for number in range(TURNS):
            player.speak(number)
            was_folded = bool(run.folded)
            kind, fact = next(kinds) if was_folded else "plain", next(facts)
            stream = (number + number // len(KINDS)) % 2 == 1  # each kind both ways
            fact = player.facts[number % 3] if kind == "by id" else fact  # a long passage comes back in part
            provider.model.moves = player.moves(kind, fact)
            known, before = len(provider.prompts), proxy.metric("infold_rollovers_total")
            received.clear()
            provider.model.words.clear()
            got = speaks.ask(sdk, speaks.body(player.said), stream)
            got.raw = bytes(received)
            player.said += got.own
            player.waiting = got.calls
            prompts, usages = tuple(provider.prompts[known:]), tuple(provider.usages[known:])
            rolled, left = proxy.metric("infold_rollovers_total") > before, len(provider.model.moves)
            run.turns.append(Turn(kind, stream, fact, prompts, usages, tuple(provider.model.words), got, rolled, left))
    run.refused = provider.refused
    return run


@pytest.fixture(scope="module", params=SPEAKS, ids=lambda speaks: speaks.name)
def run(request: pytest.FixtureRequest, new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    speaks: Chat = request.param
    provider = speaks.provider()
    with (
        new_database() as dsn,
        provider.serving() as upstream,
        proxying(upstream.url, dsn, tmp_path_factory.mktemp("run"), recall_tool="auto") as proxy,
    ):
        return play(speaks, proxy, provider)


def begins_with(after: Sequence[str], before: Sequence[str]) -> bool:
    return list(after[: len(before)]) == list(before)


def test_all_is_answered_and_nothing_refused(run):
    seen = Counter((turn.kind, turn.stream) for turn in run.folded)

    assert run.refused == []
    assert len(run.turns) == TURNS
    assert all(seen[kind, stream] for kind in KINDS for stream in (False, True)), seen
    assert sum(turn.rolled for turn in run.turns) >= 4


def test_the_model_was_heard_to_its_end(run):
    """As many hidden requests as it asked for; a fourth brings nothing back."""
    for turn in run.turns:
        assert (turn.left, len(turn.prompts)) == (0, 1 + ASKS[turn.kind]), turn.kind


def test_every_prompt_is_within_the_window(run):
    assert max(prompt.tokens for prompt in run.prompts) + RESERVE <= WINDOW


def test_within_an_answer_each_prompt_goes_on_from_the_one_before(run):
    """To the byte, blocks included."""
    for turn in run.turns:
        told = [run.speaks.said_in(prompt) for prompt in turn.prompts]
        assert all(begins_with(after, before) for before, after in itertools.pairwise(told))


def test_between_rollovers_the_last_prompt_of_an_answer_is_a_prefix_of_the_next(run):
    for before, after in itertools.pairwise(run.turns):
        last, first = before.prompts[-1].without_blocks, after.prompts[0].without_blocks
        assert after.rolled or begins_with(first, last), (before.kind, before.stream)


def test_after_a_rollover_the_hidden_exchange_stands_where_its_answer_does(run):
    """Whole with an answer that stayed in full, and not at all with one that is told shorter."""
    stands = [
        (calls_in(run, turn) & set(ID.findall(told)), calls_in(run, turn) if turn.words[-1] in answers else set())
        for n, now in enumerate(run.turns)
        if now.rolled
        for entries in [run.speaks.said_in(now.prompts[0])]
        for told, answers in [(" ".join(entries), " ".join(filter(is_of_the_model, entries)))]
        for turn in run.turns[:n]
        if len(turn.prompts) > 1 and not turn.got.calls
    ]
    assert all(found == expected for found, expected in stands)
    assert any(found for found, _ in stands)
    assert any(not found for found, _ in stands)


def is_of_the_model(entry: str) -> bool:
    """What a recall or a block quotes of an answer is no answer."""
    return '"role": "assistant"' in entry or entry.startswith('["assistant"')


def calls_in(run: Run, turn: Turn) -> set[str]:
    """The ids of the calls that only the provider saw."""
    first, last = (" ".join(run.speaks.said_in(turn.prompts[n])) for n in (0, -1))
    return set(ID.findall(last)) - set(ID.findall(first))


def test_the_client_sees_one_answer_of_the_models_words_and_its_own_calls(run):
    for turn in run.turns:
        got = turn.got
        assert b"recall" not in turn.got.raw, turn.kind
        words = "".join(turn.words if turn.stream else turn.words[-1:])
        assert "".join(got.text.split()) == "".join(words.split()), (turn.kind, turn.stream)
        assert {call.name for _, call in got.calls} <= {"read_file"}
        assert len(got.calls) == OWN.get(turn.kind, 0)
        assert len(got.ids) == 1
        assert got.finish == run.speaks.ends[bool(got.calls)], (turn.kind, turn.stream)


def test_a_stream_is_one_stream(run):
    for turn in run.turns:
        if turn.stream:
            assert list(run.speaks.stream_problems(events_in(turn.got.raw))) == [], turn.kind


def test_the_usage_is_the_sum_over_all_requests(run):
    for turn in run.turns:
        expected = sums(turn.usages)
        assert told_in(turn.got.usage or {}, expected) == expected, (turn.kind, turn.stream)


def test_an_id_brings_the_passage_back_word_for_word(run):
    """A long one in part, and it is said how much of it."""
    asked = [turn for turn in run.folded if turn.kind == "by id"]
    whole = [turn for turn in asked if turn.fact.told in last_result(run, turn)]
    cut = [turn for turn in asked if re.search(r"\d+ of \d+ messages are not here", last_result(run, turn))]
    assert len(asked) >= 3
    assert whole
    assert all(turn in whole or turn in cut for turn in asked)


def last_result(run: Run, turn: Turn) -> str:
    return run.speaks.results_in(turn.prompts[-1])[-1]


def test_a_query_brings_what_is_asked_for(run):
    asked = [turn for turn in run.folded if turn.kind in ("by query", "two at once", "words first")]
    missing = [turn.fact.asked for turn in asked if turn.fact.value not in turn.prompts[1]]
    brought = [turn for turn in asked if turn.fact.value in run.speaks.results_in(turn.prompts[1])[0]]
    assert len(missing) <= 1, missing
    assert len(brought) >= len(asked) / 2


def test_every_call_has_its_result_and_an_unknown_id_is_said_to_be_unknown(run):
    for turn in run.folded:
        results = run.speaks.results_in(turn.prompts[-1])
        if turn.kind == "two at once":
            assert len(results) == 2
            assert "zzzzzzzz" in results[1] or "no " in results[1].lower()
        if turn.kind == "in vain":
            (told,) = results
            assert 10 < len(told) < 400


def test_the_third_result_says_that_it_was_the_last(run):
    for turn in run.folded:
        if turn.kind in ("three", "four"):
            told = [run.speaks.results_in(prompt)[-1] for prompt in turn.prompts[1:]]
            assert [LAST in text for text in told[:3]] == [False, False, True]
            assert all("no more recalls" in text for text in told[3:])


def test_the_tool_stands_last_and_is_the_same_bytes_in_every_folded_request(run):
    tools = {prompt.seen.body: raw_tools(prompt.seen.body) for turn in run.folded for prompt in turn.prompts}
    assert len({found[-1] for found in tools.values()}) == 1
    assert all(len(found) == 3 and b'"recall"' in found[-1] for found in tools.values())
    assert all(b'"recall"' not in b"".join(found[:-1]) for found in tools.values())


def test_before_the_first_rollover_the_clients_bytes_go_out(run):
    wire = [turn for turn in run.turns if turn.got.headers["x-infold-mode"] == "wire"]
    assert wire
    assert all(b"recall" not in prompt.seen.body for turn in wire for prompt in turn.prompts)


class Tools(msgspec.Struct):
    tools: list[msgspec.Raw]


def raw_tools(body: bytes) -> list[bytes]:
    return [bytes(tool) for tool in msgspec.json.decode(body, type=Tools).tools]
