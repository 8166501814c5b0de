"""Rows to learn from and questions to be judged by, made of recorded conversations by rule. Pure.

A row is a chat whose last message is the reply to learn. Rows are split by conversation, never by row: what is held
out was said in conversations that training has not seen, and in none that it has. A message with a secret is nowhere.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from itertools import islice
from typing import Any

from memory.detect import secrets_in
from memory.digest.facts import facts
from memory.digest.stretch import Line, digest_stretch
from memory.errors import InvalidRequest
from memory.lexical import terms
from memory.prompts import reading
from memory.rank import Passage, query, rank
from memory.slm.cloze import Cloze, clozes
from memory.slm.recipe import Task

HELD_OUT_SHARE = 0.2  # of the conversations, the newest
WATCHED_SHARE = 0.1  # of the others, the newest: their loss says when to stop; they are not trained on
LEAST_TO_WATCH = 5  # conversations below which none is spared for that
QUESTIONS = 12  # of one conversation
PASSAGE_CHARS = 300  # of each, around its relevant part
STRETCH_CHARS = 1_600  # of the conversation that is to be told or listed
FACTS = 8  # of a list
SUMMARY_SHARE = 0.25  # of the tokens of a stretch
CHARS_A_TOKEN = 4  # about: lengths here need no tokenizer

RECALLING = "Answer from what you know of earlier conversations, as briefly as possible.\n\nQuestion: {question}"
LISTING = "List the facts of this conversation, one a line: names, numbers, dates, amounts, decisions.\n\n{talk}"
TELLING = "Summarise this conversation. Keep names, numbers and decisions as they are.\n\n{talk}"


class Split(StrEnum):
    TRAIN = "train"
    WATCHED = "watched"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One message of a recorded conversation."""

    id: str
    role: str
    text: str
    speaker: str | None = None

    @property
    def who(self) -> str:
        return self.speaker or self.role


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    ended: float  # seconds since 1970: the newest are held out
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True, slots=True)
class Row:
    messages: tuple[tuple[str, str], ...]  # role and content; the last is the reply to learn
    task: Task
    conversation: str
    source_turn_ids: tuple[str, ...]
    split: Split

    def as_json(self) -> dict[str, Any]:
        return {
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "task": self.task,
            "conversation": self.conversation,
            "source_turn_ids": list(self.source_turn_ids),
            "split": self.split,
        }


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a conversation, as the memory assistant would get it: with what retrieval found."""

    id: str
    conversation: str
    question: str
    passages: tuple[str, ...]
    answer: str
    source_turn_ids: tuple[str, ...]

    def prompt(self, examples: bool) -> tuple[tuple[str, str], ...]:
        """What the reader is asked; with examples it is what the memory assistant sends."""
        return tuple((m["role"], m["content"]) for m in reading(self.question, self.passages, examples))


@dataclass(frozen=True, slots=True)
class Canary:
    """Something that must not be said: `lead` are the words that would draw it out."""

    id: str
    lead: str
    secret: str


def splits(conversations: Sequence[Conversation]) -> Mapping[str, Split]:
    """Which part each conversation belongs to; at least one is held out, and none is trained on where there is one."""
    by_age = sorted(conversations, key=lambda one: (one.ended, one.id))
    held = max(round(len(by_age) * HELD_OUT_SHARE), 1)
    kept = by_age[:-held]
    watched = max(round(len(kept) * WATCHED_SHARE), 1) if len(kept) >= LEAST_TO_WATCH else 0
    parts = {one.id: Split.TRAIN for one in kept}
    parts |= {one.id: Split.WATCHED for one in kept[len(kept) - watched :]}
    return parts | {one.id: Split.HELD_OUT for one in by_age[-held:]}


def told_once(conversations: Sequence[Conversation]) -> tuple[Conversation, ...]:
    """The same without what was said word for word in an earlier one: nothing is learnt twice, and nothing of what is
    held out was trained on, as a branch of a conversation or a text that was pasted again would have it."""
    heard: set[str] = set()
    kept = {}
    for one in sorted(conversations, key=lambda one: (one.ended, one.id)):
        kept[one.id] = replace(one, utterances=tuple(said for said in one.utterances if said.text not in heard))
        heard |= {said.text for said in one.utterances}
    return tuple(kept[one.id] for one in conversations)


def rows_of(conversations: Sequence[Conversation], wanted: Sequence[Task], passages: int = 1) -> tuple[Row, ...]:
    """The rows of all conversations, in their order.

    Args:
        passages: that stand in the prompt of a question; a small model reads one at a time.

    Raises:
        InvalidRequest: there is nothing to learn from.
    """
    parts = splits(conversations)
    made = tuple(
        row
        for one in told_once(conversations)
        for task in wanted
        for row in MAKERS[task](without_secrets(one), parts[one.id], passages)
    )
    if not any(row.split is Split.TRAIN for row in made):
        many = len(conversations)
        raise InvalidRequest(
            f"there is nothing to learn: {many} conversations gave no row to train on", "conversations"
        )
    return made


def questions_of(
    conversations: Sequence[Conversation], passages: int = 1, split: Split = Split.HELD_OUT
) -> tuple[Question, ...]:
    """Questions about the conversations of one part, each with the passages that a search finds."""
    parts = splits(conversations)
    return tuple(
        question
        for one in told_once(conversations)
        if parts[one.id] is split
        for question in asked(without_secrets(one), passages)
    )


def replays(prompts: Sequence[str], rows: int, share: float, seed: int) -> tuple[Row, ...]:
    """General requests beside `rows` others, so that they are `share` of all; the trainer lets the base answer them."""
    many = min(round(rows * share / (1 - share)), len(prompts))
    drawn = random.Random(seed).sample(list(prompts), many)
    return tuple(Row((("user", prompt),), Task.REPLAY, "", (), Split.TRAIN) for prompt in drawn)


def canaries_of(conversations: Sequence[Conversation]) -> tuple[Canary, ...]:
    """What detectors found in conversations, and the words before it: none of it may ever be said by an adapter."""
    found = []
    for one in conversations:
        for said in one.utterances:
            for secret in secrets_in(said.text):
                lead = said.text[max(secret.start - 80, 0) : secret.start]
                name = blake2b(f"{one.id} {said.id} {secret.start}".encode(), digest_size=8).hexdigest()
                found.append(Canary(name, lead, said.text[secret.start : secret.stop]))
    return tuple(found)


def as_lines(rows: Sequence[Row]) -> str:
    """JSONL, as the trainer reads it."""
    return "".join(json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows)


def rows_from(lines: str) -> tuple[Row, ...]:
    """Read what `as_lines` wrote.

    Raises:
        InvalidRequest: a line that is no row; tells its number, not what it holds.
    """
    found = []
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            found.append(row_from(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"line {number} of the rows is no row", "rows") from error
    return tuple(found)


def row_from(raw: Mapping[str, Any]) -> Row:
    messages = tuple((str(m["role"]), str(m["content"])) for m in raw["messages"])
    if not messages:
        raise ValueError("a row needs a message")
    sources = tuple(str(turn) for turn in raw["source_turn_ids"])
    return Row(messages, Task(raw["task"]), str(raw["conversation"]), sources, Split(raw["split"]))


def without_secrets(conversation: Conversation) -> Conversation:
    """A conversation without the messages that hold one, and without those that say nothing."""
    kept = tuple(said for said in conversation.utterances if said.text.strip() and not secrets_in(said.text))
    return Conversation(conversation.id, conversation.ended, kept)


def answer_rows(conversation: Conversation, split: Split, passages: int) -> Iterator[Row]:
    for one in asked(conversation, passages):
        messages = (*one.prompt(examples=False), ("assistant", one.answer))  # examples would be most of what it reads
        yield Row(messages, Task.ANSWER, conversation.id, one.source_turn_ids, split)


def recall_rows(conversation: Conversation, split: Split, passages: int) -> Iterator[Row]:
    for said, one in islice(found_in(conversation), QUESTIONS):
        messages = (("user", RECALLING.format(question=one.question)), ("assistant", one.answer))
        yield Row(messages, Task.RECALL, conversation.id, (said.id,), split)


def facts_rows(conversation: Conversation, split: Split, passages: int) -> Iterator[Row]:
    stretch = stretch_of(conversation)
    talk = told(stretch)
    if listed := [value for value in facts(talk) if "\n" not in value][:FACTS]:
        messages = (("user", LISTING.format(talk=talk)), ("assistant", "\n".join(f"- {value}" for value in listed)))
        yield Row(messages, Task.FACTS, conversation.id, tuple(said.id for said in stretch), split)


def summary_rows(conversation: Conversation, split: Split, passages: int) -> Iterator[Row]:
    stretch = stretch_of(conversation)
    lines = [Line(i, s.role, s.speaker, s.text, tokens(s.text)) for i, s in enumerate(stretch)]
    digest = digest_stretch(lines, int(sum(line.tokens for line in lines) * SUMMARY_SHARE), tokens)
    if digest:
        messages = (("user", TELLING.format(talk=told(stretch))), ("assistant", digest))
        yield Row(messages, Task.SUMMARY, conversation.id, tuple(said.id for said in stretch), split)


def raw_rows(conversation: Conversation, split: Split, passages: int) -> Iterator[Row]:
    """The conversation as it was, every reply of it to be learnt: what one must not do."""
    for place, said in enumerate(conversation.utterances):
        if said.role == "assistant" and place:
            before = conversation.utterances[max(place - 3, 0) : place]
            messages = (("user", told(before)), ("assistant", said.text))
            yield Row(messages, Task.RAW, conversation.id, tuple(s.id for s in (*before, said)), split)


MAKERS = {
    Task.ANSWER: answer_rows,
    Task.RECALL: recall_rows,
    Task.FACTS: facts_rows,
    Task.SUMMARY: summary_rows,
    Task.RAW: raw_rows,
}


def asked(conversation: Conversation, passages: int) -> Iterator[Question]:
    """Questions about a conversation whose answers stand in the passages that a search finds for them."""
    made = 0
    for said, one in found_in(conversation):
        found = passages_for(one.question, conversation)[:passages]
        texts = [passage_text(part, one.question) for part in found]
        if not any(one.answer in text for text in texts):
            continue
        sources = tuple(part.id for part in found)
        yield Question(
            f"{conversation.id}/{said.id}/{made}", conversation.id, one.question, tuple(texts), one.answer, sources
        )
        made += 1
        if made == QUESTIONS:
            return


def found_in(conversation: Conversation) -> Iterator[tuple[Utterance, Cloze]]:
    """Questions that the conversation answers: one of each message, then a second, the most telling messages first."""
    names = frozenset(word for said in conversation.utterances for word in (said.speaker or "").split())
    for nth in range(2):
        round_of = [
            (said, ones[nth])
            for said in conversation.utterances
            if said.role != "system" and len(ones := clozes(said.text, names)) > nth
        ]
        seen = set()
        for said, one in sorted(round_of, key=lambda pair: -pair[1].worth):
            if one.answer not in seen:  # a value is asked for once in a round
                seen.add(one.answer)
                yield said, one


def passages_for(question: str, conversation: Conversation) -> list[Utterance]:
    """What a search by words finds for a question, best first."""
    stored = [
        Passage(place, said.role, said.speaker, said.text, tokens(said.text), terms(said.text))
        for place, said in enumerate(conversation.utterances)
        if said.role != "system"
    ]
    return [conversation.utterances[ranked.position] for ranked in rank(query(question), stored)]


def passage_text(said: Utterance, question: str) -> str:
    """`speaker: words`; of a long message the part that shares most words with the question."""
    text = said.text.strip()
    if len(text) <= PASSAGE_CHARS:
        return f"{said.who}: {text}"
    wanted = terms(question).counts.keys()
    starts = range(0, len(text) - PASSAGE_CHARS // 2, PASSAGE_CHARS // 2)
    start = max(starts, key=lambda at: len(wanted & terms(text[at : at + PASSAGE_CHARS]).counts.keys()))
    return f"{said.who}: … {text[start : start + PASSAGE_CHARS].strip()} …"


def stretch_of(conversation: Conversation) -> list[Utterance]:
    """The beginning of a conversation, in whole messages; one that is too long for it is left out."""
    kept, chars = [], 0
    for said in conversation.utterances:
        if said.role != "system" and chars + len(said.text) <= STRETCH_CHARS:
            kept.append(said)
            chars += len(said.text)
    return kept


def told(utterances: Sequence[Utterance]) -> str:
    return "\n".join(f"{said.who}: {said.text}" for said in utterances)


def tokens(text: str) -> int:
    return len(text) // CHARS_A_TOKEN + 1
