"""A whole stretch of conversation in a few lines: who said and did what, in order, and the facts of the rest."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from memory.digest.fit import CountTokens, Piece, choose, clean, excerpt, fits, trim
from memory.digest.ledger import Ledger, parse
from memory.digest.pick import Kind, looks_like_prose, pick
from memory.digest.prose import NO_SENTENCE, SENTENCE_ENDS, is_telling, look, sentences, shorten_prose
from memory.digest.values import kinds_of

SHORT_TOKENS = 80  # a message of a user up to here is kept word for word, while there is room
TALK_SHARE = 0.8  # of the budget, for words and calls, where the stretch has no tool output ...
OUTPUT_SHARE = 0.6  # ... and so much less where it has nothing else
USERS_SHARE = 0.5  # of that, for what users said; the rest is shared by calls and what others decided or denied
LEAST_USERS_SHARE = 0.22  # of the budget, for what users said, whatever else there is
FACTS_SHARE = 0.9  # of what is left, for facts; then for more words
ASKED_TOKENS = 150  # in a longer message of a user each single value counts less
SENTENCE_CHARS = 300
SENTENCES = 10_000  # places that a message has for its sentences
ARGUMENT_CHARS = 80  # of a call's argument that is told; longer ones are texts

TOOL_ROLES = frozenset({"tool", "function"})
CALL = re.compile(r"^([\w.-]{1,128})\((.*)\)$", re.MULTILINE)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)(?:^```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """One message of a stretch. Tool calls stand in the text, one a line: `name({"key": "value"})`."""

    position: int
    role: str
    speaker: str | None
    text: str
    tokens: int

    @property
    def who(self) -> str:
        return self.speaker or self.role


@dataclass(frozen=True, slots=True)
class Heard:
    """A message taken apart."""

    line: Line
    words: str = ""  # what was said in words
    output: str = ""  # what a tool gave, or a user pasted
    calls: tuple[tuple[str, str], ...] = ()  # name and arguments
    commands: tuple[str, ...] = ()  # written to be run


def digest_stretch(lines: Sequence[Line], budget_tokens: int, count: CountTokens) -> str:
    """What a stretch of conversation said, in at most `budget_tokens`; "" when nothing fits.

    Words of users come first: short messages as they are, long ones as whole sentences. Then what others decided
    or denied and what was called, then facts that the kept lines do not show, those first that were asked for,
    used in calls or repeated; then more of what was said. Every line names its speaker. Talk keeps its order,
    facts stand at the end. A stretch that fits is told in full.
    """
    if sum(line.tokens for line in lines) <= budget_tokens:
        full = "\n".join(f"{line.who}: {clean(line.text)}" for line in lines)
        if fits(full, budget_tokens, count):
            return full
    heard = [hear(line) for line in lines]
    talk = int(budget_tokens * (TALK_SHARE - OUTPUT_SHARE * output_share(heard)))
    room = max(int(talk * USERS_SHARE), int(budget_tokens * LEAST_USERS_SHARE))
    users = list(user_pieces(heard, room, count))
    others = list(sentence_pieces(heard))
    pieces = choose(users, room, count)
    calls = list(call_pieces(heard))
    pieces += choose(calls, (talk - count(told(pieces))) * 2 // 3, count)
    pieces += choose((p for p in others if is_telling(p.text)), talk - count(told(pieces)), count)
    room = budget_tokens - count(told(pieces))
    facts = ledger_of(heard).lines(told(pieces), int(room * FACTS_SHARE), count)
    room -= count("\n".join(facts)) + 2
    kept = {id(piece) for piece in pieces}
    pieces += choose((p for p in (*users, *calls, *others) if id(p) not in kept), room, count)
    return trim([told(pieces), *facts], budget_tokens, count)


def output_share(heard: Sequence[Heard]) -> float:
    """How much of a stretch is tool output, 0 to 1, by characters."""
    output = sum(len(said.output) for said in heard)
    return output / max(1, output + sum(len(said.words) for said in heard))


def told(pieces: Sequence[Piece]) -> str:
    return "\n".join(piece.text for piece in sorted(pieces, key=lambda piece: piece.place))


def hear(line: Line) -> Heard:
    """Take a message apart into words, output, calls and commands."""
    text = excerpt(clean(line.text))
    if line.role in TOOL_ROLES:
        return Heard(line, output=text)
    if line.role == "user":
        if line.tokens <= SHORT_TOKENS or (kind := pick(text)) is Kind.PROSE:
            return Heard(line, words=text)
        return Heard(line, words=spoken_paragraphs(text) if kind is Kind.OTHER else "", output=text)
    calls = tuple((call[1], call[2]) for call in CALL.finditer(text) if parse(call[2]) is not None)
    commands = tuple(unnamed_fences(text)) if text.rstrip().endswith("```") else ()
    words = CALL.sub("", text) if calls else text
    return Heard(line, words, "", calls, commands)


def spoken_paragraphs(text: str) -> str:
    """The paragraphs of a mixed text that could be read aloud: the request beside what was pasted."""
    paragraphs = (paragraph.strip("\n") for paragraph in text.split("\n\n"))
    return "\n\n".join(p for p in paragraphs if p and looks_like_prose([li for li in p.splitlines() if li.strip()]))


def unnamed_fences(text: str) -> Iterator[str]:
    """Code without a language: agents that have no tool calls end a message with the command to be run."""
    return (code for language, code in FENCE.findall(text) if not language.strip())


def user_pieces(heard: Sequence[Heard], room: int, count: CountTokens) -> Iterator[Piece]:
    """What users said: short messages whole, of long ones the sentences that stand for them."""
    said_by_users = [(i, said) for i, said in enumerate(heard) if said.line.role == "user" and said.words.strip()]
    long = sum(1 for _, said in said_by_users if said.line.tokens > SHORT_TOKENS)
    share = max(SHORT_TOKENS // 2, room // (long + 1))
    for i, said in said_by_users:
        words = said.words.strip()
        if said.line.tokens > max(share, SHORT_TOKENS):
            words = shorten_prose(FENCE.sub("", words), share, count)
        if words := " ".join(part.strip() for part in words.splitlines() if part.strip()):
            worth = weight(words) + 0.5 * i / len(heard)
            yield Piece(i * SENTENCES, f"{said.line.who}: {words}", worth)


def weight(words: str) -> float:
    """How much a user's message says: its long words, up to thirty, and whether it denies or decides."""
    long = {word for word in words.split() if len(word) > 3 and word[0] != "{"}
    return min(len(long), 30) / 10 + 0.8 * is_telling(words)


def sentence_pieces(heard: Sequence[Heard]) -> Iterator[Piece]:
    """What others said, by the sentence."""
    openings: Counter[str] = Counter()
    for i, said in enumerate(heard):
        if said.line.role == "user" or not said.words.strip():
            continue
        found = sentences(FENCE.sub("", said.words))
        for place, sentence in enumerate(found):
            if not 16 <= len(sentence) < SENTENCE_CHARS or not sentence.endswith(SENTENCE_ENDS):
                continue
            worth = look(sentence)[0]
            if worth > NO_SENTENCE:
                opening = " ".join(sentence.split(" ", 3)[:3])
                at = i * SENTENCES + min(place, SENTENCES - 2)
                yield Piece(at, f"{said.line.who}: {sentence}", worth + 0.6 * (place == 0) - openings[opening])
                openings[opening] += 1


def call_pieces(heard: Sequence[Heard]) -> Iterator[Piece]:
    """What was called and run, in order; calls of one tool in a row are told together."""
    calls = [(i, said.line.who, *call) for i, said in enumerate(heard) for call in said.calls]
    for (who, name), run in groupby(calls, key=lambda call: (call[1], call[2])):
        several = list(run)
        first = several[0][0]
        arguments = several_briefs([call[3] for call in several])
        yield Piece(behind(first), f"{who} called {name}({arguments})", 1.0 + first / len(heard))
    for i, said in enumerate(heard):
        for command in said.commands:
            line, _, rest = command.strip().partition("\n")
            if len(line) <= SENTENCE_CHARS:
                worth = i / len(heard) + any(kinds_of(word) for word in line.split())
                yield Piece(behind(i), f"{said.line.who} ran: {line}{' …' if rest else ''}", worth)


def behind(message: int) -> int:
    """The place behind all that a message said."""
    return message * SENTENCES + SENTENCES - 1


def several_briefs(arguments: Sequence[str]) -> str:
    """The arguments of several calls of one tool; a lone key is told once."""
    told = list(dict.fromkeys(map(brief, arguments)))
    key = told[0].partition(": ")[0] + ": "
    if all(one.startswith(key) and one.count(": ") == 1 for one in told):
        told[1:] = [one.removeprefix(key) for one in told[1:]]
    return " | ".join(told)


def brief(arguments: str) -> str:
    """A call's arguments: short values as they are, long ones as an ellipsis."""
    value = parse(arguments)
    if not isinstance(value, dict):
        return arguments if len(arguments) <= ARGUMENT_CHARS else "…"
    told = ((key, str(member)) for key, member in value.items())
    return ", ".join(f"{key}: {member if len(member) <= ARGUMENT_CHARS else '…'}" for key, member in told)


def ledger_of(heard: Sequence[Heard]) -> Ledger:
    """The facts of a stretch."""
    ledger = Ledger()
    for said in heard:
        if said.words:
            is_user = said.line.role == "user"
            ledger.enter(said.line.role, said.words, asked=min(1.0, ASKED_TOKENS / max(1, said.line.tokens)) * is_user)
        for name, arguments in said.calls:
            ledger.enter_call(said.line.role, name, arguments)
        for command in said.commands:
            ledger.enter(said.line.role, command, used=True)
        if said.output:
            ledger.enter(said.line.role, said.output, spoken=False)
    return ledger


def title(lines: Sequence[Line], max_chars: int = 80) -> str:
    """One printable line that says what a stretch is about: the first words of its user, then its rarest facts."""
    opening = next((line.text for line in lines if line.role == "user" and line.text.strip()), None)
    if opening is None:
        opening = next((line.text for line in lines if line.text.strip()), "nothing said")
    return one_line(opening, max_chars)


def one_line(text: str, max_chars: int) -> str:
    """The beginning of a text, printable, cut between words."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: max_chars * 4]).split())
    if len(line) <= max_chars:
        return line
    kept = line[: max_chars - 1]
    head, _, _ = kept.rpartition(" ")
    return (head if len(head) > max_chars // 2 else kept) + "…"


def merge(digests: Sequence[str], budget_tokens: int, count: CountTokens) -> str:
    """A digest of digests: the most telling whole lines of all, in order, none twice."""
    lines = list(dict.fromkeys(line for digest in digests for line in digest.splitlines() if line.strip()))
    whole = "\n".join(lines)
    if fits(whole, budget_tokens, count):
        return whole
    pieces = [Piece(i, line, line_worth(line) + 0.3 * i / len(lines)) for i, line in enumerate(lines)]
    return trim([piece.text for piece in choose(pieces, budget_tokens, count)], budget_tokens, count)


def line_worth(line: str) -> float:
    return 2.0 * line.startswith("user") + 1.0 * is_telling(line) + 0.8 * (" facts: " in line[:24])
