"""The sentences of some passages that answer a question, word for word. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from memory.digest.prose import sentences
from memory.lexical import terms

ASKS = 0.5  # a sentence that asks itself counts so much less
MOST_CHARS = 600  # of a sentence; listings have none that end
GAP = " … "


class Sentence(NamedTuple):
    passage: int
    place: int  # in its passage
    text: str
    worth: float


def extract(
    passages: Sequence[str], scores: Sequence[float], weights: Mapping[str, float], most: int
) -> list[Sentence]:
    """The best sentences, in the order of the passages.

    Args:
        scores: of the passages, as retrieval gave them, best first.
        weights: worth of each term of the question; () counts all words alike.
        most: sentences.
    """
    best = scores[0] if scores and scores[0] > 0 else 1.0
    total = sum(weights.values()) or 1.0
    found = [
        Sentence(number, place, text[:MOST_CHARS], scores[number] / best + worth(text, weights) / total)
        for number, passage in enumerate(passages)
        for place, text in enumerate(sentences(passage))
    ]
    found = [one for one in found if worth(one.text, weights) > 0] or found
    chosen = sorted(found, key=lambda one: (-one.worth, one.passage, one.place))[:most]
    return sorted(chosen, key=lambda one: (one.passage, one.place))


def worth(sentence: str, weights: Mapping[str, float]) -> float:
    held = sum(weights.get(term, 0.0) for term in terms(sentence).counts)
    return held - ASKS * sum(weights.values()) * sentence.rstrip().endswith(("?", "\uff1f"))


def told(chosen: Sequence[Sentence]) -> str:
    """Sentences as one text; what stood apart has a mark between."""
    text = ""
    for before, one in zip([None, *chosen], chosen, strict=False):
        follows = before is not None and (before.passage, before.place + 1) == (one.passage, one.place)
        text += one.text if before is None else f"{' ' if follows else GAP}{one.text}"
    return text
