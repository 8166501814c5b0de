"""The facts of one text: as a list, and what a shorter telling of it lost."""

import re
from collections.abc import Iterator

from memory.digest.prose import WORD, is_telling, sentences
from memory.digest.values import FactKind, scan

SENTENCE_WORTH = 2.2  # of a sentence that denies or decides, among facts
SENTENCE_CHARS = 160  # longer ones are no facts
COMMON = frozenset({FactKind.NUMBER, FactKind.QUOTE, FactKind.CAPS, FactKind.SHORT})  # too common to be asked for


def facts(text: str) -> tuple[str, ...]:
    """Ids, paths, amounts, dates, names, and short sentences that deny or decide: most telling first, none twice."""
    found = [(fact.worth, fact.value) for fact in scan(text)]
    found += [(SENTENCE_WORTH, sentence) for sentence in telling_sentences(text)]
    found.sort(key=lambda pair: -pair[0])
    return tuple(dict.fromkeys(value for _, value in found))


def missing_facts(original: str, shorter: str) -> tuple[str, ...]:
    """Facts of a text that its shorter telling does not show, most telling first.

    Values must stand there letter for letter (case and thousands separators aside). A sentence that denies or
    decides counts as told when one such sentence of the shorter text has more than half of its longer words.
    Bare numbers, quotes and words in capitals are too common to be asked for.
    """
    there = plain(shorter)
    told = [longer_words(sentence) for sentence in sentences(shorter) if is_telling(sentence)]
    lost = [
        (fact.worth, fact.value)
        for fact in scan(original)
        if fact.kind not in COMMON and plain(fact.value) not in there
    ]
    for sentence in telling_sentences(original):
        asked = longer_words(sentence)
        if plain(sentence) not in there and not any(len(asked & words) * 2 > len(asked) for words in told):
            lost.append((SENTENCE_WORTH, sentence))
    lost.sort(key=lambda pair: -pair[0])
    return tuple(dict.fromkeys(value for _, value in lost))


def plain(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d)", "", text).casefold()


def longer_words(sentence: str) -> frozenset[str]:
    return frozenset(word for word in WORD.findall(sentence.casefold()) if len(word) > 3)


def telling_sentences(text: str) -> Iterator[str]:
    return (s for s in sentences(text) if len(s) <= SENTENCE_CHARS and is_telling(s))
