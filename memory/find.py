"""A query as hashed terms, and passages that words and vectors found, in one order. Pure.

Terms are hashed with the tenant, so that no posting list is shared. How rare a term is comes from a sample.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from uuid import UUID
from zlib import crc32

from memory.lexical import K1, terms
from memory.rank import EMPTY

MOST_SEARCHED = 12  # terms that are looked up, the rarest
MOST_POSTINGS = 1_500  # passages that these may have together
COMMON_POSTINGS = 20_000  # a query whose rarest term has more is left to the vectors

WORDS, MEANING = 0.5, 0.5  # weights of the two sides
STRANGE, RANGE = 0.15, 0.6  # cosine that counts as 0, and how much more counts as 1
SECOND = 0.1  # of an item's second best passage

# `infold.words` has these numbers, too.
B = 0.3  # less than usual: passages are cut to one size, so few words in one only mean that it is code, or short
EMPHASIS = 1.25  # power of a word's rarity: a name that stands once says more than two words that stand often

# What a passage with all terms has that is as short as can be.
BEST = (K1 + 1) / (1 + K1 * (1 - B))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How rare words are among a tenant's passages, from a sample."""

    passages: int
    average: float  # words in a passage
    shares: Mapping[int, float]  # of the sampled passages that have a term
    sampled: int
    made: float  # seconds of a clock that never goes back

    def frequency(self, term: int) -> float:
        """In how many passages a term stands; one that was not met counts as half met."""
        return self.passages * self.shares.get(term, 0.5 / max(1, self.sampled))

    def rarity(self, term: int, counted: float | None = None) -> float:
        """`counted`: in how many passages it stands; left out, as many as the sample says."""
        having = min(self.frequency(term), self.passages) if counted is None else counted
        passages = max(self.passages, having)  # more may have come since the sample
        return math.log1p((passages - having + 0.5) / (having + 0.5))


def vocabulary(passages: int, sample: Sequence[tuple[Sequence[int], int]], made: float) -> Vocabulary:
    """`sample`: (terms, words) of some passages."""
    if not sample:
        return Vocabulary(passages, 1.0, {}, 0, made)
    having = Counter(term for terms, _ in sample for term in terms)
    shares = {term: times / len(sample) for term, times in having.items()}
    average = sum(length for _, length in sample) / len(sample)
    return Vocabulary(max(passages, len(sample)), average, shares, len(sample), made)


@dataclass(frozen=True, slots=True)
class Wanted:
    terms: tuple[int, ...]
    weights: tuple[float, ...]  # their rarities
    searched: tuple[int, ...]  # those that are looked up; () leaves it to the vectors

    def counted(self, having: Sequence[int], vocabulary: Vocabulary) -> "Wanted":
        """The same, once it is known in how many passages each of `searched` stands.

        A sample cannot tell a word that stands once from one that stands fifty times, and the first says far more.
        """
        known = dict(zip(self.searched, having, strict=True)) if having else {}
        return replace(self, weights=tuple(vocabulary.rarity(term, known.get(term)) for term in self.terms))

    def rare(self, least: float) -> frozenset[int]:
        """The terms that are at least so rare."""
        return frozenset(term for term, weight in zip(self.terms, self.weights, strict=True) if weight >= least)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that either side found, with what both say of it."""

    item: UUID
    ordinal: int
    start: int
    stop: int
    length: int  # words
    distance: float | None  # cosine distance; None: not embedded, or no vector was asked for
    matched: tuple[int, ...]
    near: tuple[int, int] | None = None  # characters of what in it is nearest, start and stop; None: no vector


@dataclass(frozen=True, slots=True)
class Hit:
    item: UUID
    score: float  # 0 to 1
    distance: float | None  # of its nearest passage
    best: Candidate


def hashed(text: str, key: bytes = b"") -> int:
    """32 bits, signed."""
    return crc32(text.encode("utf-8", "replace"), crc32(key)) - 2**31


def term_id(tenant: bytes, term: str) -> int:
    return hashed(term, tenant)


def space_id(embedder_name: str) -> int:
    return hashed(embedder_name)


def kind_id(content_type: str) -> int:
    return hashed(content_type)


def term_ids(tenant: bytes, words: Collection[str]) -> list[int]:
    return sorted({term_id(tenant, word) for word in words})


def wanted(tenant: bytes, query: str, vocabulary: Vocabulary) -> Wanted:
    """What to look up: the rarest terms, as long as few passages have them."""
    words = terms(query).counts.keys()
    found = term_ids(tenant, words - EMPTY or words)
    by_rarity = sorted(found, key=vocabulary.frequency)
    chosen: list[int] = []
    postings = 0.0
    for term in by_rarity[:MOST_SEARCHED]:
        postings += vocabulary.frequency(term)
        if postings > (MOST_POSTINGS if chosen else COMMON_POSTINGS):
            break
        chosen.append(term)
    return Wanted(tuple(found), tuple(vocabulary.rarity(term) for term in found), tuple(chosen))


def passage_scores(candidates: Sequence[Candidate], wanted: Wanted, vocabulary: Vocabulary) -> list[float]:
    """How well each passage answers, 0 to 1.

    A convex combination of BM25, as a share of the best there can be, and of the cosine within its usual range.
    Source: Bruch, Gai, Ingber 2023, arXiv:2210.11934: it beats reciprocal ranks, and its weight is no delicate matter.
    """
    worth = {term: weight**EMPHASIS for term, weight in zip(wanted.terms, wanted.weights, strict=True)}
    most = BEST * sum(worth.values())
    return [joined(covers(c, worth, most, vocabulary.average), closeness(c.distance)) for c in candidates]


def covers(candidate: Candidate, worth: Mapping[int, float], most: float, average: float) -> float | None:
    """BM25 of a passage as a share of `most`; a term counts once, for passages are short. None: no words asked."""
    if most <= 0:
        return None
    norm = K1 * (1 - B + B * candidate.length / max(1.0, average))
    return min(1.0, sum([worth[term] for term in candidate.matched]) * (K1 + 1) / (1 + norm) / most)


def closeness(distance: float | None) -> float | None:
    return None if distance is None else min(1.0, max(0.0, (1 - distance - STRANGE) / RANGE))


def joined(words: float | None, meaning: float | None) -> float:
    if words is None or meaning is None:
        return (words or 0.0) if meaning is None else meaning
    return WORDS * words + MEANING * meaning


SCORE = itemgetter(0)


def fuse(candidates: Sequence[Candidate], wanted: Wanted, vocabulary: Vocabulary, limit: int) -> tuple[Hit, ...]:
    """Items by their best passage and a little of the second best, best first."""
    passages: dict[UUID, list[tuple[float, Candidate]]] = {}
    for score, candidate in zip(passage_scores(candidates, wanted, vocabulary), candidates, strict=True):
        passages.setdefault(candidate.item, []).append((score, candidate))
    hits = [hit(item, sorted(found, key=SCORE, reverse=True)) for item, found in passages.items()]
    return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.item))[:limit])


def hit(item: UUID, found: Sequence[tuple[float, Candidate]]) -> Hit:
    best, more = found[0], found[1][0] if len(found) > 1 else 0.0
    distances = [candidate.distance for _, candidate in found if candidate.distance is not None]
    return Hit(item, min(1.0, best[0] + SECOND * more), min(distances, default=None), best[1])
