"""Which earlier messages belong beside the newest one: an order by relevance, and a choice that fits.

Pure. Terms and embeddings of the messages come in ready; where they are kept is not this file's concern.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory.lexical import Terms, bm25, frequencies, terms

Floats = NDArray[np.float64]

RADIUS = 2  # neighbours on each side that make a window
MESSAGE, WINDOW, DENSE = 1.0, 1.0, 1.0  # weights of the three rankings
CONTEXT = 0.25  # weight of a term that stands only in the calls before, not in the newest message
FLOOR = 0.0  # smallest score that may come back; see `rank`
RUN_TOKENS = 8  # header of a run of neighbouring quoted messages
MESSAGE_TOKENS = 4  # role and separator of a quoted message


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for: weighted terms of the newest message in its context."""

    weights: Mapping[str, float]
    names: frozenset[str] = frozenset()  # capitalised words, folded: perhaps speakers
    vector: NDArray[np.float32] | None = None  # (384,), unit length


@dataclass(frozen=True, slots=True)
class Passage:
    """An earlier message that stands no longer in the prompt."""

    position: int  # index in the line of conversation
    role: str
    speaker: str | None
    text: str
    tokens: int  # of the text, as the provider counts
    terms: Terms
    vectors: NDArray[np.float32] | None = None  # (chunks, 384), unit length; None until the job has made them


@dataclass(frozen=True, slots=True)
class Ranked:
    position: int
    score: float  # 0 or more; 1 is as relevant as the best
    why: str


@dataclass(frozen=True, slots=True)
class Quote:
    """A message for the block; `start` and `stop` cut its text where the whole does not fit."""

    position: int
    tokens: int
    start: int = 0
    stop: int | None = None  # None: to the end


def query(newest: str, context: Sequence[str] = (), vector: NDArray[np.float32] | None = None) -> Query:
    """Make a query of the newest user message; `context` is the last calls and results of an agent's loop."""
    weights = dict.fromkeys(terms(newest).counts, 1.0)
    for text in context:
        for term in terms(text).counts:
            weights.setdefault(term, CONTEXT)
    names = frozenset(word.lower() for word in re.findall(r"[^\W\d_]+", newest) if word[0].isupper())
    return Query(weights, names, vector)


def rank(wanted: Query, passages: Sequence[Passage]) -> list[Ranked]:
    """Order passages by relevance, best first."""
    if not passages:
        return []
    words = list(wanted.weights)
    weights = np.array([wanted.weights[word] for word in words])
    tf = frequencies([passage.terms for passage in passages], words)
    lengths = np.array([passage.terms.length for passage in passages], dtype=np.float64)
    message = bm25(tf, lengths, weights)
    window = bm25(spread(tf, RADIUS), spread(lengths[:, None], RADIUS)[:, 0], weights)
    scores = MESSAGE * scaled(message) + WINDOW * scaled(window)
    if wanted.vector is not None:
        scores += DENSE * scaled(similarity(wanted.vector, passages))
    scores = scaled(scores)
    order = np.argsort(-scores, kind="stable")
    return [Ranked(passages[i].position, float(scores[i]), "terms") for i in order]


def spread(rows: Floats, radius: int) -> Floats:
    """Sum each row with its neighbours up to `radius` away."""
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    index = np.arange(len(rows))
    low, high = np.maximum(index - radius, 0), np.minimum(index + radius + 1, len(rows))
    return sums[high] - sums[low]


def scaled(scores: Floats) -> Floats:
    best = scores.max(initial=0.0)
    return scores / best if best > 0 else scores


def similarity(vector: NDArray[np.float32], passages: Sequence[Passage]) -> Floats:
    """Cosine of the best chunk of each passage; 0 where there is none yet."""
    return np.array([0.0 if p.vectors is None else max(0.0, float((p.vectors @ vector).max())) for p in passages])


def select(
    ranked: Sequence[Ranked], passages: Sequence[Passage], budget_tokens: int, floor: float = FLOOR
) -> tuple[Quote, ...]:
    """Choose what comes back: best first while it fits, in the order of the conversation."""
    at = {passage.position: passage for passage in passages}
    chosen: dict[int, Quote] = {}
    left = budget_tokens
    for candidate in ranked:
        if candidate.score <= floor:
            break
        passage = at[candidate.position]
        cost = passage.tokens + MESSAGE_TOKENS
        if candidate.position - 1 not in chosen and candidate.position + 1 not in chosen:
            cost += RUN_TOKENS
        if cost <= left:
            chosen[candidate.position] = Quote(candidate.position, cost)
            left -= cost
    return tuple(chosen[position] for position in sorted(chosen))
