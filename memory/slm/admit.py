"""Whether a model may make texts shorter.

It has to summarise the shipped conversations, each in as many tokens as the extractive digest takes for it: together it
must tell no fewer of their facts, and nothing that they do not say. What came of it is kept beside the weights, in a
file that is named by model, revision of its weights, form and words of the prompt: no database is open where a model is
checked, and whoever removes the models removes what was found out about them.
"""

import asyncio
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from memory.digest.facts import plain
from memory.digest.fit import CountTokens, trim
from memory.digest.prose import sentences
from memory.forms import budget_tokens, fill
from memory.grounded import turns_around, ungrounded
from memory.prompts import SUMMARISING, summarising, text_mark
from memory.settings import Slm
from memory.slm.adapters import foundation_of
from memory.slm.adapting import base_name
from memory.slm.client import ModelAt
from memory.slm.convert import sha256
from memory.slm.engine import READS, Backend
from memory.slm.shipped import Admission, admission
from memory.slm.weights import Weights, locate

SHARE = 0.25  # of a conversation's tokens, that a summary may have
MARGIN = 1.5  # tokens of a small model's vocabulary by ours; what is too long in the end loses sentences
ANSWER_SECONDS = 600.0  # for one conversation, on a slow machine
NOT_EXAMINED = "not examined: `infold slm check --summaries` does it"
FOLDER = "summaries"  # below the home of the weights
PROMPT = hashlib.sha256(SUMMARISING.encode()).hexdigest()[:8]  # a prompt with other words is another one


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was examined; anything else has to be examined anew."""

    model: str
    revision: str
    form: str
    prompt: str = PROMPT


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one conversation."""

    id: str
    facts: int
    by_model: int
    by_digest: int
    tokens: int  # that both had
    invented: tuple[str, ...]  # of the model's summary


@dataclass(frozen=True, slots=True)
class Verdict:
    candidate: Candidate
    told: tuple[Told, ...]

    @property
    def is_admitted(self) -> bool:
        return bool(self.told) and self.by_model >= self.by_digest and not self.invented

    @property
    def by_model(self) -> int:
        return sum(one.by_model for one in self.told)

    @property
    def by_digest(self) -> int:
        return sum(one.by_digest for one in self.told)

    @property
    def invented(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for one in self.told for word in one.invented))

    def __str__(self) -> str:
        facts = sum(one.facts for one in self.told)
        told = f"{self.by_model} of {facts} facts told, {self.by_digest} by the digest at the same length"
        invented = f"; invented: {', '.join(self.invented[:5])}" if self.invented else "; nothing invented"
        return f"{'admitted' if self.is_admitted else 'not admitted'}: {told}{invented}"


async def examine(
    model: ModelAt, candidate: Candidate, count: CountTokens, conversations: Sequence[Admission] | None = None
) -> Verdict:
    """
    Raises:
        ModelError: it did not answer.
    """
    given = admission() if conversations is None else conversations
    return Verdict(candidate, tuple([await examined(model, one, count) for one in given]))


async def examined(model: ModelAt, one: Admission, count: CountTokens) -> Told:
    text = "\n\n".join(f"{role}: {content}" for role, content in one.messages)
    digest = fill(text, budget_tokens(count(text), SHARE, None), count)
    room = count(digest)
    summary = await shorter(model, text, room, count)
    return Told(one.id, len(one.facts), held(one.facts, summary), held(one.facts, digest), room, untrue(summary, text))


def held(facts: Sequence[str], text: str) -> int:
    there = plain(text)
    return sum(plain(fact) in there for fact in facts)


async def shorter(model: ModelAt, text: str, room_tokens: int, count: CountTokens) -> str:
    """A model's summary, of which as many sentences are kept as have room; "" where not one has.

    Raises:
        ModelError: it did not answer.
    """
    said = await model.complete(summarising(text, room_tokens), math.ceil(MARGIN * room_tokens))
    answer = said.text.replace(text_mark(text), "").strip()  # small models say the lines again
    whole = sentences(answer)
    if said.finish_reason == "length" and not answer.endswith((".", "!", "?")):
        whole = whole[:-1]
    return trim(list(whole), room_tokens, count, " ")


def untrue(summary: str, text: str) -> tuple[str, ...]:
    """Numbers, names and the like that a text does not hold; and whether it is denied, which tells no word."""
    denial = ("a denial, or what the text denies",) if turns_around(summary, [text]) else ()
    return (*ungrounded(summary, [text]), *denial)


# Which model that is, and what was found out about it.


def candidate_of(slm: Slm, home: Path) -> Candidate:
    """The model of the settings; reads every byte of its weights, where they are here.

    Raises:
        LLMMemoryError: its weights are not there, or cannot be used.
        OSError: they cannot be read.
    """
    if slm.backend == "openai":
        return Candidate(base_name(slm), hashlib.sha256(f"{slm.url}".encode()).hexdigest()[:32], "at a URL")
    backend: Backend = "transformers" if slm.backend == "transformers" else "llamacpp"
    weights = locate(slm.model, home, READS[backend])
    return Candidate(weights.name, revision(weights), f"{backend} {slm.quantization}")


def revision(weights: Weights) -> str:
    return sha256(weights.path)[:32] if weights.kind == "gguf" else foundation_of(weights.path).hash


def file_of(candidate: Candidate, home: Path) -> Path:
    named = json.dumps(asdict(candidate), sort_keys=True)
    return home / FOLDER / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.json"


def keep(verdict: Verdict, home: Path) -> None:
    """
    Raises:
        OSError: it cannot be written.
    """
    place = file_of(verdict.candidate, home)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
        json.dump(asdict(verdict), file, ensure_ascii=False)
    os.replace(file.name, place)


def kept(candidate: Candidate, home: Path) -> Verdict | None:
    """What was found out before; None: nothing, or it cannot be read."""
    try:
        found = json.loads(file_of(candidate, home).read_text(encoding="utf-8"))
        told = tuple(Told(**{**one, "invented": tuple(one["invented"])}) for one in found["told"])
        return Verdict(Candidate(**found["candidate"]), told) if found["candidate"] == asdict(candidate) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Admitted:
    """Whether a server's model may make texts shorter; looks again each time, so that an examination counts at once."""

    def __init__(self, slm: Slm, home: Path) -> None:
        self._slm = slm
        self._home = home
        self._candidate: Candidate | None = None
        self.told: str | None = None  # of the last look; None: nobody has looked

    async def verdict(self) -> Verdict | None:
        """None: it has not been examined in this form.

        Raises:
            LLMMemoryError, OSError: as `candidate_of`.
        """
        if self._candidate is None:
            self._candidate = await asyncio.to_thread(candidate_of, self._slm, self._home)
        found = await asyncio.to_thread(kept, self._candidate, self._home)
        self.told = str(found or NOT_EXAMINED)
        return found
