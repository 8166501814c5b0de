"""What a training is made of, as files of its folder: rows to learn, and what the result will be asked. Pure but for
the files.

The rows hold what people said, so the folder goes when the training is over.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memory.errors import InvalidRequest
from memory.slm.orders import MeasuringOrder, asked, measuring_order
from memory.slm.recipe import Recipe
from memory.slm.samples import (
    Canary,
    Conversation,
    Question,
    Split,
    as_lines,
    questions_of,
    replays,
    rows_of,
    splits,
)
from memory.slm.shipped import replay_prompts

ROWS, ASKED = "rows.jsonl", "asked.json"
MOST_QUESTIONS = 100  # of all held-out conversations


@dataclass(frozen=True, slots=True)
class Lessons:
    rows: str  # JSONL
    asked: MeasuringOrder  # without adapters
    sources: tuple[str, ...]  # ids of the messages that it learns from

    def write(self, folder: Path) -> None:
        """The rows come last: where they are, all is there."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / ASKED).write_text(self.asked.line(), encoding="utf-8")
        part = folder / f".{ROWS}.part"
        part.write_text(self.rows, encoding="utf-8")
        part.rename(folder / ROWS)


def are_there(folder: Path) -> bool:
    return (folder / ROWS).is_file()


def asked_in(folder: Path) -> MeasuringOrder:
    return measuring_order(json.loads((folder / ASKED).read_text(encoding="utf-8")))


def lessons(
    conversations: Sequence[Conversation],
    canaries: Sequence[Canary],
    recipe: Recipe,
    base: Path,
    least_questions: int,
    most_questions: int = MOST_QUESTIONS,
) -> Lessons:
    """
    Args:
        base: the base model's folder.
        most_questions: that are measured, of all held-out conversations alike.
        least_questions: about held-out conversations, without which no adapter can be judged.

    Raises:
        InvalidRequest: there is too little to learn, or to judge by.
    """
    if len(conversations) < 2:
        raise InvalidRequest(
            f"there is nothing to learn: {len(conversations)} conversations, and the newest are held out to judge by",
            "conversations",
        )
    rows = rows_of(conversations, recipe.tasks, recipe.passages)
    learnt = sum(row.split is Split.TRAIN for row in rows)
    questions = evenly(questions_of(conversations, recipe.passages), most_questions)
    if len(questions) < least_questions:
        raise InvalidRequest(
            f"the newest conversations give {len(questions)} questions, and {least_questions} are needed to judge an "
            "adapter: train later, when more was said",
            "conversations",
        )
    parts = splits(conversations)
    sources = tuple(said.id for one in conversations if parts[one.id] is not Split.HELD_OUT for said in one.utterances)
    measuring = MeasuringOrder(
        base, tuple(map(asked, questions)), {}, tuple(asked(one, examples=True) for one in questions), tuple(canaries)
    )
    general = replays(replay_prompts(), learnt, recipe.replay_share, recipe.seed)
    return Lessons(as_lines(rows + general), measuring, sources)


def evenly(questions: Sequence[Question], most: int) -> tuple[Question, ...]:
    """At most so many, from all conversations."""
    step = -(-len(questions) // most) or 1
    return tuple(questions[::step])


def measuring(folder: Path, recipe: Recipe, adapters: dict[str, Path], threads: int, memory_mb: int) -> MeasuringOrder:
    """What is measured when a training is over: the base, the adapter in use, the new one."""
    return replace(
        asked_in(folder), adapters=adapters, quantization=recipe.quantization, precision=recipe.precision,
        device=recipe.device, threads=threads, most_memory_mb=memory_mb,
    )  # fmt: skip
