"""Questions about a text whose answers stand in it, made by rule: the same text gives the same questions. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from memory.digest.prose import sentences
from memory.digest.values import WORTH, FactKind, scan

SENTENCE_CHARS = range(25, 221)  # shorter ones do not say what is meant, longer ones are no sentences
LEAST_WORDS = 4  # beside the value
MOST_VALUE_CHARS = 60
GAP = "____"
WHOLE = re.compile(r"\S(?:.*[\w%)€$£¥])?")  # what ends in a comma is a value and a comma

# How one asks for a value of a kind. Codes and URLs that a model cannot spell are not asked for.
ASKED: Mapping[FactKind, str] = {
    FactKind.ID: "Which number or code",
    FactKind.EMAIL: "Which address",
    FactKind.MONEY: "Which amount of money",
    FactKind.DATE: "Which date or time",
    FactKind.AMOUNT: "How many or how much",
    FactKind.VERSION: "Which version",
    FactKind.NAME: "Which name",
    FactKind.PATH: "Which file",
    FactKind.CODE: "Which name in the code",
    FactKind.ERROR: "Which error",
}
GAPPED = ("{asked} belongs in the gap? “{gapped}”", "Complete what was said with the missing words: “{gapped}”")
LOOSE = "{asked} was mentioned together with {about}?"
KEYWORDS = 4  # longest words of a sentence that stand for it


@dataclass(frozen=True, slots=True)
class Cloze:
    question: str
    answer: str  # letter for letter as it stands in the text
    worth: float  # of the fact asked for; the most telling first
    sentence: str


def clozes(text: str, known: frozenset[str] = frozenset()) -> tuple[Cloze, ...]:
    """Questions for the facts of a text, one a sentence at most, the most telling first.

    Args:
        known: names that are no answers: those of the speakers, who call each other by them all the time.
    """
    found = [best for sentence in sentences(text) if (best := cloze(sentence, known))]
    return tuple(sorted(found, key=lambda one: -one.worth))


def cloze(sentence: str, known: frozenset[str]) -> Cloze | None:
    """The question for the most telling fact of one sentence; None where nothing in it can be asked for."""
    sentence = " ".join(sentence.split())
    if len(sentence) not in SENTENCE_CHARS:
        return None
    there = [one for one in askable(sentence) if not known & set(one[2].split())]
    found = max(there, key=lambda one: one[0], default=None)
    if found is None:
        return None
    worth, kind, value = found
    gapped = sentence.replace(value, GAP)
    several = sum(one[1] is kind for one in there) > 1  # the words around it would not say which of them is meant
    forms = GAPPED if several else (*GAPPED, LOOSE)
    form = forms[sum(sentence.encode()) % len(forms)]  # any form will do, as long as it is always the same
    return Cloze(form.format(asked=ASKED[kind], gapped=gapped, about=keywords(gapped)), value, worth, sentence)


def keywords(gapped: str) -> str:
    """The words that say most about a sentence, in their order: “moving, warehouse and Lanterfield”."""
    words = list(dict.fromkeys(re.findall(r"[^\W\d_]{2,}", gapped)))
    kept = sorted(sorted(words, key=len, reverse=True)[:KEYWORDS], key=words.index)
    return f"{', '.join(kept[:-1])} and {kept[-1]}"


def askable(sentence: str) -> Iterator[tuple[float, FactKind, str]]:
    """Facts that stand once in a sentence, with enough around them to know what is asked."""
    for fact in scan(sentence):
        if fact.kind not in ASKED or len(fact.value) > MOST_VALUE_CHARS or not WHOLE.fullmatch(fact.value):
            continue
        whole = re.findall(rf"(?<!\w){re.escape(fact.value)}(?!\w)", sentence)
        rest = sentence.replace(fact.value, " ")
        if len(whole) == 1 == sentence.count(fact.value) and len(re.findall(r"[^\W\d_]{2,}", rest)) >= LEAST_WORDS:
            yield WORTH[fact.kind], fact.kind, fact.value
