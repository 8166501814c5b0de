"""What we ship to teach and to judge a small model: general questions, a text, conversations with their facts."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data" / "slm"


@dataclass(frozen=True, slots=True)
class Control:
    """A question of general knowledge; an answer is right that holds one of `answers` as a word."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """A conversation, and what a summary of it has to tell, letter for letter as it stands there."""

    id: str
    messages: tuple[tuple[str, str], ...]  # role and content
    facts: tuple[str, ...]


@cache
def control() -> tuple[Control, ...]:
    """Fifty questions; an adapter must not unlearn their answers."""
    rows = [json.loads(line) for line in read("control.jsonl").splitlines()]
    return tuple(Control(row["question"], tuple(row["answers"])) for row in rows)


@cache
def control_text() -> str:
    """Plain prose, about a thousand tokens, that a model must not find stranger with an adapter than without."""
    return read("control.txt")


@cache
def open_prompts() -> tuple[str, ...]:
    """Ten requests that want a few sentences: an adapter must neither stammer nor fall silent."""
    return tuple(read("open.txt").splitlines())


@cache
def replay_prompts() -> tuple[str, ...]:
    """General requests for training, none of which is a control question."""
    return tuple(read("replay.txt").splitlines())


@cache
def admission() -> tuple[Admission, ...]:
    """Five conversations that a model has to summarise before it may summarise those of users."""
    return tuple(
        Admission(row["id"], tuple((m["role"], m["content"]) for m in row["messages"]), tuple(row["facts"]))
        for row in json.loads(read("admission.json"))
    )


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
