"""The conversation of the demo: two people, ten weeks, six tide stations, one assistant. The same for the same seed.

The names and numbers of the first minutes are drawn when the story is told; `words.yaml` holds the sentences and
`scenes.py` the tools. The story tells what the client sends and what the provider is to say, but nobody tells the
provider what is asked at the end.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.resources import files
from random import Random
from typing import Any

import yaml

from proxy.demo.scenes import EARLY, LATE, PLAYS, station, tool_schemas

Json = dict[str, Any]

FIRST_DAY = date(2025, 3, 3)  # a Monday
DAYS = 50  # working days
LOOK_UPS = (2, 1, 2, 1, 2)  # uses of tools, Monday to Friday


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: what the client adds to the conversation, and what the provider will say."""

    day: str  # "week 3, Tuesday"
    adds: tuple[Json, ...]
    reply: Json


@dataclass(frozen=True, slots=True)
class Question:
    """Asked at the end."""

    ask: str
    expects: tuple[str, ...]  # an answer names all of them


@dataclass(frozen=True, slots=True)
class Story:
    system: Json
    tools: list[Json]
    turns: tuple[Turn, ...]
    opening_turns: int  # the first minutes: all that is asked for at the end is told in them
    questions: tuple[Question, ...]


def tell(seed: int = 0) -> Story:
    """The whole story."""
    rng = Random(f"varn {seed}")
    words = yaml.safe_load(files("proxy.demo").joinpath("words.yaml").read_text(encoding="utf-8"))
    facts = drawn(rng, words["values"])
    turns = (*opening(words["opening"], facts), *days(rng, words))
    return Story(
        system={"role": "system", "content": words["system"]},
        tools=tool_schemas(),
        turns=turns,
        opening_turns=len(words["opening"]),
        questions=tuple(
            Question(asked["ask"], tuple(value.format(**facts) for value in asked["expects"]))
            for asked in words["questions"]
        ),
    )


def drawn(rng: Random, values: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """The facts of this telling."""
    first_day = rng.randrange(8, 12)
    return {
        **{name: rng.choice(choices) for name, choices in values.items()},
        "grant": f"{rng.randrange(380, 460) * 100:,}",
        "reserve": rng.randrange(8, 16),
        "berth": rng.randrange(5, 30),
        "code": rng.randrange(1_000, 10_000),
        "first_day": first_day,
        "second_day": first_day + 8,
    }


def opening(lines: Sequence[Mapping[str, str]], facts: Mapping[str, object]) -> Iterator[Turn]:
    """The first morning."""
    for line in lines:
        yield Turn(
            named(FIRST_DAY), (user(line["user"].format(**facts)),), assistant(line["assistant"].format(**facts))
        )


def days(rng: Random, words: Mapping[str, Any]) -> Iterator[Turn]:
    """Ten weeks: each day some look-ups, an hour of thinking, the evening's report."""
    decks = {name: Deck(rng, words[name]) for name in ("talks", "worries", "thanks")}
    asks = {name: Deck(rng, variants) for name, variants in words["asks"].items()}
    doings = {who: [Deck(rng, phase) for phase in words[who]] for who in ("ines", "tomas")}
    letters = Deck(rng, words["letters"]["to"])
    calls = 0
    for n in range(DAYS):
        day = FIRST_DAY + timedelta(days=n + n // 5 * 2)
        phase = min(n // 13, 3)
        for tool in look_ups(rng, n):
            calls += 1
            yield from look_up(rng, day, tool, asks[tool].next(), f"call_{calls:04d}")
        if n % 5 != 4 and not decks["talks"].is_spent:
            yield thought(day, decks["talks"].next())
        if n % 5 == 2:
            yield letter(rng, day, letters.next(), words["letters"])
        yield evening(rng, day, doings["ines"][phase], doings["tomas"][phase], decks["worries"].next())
        if n % 5 == 4:
            yield week(rng, day, n, decks["thanks"].next())


class Deck:
    """Cards in a random order; when all have been played they are shuffled again."""

    def __init__(self, rng: Random, cards: Sequence[Any]) -> None:
        self._rng = rng
        self._cards = list(cards)
        self._left: list[Any] = []
        self._played = 0

    @property
    def is_spent(self) -> bool:
        """Have all been played once?"""
        return self._played >= len(self._cards)

    def next(self) -> Any:
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        self._played += 1
        return self._left.pop()


def look_ups(rng: Random, n: int) -> list[str]:
    """The tools of a day, none twice."""
    weights = dict(EARLY if n < 10 else LATE)
    chosen: list[str] = []
    while len(chosen) < LOOK_UPS[n % 5]:
        name = rng.choices(list(weights), list(weights.values()))[0]
        del weights[name]
        chosen.append(name)
    return chosen


def look_up(rng: Random, day: date, tool: str, ask: str, call_id: str) -> Iterator[Turn]:
    """A question, the call for it, and after the result an answer: two requests."""
    scene = PLAYS[tool](rng, day)
    function = {"name": tool, "arguments": json.dumps(scene.arguments)}
    call = {"id": call_id, "type": "function", "function": function}
    yield Turn(
        named(day),
        (user(ask.format(**scene.slots)),),
        {"role": "assistant", "content": None, "tool_calls": [call]},
    )
    result = {"role": "tool", "tool_call_id": call_id, "content": scene.result}
    yield Turn(named(day), (result,), assistant(scene.answer))


def thought(day: date, talk: Mapping[str, str]) -> Turn:
    return Turn(named(day), (user(talk["ask"]),), assistant(talk["answer"]))


def letter(rng: Random, day: date, to: Sequence[str], words: Mapping[str, Sequence[str]]) -> Turn:
    """A letter is asked for and drafted."""
    whom, about, point = to
    when = day + timedelta(days=rng.randrange(5, 11))
    closing = rng.choice(words["closings"]).format(when=f"{when:%A}")
    draft = (
        f"A draft:\n\nDear all,\n\n{rng.choice(words['openings'])} It is about {about}. {point} {closing}\n\n"
        "With kind regards\nInes and Tomas\n\nShall I make it shorter?"
    )
    return Turn(named(day), (user(f"Please draft a short letter to {whom}, it is about {about}."),), assistant(draft))


def evening(rng: Random, day: date, ines: Deck, tomas: Deck, worry: Mapping[str, str]) -> Turn:
    """What both did, and what bothers one of them."""
    told = f"{day:%A} evening. Ines {ines.next()}. Tomas {tomas.next()}. {worry['ask']}"
    n = station(rng, day)
    return Turn(named(day), (user(told.format(n=n)),), assistant(worry["answer"].format(n=n)))


STEPS = ("cut", "assembled", "wired", "soaked", "calibrated", "on the roof", "shaken", "crated")


def week(rng: Random, day: date, n: int, thanks: str) -> Turn:
    """Friday: how far each station is."""
    done = [min(len(STEPS) - 1, max(0, (n - 4 * number) // 5 + rng.randrange(2))) for number in range(6)]
    rows = "\n".join(
        f"| S{number + 1} | {STEPS[step]} | {step + 1} of {len(STEPS)} | {rng.choice(PEOPLE)} |"
        for number, step in enumerate(done)
    )
    answer = (
        f"| station | last step | done | next is with |\n|---|---|---|---|\n{rows}\n\nHave a good weekend, both of you."
    )
    return Turn(named(day), (user(f"{thanks} It is Friday: how far are we with each of the six?"),), assistant(answer))


PEOPLE = ("Ines", "Ines", "Tomas", "both")


def named(day: date) -> str:
    return f"week {(day - FIRST_DAY).days // 7 + 1}, {day:%A}"


def user(text: str) -> Json:
    return {"role": "user", "content": " ".join(text.split())}


def assistant(text: str) -> Json:
    return {"role": "assistant", "content": text.strip()}
