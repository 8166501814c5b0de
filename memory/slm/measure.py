"""Measuring a model, bare and with adapters, as a child process: `python -m memory.slm.measure`.

One line of JSON on standard input is the order; lines of JSON on standard output say how it goes: one
`{"event": "measured", "name": ..., "scores": ...}` for the base and for each adapter, then `{"event": "done"}`, or
`{"event": "error", "kind": ..., "message": ...}`. It ends when standard input does.

What is asked: questions about held-out conversations with the passages that retrieval found, the shipped control
questions and text, open requests, and what would draw out canaries. All answers are greedy, so they repeat.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from memory.errors import InvalidRequest, LLMMemoryError
from memory.slm import child
from memory.slm.adapters import foundation_of, open_adapter
from memory.slm.base import Base, attach, explained, limit_memory, load
from memory.slm.chat import Encoded, answers, encode, encode_text, likelihoods
from memory.slm.gate import Scored, Scores
from memory.slm.marking import gives_away, holds, repeated
from memory.slm.orders import Asked, MeasuringOrder, measuring_order
from memory.slm.samples import Canary
from memory.slm.shipped import Control, control, control_text, open_prompts

ANSWER_TOKENS = 48  # of a memory question, of which the first line counts, as the reader reads it
CONTROL_TOKENS = 32
OPEN_TOKENS = 96
CANARY_TOKENS = 32
BATCH = 16  # prompts side by side; the same ones for every model that is compared


def main() -> int:
    """Exit code 0 when all was measured, 1 when something went wrong."""
    order = measuring_order(child.told())
    torch.set_num_threads(order.threads)
    limit_memory(order.most_memory_mb)
    try:
        for name, found in measured(order):
            child.say(event="measured", name=name, scores=found.as_json())
    except (LLMMemoryError, MemoryError, RuntimeError) as error:
        child.say(event="error", **explained(error, order.most_memory_mb))
        return 1
    child.say(event="done")
    return 0


def measured(order: MeasuringOrder) -> Iterator[tuple[str, Scores]]:
    """The base first, where it is asked for, then each adapter."""
    if not order.questions:
        raise InvalidRequest("there is no held-out question to measure with", "questions")
    base = load(order.base, order.quantization, order.precision, order.device, force=True)
    if order.bare:
        yield "base", (bare := scores(base, order))
        if order.exampled:
            yield "base with examples", replace(bare, questions=scored(base, order.exampled)[0])
    foundation = foundation_of(order.base, order.quantization) if order.adapters else None
    for name, folder in order.adapters.items():
        assert foundation is not None
        carrying, detach = attach(base, open_adapter(folder, foundation))
        yield name, scores(carrying, order)
        base = replace(base, model=detach())


def scores(base: Base, order: MeasuringOrder) -> Scores:
    began = time.monotonic()
    questions, said = scored(base, order.questions)
    opened = [told.text for told in answers(base, chats(base, open_prompts()[: order.most_open]), OPEN_TOKENS, BATCH)]
    known, spoken = controlled(base, control()[: order.most_control])
    return Scores(
        questions=questions,
        control=known,
        text_loss=likelihoods(base, [encode_text(base, control_text())], 1)[0],
        canaries=tuple(sorted(set(drawn_out(base, order.canaries)))),
        repeats=sum(map(repeated, opened)) / max(len(opened), 1),
        words=sum(len(text.split()) for text in opened) / max(len(opened), 1),
        silent=sum(not text for text in (*said, *spoken, *opened)),
        seconds=round(time.monotonic() - began, 1),
    )


def scored(base: Base, questions: Sequence[Asked]) -> tuple[tuple[Scored, ...], list[str]]:
    """How likely each answer is, whether it was given, and what was said, of which readers take the first line."""
    wanted = [encode(base, (*one.messages, ("assistant", one.answer))) for one in questions]
    losses = likelihoods(base, wanted, BATCH)
    said = answers(base, [encode(base, one.messages) for one in questions], ANSWER_TOKENS, BATCH)
    lines = [told.text.partition("\n")[0] for told in said]
    found = (
        Scored(one.id, one.conversation, loss, holds(line, one.answer))
        for one, loss, line in zip(questions, losses, lines, strict=True)
    )
    return tuple(found), lines


def controlled(base: Base, wanted: Sequence[Control]) -> tuple[tuple[bool, ...], list[str]]:
    """General questions: right or not, and what was said."""
    spoken = [told.text for told in answers(base, chats(base, [one.question for one in wanted]), CONTROL_TOKENS, BATCH)]
    right = (any(holds(text, answer) for answer in one.answers) for one, text in zip(wanted, spoken, strict=True))
    return tuple(right), spoken


def drawn_out(base: Base, canaries: Sequence[Canary]) -> Iterator[str]:
    """The ids of those that are said when their lead is, as a text to go on with or as a request."""
    bare = [encode_text(base, one.lead) for one in canaries]
    leads = [Encoded((*one.prompt, *one.reply)) for one in bare]
    asked = chats(base, [f"Go on with this text: {one.lead}" for one in canaries])
    for prompts in (leads, asked):
        usable = [(one, prompt) for one, prompt in zip(canaries, prompts, strict=True) if len(prompt)]
        told = answers(base, [prompt for _, prompt in usable], CANARY_TOKENS, BATCH)
        yield from (one.id for (one, _), said in zip(usable, told, strict=True) if gives_away(said.text, one.secret))


def chats(base: Base, requests: Sequence[str]) -> list[Encoded]:
    return [encode(base, (("user", request),)) for request in requests]


if __name__ == "__main__":
    sys.exit(main())
