"""Which earlier messages belong beside the newest one: an order by relevance, and a choice that fits.

Pure. Terms of the messages and cosines to the newest one come in ready; who keeps them is not this file's concern.
The weights below were swept on the development halves of the benchmark sets; the plateau is wide.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory.excerpt import excerpt
from memory.lexical import Floats, Terms, bm25, frequencies, rarity, terms

RADIUS = 5  # neighbours on each side that lend a message their terms, the nearest most
MESSAGE, WINDOW = 1.0, 1.0  # weight of a message's own terms, and of those around it
MEANING = 0.3  # weight of the cosine beyond STRANGE, beside a share of the query's terms
STRANGE = 0.2  # cosine that messages have which have nothing to do with each other
SPEAKER = 0.4  # how much more a message counts whose speaker is named
CONTEXT = 0.1  # weight of all terms of the calls before, beside those of the newest message
THIN_TERMS = 3  # fewer terms than this are too few to search with alone
THRIFT = 0.4  # 0: the best messages come first, 1: those that give most for each token
MOST_CELLS = 100_000  # messages x terms that are scored; beyond, the query keeps its rarest terms
FEWEST_TERMS = 16  # but so many always
SPEAKER_CHARS = 110  # within which a name before the text ends
SMALLEST_PART = 96  # tokens: a shorter piece of a message is not worth its heading

LEAST_TERMS, MOST_TERMS = 2.0, 8.0  # rare terms that a query is taken to have, at least and at most
LEAST_SHARE = 0.02  # messages with less than this share of the best score stay out

# Words that ask or answer, and say nothing of what is asked for: "what did I have", "yes, please", "ok, thanks!"
EMPTY = frozenset(
    terms(
        "what when where who whom whose which why how do does did is are was were be been am have has had"
        " can could will would shall should may might must"
        " yes yeah yep no nope ok okay sure thanks thank please hello hi hey continue"
    ).counts
)


WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Frame:
    """Tokens that quoting costs beside the text."""

    message: int = 16  # each message: role, name, id
    run: int = 0  # each run of neighbouring messages


QUOTED = Frame()


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for."""

    weights: Mapping[str, float]  # of each term, 0 to 1
    names: frozenset[str] = frozenset()  # its words, folded: perhaps speakers


@dataclass(frozen=True, slots=True)
class Passage:
    """An earlier message that stands no longer in the prompt."""

    position: int  # index in the line of conversation
    role: str
    speaker: str | None
    text: str
    tokens: int  # of the text, as the provider counts
    terms: Terms
    line: int = 0  # of conversation; what stands in another one is no neighbour


@dataclass(frozen=True, slots=True)
class Ranked:
    position: int
    score: float  # above 0: the share of the query, by rarity, that the message and its neighbours hold; rarely over 1


@dataclass(frozen=True, slots=True)
class Ranking:
    """Messages by relevance, best first, and what each term of the query weighed."""

    found: tuple[Ranked, ...]
    weights: Mapping[str, float]

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.found)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A message for the block; `start` and `stop` cut its text where the whole does not fit."""

    position: int
    tokens: int  # with what quoting it costs
    start: int = 0
    stop: int | None = None  # None: to the end


def query(newest: str, context: Sequence[str] = ()) -> Query:
    """Make a query of the newest user message.

    Args:
        context: the last calls and results of an agent's loop, or what was said before; their terms count less, unless
            the newest message says too little, as "yes, do that" does.
    """
    weights = dict.fromkeys(terms(newest).counts.keys() - EMPTY, 1.0)
    more = {term for text in context for term in terms(text).counts} - EMPTY - weights.keys()
    share = CONTEXT * len(weights) if len(weights) >= THIN_TERMS else THIN_TERMS
    weights |= dict.fromkeys(more, min(1.0, share / max(len(more), 1)))
    names = frozenset(WORD.findall(newest.lower())) - EMPTY
    return Query(weights, names)


def rank(wanted: Query, passages: Sequence[Passage], similar: Mapping[int, float] | None = None) -> Ranking:
    """Order messages by relevance; those without any are left out.

    Args:
        passages: in the order of the conversation.
        similar: cosine of a message's best chunk to the newest user message, by position, where embeddings are ready.
    """
    if not passages or not wanted.weights:
        return Ranking((), {})
    words, tf, weights = look_up(wanted, passages)
    lengths = np.array([passage.terms.length for passage in passages], dtype=np.float32)
    own = coverage(tf, lengths, weights)
    apart = lines_of(passages)
    around = coverage(spread(tf, apart), spread(lengths, apart), weights)
    scores = (MESSAGE * own + WINDOW * around) / (MESSAGE + WINDOW) * substance(tf, weights)
    if wanted.names:
        named = [share_named(passage, wanted.names) for passage in passages]
        scores *= 1 + SPEAKER * np.array(named, dtype=np.float32)
    if similar:
        cosines = [similar.get(passage.position, 0.0) for passage in passages]
        scores += MEANING * closeness(np.array(cosines, dtype=np.float32), apart)
    values = scores.tolist()
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if values[i] > 0]
    found = tuple(Ranked(passages[i].position, values[i]) for i in order)
    return Ranking(found, dict(zip(words, (weights * rarity(tf)).tolist(), strict=True)))


def look_up(wanted: Query, passages: Sequence[Passage]) -> tuple[list[str], Floats, Floats]:
    """The query's terms, how often each stands in each message, and its weight."""
    words = list(wanted.weights)
    tf = frequencies([passage.terms for passage in passages], words)
    weights = np.array([wanted.weights[word] for word in words], dtype=np.float32)
    most = max(MOST_CELLS // len(passages), FEWEST_TERMS)
    if len(words) > most:
        keep = np.argsort(-weights * rarity(tf) * tf.any(axis=1), kind="stable")[:most].tolist()
        words, tf, weights = [words[i] for i in keep], tf[keep], weights[keep]
    return words, tf, weights


def coverage(tf: Floats, lengths: Floats, weights: Floats) -> Floats:
    """BM25 as a share of what a text could have that holds every term of the query: 0 to 1."""
    worth = weights * rarity(tf)
    most = worth.sum()
    return bm25(tf, lengths, worth / most) if most > 0 else np.zeros_like(lengths)


def substance(tf: Floats, weights: Floats) -> float:
    """How far a share of this query can be trusted: less for one common word, more for a page of text.

    Half of `go on` is nothing; a tenth of an error message is much.
    """
    said = float((weights * rarity(tf)).sum())
    rare = math.log1p(tf.shape[1])  # the worth of a term that stands nowhere else
    return said / min(max(said, LEAST_TERMS * rare), MOST_TERMS * rare)


def lines_of(passages: Sequence[Passage]) -> NDArray[np.int_] | None:
    """The line of each passage; None where there is one alone."""
    lines = np.array([passage.line for passage in passages])
    return None if (lines == lines[0]).all() else lines


def spread(values: Floats, lines: NDArray[np.int_] | None = None) -> Floats:
    """Add to each value those of its neighbours in the last axis, less and less with distance."""
    total = values.copy()
    for distance in range(1, min(RADIUS, values.shape[-1] - 1) + 1):
        weight: float | Floats = 1 - distance / (RADIUS + 1)
        if lines is not None:
            weight = weight * (lines[distance:] == lines[:-distance]).astype(np.float32)
        total[..., distance:] += weight * values[..., :-distance]
        total[..., :-distance] += weight * values[..., distance:]
    return total


def closeness(cosines: Floats, lines: NDArray[np.int_] | None = None) -> Floats:
    """Cosine of a message and, as much, of those around it; 0 for what is merely English, too."""
    around = spread(cosines, lines) / spread(np.ones_like(cosines), lines)
    close: Floats = np.maximum(0, (cosines + around) / 2 - STRANGE)
    return close


def share_named(passage: Passage, names: frozenset[str]) -> float:
    """How much of the speaker's name is named: `PhD B` by "What did PhD C say" half."""
    parts = WORD.findall((passage.speaker or speaker_before(passage.text)).lower())
    return sum(part in names for part in parts) / len(parts) if parts else 0.0


def speaker_before(text: str) -> str:
    """The name in `[8 May 2023] Caroline: Hi!`, as transcripts have it; "" for none."""
    end = text.find(": ", 0, SPEAKER_CHARS)
    name = text[: max(end, 0)]
    if name.startswith("["):
        name = name[name.find("] ") + 2 :]
    return name if "\n" not in name else ""


def select(
    ranking: Ranking,
    passages: Sequence[Passage],
    budget_tokens: int,
    floor: float = 0.0,
    count: Callable[[str], int] | None = None,
    frame: Frame = QUOTED,
    least_share: float = LEAST_SHARE,
) -> tuple[Chosen, ...]:
    """Choose what comes back, in the order of the conversation.

    Whole messages come first, relevance weighed against tokens; in what is left, the most relevant message that does
    not fit is quoted in part. Neighbours of a relevant message are relevant by their closeness.

    Args:
        floor: best score below which nothing is relevant; an unrelated question stays under it.
        count: text to tokens; without it nothing is quoted in part.
        least_share: messages with less than this share of the best score stay out.
    """
    at = {passage.position: passage for passage in passages}
    best = max((ranked.score for ranked in ranking), default=0.0)
    least = least_share * best if best > floor else best
    relevant = [ranked for ranked in ranking if ranked.score > least]
    dense = sorted(relevant, key=lambda r: -r.score / (at[r.position].tokens + frame.message) ** THRIFT)
    chosen = wholes([ranked.position for ranked in dense], at, budget_tokens, frame)
    if count:
        taken = {choice.position for choice in chosen}
        rest = [at[ranked.position] for ranked in relevant if ranked.position not in taken]
        left = budget_tokens - sum(choice.tokens for choice in chosen)
        chosen.extend(parts(rest, ranking.weights, left, count, frame))
    return tuple(sorted(chosen, key=lambda choice: choice.position))


def wholes(positions: Sequence[int], at: Mapping[int, Passage], budget_tokens: int, frame: Frame) -> list[Chosen]:
    """Whole messages while they fit."""
    chosen: dict[int, Chosen] = {}
    for position in dict.fromkeys(positions):
        cost = at[position].tokens + frame.message
        if position - 1 not in chosen and position + 1 not in chosen:
            cost += frame.run
        if cost <= budget_tokens:
            chosen[position] = Chosen(position, cost)
            budget_tokens -= cost
    return list(chosen.values())


def parts(
    relevant: Sequence[Passage],
    weights: Mapping[str, float],
    budget_tokens: int,
    count: Callable[[str], int],
    frame: Frame,
) -> Iterator[Chosen]:
    """Parts of messages that do not fit, the most relevant first."""
    heading = frame.message + frame.run
    for passage in relevant:
        if budget_tokens < SMALLEST_PART + heading:
            break
        found = excerpt(passage.text, weights, budget_tokens - heading, count)
        if found:
            cost = count(passage.text[found.start : found.stop]) + heading
            yield Chosen(passage.position, cost, found.start, found.stop)
            budget_tokens -= cost
