"""Whether an answer holds nothing but what the passages say that it was made from, and on which of them it rests. Pure.

Numbers, dates, names, ids, paths and the like must stand in a passage. What cannot be told from a name is taken for
one: a word with a capital letter, wherever it stands, and every word of a script that has none. So a right answer may
be refused; then the passages themselves are the answer.
"""

import re
from collections.abc import Iterator, Sequence, Set

from memory.digest.facts import plain
from memory.digest.prose import WORD, denies, sentences
from memory.digest.values import FactKind, scan
from memory.lexical import DAY_FIRST, MONTH_FIRST, MONTH_YEAR, NUMERIC, named_date, numeric_dates, terms

LEAST_SHARE = 0.6  # of an answer's words, that passages must hold
CHOICE = frozenset("or oder ou или".split())  # a question with one of these may hold its own answer
DENIED_WORDS = 4  # an answer with fewer is no sentence, so that it cannot leave a "not" out
LOOSE = frozenset({FactKind.NAME, FactKind.CAPS, FactKind.SHORT, FactKind.NUMBER})  # seen word by word

DIGITS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen twenty".split()
    )
} | {word: str(number * 10) for number, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)}
LARGE = {"hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000", "dozen": "12"}
SPOKEN = DIGITS | LARGE
COMPOUND = re.compile(r"\b(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)[- ]([a-z]{3,5})\b")
SPOKEN_WORD = re.compile(rf"\b(?:{'|'.join(SPOKEN)})\b")
LEADING_ZEROS = re.compile(r"(?<![\w.])0+(?=\d)")
DATES = (NUMERIC, DAY_FIRST, MONTH_FIRST, MONTH_YEAR)
NUMBERED = re.compile(r"\w*\d\w*(?:[.,:/-]\w*\d\w*)*")
WORDED = re.compile(r"(?<!\w)[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*(?!\w)")
SHORT_FORM = re.compile(r"['\u2019](?:s|m|d|t|re|ve|ll)$")

# Words that may begin a sentence with a capital and name nothing.
PLAIN_WORDS = frozenset(
    "a about according after all also although an and any are around as at because been before between both but by can"
    " could did do does during each every few first for from had has have he her here his how however i if in is it its"
    " many may might more most much my next no not of on or other our over several she should since so some that the"
    " their them then there these they this those through to under until was we were what when where which while who"
    " why will with would yes you your".split()
)
EMPTY = frozenset(terms(" ".join(sorted(PLAIN_WORDS))).counts)


def ungrounded(answer: str, passages: Sequence[str]) -> tuple[str, ...]:
    """What of an answer stands in no passage: numbers, dates, names, ids, paths, quotes; () where nothing does.

    Values are compared whole, and letter for letter but for case, thousands separators and zeros before a number;
    dates however they are written, numbers also where they are words (in English). Each must stand in one passage: of
    a name or a date neither half alone.
    """
    texts = [normal(passage) for passage in passages]
    dates, rest = taken_out(answer)
    known = {date for passage in passages for pattern in DATES for date in dated(pattern, passage)}
    strange = [date.removeprefix("d:") for date in dates if date not in known]
    strange += [value for value in values(rest) if not any(stands(normal(value), text) for text in texts)]
    return tuple(dict.fromkeys(strange))


def taken_out(answer: str) -> tuple[list[str], str]:
    """The dates of an answer, and the answer without them."""
    found: list[str] = []
    for pattern in DATES:
        found += dated(pattern, answer)
        answer = pattern.sub(" ", answer)
    return found, answer


def dated(pattern: re.Pattern[str], text: str) -> list[str]:
    return [date for match in pattern.finditer(text) for date in (named_date(match[0]) or numeric_dates(match[0]))]


def values(answer: str) -> Iterator[str]:
    """All that must stand in a passage."""
    yield from (fact.value for fact in scan(answer) if fact.kind not in LOOSE)
    yield from runs_of_names(answer)
    yield from NUMBERED.findall(normal(answer))
    for word in WORDED.findall(answer):
        bare = SHORT_FORM.sub("", word)
        if is_name(bare):
            yield bare


def runs_of_names(answer: str) -> Iterator[str]:
    """Names of several words: half of one and half of another are a third."""
    for fact in scan(answer):
        if fact.kind is FactKind.NAME:
            parts = [part for part in fact.value.split() if part.casefold() not in PLAIN_WORDS]
            if len(parts) > 1:
                yield " ".join(parts)


def is_name(word: str) -> bool:
    """Whether a word could be a name: it has a capital, or its script has none."""
    if all(part in PLAIN_WORDS or part in SPOKEN for part in word.casefold().split("-")):
        return False
    return any(character.isupper() or has_no_case(character) for character in word)


def has_no_case(character: str) -> bool:
    return character.isalpha() and character.lower() == character.upper()


def normal(text: str) -> str:
    """A text as values are looked for in it: folded, numbers as digits without separators and zeros before them."""
    folded = plain(text).replace("\u2019", "'")
    folded = COMPOUND.sub(compound, folded)
    folded = SPOKEN_WORD.sub(lambda word: SPOKEN[word[0]], folded)
    return LEADING_ZEROS.sub("", folded)


def compound(found: re.Match[str]) -> str:
    tens, ones = DIGITS[found[1]], DIGITS.get(found[2], "")
    return str(int(tens) + int(ones)) if ones.isdigit() and int(ones) < 10 else found[0]


def stands(value: str, text: str) -> bool:
    """Whether a value stands in a text as a whole: `12` not in `2012`, `Ann` not in `Annual`."""
    at = text.find(value)
    while at >= 0:
        end = at + len(value)
        if not (goes_on(text[at - 1 : at], value[:1]) or goes_on(value[-1:], text[end : end + 1])):
            return True
        at = text.find(value, at + 1)
    return False


def goes_on(left: str, right: str) -> bool:
    """Whether two neighbouring characters are of one word, or of one number."""
    return bool(left and right) and joins(left) and joins(right)


def joins(character: str) -> bool:
    return character.isalnum() and not has_no_case(character)


def rests_on(answer: str, question: str, passages: Sequence[str]) -> tuple[int, ...]:
    """On which passages an answer rests: the one that says most of it first, then what says the rest. They hold all of
    its numbers and names that any passage holds.

    () where they do not say enough of it, where it denies what they say or the other way round, or where it only says
    the question again.
    """
    said = said_in(answer)
    new = said - said_in(question)
    chooses = not CHOICE.isdisjoint(WORD.findall(question.casefold()))
    if not said or not (new or chooses) or turns_around(answer, passages):
        return ()
    wanted = new or said
    holds = [terms(passage).counts.keys() for passage in passages]
    held = wanted & set().union(*holds)
    if not held or len(held) < LEAST_SHARE * len(wanted):
        return ()
    named = {term for value in values(answer) for term in terms(value).counts}
    return cover([(held | named) & each for each in holds])


def said_in(text: str) -> set[str]:
    """The words of a text that say something; dates by their words alone."""
    return {term for term in terms(text).counts.keys() - EMPTY if not term.startswith("d:")}


def cover(holds: Sequence[Set[str]]) -> tuple[int, ...]:
    """The fewest passages that hold all that any of them holds, about: always the one next that adds most."""
    left: Set[str] = set().union(*holds)
    chosen: list[int] = []
    while left:
        best = max(range(len(holds)), key=lambda n: (len(holds[n] & left), -n))
        chosen.append(best)
        left = left - holds[best]
    return tuple(chosen)


def turns_around(answer: str, passages: Sequence[str]) -> bool:
    """Whether a sentence denies what the nearest one of the passages says, or says what that one denies."""
    told = [(said_in(sentence), denied(sentence)) for passage in passages for sentence in sentences(passage)]
    for sentence in sentences(answer):
        said, denial = said_in(sentence), denied(sentence)
        nearest = max((len(said & other) for other, _ in told), default=0)
        if nearest == 0:
            continue
        of_these = {denies_it for other, denies_it in told if len(said & other) == nearest}
        if denial not in of_these and (denial or len(said) >= DENIED_WORDS):
            return True
    return False


def denied(sentence: str) -> bool:
    lowered = sentence.casefold()
    return denies(lowered, WORD.findall(lowered))
