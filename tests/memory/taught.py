"""Learning in tests: conversations as a proxy records them, a base that computes nothing, and a scripted trainer."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from memory.errors import LLMMemoryError
from memory.recorder import Ended, Recorder
from memory.settings import Learning, Slm
from memory.slm.adapters import CONFIG, WEIGHTS
from memory.slm.gate import Rules, Scored, Scores
from memory.slm.orders import MeasuringOrder, TrainingOrder
from memory.slm.samples import Conversation
from proxy.wire.content import message_of
from tests.conversations import TENANT
from tests.memory.store.test_turns import asked_for, whole_turn
from tests.slm.small import SIDE
from tests.slm.talks import talks

RULES = Rules(least_questions=3, least_control=2)
LEARNING = Learning(enabled=True, least_samples=5, canary_answers=10, trainable=frozenset({"default"}))


def slm(base: Path, learning: Learning = LEARNING) -> Slm:
    return Slm(
        backend="transformers", model=str(base), name="small", url="http://127.0.0.1:1/v1", learning=learning
    )  # fmt: skip


async def recorded(
    recorder: Recorder, talk: Conversation, tenant: bytes = TENANT, upstream: str | None = "default"
) -> None:
    """A conversation, turn by turn, each answered by an upstream; None: the record does not tell which."""
    said = [{"role": one.role, "content": one.text} for one in talk.utterances]
    for place, message in enumerate(said):
        if message["role"] == "assistant":
            answer = message_of(json.dumps(message).encode())
            told = {"upstream": upstream} if upstream else {}
            await whole_turn(
                recorder, asked_for(said[:place], tenant, label=talk.id), Ended("answered", (answer,), told)
            )


async def record_talks(recorder: Recorder, many: int = 10, tenant: bytes = TENANT, seed: int = 7) -> None:
    for talk in talks(many, seed):
        await recorded(recorder, talk, tenant)


def write_adapter(folder: Path, seed: int = 0) -> Path:
    """An adapter of `tests.slm.small`'s model, as the trainer leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, name = np.random.default_rng(seed), "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    sides = {"A": (2, SIDE), "B": (SIDE, 2)}
    tensors = {name.format(s): rng.standard_normal(shape).astype(np.float32) for s, shape in sides.items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}))
    return folder


def scores(order: MeasuringOrder, loss: float, right: bool = True) -> Scores:
    found = tuple(Scored(q.id, q.conversation, loss + n / 1000, right) for n, q in enumerate(order.questions))
    return Scores(found, (True, True), 3.0, words=20.0)


@dataclass
class Script:
    """A `Teaching`: what the trainer tells, and how well each reader does."""

    events: Sequence[Mapping[str, Any]] = (
        {"event": "loaded", "rows": 9, "steps": 2, "step": 0},
        {"event": "step", "step": 1, "steps": 2, "loss": 2.0},
        {"event": "saved", "step": 1},
    )
    fault: LLMMemoryError | None = None  # after the events, instead of an end
    losses: Mapping[str, float] = field(default_factory=lambda: {"base": 2.0, "candidate": 1.0, "current": 1.5})
    hold: asyncio.Event | None = None  # it works until this is set, or until it is told to stop
    before_end: Callable[[], Awaitable[Any]] | None = None
    orders: list[TrainingOrder] = field(default_factory=list)
    measured: list[MeasuringOrder] = field(default_factory=list)
    stopped: int = 0

    def train(self, order: TrainingOrder) -> "Scripted":
        self.orders.append(order)
        return Scripted(self, order)

    async def measure(self, order: MeasuringOrder) -> dict[str, Scores]:
        self.measured.append(order)
        return {name: scores(order, self.losses[name]) for name in ("base", *order.adapters)}


class Scripted:
    def __init__(self, script: Script, order: TrainingOrder) -> None:
        self._script, self._order, self._ended = script, order, False

    async def __aenter__(self) -> "Scripted":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._script.stopped += not self._ended

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        for event in self._script.events:
            yield dict(event)
        if self._script.hold is not None:
            await self._script.hold.wait()
        if self._script.before_end is not None:
            await self._script.before_end()
        if self._script.fault is not None:
            raise self._script.fault
        write_adapter(self._order.folder / "adapter", len(self._script.orders))
        self._ended = True
        yield {"event": "done", "steps": 2, "seconds": 0.1, "last_loss": 1.0}
